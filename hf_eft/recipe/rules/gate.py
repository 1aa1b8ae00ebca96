"""A coefficient that was learnt: a small network over what the members' distributions are like."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..phases import BASE, REFERENCE, TUNED
from .measures import agreement, confidence, entropy, jensen_shannon, nucleus_mass
from .rule import LogProbs, Rule, check_members, check_number

_NUCLEUS = 0.9  # the mass within which a member's opinion is compared with another's
_MOST_HIDDEN = 256  # a few hundred parameters are enough, and a file may not ask for more memory than a model
_MOST_MEMBERS = 8


class Gate(Rule):
    r"""
    `most * sigmoid(out . tanh(hidden . features))`: a network of a few hundred weights over features of the members' distributions, which
    is trained on what answers are worth (docs/rules.md). It is saved with its recipe, its weights as safetensors.

    The features of `n` members, in this order: of each `log(1 + entropy)` and the probability of its most likely token; of each pair the
    Jensen-Shannon divergence in bits, whether their most likely tokens agree, and the mass that the first gives to the nucleus of the
    second. Of three members these are 15, which 16 hidden units make 273 weights of.

    Args:
        weights (`Mapping[str, torch.Tensor]`):
            `hidden.weight` of shape `(hidden, features)`, `hidden.bias` `(hidden,)`, `out.weight` `(1, hidden)` and `out.bias` `(1,)`, as
            a module of two `torch.nn.Linear` has them. Not to be written to while the gate is used; tensors that require a gradient get
            one.
        members (`Sequence[str]`, *optional*, defaults to base, tuned and reference): The members that it looks at.
        most (`float`, *optional*, defaults to 2): The largest coefficient.
        drafting (`float`, *optional*, defaults to 1): See [`Rule`].

    Raises:
        `ValueError`: If the weights are not of these shapes, or not finite.

    Example:

    ```python
    >>> import torch
    >>> from hf_eft import Combination, Gate

    >>> gate = Gate.start(alpha=0.5)  # before it has learnt anything: a constant
    >>> print(Combination.emulate(alpha=gate))
    base + gate(to 2) tuned - gate(to 2) reference
    >>> log_probs = {name: torch.randn(1, 2, 8).log_softmax(-1) for name in gate.reads}
    >>> gate(log_probs)
    tensor([[0.5000, 0.5000]])
    >>> gate.features(log_probs).shape
    torch.Size([1, 2, 15])
    ```
    """

    name = "gate"

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        members: Sequence[str] = (BASE, TUNED, REFERENCE),
        most: float = 2.0,
        drafting: float = 1.0,
    ) -> None:
        self.members, self.most, self.drafting = tuple(members), most, drafting
        check_number(self, "most", most, 0)
        check_number(self, "drafting", drafting)
        check_members(self, *self.members)
        if not 2 <= len(set(self.members)) == len(self.members) <= _MOST_MEMBERS:
            raise ValueError(f"A gate looks at 2 to {_MOST_MEMBERS} different members, got {list(self.members)}.")
        self.weights = dict(weights)
        self._check()

    def _check(self) -> None:
        first = self.weights.get("hidden.weight")
        hidden = first.shape[0] if isinstance(first, torch.Tensor) and first.dim() == 2 else 0
        if not 1 <= hidden <= _MOST_HIDDEN:
            raise ValueError(
                f"`hidden.weight` of a gate must be a tensor of shape (1 to {_MOST_HIDDEN}, features), got {shape(first)}."
            )
        for name, expected in shapes(len(self.members), hidden).items():
            found = self.weights.get(name)
            if found is None or shape(found) != expected or not found.is_floating_point():
                raise ValueError(f"`{name}` of a gate on {list(self.members)} must be of shape {expected}, got {shape(found)}.")
            if not bool(torch.isfinite(found).all()):
                raise ValueError(f"`{name}` of a gate must be finite.")
        if more := sorted(self.weights.keys() - shapes(2, 1).keys()):
            raise ValueError(f"A gate has the weights {', '.join(shapes(2, 1))}, got {', '.join(map(repr, more))} as well.")

    @classmethod
    def start(
        cls,
        members: Sequence[str] = (BASE, TUNED, REFERENCE),
        hidden: int = 16,
        alpha: float = 1.0,
        most: float = 2.0,
        seed: int = 0,
        drafting: float = 1.0,
    ) -> Gate:
        r"""
        A gate to be trained, which says `alpha` everywhere.

        Args:
            members (`Sequence[str]`, *optional*): As of a gate.
            hidden (`int`, *optional*, defaults to 16): How many hidden units.
            alpha (`float`, *optional*, defaults to 1): What it says, between 0 and `most`.
            most (`float`, *optional*, defaults to 2): The largest coefficient.
            seed (`int`, *optional*, defaults to 0): Of the hidden weights.
            drafting (`float`, *optional*, defaults to 1): See [`Rule`].
        """
        if not 0 < alpha < most:
            raise ValueError(f"A gate starts between 0 and its `most`, {most}, got {alpha}.")
        generator = torch.Generator().manual_seed(seed)
        weights = {name: torch.zeros(size) for name, size in shapes(len(members), hidden).items()}
        features = weights["hidden.weight"].shape[1]
        weights["hidden.weight"] = torch.randn(hidden, features, generator=generator) / math.sqrt(features)
        weights["out.bias"] = torch.full((1,), math.log(alpha / (most - alpha)))
        return cls(weights, members, most, drafting)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.members

    @property
    def options(self) -> dict[str, Any]:
        return {
            "members": list(self.members), "hidden": len(self.weights["hidden.bias"]), "most": self.most, "drafting": self.drafting,
            "digest": self.digest,
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the weights."""
        found = hashlib.sha256()
        for name in sorted(self.weights):
            found.update(name.encode())
            found.update(self.weights[name].detach().cpu().float().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def __str__(self) -> str:
        return f"gate(to {self.most:g})"

    def __repr__(self) -> str:
        return f"Gate(members={self.members}, most={self.most}, digest={self.digest!r})"

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Gate) and self.options == other.options)

    def __hash__(self) -> int:
        return hash((self.members, self.most, self.drafting, len(self.weights["hidden.bias"])))  # weights that learn change

    def features(self, log_probs: LogProbs) -> torch.Tensor:
        r"""
        What the network looks at.

        Args:
            log_probs (`Mapping[str, torch.Tensor]`): Of its members, `(batch, positions, vocab)` each, normalised.

        Returns:
            `torch.FloatTensor` of shape `(batch, positions, features)`.
        """
        said = [log_probs[name] for name in self.members]
        each = [value for log_p in said for value in (entropy(log_p).log1p(), confidence(log_p))]
        pairs = [
            value
            for one, other in itertools.combinations(said, 2)
            for value in (
                jensen_shannon(one, other) / math.log(2), agreement(one, other), nucleus_mass(one, other, _NUCLEUS)
            )
        ]  # fmt: skip
        return torch.stack([*each, *pairs], dim=-1)

    def of_features(self, features: torch.Tensor) -> torch.Tensor:
        """The coefficient for features, `(..., features)`: `(...)`."""
        w = {name: values.to(features.device, features.dtype) for name, values in self.weights.items()}
        hidden = torch.tanh(torch.nn.functional.linear(features, w["hidden.weight"], w["hidden.bias"]))
        return self.most * torch.sigmoid(torch.nn.functional.linear(hidden, w["out.weight"], w["out.bias"]).squeeze(-1))

    def __call__(self, log_probs: LogProbs) -> torch.Tensor:
        return self.of_features(self.features(log_probs))


def shapes(members: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a gate on so many members."""
    features = 2 * members + 3 * (members * (members - 1) // 2)
    return {"hidden.weight": (hidden, features), "hidden.bias": (hidden,), "out.weight": (1, hidden), "out.bias": (1,)}


def shape(found: Any) -> Any:
    """The shape of a tensor, or what stands in the place of one."""
    return tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
