"""The folder of results: which run it is of, which models, and what makes a part done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_eft.programs import results_folder
from hf_eft.programs.results_folder import ResultsFolder, part_name

pa = pytest.importorskip("pyarrow", reason="the extra `ray` brings it")

RUN: dict[str, Any] = {"the input": "x", "--batch-size": 4}
MODELS: dict[str, Any] = {"the models": {"base": "a 1"}, "the recipe": {"alpha": 1.0}}


def results(first: int, lines: int, errors: int = 0) -> bytes:
    told = [{"line": first + n, **({"error": "x"} if n < errors else {"text": "é\u2028"})} for n in range(lines)]
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told).encode()


@pytest.fixture(params=["local", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultsFolder:
    """On a disk, and in a store that has no such thing as a path."""
    if request.param == "store":
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        store = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
        monkeypatch.setattr(results_folder, "storage_of", lambda where: (store, "out"))
    made = ResultsFolder(str(tmp_path / "out"))
    assert (made.local is None) is (request.param == "store")
    return made


def test_a_run_carries_on_and_another_is_refused(folder: ResultsFolder) -> None:
    folder.check(RUN)
    with folder.begin(RUN):
        folder.write(part_name(3), results(1, 2))
    with folder.begin(RUN):
        assert folder.done() == {3}
    for other in ({**RUN, "--batch-size": 5}, {"--batch-size": 5}):
        with pytest.raises(ValueError, match=r"is of another run: --batch-size was 4 and is 5.*--restart"):
            folder.check(other)
    with pytest.raises(ValueError, match="the input was"), folder.begin({**RUN, "the input": "y"}):
        pass
    assert folder.done() == {3}
    with folder.begin({**RUN, "the input": "y"}, restart=True):
        assert folder.done() == set()
    folder.check({"the input": "y"})


def test_files_of_others_are_left_alone(folder: ResultsFolder) -> None:
    with folder.begin(RUN):
        folder.write("letter.txt", b"x")
        folder.write("part-1.json", b"x")
    with folder.begin(RUN, restart=True):
        assert {"letter.txt", "part-1.json", "run.json"} == folder.names()
    folder._delete({"run.json"})
    with pytest.raises(ValueError, match=r"has files, but no run\.json"):
        folder.check(RUN)
    folder.write("run.json", b"[")
    with pytest.raises(ValueError, match="cannot be read as what a run has written"):
        folder.check(RUN)


def test_what_a_run_that_was_stopped_left_is_taken_away(folder: ResultsFolder) -> None:
    with folder.begin(RUN):
        folder.write(part_name(1), results(1, 2))
        folder.write("part-00000002.jsonl.12ab.partial", b"{")
        folder.try_once_more(2, 5, "lines 3 to 4")
    with folder.begin(RUN):
        assert folder.names() == {"run.json", part_name(1)}


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        ResultsFolder(str(tmp_path / "out")).begin(RUN),
        pytest.raises(ValueError, match="Another process is writing"),
        ResultsFolder(str(tmp_path / "out")).begin(RUN),
    ):
        pass


def test_other_models_are_refused(folder: ResultsFolder) -> None:
    with pytest.raises(ValueError, match=r"does not see the run's run\.json"):
        folder.agree(RUN, MODELS)
    with folder.begin(RUN):
        folder.agree(RUN, MODELS)
        folder.agree(RUN, MODELS)
        with pytest.raises(ValueError, match=r'the recipe was {"alpha": 1.0} and is {"alpha": 2.0}'):
            folder.agree(RUN, {**MODELS, "the recipe": {"alpha": 2.0}})
        folder.agree(RUN, MODELS)  # what was refused has left nothing
        with pytest.raises(ValueError, match="--batch-size was 4 and is 5"):
            folder.agree({**RUN, "--batch-size": 5}, MODELS)


def test_a_part_has_the_results_of_its_lines(folder: ResultsFolder) -> None:
    with folder.begin(RUN):
        folder.write(part_name(1), results(5, 4, errors=3))
        assert folder.errors(1, 5, 4) == 3
        for first, lines in ((5, 3), (4, 4), (5, 5)):
            with pytest.raises(ValueError, match=f"has not the results of lines {first} to {first + lines - 1}"):
                folder.errors(1, first, lines)
        for changed in (b"[1]\n", b"{", results(5, 4)[:-20]):
            folder.write(part_name(1), changed)
            with pytest.raises(ValueError, match="it was changed"):
                folder.errors(1, 5, 4)


def test_a_part_that_takes_its_process_down_ends(folder: ResultsFolder) -> None:
    with folder.begin(RUN):
        for _ in range(3):
            folder.try_once_more(1, 3, "lines 5 to 8")
        folder.try_once_more(2, 3, "lines 9 to 12")
        with pytest.raises(ValueError, match="3 processes that answered lines 5 to 8 died before the end"):
            folder.try_once_more(1, 3, "lines 5 to 8")
        folder.forget_tries(1, 3)
        assert folder.names() == {"run.json", "try-00000002-0"}
    with folder.begin(RUN):
        folder.try_once_more(2, 1, "lines 9 to 12")
