"""Continuous batching of an [`EFTForCausalLM`]: requests that come and go, each with coefficients of its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import ContinuousBatchingConfig, GenerationMixin
from transformers.generation.continuous_batching.continuous_api import ContinuousMixin

from ...members.combined import Generates
from ..speculative.request import Request  # at run time too: transformers resolves the annotations of a model's class
from .answers import BatchEnded
from .limits import check_arguments
from .manager import EFTBatchingManager
from .options import Whole, whole

__all__ = ["BatchEnded", "EFTBatchingManager", "EFTContinuousMixin"]

# What `generate_batch` takes for transformers'.
_OF_THE_CALL = ("record_timestamps", "progress_bar", "persistent_manager", "warmup")


class Prompt(list[int]):
    """The tokens of a prompt, with the coefficients for it."""

    def __init__(self, tokens: Sequence[int], coefficients: Sequence[float] | dict[str, Sequence[float]]) -> None:
        super().__init__(tokens)
        self.coefficients = coefficients


def with_coefficients(
    inputs: Sequence[Sequence[int]], coefficients: torch.Tensor | Mapping[str, torch.Tensor] | None
) -> Sequence[Sequence[int]]:
    """The prompts, each with its row of coefficients, `(prompts, members)`, or its row for each phase."""
    if coefficients is None:
        return inputs
    if isinstance(coefficients, Mapping):
        parted = {phase: _rows_of(inputs, rows) for phase, rows in coefficients.items()}
        return [Prompt(tokens, {phase: rows[i] for phase, rows in parted.items()}) for i, tokens in enumerate(inputs)]
    return [Prompt(tokens, row) for tokens, row in zip(inputs, _rows_of(inputs, coefficients), strict=True)]


def _rows_of(inputs: Sequence[Sequence[int]], coefficients: torch.Tensor) -> list[list[float]]:
    if coefficients.dim() != 2 or coefficients.shape[0] != len(inputs):
        raise ValueError(f"`coefficients` must have a row for each of {len(inputs)} prompts, got {tuple(coefficients.shape)}.")
    rows: list[list[float]] = coefficients.tolist()
    return rows


class EFTContinuousMixin(ContinuousMixin):
    """The part of [`EFTForCausalLM`] that batches continuously."""

    _request: Request
    generation_config: Any

    def init_continuous_batching(
        self,
        generation_config: Any = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        workload_hints: Any = None,
    ) -> EFTBatchingManager:
        r"""
        As in transformers, see [`~transformers.ContinuousMixin.init_continuous_batching`]: a manager of requests that come and go.

        Args:
            generation_config (`GenerationConfig`, *optional*):
                How tokens are chosen. What it leaves open is the model's, as in `generate`.
            continuous_batching_config (`ContinuousBatchingConfig`, *optional*): How requests are batched.
            workload_hints (`WorkloadHints`, *optional*): What is expected.

        Returns:
            [`EFTBatchingManager`]: The manager, whose requests may carry coefficients.

        Raises:
            `NotImplementedError`: If the tokens could not be those of `generate`, saying why.
            `ValueError`: If there is no such option, or a manager is kept that was made with others.
        """
        model = cast(Generates, self)
        kept = getattr(self, "_cached_continuous_batching_manager", None)
        asked = None if kept is not None and generation_config is None else whole(model, generation_config)
        batching = continuous_batching_config
        if batching is None and asked is not None:
            batching = asked.continuous_batching_config
        if kept is None:
            return EFTBatchingManager(model, cast(Whole, asked), copy.deepcopy(batching), workload_hints)
        kept.check_as_asked(asked, batching)
        return kept

    @contextmanager
    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> Iterator[EFTBatchingManager]:
        """As in transformers. What ended the manager's thread is raised when the context is left, rather than logged."""
        with super().continuous_batching_context_manager(*args, **kwargs) as manager:
            yield manager
        error = manager.refusal or manager.background_thread_status.fatal_error
        if error is not None:
            raise error

    def generate_batch(
        self,
        inputs: Sequence[Sequence[int]],
        generation_config: Any = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        *,
        coefficients: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        As in transformers, see [`~transformers.ContinuousMixin.generate_batch`]: prompts of any length, batched continuously.

        Args:
            inputs (`Sequence[Sequence[int]]`): The prompts, without padding.
            generation_config (`GenerationConfig`, *optional*):
                How tokens are chosen. What it leaves open is the model's, as in `generate`.
            continuous_batching_config (`ContinuousBatchingConfig`, *optional*): How requests are batched.
            coefficients (`torch.FloatTensor` of shape `(prompts, members)`, *optional*):
                Coefficients for each prompt instead of the recipe's; columns in the order of `members`. Or a tensor for each phase, by
                its name.
            kwargs (*optional*):
                Options of `generate`, before those of `generation_config`, and `record_timestamps`, `progress_bar`,
                `persistent_manager` and `warmup` as in transformers.

        Returns:
            `dict[str, GenerationOutput]`: By request, in the order of the prompts, tokens that are those of `generate`.

        Raises:
            `NotImplementedError`: If they could not be, saying why.
            `ValueError`: If there is no such option, a prompt is padded, empty or too long, or the coefficients do not fit.
        """
        call = {name: kwargs.pop(name) for name in _OF_THE_CALL if name in kwargs}
        options = check_arguments(self._request, kwargs)
        kept = getattr(self, "_cached_continuous_batching_manager", None)
        if kept is not None and generation_config is None and not options:
            generation_config = kept.generation_config
        asked = whole(cast(Generates, self), generation_config, options)
        if continuous_batching_config is None:
            continuous_batching_config = asked.continuous_batching_config
        prompts = with_coefficients(inputs, coefficients)
        return super().generate_batch(prompts, asked, continuous_batching_config, **call)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; with `cache_implementation="paged"`, as a batch that refuses what it would leave out."""
        config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
        sources = (
            kwargs.get("cache_implementation"),
            *(each and each.cache_implementation for each in (config, self.generation_config)),
        )
        wanted = next((kind for kind in sources if kind is not None), None)
        if wanted != "paged" or kwargs.get("custom_generate") is not None:
            return super().generate(*args, **kwargs)
        arguments = inspect.signature(GenerationMixin.generate).bind(self, *args, **kwargs).arguments
        return self._generate_paged({**arguments.pop("kwargs", {}), **arguments})

    def _generate_paged(self, arguments: dict[str, Any]) -> torch.Tensor:
        """The rows of a batch, padded behind: `(1, prompts, prompt and new tokens)`, as transformers returns them."""
        del arguments["self"]
        ids, config = arguments.pop("input_ids", None), arguments.get("generation_config")
        ids = arguments.pop("inputs", ids)
        if not isinstance(ids, torch.Tensor) or ids.dim() not in (1, 2):
            raise ValueError("A batch reads ids: give `input_ids` of shape `(prompts, positions)`.")
        if arguments.get("persistent_manager"):
            raise ValueError("`persistent_manager` is for `generate_batch`.")
        outputs = self.generate_batch(torch.atleast_2d(ids).tolist(), **arguments)
        rows = [torch.tensor(output.prompt_ids + output.generated_tokens) for output in outputs.values()]
        pads = (arguments.get("pad_token_id"), *(each and each.pad_token_id for each in (config, self.generation_config)))
        pad = next((value for value in pads if value is not None), 0)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)[None].to(ids.device)
