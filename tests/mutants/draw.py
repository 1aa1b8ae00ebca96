"""
Mutants by the operators of cosmic-ray, drawn by a fixed seed.

Places are drawn, not mutants: a `+` has eleven mutants that the same test sees, an `if` has one. Each place is ranked by a digest of
the seed and of what is there, so that a change elsewhere in the package, or another name of the file, changes nothing of the draw.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from .targets import name_of, sources


@dataclass(frozen=True)
class Place:
    """Where a mutant is, in words that outlive a move of the file and a change of its other lines."""

    room: str
    function: str  # with the classes and functions around it; nothing: in none
    line: str  # the text of the line
    code: str  # what is changed
    number: int  # among places that are alike in all of this


@dataclass(frozen=True)
class Mutant:
    place: Place
    operator: str
    index: int  # among the mutants of this operator at this place
    source: Path
    first: int  # the number of the line
    occurrence: int  # in the file, as cosmic-ray counts

    @property
    def key(self) -> str:
        return "|".join(map(str, (*asdict(self.place).values(), self.operator, self.index)))

    def text(self) -> str | None:
        """The file with the mutant in it."""
        return mutate_code(_read(self.source), _operators()[self.operator], self.occurrence)

    def diff(self) -> str:
        was, text = _read(self.source).splitlines(), (self.text() or "").splitlines()
        lines = list(difflib.unified_diff(was, text, lineterm="", n=0))[2:]
        return "\n".join([f"{name_of(self.source)}:{self.first} in {self.place.function or 'no function'}", *lines])


@functools.cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def _operators() -> dict[str, Any]:
    """Every operator that takes no arguments, by its name."""
    classes = {name.partition("/")[2]: get_operator(name) for name in operator_names()}
    return {name: each() for name, each in classes.items() if not each.arguments()}


def _function(node: Any) -> str:
    names = []
    while node is not None:
        if node.type in ("funcdef", "classdef"):
            names.append(node.name.value)
        elif node.type == "decorator":  # it stands beside what it decorates
            under = node.parent if node.parent.type == "decorated" else node.parent.parent
            names.append(under.children[-1].name.value)
        node = node.parent
    return ".".join(reversed(names))


def mutants(room: str, source: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    text = _read(source)
    lines = text.splitlines()
    tree = get_ast(text)
    nodes = list(ast_nodes(tree))
    spans: dict[tuple[Any, Any], Place] = {}
    alike: Counter[tuple[str, ...]] = Counter()
    at: list[tuple[Any, Any, str, int, int]] = []
    for name, operator in _operators().items():
        occurrence = 0
        seen: Counter[Any] = Counter()
        for node in nodes:
            for first, last in operator.mutation_positions(node):
                at.append(((first, last), node, name, seen[first, last], occurrence))
                seen[first, last] += 1
                occurrence += 1
    for span, node in sorted({each[0]: each[1] for each in at}.items(), key=lambda each: each[0]):
        (row, column), (end, stop) = span
        code = lines[row - 1][column : stop if end == row else None]
        words = (_function(node), lines[row - 1].strip(), code)
        spans[span] = Place(room, *words, alike[words])
        alike[words] += 1
    for span, _, name, index, occurrence in at:
        yield Mutant(spans[span], name, index, source, span[0][0], occurrence)


def _rank(seed: int, *words: object) -> str:
    return hashlib.sha256("|".join(map(str, (seed, *words))).encode()).hexdigest()


class _NoAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node

    def _function(self, node: Any) -> Any:
        node.returns = None
        self.generic_visit(node)
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _function


@functools.lru_cache(maxsize=4)
def _runs(text: str) -> str | None:
    """What of a text runs: all but annotations, which are not evaluated here. `None` if it is no Python."""
    try:
        return ast.dump(_NoAnnotations().visit(ast.parse(text)))
    except SyntaxError:
        return None


def can_matter(mutant: Mutant) -> bool:
    """Whether a mutant is Python and is not in an annotation only."""
    text = mutant.text()
    return text is not None and _runs(text) not in (None, _runs(_read(mutant.source)))


@dataclass(frozen=True)
class Draw:
    """What was drawn of a room, of how many places."""

    mutants: list[Mutant]
    places: int


def drawn(room: str, count: int, seed: int, files: list[Path] | None = None) -> Draw:
    """So many mutants of a room, each at a place of its own."""
    places: dict[Place, list[Mutant]] = defaultdict(list)
    for source in sources(room) if files is None else files:
        for each in mutants(room, source):
            places[each.place].append(each)
    found: list[Mutant] = []
    for place in sorted(places, key=lambda each: _rank(seed, *asdict(each).values())):
        if len(found) == count:
            break
        at = sorted(places[place], key=lambda each: _rank(seed, each.key))
        first = next(filter(can_matter, at), None)
        found += [first] if first else []
    return Draw(found, len(places))


def kept(room: str, count: int, seed: int, folder: Path) -> Draw:
    """What `drawn` gives, kept in a folder while the files of the room are as they are: to look at them all takes a minute."""
    files = {name_of(each): each for each in sources(room)}
    state = _rank(seed, count, version("cosmic-ray"), *(f"{name} {_read(each)}" for name, each in files.items()))
    path = folder / f"{room}.json"
    if path.exists() and (was := json.loads(path.read_text()))["state"] == state:
        mutants = [
            Mutant(Place(**each["place"]), **each["change"], source=files[each["source"]], **each["at"])
            for each in was["mutants"]
        ]
        return Draw(mutants, was["places"])
    draw = drawn(room, count, seed)
    rows = [
        {
            "place": asdict(each.place),
            "change": {"operator": each.operator, "index": each.index},
            "source": name_of(each.source),
            "at": {"first": each.first, "occurrence": each.occurrence},
        }
        for each in draw.mutants
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"state": state, "places": draw.places, "mutants": rows}))
    return draw
