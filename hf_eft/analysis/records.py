"""What is known of each token of a text, and of the text: flat, JSON-able, ready for a dataframe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .token_text import Token


class Shift(NamedTuple):
    """A token whose probability the combination moved: `before` it, and `after`."""

    id: int
    text: str
    before: float
    after: float


@dataclass(frozen=True)
class TokenRecord:
    r"""
    One token of a continuation, as every member and the combination saw it. Log-probs, rewards and divergences are in nats;
    `-inf` where a token is ruled out.

    Args:
        position (`int`): How many tokens of the continuation come before it.
        token (`Token`): Its id, and the text that it adds.
        log_prob (`float`): The combination's log-prob of it.
        log_probs (`Mapping[str, float]`): The members', by name.
        coefficients (`Mapping[str, float]`): What the members' log-probs were multiplied by here, by name.
        lift (`float`): By how much the combination lifted it, over the member that it is compared with.
        delta (`float`, *optional*): The log ratio of tuned and reference; of several tuned members, the sum weighted as in the recipe.
        deltas (`Mapping[str, float]`): The log ratio of each tuned member and its reference.
        reward (`float`, *optional*): The implicit reward up to and with this token, over the paper's beta: the sum of `delta`.
        rewards (`Mapping[str, float]`): The same for each tuned member.
        choice (`Token`): The combination's most likely token.
        choices (`Mapping[str, Token]`): The members', by name.
        changed (`bool`): Whether `choice` is another than that of the member that is compared with.
        changed_by (`str`, *optional*):
            Whose term has the largest share in that: in the margin of the one choice over the other. `"truncation"` if no member's has
            any.
        total_variation (`Mapping[str, float]`): Between the combination and each member, 0 to 1.
        kl (`Mapping[str, float]`): Divergence of the combination from each member.
        tuned_total_variation (`Mapping[str, float]`): Between each tuned member and the member that is compared with.
        tuned_kl (`Mapping[str, float]`): Divergence of each tuned member from it.
        acceptance (`Mapping[str, float]`):
            By tuned member, the probability that its draft for this position is accepted when sampling (EFT paper, section 4, with the
            ratio test): `sum_v min(p, p_tuned)`.
        agrees (`Mapping[str, bool]`): By tuned member, whether its most likely token is the combination's: acceptance when greedy.
        raised (`tuple[Shift, ...]`): The tokens that gained the most probability, over the member that is compared with.
        lowered (`tuple[Shift, ...]`): The tokens that lost the most.
    """

    position: int
    token: Token
    log_prob: float
    log_probs: Mapping[str, float]
    coefficients: Mapping[str, float]
    lift: float
    delta: float | None
    deltas: Mapping[str, float]
    reward: float | None
    rewards: Mapping[str, float]
    choice: Token
    choices: Mapping[str, Token]
    changed: bool
    changed_by: str | None
    total_variation: Mapping[str, float]
    kl: Mapping[str, float]
    tuned_total_variation: Mapping[str, float]
    tuned_kl: Mapping[str, float]
    acceptance: Mapping[str, float]
    agrees: Mapping[str, bool]
    raised: tuple[Shift, ...]
    lowered: tuple[Shift, ...]

    def to_dict(self) -> dict[str, Any]:
        """A flat, JSON-able dictionary: `log_probs["base"]` is `log_prob_base`. What is not finite (`-inf`) is `None`."""
        flat: dict[str, Any] = {
            "position": self.position,
            "token_id": self.token.id,
            "token": self.token.text,
            "log_prob": self.log_prob,
            **_named("log_prob", self.log_probs),
            **_named("coefficient", self.coefficients),
            "lift": self.lift,
            **({} if self.delta is None else {"delta": self.delta, "reward": self.reward}),
            **_named("delta", self.deltas),
            **_named("reward", self.rewards),
            "choice": self.choice.text,
            **_named("choice", {name: token.text for name, token in self.choices.items()}),
            "choice_id": self.choice.id,
            **_named("choice_id", {name: token.id for name, token in self.choices.items()}),
            "changed": self.changed,
            "changed_by": self.changed_by,
            **_named("total_variation", self.total_variation),
            **_named("kl", self.kl),
            **_named("tuned_total_variation", self.tuned_total_variation),
            **_named("tuned_kl", self.tuned_kl),
            **_named("acceptance", self.acceptance),
            **_named("agrees", self.agrees),
        }
        for kind, shifts in (("raised", self.raised), ("lowered", self.lowered)):
            for place, shift in enumerate(shifts, start=1):
                flat |= {
                    f"{kind}_{place}": shift.text,
                    f"{kind}_{place}_before": shift.before,
                    f"{kind}_{place}_after": shift.after,
                }
        return {key: finite(value) for key, value in flat.items()}


@dataclass(frozen=True)
class Analysis:
    r"""
    What the combination made of a continuation, token by token. Made by [`analyse`].

    Args:
        prompt (`str`): The text before.
        continuation (`str`): The text that is analysed.
        records (`list[TokenRecord]`): One for each of its tokens.
        recipe (`str`): The combination, as it prints.
        against (`str`): The member that the combination is compared with: the base; without one, the reference; else the first.
        references (`Mapping[str, str or None]`): By tuned member, its reference.
    """

    prompt: str
    continuation: str
    records: list[TokenRecord]
    recipe: str
    against: str
    references: Mapping[str, str | None]

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.records[0].log_probs)

    @property
    def tuned(self) -> tuple[str, ...]:
        return tuple(self.references)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The records as flat dictionaries, for `pandas.DataFrame(...)`, `json.dumps` or a CSV file."""
        return [record.to_dict() for record in self.records]

    def summary(self) -> dict[str, Any]:
        r"""
        The sequence in numbers.

        Returns:
            `dict[str, Any]`: Flat and JSON-able: `tokens`; `log_prob` of the continuation and `log_prob_<member>`; `reward` and
            `reward_<tuned member>` (sums of log ratios); the share of tokens whose choice was `changed`; means over the tokens of
            `total_variation_<member>`, `kl_<member>`, `acceptance_<tuned member>` and `agrees_<tuned member>`; `recipe` and `against`.
            What is not finite is `None`.
        """
        last = self.records[-1]
        flat: dict[str, Any] = {
            "recipe": self.recipe,
            "against": self.against,
            "tokens": len(self.records),
            "log_prob": sum(record.log_prob for record in self.records),
            **_named("log_prob", {m: sum(record.log_probs[m] for record in self.records) for m in self.members}),
            **({} if last.reward is None else {"reward": last.reward}),
            **_named("reward", last.rewards),
            "changed": _mean(record.changed for record in self.records),
        }
        for kind in ("total_variation", "kl", "acceptance", "agrees"):
            each = [getattr(record, kind) for record in self.records]
            flat |= _named(kind, {name: _mean(values[name] for values in each) for name in each[0]})
        return {key: finite(value) for key, value in flat.items()}


def finite(value: Any) -> Any:
    """A value as JSON knows it, which knows no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _named(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{kind}_{name}": value for name, value in values.items()}


def _mean(values: Iterable[float]) -> float:
    each = [float(value) for value in values]
    return math.fsum(each) / len(each) if all(map(math.isfinite, each)) else math.inf
