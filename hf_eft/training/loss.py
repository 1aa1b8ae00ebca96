"""The loss of the combination on a batch: which tokens are predicted, and what the members say of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..recipe.combine import combine
from .heads import Halves
from .pieces import in_pieces, piece_of


class Loss:
    r"""
    What the members' bodies say of a batch, from which numbers for each predicted token are made.

    Args:
        model ([`EFTForTraining`]): The combination.
        input_ids (`torch.LongTensor` of shape `(batch, positions)`): The texts.
        attention_mask (`torch.LongTensor` of shape `(batch, positions)`, *optional*): 0 where a token is padding.
        position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*): Positions.
        options (`Mapping[str, Any]`): Further arguments of `forward`.
    """

    def __init__(self, model: Any, input_ids: Any, attention_mask: Any, position_ids: Any, options: Mapping[str, Any]) -> None:
        self.model, self.members = model, model._members
        self.input_ids, self.attention_mask, self.position_ids = input_ids, attention_mask, position_ids
        self._learner = self.members.owner[model._learns] if model._learns is not None else None
        extra = {
            key: value for key, value in options.items() if key not in ("use_cache", "cache", "past_key_values", "return_dict")
        }
        self.states = {name: self._states(name, extra) for name in self.members.distinct}

    def _states(self, name: str, extra: Mapping[str, Any]) -> torch.Tensor:
        halves = self._halves(name)

        def read(logits_to_keep: int) -> Any:
            return self.members.step(
                self.input_ids,
                attention_mask=self.attention_mask,
                position_ids=self.position_ids,
                logits_to_keep=logits_to_keep,
                only={name},
                **extra,
            )[name]

        with torch.set_grad_enabled(torch.is_grad_enabled() and name == self._learner):
            return halves.states(read)

    def _halves(self, name: str) -> Halves:
        known = self.model.__dict__.setdefault("_halves", {})
        member = self.members.distinct[name]
        if member.model not in known:
            known[member.model] = Halves(name, member.model, "logits_to_keep" in member.accepts)
        return known[member.model]

    def mean(self, labels: Any, shift_labels: Any, num_items: Any) -> torch.Tensor:
        """The loss: the negative log-probs of the tokens that have labels, their sum divided by their number or by `num_items`."""
        where, numbers = self.numbers(self.targets(labels, shift_labels), ("log_probs",))
        total = -numbers["log_probs"].sum()
        return total / (max(1, len(where)) if num_items is None else num_items)

    def targets(self, labels: Any, shift_labels: Any) -> torch.Tensor:
        """The token that each position predicts, `(batch, positions)`; -100 where there is none to learn."""
        if shift_labels is None:
            shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        if self.attention_mask is not None:
            shift_labels = shift_labels.masked_fill(self.attention_mask == 0, -100)
        return shift_labels

    def numbers(
        self, targets: torch.Tensor, wanted: Collection[str], temperature: float = 1.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Where tokens are predicted, `(tokens, 2)`, and numbers of each, `(tokens,)`; see [`in_pieces`]."""
        where = (targets != -100).nonzero()  # (tokens, 2)
        rows, columns = where.unbind(-1)
        states = {name: values[rows.to(values.device), columns.to(values.device)] for name, values in self.states.items()}

        def combined(piece: Mapping[str, torch.Tensor], part: slice) -> torch.Tensor:
            return self._combined(piece)

        positions = self.model.positions_per_piece or piece_of(self.members.vocabulary.size)
        chosen = targets[rows, columns].to(self.model._place)
        return where, in_pieces(states, chosen, combined, positions, wanted, temperature)

    def _combined(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The combined logits, `(tokens, vocab)`, of a piece of the states."""
        logits = {}
        for name, values in states.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and name == self._learner):
                logits[name] = self._halves(name).logits(values)[None].to(self.model._place)  # (1, tokens, vocab)
        wide = torch.float64 if any(values.dtype == torch.float64 for values in logits.values()) else torch.float32
        total = combine(self.members.by_name(logits), self.model.combination, dtype=wide)
        return self.members.vocabulary.widen(total, self.members.vocabulary.size)[0]
