"""The loss of the combination on a batch: what the members' bodies say of it, and numbers for each token that is predicted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..members.checks import check_mask
from ..members.quantised import check_learns
from ..prompts import positions_in_common
from ..recipe.combine import combine
from .heads import Halves
from .packing import check_packed
from .pieces import in_pieces, piece_of
from .targets import NONE, beginnings, next_tokens, without_beginnings, without_padding

# What a call may say that has no meaning where no cache is kept and no model's own outputs are returned.
_UNUSED = ("use_cache", "return_dict")
_REFUSED = {
    "cache": "texts are read from their beginning",
    "past_key_values": "texts are read from their beginning",
    "inputs_embeds": "members have embeddings of their own",
    "logits_to_keep": "the labels say which positions count",
    "output_router_logits": "the balance of a member's experts is no part of the loss of the combination",
    "output_hidden_states": "there is one loss of all members",
    "output_attentions": "there is one loss of all members",
}


class Loss:
    r"""
    What the members' bodies say of a batch, from which numbers for each predicted token are made.

    Args:
        model ([`EFTInPieces`]): The combination.
        input_ids (`torch.LongTensor` of shape `(batch, positions)`): The texts.
        attention_mask (`torch.LongTensor` of shape `(batch, positions)`, *optional*): 0 where a token is padding.
        position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*): Positions.
        options (`Mapping[str, Any]`): Further arguments of `forward`.

    Raises:
        `ValueError`: For arguments that a loss has no use for.
    """

    def __init__(self, model: Any, input_ids: Any, attention_mask: Any, position_ids: Any, options: Mapping[str, Any]) -> None:
        for name, why in _REFUSED.items():
            if options.get(name) is not None and options[name] is not False:
                raise ValueError(f"`{name}` was given together with labels, but {why}. Leave it out.")
        if input_ids is None:
            raise ValueError("With labels, give the texts as `input_ids`.")
        check_mask(attention_mask, input_ids, None)
        own: Mapping[str, Mapping[str, torch.Tensor]] = options.get("member_inputs") or {}
        self.model, self.members = model, model._members.apart(own)
        self.input_ids, self.attention_mask, self.position_ids = input_ids, attention_mask, position_ids
        self._coefficients, self._own = options.get("coefficients"), own
        self._begins = beginnings(position_ids, attention_mask)
        self._learner = None if model._learns is None else self.members.owner[model._learns]
        extra = {k: v for k, v in options.items() if k not in (*_UNUSED, *_REFUSED, "member_inputs", "coefficients")}
        self.states = {name: self._states(name, extra) for name in self.members.distinct}
        self._length = positions_in_common(0, input_ids, own) if own else input_ids.shape[1]

    def _states(self, name: str, extra: Mapping[str, Any]) -> torch.Tensor:
        halves = self._halves(name)
        given = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": self.position_ids}

        def read(logits_to_keep: int, **given: Any) -> Any:
            ids = given.pop("input_ids")
            own = {each: inputs for each, inputs in self._own.items() if each == name}
            return self.members.step(ids, **given, own=own, logits_to_keep=logits_to_keep, only={name}, **extra)[name]

        kept = self.model._kept_states.get(halves.model)
        if kept is not None and self._begins is None and not self._own and self.position_ids is None and not extra:

            def compute(ids: torch.Tensor, mask: Any) -> torch.Tensor:
                return halves.states(lambda keep: read(keep, input_ids=ids, attention_mask=mask, position_ids=None))

            with torch.no_grad():
                if not halves.tried:  # nothing may be left to compute, which would show where its head begins
                    compute(torch.zeros_like(self.input_ids[:1, :2]), None)
                states = kept.states(self.input_ids, self.attention_mask, compute)
            if halves.whole:
                raise ValueError(
                    f"The member {name!r} ({type(halves.model).__name__}) gives its logits at once, which would take the width of the "
                    "vocabulary for each token on disk. Do without `keep_states`."
                )
            return states
        with torch.set_grad_enabled(torch.is_grad_enabled() and name == self._learner):
            states = halves.states(lambda keep: read(keep, **given))
        if self._begins is not None:
            check_packed(halves, states, self._begins, lambda keep, **alone: read(keep, **{**given, **alone}), self.input_ids)
        return states

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
        targets = without_padding(next_tokens(labels, shift_labels), self.attention_mask)
        targets = without_beginnings(targets, self._begins)[:, -self._length :]
        for inputs in self._own.values():
            if (mask := inputs.get("attention_mask")) is not None:
                targets = targets.masked_fill(mask[:, -self._length :].to(targets.device) == 0, NONE)
        return targets

    def numbers(
        self, targets: torch.Tensor, wanted: Collection[str], temperature: float = 1.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Where tokens are predicted, `(tokens, 2)`, and numbers of each, `(tokens,)`; see [`in_pieces`].

        Raises:
            `ValueError`: If a label is no token that all members have.
        """
        where = (targets != NONE).nonzero()  # (tokens, 2)
        rows, columns = where.unbind(-1)
        chosen = targets[rows, columns]
        vocabulary = self.members.vocabulary
        wrong = (chosen < 0) | (chosen >= vocabulary.size)
        if vocabulary.known is not None:
            wrong |= ~vocabulary.known.to(chosen.device)[chosen.clamp(0, vocabulary.size - 1)]
        if bool(wrong.any()):
            raise ValueError(
                f"The label {int(chosen[wrong][0])} is no token that all members have, of widths {vocabulary.widths}: the combination "
                f"never says it. Set such labels to {NONE}, or add the token to all (`resize_token_embeddings`)."
            )
        states = {}
        for name, values in self.states.items():
            values = values[:, -self._length :]
            states[name] = values[rows.to(values.device), columns.to(values.device)]  # (tokens, width)
        coefficients = self._per_token(rows, columns)

        def combined(piece: Mapping[str, torch.Tensor], part: slice) -> torch.Tensor:
            return self._combined(piece, where[part], None if coefficients is None else coefficients[None, part])

        positions = self.model.positions_per_piece or piece_of(vocabulary.size)
        numbers = in_pieces(states, chosen.to(self.model._place), combined, positions, wanted, temperature)
        if self._learner is not None and torch.is_grad_enabled():
            check_learns(self._learner, self.members.distinct[self._learner].model)
        if self._learner is not None and torch.is_grad_enabled() and not numbers["log_probs"].requires_grad:
            raise ValueError(
                f"The loss does not depend on the weights of the member {self._learner!r}, which is to learn: "
                f"{type(self.members.distinct[self._learner].model).__name__} cannot be differentiated."
            )
        return where, numbers

    def _per_token(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor | None:
        """Coefficients of each token that is predicted, `(tokens, members)`, where they were given for rows or positions."""
        given = self._coefficients
        if given is None or given.dim() == 2:
            return None if given is None else given[rows.to(given.device)]
        given = given[:, -self._length :]
        return given[(rows if len(given) > 1 else torch.zeros_like(rows)).to(given.device), columns.to(given.device)]

    def _combined(
        self, states: Mapping[str, torch.Tensor], where: torch.Tensor, coefficients: torch.Tensor | None
    ) -> torch.Tensor:
        """The combined logits, `(tokens, vocab)`, of a piece of the states."""
        logits = {}
        for name, values in states.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and name == self._learner):
                logits[name] = self._halves(name).logits(values)[None].to(self.model._place)  # (1, tokens, vocab)
        try:
            by_name = self.members.by_name(logits)
        except FloatingPointError:
            self._say_where(logits, where)
            raise
        wide = torch.float64 if any(values.dtype == torch.float64 for values in logits.values()) else torch.float32
        total = combine(by_name, self.model.combination, coefficients, wide)
        return self.members.vocabulary.widen(total, self.members.vocabulary.size)[0]

    def _say_where(self, logits: Mapping[str, torch.Tensor], where: torch.Tensor) -> None:
        for name, values in logits.items():
            wrong = ~values.detach()[0].amax(-1).isfinite()
            if bool(wrong.any()):
                row, column = where[wrong.to(where.device)][0].tolist()
                raise FloatingPointError(
                    f"The member {name!r} returned logits that are no distribution in row {row}, at position {column} of the last "
                    f"{self._length}. Expected finite logits: check its weights and its dtype (float16 overflows where bfloat16 does not)."
                ) from None
