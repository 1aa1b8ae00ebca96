"""Options that several commands share, written once: a dataclass of them is a parameter of a command. And those of `generate`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import typer

from ..files.json_lines import parsed
from ..programs.options import check_name, read_options
from ..recipe.rules.known import rule_of_text
from ..recipe.rules.rule import Rule

_PYTHON = {"True": True, "False": False, "None": None}  # as those write them who read transformers' documentation
_NAMED = re.compile(r"\w+=")  # before a rule's options stands a colon


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have dataclasses of options as parameters: their fields become options of the command."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            groups[name] = hints[name]
            own = get_type_hints(hints[name], include_extras=True)
            parameters += [
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=own[field.name])
                for field in dataclasses.fields(hints[name])
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    def run(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def option(panel: str, text: str, *, flag: str | None = None, show_default: bool = False, **more: Any) -> Any:
    """An option under a heading of the help, `panel`."""
    names = () if flag is None else (flag,)  # a switch that cannot be switched off
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=show_default, **more)


def generation_options(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--num-beams 4 --do-sample true` as options of `generate`, and what is no option. Values are read as JSON where they are."""
    options: dict[str, Any] = {}
    positional: list[str] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            positional.append(flag)
            continue
        written, separator, value = flag.partition("=")
        name = written.removeprefix("--").replace("-", "_")
        try:
            check_name(name, written=f"--{name.replace('_', '-')}")
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if name in options:
            raise typer.BadParameter(f"{written} is given twice")
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise typer.BadParameter(f"{written} needs a value, as in {written} true")
            value = rest.pop(0)
        options[name] = _value(value)
    try:
        return read_options(options), positional
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _value(text: str) -> Any:
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        return parsed(text)
    except ValueError:
        return text


def by_phase(given: list[str] | None, option: str) -> float | Rule | dict[str, float | Rule] | None:
    """`["0.8"]` as a number, `["kl:bound=1"]` as a rule, `["think=kl", "answer=0.6"]` as numbers and rules by phase."""
    if not given:
        return None
    if any(_NAMED.match(each) for each in given):
        return strengths(given, option)
    if len(given) > 1:
        raise typer.BadParameter("given twice; for phases, as in think=1.2", param_hint=option)
    return strength(given[0], option)


def named_numbers(given: list[str] | None, option: str) -> dict[str, float]:
    """`["helpful=0.7", "harmless=0.3"]` as numbers by name."""
    return {name: number(value, option) for name, value in named(given, option).items()}


def strengths(given: list[str] | None, option: str) -> dict[str, float | Rule]:
    """`["helpful=0.7", "harmless=kl:tuned=harmless"]` as numbers and rules by name."""
    return {name: strength(value, option) for name, value in named(given, option).items()}


def strength(text: str, option: str) -> float | Rule:
    """A number or a rule that a user wrote."""
    try:
        rule = rule_of_text(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    return number(text, option) if rule is None else rule


def named(given: list[str] | None, option: str) -> dict[str, str]:
    """`["helpful=somewhere"]` as texts by name."""
    pairs: dict[str, str] = {}
    for each in given or ():
        name, separator, value = each.partition("=")
        if not (separator and name and value):
            raise typer.BadParameter(f"expected NAME=VALUE, got {each!r}", param_hint=option)
        if name in pairs:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs[name] = value
    return pairs


def number(text: str, option: str) -> float:
    """A number that a user wrote."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got {text!r}", param_hint=option) from None
