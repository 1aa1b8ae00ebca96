"""The versions that are promised are those that are run: lower bounds, pins and what the documentation says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from floors import constraints, floors, requirements

ROOT = Path(__file__).resolve().parents[2]


def test_every_requirement_has_one_lower_bound_and_the_floor_is_installed_with_it() -> None:
    lowest = floors(requirements())
    lines = constraints()
    assert {
        "torch",
        "transformers",
        "accelerate",
        "safetensors",
        "peft",
        "typer",
        "gradio",
        "lm-eval",
        "pytest",
        "ruff",
    } <= set(lowest)
    assert [line for line in lines if line.startswith("transformers==")] == [f"transformers=={lowest['transformers']}"]
    names = [line.partition("==")[0] for line in lines]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "asked, said",
    [
        (["torch"], "'torch' has no lower bound"),
        (["torch==2.10"], "'torch==2.10' has no lower bound that is one version"),
        (["torch>=2.10", "torch>=2.11"], "torch has two lower bounds, 2.10 and 2.11"),
        (["transformers[serving]"], r"'transformers\[serving\]' has no lower bound"),
    ],
)
def test_requirements_without_a_floor_are_refused(asked: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        floors(asked)


def test_what_is_pinned_is_what_is_allowed() -> None:
    """The newest version that is run is the last one below the cap: the next minor is one that nobody ran."""
    asked = next(each for each in requirements() if re.match(r"transformers[>=]", each))
    cap = re.search(r"<(\d+)\.(\d+)$", asked)
    pinned = re.search(r"^transformers==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert cap is not None and pinned is not None
    assert (int(cap[1]), int(cap[2])) == (int(pinned[1]), int(pinned[2]) + 1), (
        "raise the cap to the minor after the one that is pinned"
    )


def test_the_documentation_says_which_versions_were_run() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    newest = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
    rows = re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \| (\d[\d.]*) \|$", page, flags=re.M)
    lowest = floors(requirements())
    assert {"Python", "torch", "transformers", "accelerate", "safetensors", "peft"} <= {name for name, _, _ in rows}
    for name, new, old in rows[1:]:
        assert newest[name.replace("lm-eval", "lm_eval")] == new, f"docs/install.md: {name} is pinned to another version"
        assert old.removesuffix(".0") == lowest[name].removesuffix(".0"), f"docs/install.md: {name} has another lower bound"
