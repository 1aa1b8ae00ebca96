"""Rules as a file says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .confidence import Confidence, Entropy
from .divergence import Divergence
from .gate import Gate, shapes
from .kl import KLConstrained
from .rule import ByRule, Rule

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (KLConstrained, Confidence, Entropy, Divergence, Gate)}

_MOST_RULES = 64


def rule_of(name: str, options: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None = None) -> Rule:
    r"""
    The rule of a name.

    Args:
        name (`str`): One of `RULES`.
        options (`Mapping[str, Any]`): What it is made with, by name.
        weights (`Mapping[str, torch.Tensor]`, *optional*): Those of the recipe's gates, as [`gate_weights`] names them.

    Raises:
        `ValueError`: If there is no such rule, it has no such option or not such a value, or weights of a gate are not there.
    """
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"There is no rule {name!r:.80}, but {', '.join(map(repr, RULES))}.")
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise ValueError(f"The options of the rule {name!r} must be an object, got {options!r:.80}.")
    if name == Gate.name:
        return _gate(options, weights or {})
    known = RULES[name].__dataclass_fields__.keys()  # type: ignore[attr-defined]
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"The rule {name!r} has no option {unknown[0]!r}, but {', '.join(map(repr, known))}.")
    return RULES[name](**options)


def rule_of_text(text: str) -> Rule | None:
    r"""
    A rule as it is written in one word: `kl`, or with options `kl:bound=0.5,most=3`.

    Returns:
        [`Rule`]: `None` if the text does not begin as one.

    Raises:
        `ValueError`: If the rule has no such option, or not such a value.
    """
    name, _, rest = text.partition(":")
    if name not in RULES:
        return None
    if name == Gate.name:
        raise ValueError("A gate is its weights, which no option holds: load the folder that it was saved in.")
    options: dict[str, Any] = {}
    for each in filter(None, rest.split(",")):
        option, separator, value = each.partition("=")
        if not separator or option in options:
            raise ValueError(f"The options of a rule are written as in {name}:most=2, each once, got {text!r:.80}.")
        options[option] = _value(value)
    return rule_of(name, options)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def gate_weights(rules: Iterable[Rule]) -> dict[str, torch.Tensor]:
    """The weights of the gates among rules, each under its digest and its name."""
    gates = {rule.digest: rule for rule in rules if isinstance(rule, Gate)}
    return {
        f"{digest}.{name}": weight.detach().cpu().float().contiguous()
        for digest, gate in gates.items()
        for name, weight in gate.weights.items()
    }


def _gate(options: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Gate:
    keys = {"members", "hidden", "most", "drafting", "digest"}
    members, hidden, digest = options.get("members"), options.get("hidden"), options.get("digest")
    if set(options) != keys or not isinstance(members, (list, tuple)) or type(hidden) is not int or not isinstance(digest, str):
        raise ValueError(f"A gate is described by {', '.join(sorted(keys))}, got {dict(options)!r:.200}.")
    own = {name: weights[f"{digest}.{name}"] for name in shapes(2, 1) if f"{digest}.{name}" in weights}
    if not own:
        raise ValueError(
            f"The weights of the gate {digest!r:.40} are not here: they stand beside the recipe. Load the whole folder with "
            "`EFTForCausalLM.from_pretrained`, or give the combination anew."
        )
    gate = Gate(own, members, options["most"], options["drafting"])
    if gate.digest != digest or len(gate.weights["hidden.bias"]) != hidden:
        raise ValueError(
            f"The weights beside the recipe are those of another gate: expected {digest!r:.40} of {hidden} units, got {gate!r}."
        )
    return gate


def described(value: ByRule) -> dict[str, Any] | None:
    """A coefficient by rules, JSON-able; `None` if one of them cannot be saved."""
    if any(type(rule) is not RULES.get(rule.name) for rule, _ in value.terms):
        return None
    rules = [{"rule": rule.name, "scale": scale, "options": rule.options} for rule, scale in value.terms]
    return {"rules": rules, "offset": value.offset}


def is_described(value: Any) -> bool:
    """Whether a description is that of a coefficient by rules, and not of one by phase, whose values are numbers or such descriptions."""
    return isinstance(value, Mapping) and isinstance(value.get("rules"), (list, tuple))


def read(value: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None = None) -> ByRule:
    """The coefficient that [`described`] described. Raises a `ValueError` if it is none."""
    rules = value["rules"]
    fits = set(value) == {"rules", "offset"} and 1 <= len(rules) <= _MOST_RULES
    if not fits or not all(isinstance(each, Mapping) and set(each) == {"rule", "scale", "options"} for each in rules):
        raise ValueError(
            f"A coefficient by rules must have `rules`, each with `rule`, `scale` and `options`, and `offset`, got {value!r:.200}."
        )
    made = ByRule.of(value["offset"])
    for each in rules:
        made = made + rule_of(each["rule"], each["options"], weights) * each["scale"]
    return made
