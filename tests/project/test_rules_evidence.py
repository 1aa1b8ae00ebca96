"""The quick version of the rules' evidence runs, does nothing twice, and what is committed is what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_replication import rounded

RULES = Path(__file__).resolve().parents[2] / "examples" / "replication" / "rules"


def loaded(name: str) -> Any:
    """A program of the folder, under a name of its own: `through` has a `run` and a `report`, too."""
    spec = importlib.util.spec_from_file_location(f"rules_{name}", RULES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = [*before, *(path for path in sys.path if path not in before)]
    return module


run, report = loaded("run"), loaded("report")

import asking  # noqa: E402
import frontier  # noqa: E402
import learn_gate  # noqa: E402
import measuring  # noqa: E402
from candidates import CONSTANT, PLAIN, candidates  # noqa: E402
from drawing import families_picture, frontiers_picture  # noqa: E402

ASKED = ["ordinary, small on large", "ordinary, large on small", "ordinary, medium on small", "sums, ordinary"]
FAMILIES = (PLAIN, CONSTANT, "truncation keep", "divergence β", "divergence α", "gate α", "gate β")


def few(*args: Any) -> dict[str, Any]:
    """Some families with one option, constants with two."""
    found = candidates(*args)
    return {f: dict(list(found[f].items())[: 2 if f == CONSTANT else 1]) for f in FAMILIES if f in found}


def again(*_: Any) -> None:
    raise AssertionError("measured again")


def test_the_quick_version_runs_and_does_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "candidates", few)
    monkeypatch.setattr(frontier, "LAMBDAS", (0.0, 0.5, 1.0))
    monkeypatch.setattr(learn_gate, "FORMS", {"α": (0.5,), "β": (1.0,)})
    monkeypatch.setattr(learn_gate, "STEPS", 1)
    for name in ("_NEW_TOKENS", "_NEW_TOKENS_OF_SUMS"):
        monkeypatch.setattr(asking, name, 2)
    # Models that have learnt nothing are as good as one another at everything: every answer is a little better than another.
    monkeypatch.setattr(learn_gate, "worth", lambda judged, refuses: float(next(counted)))
    counted = iter(range(10**6))
    threads, work = torch.get_num_threads(), tmp_path / "work"
    try:
        run.main(["--quick", "--work", str(work), "--rows", *ASKED, *(each.name for each in frontier.FRONTIERS[:2])])
        made = {
            path.relative_to(work): path.read_text() for path in sorted(work.rglob("*.json")) if "families" not in path.parts
        }
        assert len([path for path in made if path.parts[0] == "test"]) == len(ASKED)
        assert len([path for path in made if path.parts[0] == "validation"]) == 2  # the others take their choices
        for name in ("validate", "ask"):  # what is measured again fails
            monkeypatch.setattr(run, name, again)
        monkeypatch.setattr(frontier.Frontier, "measure", again)
        monkeypatch.setattr(learn_gate, "train", again)
        run.main(["--quick", "--work", str(work), "--rows", *ASKED, *(each.name for each in frontier.FRONTIERS[:2])])
        assert {path: (work / path).read_text() for path in made} == made
    finally:
        torch.set_num_threads(threads)
    chosen = json.loads((work / "chosen.json").read_text())
    assert chosen["recommended"]["family"] in ("divergence α", "divergence β")
    asked = json.loads((work / "test" / "seed-0" / f"{ASKED[0]}.json").read_text())
    assert {"tuned alone", "base alone", PLAIN, "recommended", "gate β"} <= set(asked["test"])
    assert set(asked["validation"]) == {"tuned alone", PLAIN, "recommended", "recommended constant"}
    assert set(json.loads((work / "test" / "seed-0" / f"{ASKED[2]}.json").read_text())["test"]) == {
        "tuned alone",
        PLAIN,
        "recommended",
        "recommended constant",
    }
    report.main(["--work", str(work), "--output", str(tmp_path)])
    page = (tmp_path / "results.md").read_text()
    assert "| ordinary, small on large |" in page and "foreseen losses" in page and (tmp_path / "results-families.png").exists()


@pytest.mark.skipif(not (RULES / "results.json").exists(), reason="nothing is committed")
def test_what_is_committed_is_what_the_results_say(tmp_path: Path) -> None:
    results = json.loads((RULES / "results.json").read_text())
    assert (RULES / "results.md").read_text() == report.page(results)
    for name, draw in {"families": families_picture, "frontiers": frontiers_picture}.items():
        draw(results, tmp_path / f"results-{name}.png")
        made, committed = (json.loads((folder / f"results-{name}.json").read_text()) for folder in (tmp_path, RULES))
        assert rounded(made) == rounded(committed)
