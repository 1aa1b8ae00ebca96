"""The steps of a call in which members that cannot change the choice are left out, and catch up later."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ...members.cache import EFTCache
from ...members.members import Members
from ...recipe.combination import BASE, Combination
from ...recipe.combine import by_rule, combine, filled
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
        if not self.report.forwards:
            self.report.begin(members.distinct)
        over = self._ended(given["input_ids"])
        strengths = self._strengths(members, coefficients)
        ruled = {members.owner[name] for name in self.combination.read_by_rules}
        if certain is not None and bool(((certain >= 0) | over.to(certain.device)).all()):
            why = dict.fromkeys(others, "certain")
        else:
            why = {n: "coefficients" for n in others if n not in ruled and self._is_silent(members, n, strengths, over)}
        rest = [name for name in others if name not in why]
        by_base = bool(ruled) and ruled <= {main}
        asks_base = bool(rest) and (self.asked.by_lead or by_base or self._truncation_of(members) is not None)
        outputs = self._run(members, [main] if asks_base else [main, *rest], given)
        logits = members.logits(outputs, given["attention_mask"])
        said: dict[str, torch.Tensor] | None = None  # by rules that read what is known already
        if asks_base:
            if by_base:
                said = by_rule(self._of_all(members, logits), self.combination)
                strengths = filled(strengths, members.names, said)
                why |= {name: "rule" for name in rest if self._is_silent(members, name, strengths, over)}
                rest = [name for name in rest if name not in why]
            if rest and (reason := self._decided(members, logits[main], strengths, over)) is not None:
                why |= dict.fromkeys(rest, reason)
            elif rest:
                more = self._run(members, rest, given)
                theirs = {name: output.logits.to(logits[main].device) for name, output in more.items()}
                outputs, logits = outputs | more, logits | members.by_name(theirs, given["attention_mask"])
        self._leave_out(members, why, given)
        if set(why.values()) - {"coefficients", "rule"}:  # the first member alone decides
            truncation = self._truncation_of(members)
            name = main if truncation is None else BASE
            return outputs, combine({name: logits[name]}, Combination({name: 1.0}, truncation))
        combined = combine(self._of_all(members, logits), self.combination, coefficients, said=said)
        if self.asked.recent is not None and not why:
            self._moved.append(moved(combined, self._term(members, logits[main], strengths))[:, -1])
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

    def _is_silent(self, members: Members, name: str, strengths: torch.Tensor, over: torch.Tensor) -> bool:
        """Whether a member has the coefficient 0 in every row that has not ended, and no truncation goes by it."""
        truncation = self.combination.truncation
        if truncation is not None and members.owner[self.combination.nucleus_member(truncation.rule)] == name:
            return False
        silent = (strengths[..., self._columns(members, name)] == 0).all(-1)  # (1 or rows, 1 or kept)
        return bool((silent | over.to(silent.device)).all())

    @staticmethod
    def _columns(members: Members, name: str) -> list[int]:
        """The columns of those that a distinct member serves as."""
        return [column for column, each in enumerate(members.names) if members.owner[each] == name]

    @staticmethod
    def _of_all(members: Members, logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The members' logits, with zeros in the place of those that were not run and have no say."""
        first = next(iter(logits.values()))
        nobody = first.new_zeros(()).expand_as(first)
        return {name: logits.get(name, nobody) for name in members.names}

    def _truncation_of(self, members: Members) -> Any:
        """The truncation, if it goes by the member that is run first."""
        truncation = self.combination.truncation
        if truncation is None or truncation.rule not in ("base", "plausible"):
            return None
        return truncation if members.owner[BASE] == members.main else None

    def _decided(self, members: Members, values: torch.Tensor, strengths: torch.Tensor, over: torch.Tensor) -> str | None:
        """Why the first member, whose logits these are, `(rows, kept, vocab)`, decides for every row; `None` if it does not."""
        decided, reason = over.to(values.device).expand(values.shape[:2]), "truncation"
        if (truncation := self._truncation_of(members)) is not None:
            decided = decided | one_left(values.float().log_softmax(-1), truncation)
        if self.asked.by_lead and not bool(decided.all()):
            bound = self._bound()
            if bound is None:
                return None
            ahead = lead(self._term(members, values, strengths)) > bound[:, None].to(values.device)
            decided, reason = decided | ahead, "bound" if self.asked.bound is not None else "recent"
        return reason if bool(decided.all()) else None

    def _term(self, members: Members, values: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        """The first member's part of the combination, `(rows, kept, vocab)`: with the coefficients of all that it serves as."""
        return strengths[..., self._columns(members, members.main)].sum(-1, keepdim=True).to(values.device) * values.float()

    def _bound(self) -> torch.Tensor | None:
        """What the other members may make up for, `(1 or rows,)`; `None` if too few steps say that."""
        if self.asked.recent is None:
            return torch.tensor([float(self.asked.bound or 0.0)])
        if len(self._moved) < self.asked.recent:
            return None
        return self.asked.factor * torch.stack([*self._moved]).amax(0).clamp(min=0.0)
