"""The words and the code of model cards. What is put into them was checked before: repositories, commits, identifiers, numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..files.learnt import Base, Learnt
from ..recipe.combination import BASE, REFERENCE, Combination
from ..recipe.rules.gate import Gate
from ..recipe.rules.known import RULES
from ..recipe.rules.rule import ByRule

_PROMPT = "What is a heat pump?"
PAPER = (
    "[An Emulator for Fine-tuning Large Language Models using Small Language Models](https://arxiv.org/abs/2310.12962) (Mitchell et "
    "al., ICLR 2024)"
)
_GENERATE = f"""\
inputs = tokenizer("{_PROMPT}", return_tensors="pt", return_token_type_ids=False)
ids = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(ids[0], skip_special_tokens=True))"""
_PIPELINE = f"""\
pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(pipe("{_PROMPT}", max_new_tokens=64)[0]["generated_text"])"""
_ADD_ON = f"""\
add_on = EFTLogitsProcessor({{arguments}})
inputs = tokenizer("{_PROMPT}", return_tensors="pt", return_token_type_ids=False)
ends = members["{{ends_as}}"].generation_config.eos_token_id
ids = members["{BASE}"].generate(**inputs, logits_processor=[add_on], eos_token_id=ends, max_new_tokens=64)
print(tokenizer.decode(ids[0], skip_special_tokens=True))"""
_FOLDER = """\
model = EFTForCausalLM.from_pretrained("{place}")
tokenizer = AutoTokenizer.from_pretrained("{place}")"""

# A gate's weights lie beside the recipe: its members alone do not make the combination.
_OF_A_GATE = """\
where = "."  # this folder, or the repository that it is published as
model = EFTForCausalLM.from_pretrained(where, allow_references=True)
tokenizer = AutoTokenizer.from_pretrained({place})"""
# Members across tokenizers: the model has what prompts are written with.
_OF_A_VOCABULARY = """\
where = "{place}"  # this folder, or the repository that it is published as
model = EFTForCausalLM.from_pretrained(where{more})
tokenizer = model.tokenizers["{name}"]"""


def blocks_of_folder(place: str, names: Iterable[str], vocabulary: str | None = None) -> dict[str, str]:
    """Whole programs that run a saved combination, by heading. A base alone can run the rest of its combination as an add-on."""
    names = list(names)
    if vocabulary is not None:
        load = _OF_A_VOCABULARY.format(place=place, more="", name=_written_by(names))
        return {"As a model": _program(set(), {"EFTForCausalLM"}, load, _GENERATE)}
    load = _FOLDER.format(place=place)
    blocks = {
        "As a model": _program({"AutoTokenizer"}, {"EFTForCausalLM"}, load, _GENERATE),
        "In a pipeline": "\n".join(
            [
                "from transformers import pipeline",
                "",
                "import hf_eft  # makes the class known to transformers",
                "",
                f'pipe = pipeline("text-generation", model="{place}")',
                f'print(pipe("{_PROMPT}", max_new_tokens=64)[0]["generated_text"])',
            ]
        ),
    }
    if _has_add_on(names):
        text = _ADD_ON.format(arguments=f"{_arguments(names)}, combination=model.combination", ends_as=_written_by(names))
        load += "\nmembers = model.members"
        blocks["As an add-on to the base"] = _program({"AutoTokenizer"}, {"EFTForCausalLM", "EFTLogitsProcessor"}, load, text)
    return blocks


def blocks_of_members(
    where: Mapping[str, tuple[str, str | None]],
    combination: Combination,
    instead_of_base: str | None = None,
    vocabulary: str | None = None,
) -> dict[str, str]:
    r"""
    Whole programs that load the members from their repositories and combine them, by heading.

    Args:
        where (`Mapping[str, tuple[str, str or None]]`): By member, its repository and commit.
        combination ([`Combination`]): The recipe.
        instead_of_base (`str`, *optional*): The member that stands for a base until the reader names one.
        vocabulary (`str`, *optional*): In what they are combined, where their tokenizers differ.
    """
    names = [*([BASE] if instead_of_base else []), *where]
    if vocabulary is not None:
        load = _OF_A_VOCABULARY.format(place=".", more=", allow_references=True", name=_written_by(names))
        return {"As a model": _program(set(), {"EFTForCausalLM"}, load, _GENERATE)}
    if any(isinstance(rule, Gate) for rule in combination.each_rule):
        return {
            "As a model": _program(
                {"AutoTokenizer"}, {"EFTForCausalLM"}, _OF_A_GATE.format(place=_place(where[_written_by(names)])), _GENERATE
            )
        }
    load, recipe = _loading(where, _written_by(names), instead_of_base), _as_code(combination)
    given = f", combination={recipe}" if recipe else ""
    base = f'members["{BASE}"]' if BASE in names else "None"
    build = f"model = EFTForCausalLM.from_models({base}, {_arguments(names, named=True)}{given})"
    theirs, ours = {"AutoModelForCausalLM", "AutoTokenizer"}, {"Combination"} if recipe else set()
    ours |= {"Truncation"} if combination.truncation is not None else set()
    ours |= {"Phase"} if combination.phases else set()
    ours |= {type(rule).__name__ for rule in combination.each_rule}
    wrapper = {*ours, "EFTForCausalLM"}
    blocks = {
        "As a model": _program(theirs, wrapper, load, build, _GENERATE),
        "In a pipeline": _program({*theirs, "pipeline"}, wrapper, load, build, _PIPELINE),
    }
    if _has_add_on(names):
        text = _ADD_ON.format(arguments=_arguments(names) + given, ends_as=_written_by(names))
        blocks["As an add-on to the base"] = _program(theirs, {*ours, "EFTLogitsProcessor"}, load, text)
    return blocks


def formula(combination: Combination) -> str:
    r"""
    The recipe as a line of a card.

    Raises:
        `ValueError`: If it cannot stand there: a callable's name has characters that break out of a line of code.
    """
    text = str(combination)
    if not text.isprintable() or "`" in text:
        raise ValueError(f"The recipe cannot be written into a card: {text!r}. Give its callables plain names.")
    return ", ".join((f"log p = {combination.formula} - log Z", *combination.conditions))


def how_learnt(learnt: Mapping[str, Learnt]) -> str:
    """What members say of how they learnt: through which bases, at which strength, at what cost. No folder is named."""
    return "\n".join(_how_learnt(name, each) for name, each in learnt.items())


def _how_learnt(name: str, learnt: Learnt) -> str:
    bases = [_as_base(base) for base in learnt.bases]
    several = f", one of these at each step: {', '.join(bases)}" if len(bases) > 1 else f" {bases[0]}"
    elsewhere = (
        "It learnt through several so as to serve others: measure it there."
        if len(bases) > 1
        else "With another base it can be worse than a model that was tuned alone: measure it there."
    )
    return (
        f"- `{name}` learnt **through the combination** with{several}. Strength in training: {learnt.alpha:g}; strength of use that was "
        f"best on held-out data: {learnt.recommended_alpha:g}. {elsewhere} It is a delta, and **no model of its own**: alone, it has "
        "not the knowledge, and less of the manner."
    )


def _as_base(base: Base) -> str:
    shape = f"{base.model_type}, {base.num_hidden_layers} layers of {base.hidden_size}"
    if not base.published:
        return f"a model that is not published ({shape})"
    commit = f" at `{base.revision}`" if base.revision else ""
    return f"[{base.name}](https://huggingface.co/{base.name}){commit} ({shape})"


def risks(combination: Combination) -> str:
    """What a reader must know before using it."""
    negative = [name for name in combination.coefficients if _goes_below_zero(combination, name)]
    small = [name for name in combination.coefficients if name not in (BASE, REFERENCE)]
    lines = []
    if negative:
        lines.append(
            f"- **Negative weights.** {_listed(negative)} enters with a negative weight: what it finds likely becomes less likely. "
            "Negative weights on a safety-tuned delta undo its safety training. Choose coefficients yourself; do not let untrusted callers "
            "do so."
        )
    if BASE in combination.coefficients and small:
        lines.append(
            f"- **The small model steers the large one.** What {_listed(small)} learnt, mistakes, bias and anything that was planted in it "
            "included, changes what the large one says, with the large one's abilities behind it. Trust every member as you trust the base."
        )
    lines.append(
        "- **It can lose to its own parts.** Compare the combination with each member alone on your task; results of one member are not "
        "results of the combination."
    )
    lines.append("- **Every member's licence applies**, and the terms of use of each.")
    return "\n".join(lines)


def _program(theirs: set[str], ours: set[str], *parts: str) -> str:
    imports = [
        f"from {package} import {', '.join(sorted(names))}"
        for package, names in (("transformers", theirs), ("hf_eft", ours))
        if names
    ]
    return "\n\n".join([*imports, *parts])


def _loading(where: Mapping[str, tuple[str, str | None]], written_by: str, instead_of_base: str | None) -> str:
    """Code that loads every model once."""
    lines, again, first = ["members = {"], [], dict[tuple[str, str | None], str]()
    for name, place in where.items():
        if (other := first.setdefault(place, name)) != name:
            again.append(f'members["{name}"] = members["{other}"]')
            continue
        lines.append(f'    "{name}": AutoModelForCausalLM.from_pretrained({_place(place)}, use_safetensors=True),')
    lines += ["}", *again]
    if instead_of_base:
        lines.append(f'members["{BASE}"] = members["{instead_of_base}"]  # put a larger model with the same tokenizer here')
    return "\n".join([*lines, f"tokenizer = AutoTokenizer.from_pretrained({_place(where[written_by])})"])


def _place(place: tuple[str, str | None]) -> str:
    repository, commit = place
    return f'"{repository}"' if commit is None else f'"{repository}", revision="{commit}"'


def _tuned(names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in (BASE, REFERENCE)]


def _written_by(names: list[str]) -> str:
    """Whose tokenizer writes prompts and whose end tokens end texts: the tuned member's, as in `EFTForCausalLM.from_models`."""
    tuned = _tuned(names)
    return tuned[0] if len(tuned) == 1 else names[0]


