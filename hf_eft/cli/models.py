"""Which models answer: the options that say so, and how they are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..combination import BASE, REFERENCE, TUNED, Truncation
from ..recipe import recipe
from .app import notes
from .loading import load as load_members  # -> from ..hub import load as load_members
from .options import named, named_numbers, number

_MODELS, _RECIPE, _RUNNING = "Models", "Recipe", "How the models run"
_ENDS = 2**16  # bytes at both ends of a file that tell it from another


def _option(panel: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, show_default=more.pop("show_default", False), **more)


@dataclass(frozen=True)
class Models:
    """The models and the recipe that a command line gives."""

    model: Annotated[
        str | None,
        _option(_MODELS, "A saved combination: folder or Hub id.", metavar="FOLDER_OR_ID"),
    ] = None
    allow_references: Annotated[
        bool,
        _option(_MODELS, "Let the file of --model say which other repositories are loaded.", show_default=True),
    ] = False
    base: Annotated[
        str | None, _option(_MODELS, "The model whose knowledge is wanted, usually large.", metavar="FOLDER_OR_ID")
    ] = None
    tuned: Annotated[
        list[str] | None,
        _option(
            _MODELS,
            "The model whose behaviour is wanted, usually small. Several: --tuned helpful=ID --tuned brief=ID.",
            metavar="FOLDER_OR_ID",
        ),
    ] = None
    reference: Annotated[
        str | None, _option(_MODELS, "What the tuned model was before it was tuned.", metavar="FOLDER_OR_ID")
    ] = None
    alpha: Annotated[float | None, _option(_RECIPE, "Strength of what fine-tuning changed (1 if nothing is given).")] = None
    beta: Annotated[float | None, _option(_RECIPE, "Amplification of what scale changed, instead of alpha.")] = None
    weight: Annotated[
        list[str] | None,
        _option(_RECIPE, "The weight of a tuned model, as in --weight helpful=0.7; for each.", metavar="NAME=NUMBER"),
    ] = None
    truncation: Annotated[
        str | None,
        _option(
            _RECIPE,
            "Which tokens may be re-weighted: keep:P, drop:P, base:P or plausible:P, as in keep:0.95.",
            metavar="RULE:P",
        ),
    ] = None
    dtype: Annotated[str, _option(_RUNNING, "auto, float32, bfloat16 or float16.", show_default=True)] = "auto"
    device: Annotated[str | None, _option(_RUNNING, "Where the models run, as in cuda:0. The fastest there is by default.")] = (
        None
    )
    trust_remote_code: Annotated[
        bool, _option(_RUNNING, "Run the code that the models' repositories bring. It can do anything.", show_default=True)
    ] = False

    def places(self) -> str | dict[str, str]:
        """The saved combination, or the members by name."""
        given = self.base, self.tuned, self.reference
        if self.model is not None:
            if any(given):
                raise typer.BadParameter("give a saved combination or its members, not both", param_hint="--model")
            return self.model
        if not any(given):
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

    def recipe_for(self, names: Any) -> Any:
        """The recipe of these members, `None` if the command line says nothing about it."""
        if self.alpha is self.beta is None and not self.weight and self.truncation is None:
            return None
        weights = named_numbers(self.weight, "--weight") or None
        try:
            return recipe(tuple(names), self.alpha, self.beta, weights, parsed_truncation(self.truncation))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    def load(self) -> tuple[Any, Any]:
        """The combination and the tokenizer that its prompts are written with."""
        model, tokenizers = self.load_all()
        return model, prompt_tokenizer(tokenizers)

    def load_all(self) -> tuple[Any, dict[str, Any]]:
        """The combination and every member's tokenizer."""
        where = self.places()
        combination = self.recipe_for(where) if isinstance(where, Mapping) else None
        with notes.status("Loading") as status:
            try:
                model, tokenizers = load_members(
                    where,
                    combination=combination,
                    dtype=self.dtype,
                    device=self.device or best_device(),
                    allow_references=self.allow_references,
                    trust_remote_code=self.trust_remote_code,
                    progress=status.update,
                )
            except (OSError, ValueError) as error:
                raise typer.BadParameter(str(error)) from error
        if isinstance(where, str) and (chosen := self.recipe_for(model.members)) is not None:
            model.combination = chosen
        return model, tokenizers


def parsed_truncation(text: str | None) -> Truncation | None:
    """`keep:0.95` as a rule and its number."""
    if text is None:
        return None
    rule, _, p = text.partition(":")
    try:
        return Truncation(rule, number(p, "--truncation"))  # type: ignore[arg-type]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--truncation") from error


def prompt_tokenizer(tokenizers: Mapping[str, Any]) -> Any:
    """The tokenizer that prompts are written with: a tuned member's, one with a chat template if there is one."""
    ours = [tokenizer for name, tokenizer in tokenizers.items() if name not in (BASE, REFERENCE)] or [*tokenizers.values()]
    return next((tokenizer for tokenizer in ours if getattr(tokenizer, "chat_template", None)), ours[0])


def best_device() -> str:
    """The accelerator, if there is one."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


def identity(models: Models, model: Any) -> dict[str, Any]:
    """What the answers depend on: where the models come from, which version of them, and how they run."""
    where = models.places() if models.model or models.base or models.tuned else "the embedded family"
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
