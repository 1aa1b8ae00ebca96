"""The steps of a call in which members that cannot change the choice are left out, and catch up later."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ...members.cache import EFTCache
from ...members.members import Members
from ...recipe.combination import BASE, Combination
from ...recipe.combine import combine
from .leads import lead, moved, one_left
from .options import Report, Skipping


class Skipper:
    r"""
    Runs the steps of one call of `generate`.

    What a member has missed stands in the call's cache, which moves it as it moves states (beams, rows, copies, crops), and every step that
    asks the member again has it read that first. Without a cache a member that is left out misses nothing: it reads the whole text anew.

    Args:
        asked ([`Skipping`]): What the call asks for.
        combination ([`Combination`]): The recipe.
        ends (`Collection[int]`): What ends a row for good, so that nobody looks at what follows; none where rows may be anything.
    """

    def __init__(self, asked: Skipping, combination: Combination, ends: Collection[int] = ()) -> None:
        self.asked, self.combination = asked, combination
        self.report = Report()
        self.is_past_prompt = False
        self._ends = torch.tensor(list(ends), dtype=torch.long)
        self._over: torch.Tensor | None = None  # (rows,): which have ended
        self._moved: deque[torch.Tensor] = deque(maxlen=asked.recent)  # (rows,) each: in the last steps with all members

    def step(
        self, members: Members, coefficients: torch.Tensor | None, certain: torch.Tensor | None, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], torch.Tensor]:
        r"""
        One step.

        Args:
            members ([`Members`]): The members. The first is always run.
            coefficients (`torch.FloatTensor` of shape `(rows, members)` or `(1 or rows, kept, members)`, *optional*):
                Those of the positions whose logits are kept, in place of the recipe's.
            certain (`torch.LongTensor` of shape `(1 or rows, kept)`, *optional*): The tokens that must follow, -1 where none must.
            given (`Mapping[str, Any]`): What [`Members.step`] is given.

        Returns:
            `tuple`: The outputs of those that were run, by name, and the combined logits, `(rows, kept, vocab)`.
        """
        main, others = members.main, [name for name in members.distinct if name != members.main]
        tokens = given["input_ids"]
        over = self._ended(tokens)
        strengths = self._strengths(members, coefficients)
        if not self.report.forwards:
            self.report.begin(members.distinct)
        why = {name: reason for name in others if (reason := self._without_a_say(members, name, strengths, certain, over))}
        rest = [name for name in others if name not in why]
        asks_base = bool(rest) and (self.asked.by_lead or self._truncation_of(members) is not None)
        outputs = self._run(members, [main] if asks_base else [main, *rest], given)
        if asks_base:
            if (reason := self._decided(members, outputs, strengths, given["attention_mask"], over)) is not None:
                why |= dict.fromkeys(rest, reason)
                coefficients = torch.where(self._owned_by_main(members).to(strengths.device), strengths, 0.0)
                rest = []
            else:
                outputs |= self._run(members, rest, given)
        self._leave_out(members, why, given)
        logits = members.logits(outputs, given["attention_mask"])
        nobody = logits[next(iter(logits))]
        nobody = nobody.new_zeros(()).expand_as(nobody)  # in the place of those who have no say
        logits = {name: logits.get(name, nobody) for name in members.names}
        combined = combine(logits, self.combination, coefficients)
        if self.asked.recent is not None and not why:
            term = combined_term(logits, strengths, self._owned_by_main(members))
            self._moved.append(moved(combined, term)[:, -1])
        return outputs, combined

    def _run(self, members: Members, names: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
        """Run some members."""
        cache: EFTCache | None = given["cache"]
        for name in names:
            self.report.forwards[name] += 1
            if cache is not None and name in cache.unread:
                self.report.blocks[name].append(cache.unread[name].count)
        self.report.steps += members.main in names
        return members.step(only=names, **given)

    def _leave_out(self, members: Members, why: Mapping[str, str], given: Mapping[str, Any]) -> None:
        """Note what these members have missed, and why."""
        for name, reason in why.items():
            self.report.leave_out(name, reason)
            if given["cache"] is not None:
                mine = {**given, **given["own"].get(name, {})}
                given["cache"].leave_unread(name, mine["input_ids"], mine["position_ids"])

    def _strengths(self, members: Members, coefficients: torch.Tensor | None) -> torch.Tensor:
        """The coefficients, `(1 or rows, 1 or kept, members)`."""
        if coefficients is None:
            return self.combination.at([0], members.names)[None]
        return coefficients[:, None] if coefficients.dim() == 2 else coefficients

    def _ended(self, tokens: torch.Tensor) -> torch.Tensor:
        """Which rows have ended, `(rows, 1)`: what is chosen for them is dropped."""
        if self._over is None:
            self._over = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        if self.is_past_prompt and len(self._ends):
            self._over = self._over | torch.isin(tokens[:, -1], self._ends.to(tokens.device))
        return self._over[:, None] if len(self._ends) else torch.zeros(1, 1, dtype=torch.bool, device=tokens.device)

    def _without_a_say(
        self, members: Members, name: str, strengths: torch.Tensor, certain: torch.Tensor | None, over: torch.Tensor
    ) -> str | None:
        """Why a member has no say whatever the others say; `None` if it may have one."""
        if certain is not None and bool(((certain >= 0) | over.to(certain.device)).all()):
            return "certain"
        truncation = self.combination.truncation
        if truncation is not None and members.owner[self.combination.nucleus_member(truncation.rule)] == name:
            return None
        mine = torch.tensor([members.owner[each] == name for each in members.names], device=strengths.device)
        silent = (strengths[..., mine] == 0).all(-1)  # (1 or rows, 1 or kept)
        return "coefficients" if bool((silent | over.to(silent.device)).all()) else None

    def _truncation_of(self, members: Members) -> Any:
        """The truncation, if it goes by the member that is run first."""
        truncation = self.combination.truncation
        if truncation is None or truncation.rule not in ("base", "plausible"):
            return None
        return truncation if members.owner[BASE] == members.main else None

    def _owned_by_main(self, members: Members) -> torch.Tensor:
        """Which of the members are the one that is run first, `(members,)`: it may serve as several."""
        return torch.tensor([members.owner[name] == members.main for name in members.names])

    def _decided(
        self, members: Members, outputs: Mapping[str, Any], strengths: torch.Tensor, attention_mask: Any, over: torch.Tensor
    ) -> str | None:
        """Why the first member alone decides this step for every row; `None` if it does not."""
        logits = members.logits(outputs, attention_mask)
        values = next(iter(logits.values())).float()
        decided, reason = over.to(values.device).expand(len(values), values.shape[1]), "truncation"
        if (truncation := self._truncation_of(members)) is not None:
            decided = decided | one_left(values.log_softmax(-1), truncation)
        if self.asked.by_lead and not bool(decided.all()):
            bound = self._bound()
            if bound is None:
                return None
            term = combined_term(logits, strengths, self._owned_by_main(members))
            decided, reason = (
                decided | (lead(term) > bound[:, None].to(term.device)),
                "bound" if self.asked.bound is not None else "recent",
            )
        return reason if bool(decided.all()) else None

    def _bound(self) -> torch.Tensor | None:
        """What the other members may make up for, `(1 or rows,)`; `None` if too few steps say that."""
        if self.asked.recent is None:
            return torch.tensor([float(self.asked.bound or 0.0)])
        if len(self._moved) < self.asked.recent:
            return None
        return self.asked.factor * torch.stack([*self._moved]).amax(0).clamp(min=0.0)


def combined_term(logits: Mapping[str, torch.Tensor], strengths: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """The part of the combination that is the first member's, `(rows, kept, vocab)`: with the coefficients of all that it serves as."""
    values = next(iter(logits.values())).float()
    return strengths[..., mine.to(strengths.device)].sum(-1)[..., None].to(values) * values
