"""Which models answer: the options that say so, and how they are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..folders.processing import root_tokenizer
from ..hub import load as load_members
from ..members.vocabulary import TokenizersDifferError
from ..prompts.pictures import tokenizer_of
from ..recipe.combination import BASE, REFERENCE, TUNED, Combination
from ..recipe.phases import Phase
from ..recipe.shorthands import recipe
from ..recipe.truncation import Truncation
from ..units.choice import choose
from ..units.members import VOCABULARIES
from .app import notes, said
from .options import by_phase, named, number, option, strengths

_MODELS, _RECIPE, _RUNNING = "Models", "Recipe", "How the models run"
_ENDS = 2**16  # bytes at both ends of a file that tell it from another


@dataclass(frozen=True)
class Composition:
    """Members and a recipe that a command line gives."""

    base: Annotated[
        str | None, option(_MODELS, "The model whose knowledge is wanted, usually large.", metavar="FOLDER_OR_ID")
    ] = None
    tuned: Annotated[
        list[str] | None,
        option(
            _MODELS,
            "The model whose behaviour is wanted, usually small. Several: --tuned helpful=ID --tuned brief=ID.",
            metavar="FOLDER_OR_ID",
        ),
    ] = None
    reference: Annotated[
        str | None, option(_MODELS, "What the tuned model was before it was tuned.", metavar="FOLDER_OR_ID")
    ] = None
    alpha: Annotated[
        list[str] | None,
        option(
            _RECIPE,
            "Strength of what fine-tuning changed (1 if nothing is given). By phase: --alpha think=1.2 --alpha answer=0.6. By rule, at "
            "each token: --alpha kl:bound=1,most=2; or confidence, entropy, divergence.",
            metavar="[PHASE=]NUMBER_OR_RULE",
        ),
    ] = None
    beta: Annotated[
        list[str] | None,
        option(
            _RECIPE,
            "Amplification of what scale changed, instead of alpha. By phase and rule too.",
            metavar="[PHASE=]NUMBER_OR_RULE",
        ),
    ] = None
    weight: Annotated[
        list[str] | None,
        option(_RECIPE, "The weight of a tuned model, as in --weight helpful=0.7; for each.", metavar="NAME=NUMBER_OR_RULE"),
    ] = None
    truncation: Annotated[
        str | None,
        option(
            _RECIPE,
            "Which tokens may be re-weighted: keep:P, drop:P, base:P or plausible:P, as in keep:0.95.",
            metavar="RULE:P",
        ),
    ] = None

    budget: Annotated[
        list[str] | None,
        option(_RECIPE, "The most tokens of a phase, as in --budget think=512: then it is ended.", metavar="PHASE=TOKENS"),
    ] = None

    @property
    def given(self) -> bool:
        """Whether there is any member."""
        return any((self.base, self.tuned, self.reference))

    def members(self) -> dict[str, str]:
        """Where the members are, by name; those of the embedded family if none is given."""
        if not self.given:
            from .. import tiny

            notes.print("No models given: the embedded tiny family answers (it knows one invented world).", style="dim")
            return {name: str(tiny.path(name)) for name in (BASE, TUNED, REFERENCE)}
        tuned = self._tuned()
        if TUNED in tuned or not tuned:
            alone = {"--base": self.base, "--tuned": self.tuned, "--reference": self.reference}
            if missing := [option for option, where in alone.items() if not where]:
                raise typer.BadParameter(
                    f"three models are needed, or none for the embedded family; missing: {', '.join(missing)}"
                )
        return {name: where for name, where in ((BASE, self.base), *tuned.items(), (REFERENCE, self.reference)) if where}

    def _tuned(self) -> dict[str, str]:
        given = self.tuned or []
        if len(given) == 1 and ("=" not in given[0] or given[0].startswith((".", "/", "~"))):
            return {TUNED: given[0]}
        return named(given, "--tuned")

    def recipe_for(self, names: Iterable[str], phases: Sequence[Phase] = ()) -> Combination | None:
        """The recipe of these members, `None` if the command line says nothing about it. A saved one may have phases of its own."""
        if not (self.alpha or self.beta or self.weight) and self.truncation is None:
            if self.budget:
                raise typer.BadParameter("say the strength as well, as in --alpha 1", param_hint="--budget")
            return None
        weights = strengths(self.weight, "--weight") or None
        alpha, beta = by_phase(self.alpha, "--alpha"), by_phase(self.beta, "--beta")
        try:
            phases = self._budgeted(phases)
            return recipe(tuple(names), alpha, beta, weights, parsed_truncation(self.truncation), phases)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    def _budgeted(self, phases: Sequence[Phase]) -> list[Phase]:
        budgets = named(self.budget, "--budget")
        known = {phase.name: phase for phase in phases or ((Phase(),) if budgets else ())}
        for name, value in budgets.items():
            if name not in known:
                raise typer.BadParameter(f"there is no phase {name!r}, but {', '.join(known)}", param_hint="--budget")
            if not value.isdecimal():
                raise typer.BadParameter(f"expected a number of tokens, got {value!r}", param_hint="--budget")
            known[name] = replace(known[name], budget=int(value))
        return list(known.values())


@dataclass(frozen=True)
class Models(Composition):
    """Models that run, and how."""

    model: Annotated[
        str | None,
        option(_MODELS, "Instead, a saved combination: folder or Hub id.", metavar="FOLDER_OR_ID"),
    ] = None
    allow_references: Annotated[
        bool, option(_MODELS, "Let the file of --model say which other repositories are loaded.", flag="--allow-references")
    ] = False
    vocabulary: Annotated[
        str | None,
        option(
            _MODELS,
            "For members with different tokenizers: tokens (of the base, that all are made of), bytes, or auto.",
            metavar="tokens|bytes|auto",
        ),
    ] = None
    dtype: Annotated[str, option(_RUNNING, "auto, float32, bfloat16 or float16.", show_default=True)] = "auto"
    device: Annotated[str | None, option(_RUNNING, "Where the models run, as in cuda:0. The fastest there is by default.")] = (
        None
    )
    trust_remote_code: Annotated[
        bool,
        option(_RUNNING, "Run the code that the models' repositories bring. It can do anything.", flag="--trust-remote-code"),
    ] = False

    def places(self) -> str | dict[str, str]:
        """The saved combination, or the members by name."""
        check_vocabulary(self.vocabulary)
        if self.model is None:
            return self.members()
        if self.vocabulary is not None:
            raise typer.BadParameter("a saved combination says its own", param_hint="--vocabulary")
        if self.given:
            raise typer.BadParameter("give a saved combination or its members, not both", param_hint="--model")
        return self.model

    def load(self) -> tuple[Any, Any]:
        """The combination and the tokenizer that its prompts are written with; the processor, where every member has one."""
        model, tokenizers = self.load_all()
        return model, prompt_reader(model, tokenizers)

    def tell_blind(self, model: Any) -> None:
        """Say which members that see have no processor beside them."""
        from ..members.auto import sees

        for name, member in model.members.items():
            if sees(member.config) and name not in model.processors:
                notes.print(f"The member {name!r} has no processor, so that pictures are refused.", style="dim")

    def load_all(self) -> tuple[Any, dict[str, Any]]:
        """The combination and every member's tokenizer."""
        where = self.places()
        combination = self.recipe_for(where) if isinstance(where, Mapping) else None
        with notes.status("Loading") as status:
            try:
                model, tokenizers = load_members(
                    where,
                    combination=combination,
                    vocabulary=self.vocabulary,
                    dtype=self.dtype,
                    device=self.device or best_device(),
                    allow_references=self.allow_references,
                    trust_remote_code=self.trust_remote_code,
                    progress=status.update,
                )
            except TokenizersDifferError as error:
                raise typer.BadParameter(across(error)) from error
            except (OSError, ValueError) as error:
                raise typer.BadParameter(said(error)) from error
        if isinstance(where, str) and (chosen := self.recipe_for(model.members, model.combination.phases)) is not None:
            model.combination = chosen
        return model, tokenizers


