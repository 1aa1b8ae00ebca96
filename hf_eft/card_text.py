"""The words and the code of model cards. What is put into them was checked before: repositories, commits, identifiers, numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .combination import BASE, REFERENCE, Combination

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
add_on = EFTLogitsProcessor({{delta}}, combination={{combination}})
inputs = tokenizer("{_PROMPT}", return_tensors="pt", return_token_type_ids=False)
ends = members["{{ends_as}}"].generation_config.eos_token_id
ids = members["{BASE}"].generate(**inputs, logits_processor=[add_on], eos_token_id=ends, max_new_tokens=64)
print(tokenizer.decode(ids[0], skip_special_tokens=True))"""
_FOLDER = """\
model = EFTForCausalLM.from_pretrained("{place}")
tokenizer = AutoTokenizer.from_pretrained("{place}")"""
_MEMBERS = """\
where = {{  # by member, its repository and commit
{listed}
}}
loaded = {{
    at: AutoModelForCausalLM.from_pretrained(at[0], revision=at[1], use_safetensors=True) for at in set(where.values())
}}
members = {{name: loaded[at] for name, at in where.items()}}
repository, commit = where["{written_by}"]
tokenizer = AutoTokenizer.from_pretrained(repository, revision=commit)"""


def blocks_of_folder(place: str, names: Iterable[str]) -> dict[str, str]:
    """Whole programs that run a saved combination, by heading. A base alone can run the rest of its combination as an add-on."""
    names = list(names)
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
        text = _ADD_ON.format(delta=_arguments(names), combination="model.combination", ends_as=_written_by(names))
        load += "\nmembers = model.members"
        blocks["As an add-on to the base"] = _program({"AutoTokenizer"}, {"EFTForCausalLM", "EFTLogitsProcessor"}, load, text)
    return blocks


def blocks_of_members(where: Mapping[str, tuple[str, str | None]], combination: Combination) -> dict[str, str]:
    """Whole programs that load the members from their repositories and combine them, by heading."""
    names, recipe = list(where), _as_code(combination)
    listed = "\n".join(f'    "{name}": ("{at[0]}", {_quoted(at[1])}),' for name, at in where.items())
    load = _MEMBERS.format(listed=listed, written_by=_written_by(names))
    base = f'members["{BASE}"]' if BASE in names else "None"
    build = f"model = EFTForCausalLM.from_models({base}, {_arguments(names, named=True)}, combination={recipe})"
    theirs, ours = {"AutoModelForCausalLM", "AutoTokenizer"}, {"Combination"}
    ours |= {"Truncation"} if combination.truncation is not None else set()
    wrapper = {*ours, "EFTForCausalLM"}
    blocks = {
        "As a model": _program(theirs, wrapper, load, build, _GENERATE),
        "In a pipeline": _program({*theirs, "pipeline"}, wrapper, load, build, _PIPELINE),
    }
    if _has_add_on(names):
        text = _ADD_ON.format(delta=_arguments(names), combination=recipe, ends_as=_written_by(names))
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
    recipe, comma, truncation = text.partition(", ")
    return f"log p = {recipe} - log Z{comma}{truncation}"


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
    imports = f"from transformers import {', '.join(sorted(theirs))}\n\nfrom hf_eft import {', '.join(sorted(ours))}"
    return "\n\n".join([imports, *parts])


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
    if called := [name for name, value in combination.coefficients.items() if callable(value)]:
        raise ValueError(f"The coefficients of {called} are callables, which cannot be written into a card. Give numbers.")
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in combination.coefficients.items()}
    recipe = ", ".join(f'"{name}": {value!r}' for name, value in values.items())
    truncation = combination.truncation
    return f"Combination({{{recipe}}}" + (f', Truncation("{truncation.rule}", {truncation.p!r}))' if truncation else ")")


def _goes_below_zero(combination: Combination, name: str) -> bool:
    """Whether a coefficient is negative anywhere; what a callable says is not known, so that it may be."""
    value = combination.coefficients[name]
    return callable(value) or min(value if isinstance(value, (list, tuple)) else [value]) < 0


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _quoted(commit: str | None) -> str:
    return "None" if commit is None else f'"{commit}"'
