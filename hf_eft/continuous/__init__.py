"""Continuous batching of an [`EFTForCausalLM`]: requests that come and go, each with coefficients of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, ContinuousMixin
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens

from ..speculative.request import Request  # at run time too: transformers resolves the annotations of a model's class
from .limits import check_coefficient_row, refuse_arguments, resolve
from .paged import PagedMembers

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM


class EFTBatchingManager(ContinuousBatchingManager):
    r"""
    transformers' manager of requests that come and go, see [`~transformers.ContinuousBatchingManager`], for members.

    A request may carry coefficients of its own: `add_request(ids, coefficients=(1.0, 0.5, -0.5))`, in the order of `model.members`.
    """

    def __init__(
        self, model: EFTForCausalLM, generation_config: Any, config: ContinuousBatchingConfig | None, hints: Any = None
    ) -> None:
        resolved = resolve(model, generation_config, config)
        super().__init__(PagedMembers(model), generation_config, resolved, hints)
        self.logit_processor.tensors_required += 1  # that of `RequestCoefficients`, which transformers counts for its own only
        self.refusal: Exception | None = None

    def start(self) -> None:
        """As in transformers; the cache is made here, so that what is wrong with it is raised to who starts."""
        if self.batch_processor is None:
            self.warmup()
        super().start()

    def add_request(self, input_ids: Sequence[int], *args: Any, coefficients: Any = None, **kwargs: Any) -> str | None:
        r"""
        As in transformers, with coefficients.

        Args:
            input_ids (`Sequence[int]`): The prompt.
            coefficients (`Sequence[float]`, *optional*): Of this request, in the order of `model.members`.

        Raises:
            `ValueError`: If the coefficients are not a number for each member, or the prompt is empty, has tokens that a member does not
                know, or could grow longer than the cache or a member allows.
        """
        coefficients = getattr(input_ids, "coefficients", coefficients)
        if coefficients is not None:
            kwargs["coefficients"] = check_coefficient_row(coefficients, self.model.members.names)
        new = kwargs.get("max_new_tokens", args[1] if len(args) > 1 else None)
        self._check_length(input_ids, self.generation_config.max_new_tokens if new is None else new)
        return super().add_request(input_ids, *args, **kwargs)

    def add_requests(self, *args: Any, **kwargs: Any) -> list[str]:
        """As in transformers. What is wrong with a request is kept, for [`EFTContinuousMixin.generate_batch`] to raise."""
        try:
            return super().add_requests(*args, **kwargs)
        except Exception as error:
            self.refusal = error
            raise

    def _check_length(self, input_ids: Sequence[int], new_tokens: int | None) -> None:
        if not input_ids:
            raise ValueError("The prompt has no tokens: there is nothing to continue.")
        known = min(self.model.members.vocabulary.widths.values())
        if min(input_ids) < 0 or max(input_ids) >= known:
            raise ValueError(f"The ids of a prompt must be from 0 to {known - 1}, got {min(input_ids)} to {max(input_ids)}.")
        if new_tokens is None:
            raise ValueError("Say how long a request may become: give `max_new_tokens`.")
        limits = {
            f"positions of the member {name!r}": limit
            for name, model in self.model.members.distinct_models.items()
            if (limit := getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)) is not None
        }
        if self.batch_processor is not None:
            limits["tokens of the cache"] = infer_max_single_request_tokens(self.batch_processor.cache)
        for what, limit in limits.items():
            # One request that outgrows them would end all the others.
            if len(input_ids) + new_tokens > limit:
                raise ValueError(
                    f"A prompt of {len(input_ids)} tokens and {new_tokens} new ones are more than the {limit} {what}. Ask for fewer new "
                    "tokens, or give the cache more blocks."
                )


class Prompt(list[int]):
    """The tokens of a prompt, with the coefficients for it."""

    def __init__(self, tokens: Sequence[int], coefficients: Sequence[float]) -> None:
        super().__init__(tokens)
        self.coefficients = coefficients


def with_coefficients(inputs: Sequence[Sequence[int]], coefficients: torch.Tensor | None) -> Sequence[Sequence[int]]:
    """The prompts, each with its row of coefficients, `(prompts, members)`."""
    if coefficients is None:
        return inputs
    if coefficients.dim() != 2 or coefficients.shape[0] != len(inputs):
        raise ValueError(f"`coefficients` must have a row for each of {len(inputs)} prompts, got {tuple(coefficients.shape)}.")
    return [Prompt(tokens, row) for tokens, row in zip(inputs, coefficients.tolist(), strict=True)]


class EFTContinuousMixin(ContinuousMixin):
    """The part of [`EFTForCausalLM`] that batches continuously."""

    _request: Request

    def init_continuous_batching(
        self,
        generation_config: Any = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        workload_hints: Any = None,
    ) -> EFTBatchingManager:
        r"""
        As in transformers, see [`~transformers.ContinuousMixin.init_continuous_batching`]: a manager of requests that come and go.

        Returns:
            [`EFTBatchingManager`]: The manager, whose requests may carry coefficients.

        Raises:
            `NotImplementedError`: If the tokens could not be those of `generate`, saying why.
        """
        kept = getattr(self, "_cached_continuous_batching_manager", None)
        if kept is not None:
            return kept
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        if config.eos_token_id is None:
            config.eos_token_id = -1  # requests end at their lengths only
        return EFTBatchingManager(self, config, continuous_batching_config, workload_hints)

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
        coefficients: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        As in transformers, see [`~transformers.ContinuousMixin.generate_batch`]: prompts of any length, batched continuously.

        Args:
            inputs (`Sequence[Sequence[int]]`): The prompts, without padding.
            generation_config (`GenerationConfig`, *optional*): How tokens are chosen; the model's by default.
            continuous_batching_config (`ContinuousBatchingConfig`, *optional*): How requests are batched.
            coefficients (`torch.FloatTensor` of shape `(prompts, members)`, *optional*):
                Coefficients for each prompt instead of the recipe's; columns in the order of `members`.

        Returns:
            `dict[str, GenerationOutput]`: By request, in the order of the prompts, tokens that are those of `generate`.

        Raises:
            `NotImplementedError`: If they could not be, saying why.
            `ValueError`: If a prompt is padded, empty or too long, or the coefficients do not fit.
        """
        refuse_arguments(self._request, kwargs)
        prompts = with_coefficients(inputs, coefficients)
        return super().generate_batch(prompts, generation_config, continuous_batching_config, **kwargs)
