"""`EFTInPieces`: an [`EFTForCausalLM`] whose loss is computed in pieces over positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..members.devices import execution_device
from ..modeling_eft import EFTForCausalLM
from ..recipe.combination import BASE
from .kept import KeptStates
from .loss import Loss
from .trainers import taken


class EFTInPieces(EFTForCausalLM):
    """
    An [`EFTForCausalLM`] whose loss is computed in pieces over positions, and which trainers may ask for numbers of each token: the policy
    that learns ([`EFTForTraining`]), and the one that it is held to.
    """

    keep_logits = False  # whether `forward` returns the logits of all positions beside the loss
    positions_per_piece: int | None = None  # how many a piece of the loss has; by default 128 MiB of logits in float32
    _learns: str | None = None
    _kept_states: Mapping[Any, KeptStates] = MappingProxyType({})  # by model

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, taken(self, value) if name == "forward" else value)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""
        As [`EFTForCausalLM.forward`], and with labels:

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, positions)`): The texts.
            attention_mask (`torch.LongTensor` of shape `(batch, positions)`, *optional*): 0 where a token is padding.
            position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*):
                Positions. Where they begin again, another text begins (packing without padding).
            labels (`torch.LongTensor` of shape `(batch, positions)`, *optional*): The tokens to learn; -100 is none.
            shift_labels (`torch.LongTensor` of shape `(batch, positions)`, *optional*): Instead: at each position, the token after it.
            num_items_in_batch (`int`, *optional*): What the sum over tokens is divided by, in place of their number.
            **kwargs: As there: `coefficients`, `member_inputs`.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]: The loss, without logits; without labels, as there.
        """
        if labels is None and shift_labels is None:
            with self._through_a_base():
                return super().forward(input_ids, attention_mask, position_ids, **kwargs)
        with self._reading(input_ids, attention_mask, position_ids, kwargs) as loss:
            logits = None
            if self.keep_logits:
                with torch.no_grad():
                    logits = super().forward(input_ids, attention_mask, position_ids, **kwargs).logits
            return CausalLMOutputWithPast(loss=loss.mean(labels, shift_labels, num_items_in_batch), logits=logits)

    @contextmanager
    def _reading(self, input_ids: Any, attention_mask: Any, position_ids: Any, options: Mapping[str, Any]) -> Iterator[Loss]:
        """A batch as the members read it."""
        with self._through_a_base():
            yield Loss(self, input_ids, attention_mask, position_ids, options)

    @contextmanager
    def _through_a_base(self) -> Iterator[None]:
        yield

    def keep_states(self, folder: str | Path, *, tokens: int) -> list[KeptStates]:
        r"""
        Keep the base's last states on disk from now on, so that a text that comes again is not read again by it.

        Args:
            folder (`str` or `Path`): Where. What is there of the same weights is used.
            tokens (`int`): How many tokens the texts have together, for the size that is said before anything is written.

        Returns:
            `list[KeptStates]`: Of each base.

        Raises:
            `OSError`: If there is less room on the disk than they will take; `ValueError`: If the recipe has no base.
        """
        if BASE not in self._members.names:
            raise ValueError(f"There is no base whose states could be kept among the members {list(self._members.names)}.")
        others = [model for name, model in self._members.models.items() if name != BASE]
        bases = [model for model in self._models() if not any(model is other for other in others)]
        self.__dict__["_kept_states"] = {model: KeptStates(Path(folder), model, tokens) for model in bases}
        return list(self._kept_states.values())

    # Where members are --------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> torch.device:
        """Where the combination is computed: with the learner, or with the main member."""
        members = self._members
        return members.distinct[members.owner[self._learns or members.main]].device

    def _models(self) -> list[Any]:
        """Every model once."""
        return list(self._members.distinct_models.values())

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """
        Move or cast. A model that is on another device than the learner's, or that was spread over several or the disk (`device_map`),
        stays where it is.
        """
        moves = torch._C._nn._parse_to(*args, **kwargs)[0] is not None
        self.__dict__["_stay"] = [model for model in self._models() if moves and execution_device(model) != self._place]
        try:
            return super().to(*args, **kwargs)
        finally:
            self.__dict__["_stay"] = []

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        stay = self.__dict__.get("_stay", [])
        moved = [model for model in self._models() if model not in stay and not _is_spread(model)]
        submodules = dict(self._modules)
        for name in self._members.distinct:
            if submodules[name] not in moved:
                del self._modules[name]
        try:
            for model in moved:
                if model not in submodules.values():  # a base beside the first: a trainer would count a submodule's weights
                    model._apply(fn, recurse)
            return super()._apply(fn, recurse)
        finally:
            self._modules.clear()
            self._modules.update(submodules)


def _is_spread(model: Any) -> bool:
    """Whether accelerate says where each part of a model is."""
    return hasattr(model, "hf_device_map") or any(parameter.is_meta for parameter in model.parameters())