def _has_add_on(names: list[str]) -> bool:
    return BASE in names and len(names) > 1


def _arguments(names: list[str], named: bool = False) -> str:
    """The members but the base, as arguments of a leaf."""
    tuned, arguments = _tuned(names), []
    if tuned == ["tuned"]:
        arguments.append(("tuned=" if named else "") + 'members["tuned"]')
    elif tuned:
        arguments.append("tuned={" + ", ".join(f'"{name}": members["{name}"]' for name in tuned) + "}")
    if REFERENCE in names:
        arguments.append(("reference=" if named or tuned != ["tuned"] else "") + f'members["{REFERENCE}"]')
    return ", ".join(arguments)


def _as_code(combination: Combination) -> str:
    """The recipe as an expression; empty for the one that the leaves take if nothing is said."""
    if called := [name for name, value in combination.coefficients.items() if callable(value)]:
        raise ValueError(f"The coefficients of {called} are callables, which cannot be written into a card. Give numbers.")
    if own := [str(rule) for rule in combination.each_rule if type(rule) not in RULES.values()]:
        raise ValueError(
            f"The rules {own} are a user's, which cannot be written into a card. Give numbers, or a rule of hf_eft."
        )
    if combination == Combination.emulate():
        return ""
    recipe = ", ".join(f'"{name}": {_value_as_code(value)}' for name, value in combination.coefficients.items())
    truncation, phases = combination.truncation, [f"Phase(**{phase.to_dict()!r})" for phase in combination.phases]
    given = [f'Truncation("{truncation.rule}", {truncation.p!r})'] if truncation else []
    given += [f"phases=[{', '.join(phases)}]"] if phases else []
    return f"Combination({', '.join((f'{{{recipe}}}', *given))})"


def _value_as_code(value: Any) -> str:
    """A coefficient as an expression."""
    if isinstance(value, ByRule):
        terms = [f"{scale!r} * {rule!r}" for rule, scale in value.terms]
        return " + ".join([*([repr(value.offset)] if value.offset else []), *terms])
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{phase!r}: {_value_as_code(each)}' for phase, each in value.items())}}}"
    return repr(list(value) if isinstance(value, tuple) else value)


def _goes_below_zero(combination: Combination, name: str) -> bool:
    """Whether a coefficient is negative anywhere; what a callable or a rule says is not known, so that it may be."""
    value = combination.coefficients[name]
    values: Iterable[Any] = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    )
    return callable(value) or any(isinstance(each, ByRule) or each < 0 for each in values)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