def check_vocabulary(vocabulary: str | None) -> None:
    """Refuse a `--vocabulary` that there is not."""
    if vocabulary not in (None, *VOCABULARIES):
        raise typer.BadParameter(f"expected {', '.join(VOCABULARIES)}, got {vocabulary!r}", param_hint="--vocabulary")


def across(error: TokenizersDifferError) -> str:
    """How members whose tokenizers differ can be combined."""
    problem = str(error).partition(". ")[0]
    try:
        choice = choose(error.tokenizers)
    except ValueError as why:
        return f"{problem}. They cannot be combined across tokenizers either: {why}"
    return f"{problem}. Give --vocabulary {choice.vocabulary}, which is what auto takes: {choice.reason}"


def parsed_truncation(text: str | None) -> Truncation | None:
    """`keep:0.95` as a rule and its number."""
    if text is None:
        return None
    rule, _, p = text.partition(":")
    try:
        return Truncation(rule, number(p, "--truncation"))  # type: ignore[arg-type]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--truncation") from error


def prompt_reader(model: Any, tokenizers: Mapping[str, Any]) -> Any:
    """What prompts are written with, the one that a folder has at its root: a tokenizer, or a processor where every member has one."""
    readers = {**tokenizers, **model.processors}
    if (name := root_tokenizer(readers, [*readers])) is None:
        raise typer.BadParameter(
            "none of the members has a tokenizer, which prompts are read with; save one beside a model: "
            "`tokenizer.save_pretrained(FOLDER)`"
        )
    return readers[name] if model.processors.keys() == model.members.keys() else tokenizer_of(readers[name])


def best_device() -> str:
    """The accelerator, if there is one."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


def identity(models: Models, model: Any) -> dict[str, Any]:
    """What the answers depend on: where the models come from, which version of them, and how they run."""
    where = models.places() if models.model or models.given else {"model": "the embedded family"}
    places = where if isinstance(where, dict) else {"model": where}
    configs = {"model": model.config, **{name: member.config for name, member in model.members.items()}}
    versions = {name: _version(place, configs[name]) for name, place in places.items()}
    return {"from": versions, "dtype": str(model.dtype), "device": model.device.type}


def _version(place: str, config: Any) -> str:
    """A commit of the Hub, or what tells one state of a folder from another without reading all of it."""
    folder = Path(place)
    if not folder.is_dir():
        return f"{place} {getattr(config, '_commit_hash', None) or ''}".strip()
    digest = hashlib.sha256()
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors", ".jinja")
    ):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    return f"{folder.name} {digest.hexdigest()[:16]}"
