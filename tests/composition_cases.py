"""A composition as data: members, recipe, prompts and calls. It prints as the code that makes it, and its models are made once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import peft
import torch
from families import PAD, VOCAB, build

from hf_eft import Combination, Truncation

# Each is here for a property: grouped heads, positions that are learned, norms of queries, windows beside full attention, no positions at
# all, convolutions beside attention, states and no attention, states within attention layers.
KINDS = ("llama", "gpt2", "qwen3", "gemma3", "falcon", "lfm2", "mamba", "falcon_h1")
PAGED = ("llama", "gpt2", "qwen3", "gemma3")  # whose states continuous batching pages
STATIC = ("llama", "gpt2", "qwen3", "gemma3", "lfm2")  # that run alone in a static cache
CHUNKED = ("llama", "gpt2", "qwen3", "gemma3", "falcon", "lfm2")  # that go on alone with several tokens

# By how much a member's logits may differ between two ways of running it, in nats: about three times what was seen of these models.
TOLERANCE = {"float32": 2e-4, "float16": 0.06, "bfloat16": 0.5}

Row = tuple[int, ...]
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Member:
    """Equal ones are one object."""

    kind: str = "llama"
    seed: int = 0
    width: int = VOCAB
    dtype: str = "float32"
    adapter: bool = False


@dataclass(frozen=True)
class Call:
    """One `generate`. `goes_on` with the cache of the call before, after its text and a `turn`."""

    how: str = "greedy"  # "sample", "match", "reject", "beams", "beam sample"
    new_tokens: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    beams: int = 1
    returned: int = 1
    drafter: str | None = None  # a member's name, "small", "outsider", "lookup", "itself"
    block: int | None = None  # None: chosen on the way
    states: str | None = None  # "static", "chunks", "none"
    coefficients: tuple[tuple[float, ...], ...] | None = None
    own: dict[str, Rows] = field(default_factory=dict)
    scores: bool = False
    goes_on: bool = False
    turn: Row = ()

    @property
    def searches(self) -> bool:
        return self.how in ("beams", "beam sample")

    @property
    def samples(self) -> bool:
        return self.how in ("sample", "match", "reject", "beam sample")


@dataclass(frozen=True)
class Case:
    members: dict[str, Member]
    recipe: tuple[Any, ...] = ("alpha", 1.0)
    truncation: tuple[str, float] | None = None
    leaf: str = "wrapper"  # "add-on", "batch"
    told: str = "mask"  # how the add-on knows padding: "mask" or "pad"
    prompts: Rows = ((3, 4),)
    calls: tuple[Call, ...] = (Call(),)
    seed: int = 0


def options_of(call: Call) -> dict[str, Any]:
    """What is asked of `generate`, by both."""
    options = {"max_new_tokens": call.new_tokens, "do_sample": call.samples, **call.options}
    if call.samples:
        options.setdefault("top_k", 0)
    if call.searches:
        options["num_beams"] = call.beams
    if call.returned > 1:
        options["num_return_sequences"] = call.returned
    return options


def code(value: Any) -> str:
    """A case as it would be written, without what is left at its default."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {code(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple | list):
        inner = ", ".join(map(code, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)" if len(value) == 1 else f"({inner})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    parts = []
    for each in dataclasses.fields(value):
        default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
        if (given := getattr(value, each.name)) != default:
            parts.append(f"{each.name}={code(given)}")
    return f"{type(value).__name__}({', '.join(parts)})"


# Recipes: the members that they name, in order, and the coefficients written out. Numbers may be schedules: values by token generated.


def _mapped(value: Any, change: Any) -> Any:
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


NAMES: dict[str, tuple[str, ...]] = {
    "alpha": ("base", "tuned", "reference"),
    "beta": ("base", "tuned", "reference"),
    "steer": ("base", "a", "b", "reference"),
    "interpolate": ("tuned", "reference"),
    "mix": ("a", "b"),
    "contrast": ("base", "reference"),
    "guide": ("base", "reference"),
}


def written_out(case: Case) -> dict[str, Any]:
    """The coefficient of every member: a number, or a tuple of them by token."""
    kind, *numbers = case.recipe
    x = numbers[0]
    y = numbers[1] if len(numbers) > 1 else 0.0
    return {
        "alpha": lambda: {"base": 1.0, "tuned": x, "reference": _mapped(x, lambda v: -v)},
        "beta": lambda: {"base": x, "tuned": 1.0, "reference": _mapped(x, lambda v: -v)},
        "steer": lambda: {"base": 1.0, "a": x, "b": y, "reference": -(x + y)},
        "interpolate": lambda: {"tuned": x, "reference": _mapped(x, lambda v: 1 - v)},
        "mix": lambda: {"a": x, "b": y},
        "contrast": lambda: {"base": 1 + x, "reference": -x},
        "guide": lambda: {"base": x, "reference": _mapped(x, lambda v: 1 - v)},
    }[kind]()


def truncation_of(case: Case) -> tuple[str, float] | None:
    return ("plausible", case.recipe[2]) if case.recipe[0] == "contrast" else case.truncation


def recipe_of(case: Case) -> Combination:
    """The same, as somebody would ask the package for it."""
    kind, *numbers = case.recipe
    truncation = None if case.truncation is None else Truncation(*case.truncation)
    first = list(numbers[0]) if isinstance(numbers[0], tuple) else numbers[0]
    if kind in ("alpha", "beta"):
        return Combination.emulate(**{kind: first}, truncation=truncation)
    if kind == "steer":
        return Combination.steer(dict(zip("ab", numbers, strict=True)), truncation)
    if kind == "mix":
        return Combination.mix(dict(zip("ab", numbers, strict=True)))
    if kind == "contrast":
        return Combination.contrast(*numbers)
    return Combination.interpolate(first) if kind == "interpolate" else Combination.guide(first)


# Models ---------------------------------------------------------------------------------------------------------------


@functools.cache
def model_of(member: Member) -> Any:
    """A model, or a `PeftModel` over one of its own."""
    if not member.adapter:
        model = build(member.kind, member.seed, vocab_size=member.width)
        return model.to(getattr(torch, member.dtype))
    small = copy.deepcopy(model_of(replace(member, adapter=False)))
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=16,
        target_modules=ADAPTED[member.kind],
        init_lora_weights=False,
        fan_in_fan_out=member.kind == "gpt2",
    )
    with warnings.catch_warnings(action="ignore"):  # of PEFT, while adapters are made
        model = peft.get_peft_model(small, lora).eval()
    generator = torch.Generator().manual_seed(member.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


ADAPTED = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn"], "qwen3": ["q_proj", "up_proj"]}


@functools.cache
def plain_of(member: Member) -> Any:
    """What the oracle runs: never an adapter, whose weights are added to those under it."""
    if not member.adapter:
        return model_of(member)
    with warnings.catch_warnings(action="ignore"):
        return copy.deepcopy(model_of(member)).merge_and_unload().eval()


def is_under(case: Case, name: str) -> bool:
    """Whether a reference is the model under an adapter, which is then left out."""
    member = case.members[name]
    return name == "reference" and any(
        other.adapter and replace(other, adapter=False) == member for other in case.members.values()
    )


def given(case: Case) -> dict[str, Any]:
    """The members as the leaves take them."""
    models = {name: model_of(member) for name, member in case.members.items() if not is_under(case, name)}
    tuned = {name: models[name] for name in models if name not in ("base", "reference")}
    arguments = {"base": models.get("base"), "reference": models.get("reference")}
    arguments["tuned"] = (tuned["tuned"] if list(tuned) == ["tuned"] else tuned) if tuned else None
    return arguments


def outsider(case: Case) -> Any:
    """A model that drafts and is no member."""
    first = next(iter(case.members.values()))
    return model_of(Member("llama", 7, first.width))


def tolerance(case: Case) -> float:
    """How far the members' logits may be off, the coarsest member's."""
    return max(TOLERANCE[member.dtype] for member in case.members.values())


# Prompts --------------------------------------------------------------------------------------------------------------


def padded(rows: Rows) -> dict[str, torch.Tensor]:
    """Rows of tokens, padded on the left."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (longest - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }
