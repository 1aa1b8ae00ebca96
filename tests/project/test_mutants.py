"""The mutants of `make mutants`: drawn as promised, caught, survived or judged, and what was judged is still there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import draw, record, targets
from mutants.reach import lines_of

HERE = Path(__file__).parents[1]
# A project as small as can be. Its torch does nothing, since nothing of it is asked for: to import the true one takes seconds.
SMALL = {
    "hf_eft/__init__.py": "",
    "hf_eft/small.py": "def both(one, other, quiet=True):\n    return one and other\n\n\ndef never():\n    return False\n",
    "tests/torch.py": "def set_num_threads(count):\n    pass\n",
    "tests/transformers/__init__.py": "",
    "tests/transformers/generation.py": "",
    "tests/test_small.py": "from hf_eft.small import both, never\n\n\ndef test_both():\n    assert both(1, 0) == 0\n",
    "pyproject.toml": "",
}
ROOM = 'ROOMS = {"small": Room("small.py", "small", 3)}\n\n\ndef sources'


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name, text in SMALL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(HERE / "mutants", tmp_path / "tests" / "mutants", ignore=shutil.ignore_patterns("*.json", "table.md"))
    path = tmp_path / "tests/mutants/targets.py"
    text = path.read_text()
    path.write_text(text[: text.index("ROOMS: ")] + ROOM + text.partition("def sources")[2])
    judge(tmp_path)
    return tmp_path


def judge(folder: Path, *entries: dict[str, str]) -> None:
    (folder / "tests/mutants/judged.json").write_text(json.dumps(entries))


def python(folder: Path, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "tests")}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def outcomes(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / ".mutants/state.jsonl").read_text().splitlines()]
    return {row["key"]: row["outcome"] for row in rows}


def test_mutants_are_caught_or_survive_and_survivors_are_judged(small: Path) -> None:
    status, said = python(small, "-m", "mutants", "--jobs", "1")
    assert status == 1, said  # survivors are left
    found = outcomes(small)
    (both,) = (key for key in found if "one and other" in key)
    (never,) = (key for key in found if "never" in key)
    (quiet,) = (key for key in found if "quiet" in key)
    assert found == {both: "caught", never: "survived", quiet: "survived"}, said
    assert "| small | 3 | 3 | 1 | 0 | 2 | 0 | 33.3% |" in said
    assert "-    return False\n+    return True" in said

    # A test for the one, a reason for the other. What has run is not run again.
    with (small / "tests/test_small.py").open("a") as file:
        file.write("\n\ndef test_never():\n    assert not never()\n")
    judge(small, {"mutant": quiet, "why": "nothing reads it"})
    status, said = python(small, "-m", "mutants", "--survivors", "--jobs", "1")
    assert status == 0, said
    assert said.count("[1/1]") == 1 and "by tests/test_small.py::test_never" in said
    assert outcomes(small)[never] == "caught"
    assert (small / "tests/mutants/table.md").read_text().splitlines()[-1] == "| **all** | 3 | 3 | 2 | 0 | 1 | 1 | 100.0% |"

    status, said = python(small, "-m", "mutants")
    assert status == 0 and "/3]" not in said, said


RUNS = """
import time
from pathlib import Path
from mutants import fork

def ever(folder):
    while True:
        pass

print(fork.wait(fork.Run(ever, 1, 600))[0], fork.wait(fork.Run(lambda folder: time.sleep(600), 600, 1))[0])
print(fork.wait(fork.Run(lambda folder: bytearray(12 * 2**30), 600, 600)))
print(fork.wait(fork.Run(lambda folder: {"folder": folder.is_dir()}, 600, 600))[0])
"""


def test_what_runs_for_ever_waits_for_ever_or_takes_all_memory_ends(small: Path) -> None:
    status, said = python(small, "-c", RUNS)
    assert status == 0, said
    busy, memory, good = said.splitlines()
    assert busy == "{'died': 'timed out'} {'died': 'timed out'}"
    assert "MemoryError" in memory
    assert good == "{'folder': True}"


BEFORE = """import os


class Sum:
    def of(self, a, b):
        if a == b:
            return a + a
        return a + b + (a + b)
"""


def keys(path: Path, text: str) -> set[str]:
    path.write_text(text)
    return {each.key for each in draw.mutants("recipe", path)}


def test_a_mutant_has_the_same_key_wherever_its_line_goes(tmp_path: Path) -> None:
    before = keys(tmp_path / "one.py", BEFORE)
    assert len(before) == len(list(draw.mutants("recipe", tmp_path / "one.py"))) > 40
    assert keys(tmp_path / "other.py", BEFORE.replace("import os\n", "import os\nimport sys\n\nX = 3\n")) > before


def test_the_draw_is_of_a_seed_and_a_change_elsewhere_changes_nothing_of_it(tmp_path: Path) -> None:
    def of(text: str, seed: int) -> list[str]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        return [each.key for each in draw.drawn("recipe", 3, seed, [path]).mutants]

    first = of(BEFORE, 1)
    assert len(first) == 3
    assert of(BEFORE, 1) == first
    assert any(of(BEFORE, seed) != first for seed in (2, 3, 4))
    assert of(BEFORE + "\n\ndef more():\n    return None\n", 1) == first


def test_what_is_in_annotations_only_or_no_python_is_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text("def f(a: int | None, *b: int) -> int | str:\n    c: int | str = a\n    return c\n")
    assert list(draw.mutants("recipe", path))
    assert draw.drawn("recipe", 3, 0, [path]).mutants == []


def test_lines_of_a_statement() -> None:
    text = (
        "X = [\n    1,\n]\n\n\n"  # 1 to 3
        "@decorator\ndef f(\n    a=1,\n):\n"  # 6 to 9
        "    if (\n        a > 1\n    ):\n        return g(\n            a,\n        )\n"  # 10 to 15
        "    try:\n        h()\n    except KeyError:\n        pass\n"  # 16 to 19
    )
    assert lines_of(text, 2) is None  # runs on import
    assert lines_of(text, 6) == lines_of(text, 8) == range(10, 20)
    assert lines_of(text, 11) == range(10, 13)
    assert lines_of(text, 14) == range(13, 16)
    assert lines_of(text, 18) == range(18, 19)


def test_what_is_judged_is_there() -> None:
    for room in targets.ROOMS:
        lines = {line.strip() for path in targets.sources(room) for line in path.read_text().splitlines()}
        assert targets.tests(room)
        entries = [each for each in json.loads(record.JUDGED.read_text()) if each["mutant"].startswith(f"{room}|")]
        assert not [each["line"] for each in entries if each["line"] not in lines], "delete these lines from judged.json"
        assert all(each["line"] in each["mutant"] and len(each["why"]) > 20 for each in entries)


def test_every_test_of_a_package_is_asked_about_its_mutants() -> None:
    asked = {name for room in targets.ROOMS for name in targets.tests(room)}
    found = [path for folder in ("recipe", "members", "decoding") for path in sorted((HERE / folder).glob("test_*.py"))]
    # Mutants are run without an accelerator, and without what takes minutes.
    found = [path for path in found if path.stem not in ("test_on_accelerators", "test_quantised", "test_quantised_kept")]
    lost = [path.stem for path in found if path.relative_to(HERE.parent).as_posix() not in asked]
    assert found and not lost, f"add these to a room of {targets.__file__}"
