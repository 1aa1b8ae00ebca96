"""What came out: the state of a run that can be stopped, the survivors that were judged, the table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .draw import Draw, Mutant
from .targets import name_of

HERE = Path(__file__).parent
JUDGED = HERE / "judged.json"
TABLE = HERE / "table.md"
CAUGHT, TIMED_OUT, SURVIVED = "caught", "timed out", "survived"


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant."""

    key: str
    outcome: str
    by: str  # the test that failed, or what ended the run; of a survivor nothing
    ran: int  # tests
    seconds: float


class State:
    """The outcomes so far, a line each in a file; of two of one mutant the later counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        found = (Outcome(**json.loads(line)) for line in lines if line.endswith("}"))  # the last may be half written
        self.outcomes = {each.key: each for each in found}

    def add(self, outcome: Outcome) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        self.outcomes[outcome.key] = outcome


def judged(path: Path = JUDGED) -> dict[str, str]:
    """Why a survivor cannot matter, by its key."""
    return {each["mutant"]: each["why"] for each in json.loads(path.read_text())}


@dataclass
class Row:
    """A room of the table."""

    places: int = 0
    drawn: int = 0
    caught: int = 0
    timed_out: int = 0
    survived: int = 0
    judged: int = 0
    open: list[Mutant] = field(default_factory=list)  # survivors that nobody has judged

    @property
    def matter(self) -> int:
        return self.caught + self.timed_out + self.survived - self.judged

    @property
    def share(self) -> float:
        return (self.caught + self.timed_out) / self.matter if self.matter else 1.0

    def __str__(self) -> str:
        cells = [self.places, self.drawn, self.caught, self.timed_out, self.survived, self.judged, f"{self.share:.1%}"]
        return " | ".join(map(str, cells))


def row(draw: Draw, state: State, why: dict[str, str]) -> Row:
    found = Row(places=draw.places, drawn=len(draw.mutants))
    for mutant in draw.mutants:
        outcome = state.outcomes.get(mutant.key)
        if outcome is None:
            continue
        found.caught += outcome.outcome == CAUGHT
        found.timed_out += outcome.outcome == TIMED_OUT
        if outcome.outcome == SURVIVED:
            found.survived += 1
            if mutant.key in why:
                found.judged += 1
            else:
                found.open.append(mutant)
    return found


def total(rows: Iterable[Row]) -> Row:
    found = Row()
    for each in rows:
        for name in ("places", "drawn", "caught", "timed_out", "survived", "judged"):
            setattr(found, name, getattr(found, name) + getattr(each, name))
        found.open += each.open
    return found


def table(rows: dict[str, Row]) -> str:
    """The rooms in Markdown. Caught are those of the mutants that ran and can matter."""
    head = "| room | places | mutants | caught | timed out | survived | of these judged | caught or timed out |"
    lines = [head, "|---" * 8 + "|", *(f"| {name} | {each} |" for name, each in rows.items())]
    return "\n".join([*lines, f"| **all** | {total(rows.values())} |"])


def entry(mutant: Mutant, why: str) -> dict[str, str]:
    """A line of the list of those that were judged."""
    changed = [line[1:].strip() for line in mutant.diff().splitlines()[2:] if line.startswith("+")]
    return {
        "file": name_of(mutant.source),
        "line": mutant.place.line,
        "becomes": " ".join(changed),
        "why": why,
        "mutant": mutant.key,
    }
