"""Batch runs over actors: the flow, with a stand-in for Ray. `test_on_ray.py` has the same with Ray itself, every night."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from letters import Letters, combination, lines_of
from stand_in_ray import stand_in

from hf_eft.programs.answer import Answerer
from hf_eft.programs.batch import Item, Results, read_items, run_batches
from hf_eft.programs.ray_batch import Actors, Answering, Done, Run, run_on_ray

pa = pytest.importorskip("pyarrow", reason="the extra `ray` brings it")

KINDS: list[dict[str, Any]] = [{}, {"do_sample": True}, {"alpha": 0.5}, {"max_new_tokens": 2}, {"prompt": ""}]
MODELS = {"the models": "letters"}


def source(path: Path, count: int = 23) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"of {n}", **KINDS[n % 5]}) + "\n" for n in range(count)))
    return path


def letters() -> tuple[Any, Mapping[str, Any]]:
    return Answerer(combination(), Letters(), {"max_new_tokens": 6}, seed=3), MODELS


def echo() -> tuple[Any, Mapping[str, Any]]:
    def answer(items: Sequence[Item]) -> list[dict[str, Any]]:
        together = "".join(str(item.prompt) for item in items)
        return [{"text": f"{item.prompt} of {together}"} for item in items]

    return answer, MODELS


def run(path: Path, output: Path, load: Any = echo, **options: Any) -> list[Done]:
    return list(run_on_ray(Run(str(path), str(output), 2, 4, {"--seed": 3}, load, **options), Actors()))


def alone(path: Path, output: Path, load: Any = echo) -> bytes:
    """What one process writes."""
    answer, _ = load()
    with Results(output, {}) as results:
        list(run_batches(read_items(path.read_bytes(), True), results, answer, 2))
    return output.read_bytes()


def joined(output: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(output.glob("part-*.jsonl")))


def test_the_parts_together_are_the_file_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = stand_in(monkeypatch)
    path = source(tmp_path / "in.jsonl")
    done = run(path, tmp_path / "out", letters)
    assert joined(tmp_path / "out") == alone(path, tmp_path / "alone.jsonl", letters)
    assert done[0] == Done(0, 23, 0, 0) and done[-1] == Done(23, 23, 4, 0)
    assert [address for address, _ in started] == ["local", "shutdown"]
    assert started[0][1]["num_cpus"] == max(os.cpu_count() or 1, 1) and not started[0][1]["include_dashboard"]


def test_a_run_that_was_stopped_carries_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    path, output = source(tmp_path / "in.jsonl"), tmp_path / "out"
    steps = run_on_ray(Run(str(path), str(output), 2, 4, {"--seed": 3}, echo), Actors())
    for _ in range(3):
        next(steps)
    steps.close()
    before = {file.name: file.stat().st_mtime_ns for file in output.glob("part-*")}
    assert len(before) == 2
    done = run(path, output)
    assert done[0] == Done(8, 23, 1, 8) and done[-1] == Done(23, 23, 4, 8)
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    assert joined(output) == alone(path, tmp_path / "alone.jsonl")
    assert run(path, output, lambda: pytest.fail("loaded, and nothing to do")) == [Done(23, 23, 4, 23)]


def test_other_runs_and_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    path, output = source(tmp_path / "in.jsonl"), tmp_path / "out"
    run(path, output)
    (output / "part-00000001.jsonl").unlink()
    with pytest.raises(ValueError, match=r"the models was .* and is"):
        run(path, output, lambda: (echo()[0], {"the models": "others"}))
    with pytest.raises(ValueError, match="--part-size was 4 and is 6"):
        list(run_on_ray(Run(str(path), str(output), 2, 6, {"--seed": 3}, echo), Actors()))
    with pytest.raises(ValueError, match="--part-size must be a multiple of --batch-size, 2, got 5"):
        list(run_on_ray(Run(str(path), str(output), 2, 5, {"--seed": 3}, echo), Actors()))
    source(path, 22)
    with pytest.raises(ValueError, match="the input was"):
        run(path, output)
    assert run(path, output, restart=True)[-1].lines == 22
    (output / "part-00000009.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"has part-00000009\.jsonl, but the input has 6 parts"):
        run(path, output)


def test_what_goes_wrong_in_an_actor_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = stand_in(monkeypatch)
    path = source(tmp_path / "in.jsonl")

    def broken() -> Any:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match=r"^no such model$"):
        run(path, tmp_path / "out", broken)
    assert started[-1][0] == "shutdown"
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="there are no lines in"):
        run(tmp_path / "empty.txt", tmp_path / "empty")
    with pytest.raises(ValueError, match="--gpus-per-actor is 2, but all machines together have 0 GPUs"):
        list(run_on_ray(Run(str(path), str(tmp_path / "x"), 2, 4, {}, echo), Actors("auto", 1, 2.0)))
    assert started[-2] == ("auto", {name: started[-2][1][name] for name in ("log_to_driver", "logging_level")})


def test_a_part_that_was_written_is_not_answered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its actor died after writing: Ray gives it to another. And one that kills each actor ends."""
    stand_in(monkeypatch)
    path, output = source(tmp_path / "in.jsonl"), tmp_path / "out"
    run(path, output)
    from hf_eft.programs.parts import find

    found = find(str(path))
    part = found.parts({found.files[0]: found.look(found.files[0], 4)}, 4)[2]
    known = {name: value for name, value in json.loads((output / "run.json").read_text()).items() if name != "of"}

    def actor(answer: Any) -> Answering:
        return Answering(found, Run(str(path), str(output), 2, 4, {}, lambda: (answer, MODELS)), known)

    def told(answer: Any) -> Any:
        [text] = actor(answer)(pa.Table.from_pylist([vars(part)]))["told"]
        return json.loads(text)

    assert told(lambda items: pytest.fail("asked again")) == {"number": 2, "errors": 1}
    (output / "part-00000002.jsonl").unlink()

    class Died(BaseException):
        """What no one catches, as no one sees a process die."""

    def dying(items: Sequence[Item]) -> Any:
        raise Died

    for _ in range(5):
        with pytest.raises(Died):
            told(dying)
    assert "5 processes that answered lines 9 to 12 died" in told(dying)["failed"]
    assert not list(output.glob("part-00000002*"))


# The command ------------------------------------------------------------------------------------------------------------


def test_the_command_answers_as_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = stand_in(monkeypatch)
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "What does Oscar Palmer enjoy?", "temperature": 0.9}\n{"prompt": 3}\n{"prompt": "Who?"}')
    options = ["generate", "--chat", "--input", str(path), "--batch-size", "2", "--seed", "5", "--output"]
    many = ["--ray", "--actors", "3", "--part-size", "2"]
    done = invoke(*options, str(tmp_path / "out"), *many)
    assert done.exit_code == 3 and "1 of 3 lines could not be answered" in done.output, done.output
    assert started[0][0] == "local"
    assert invoke(*options, str(tmp_path / "alone.jsonl")).exit_code == 3
    assert joined(tmp_path / "out") == (tmp_path / "alone.jsonl").read_bytes()
    assert [line["line"] for line in lines_of(tmp_path / "alone.jsonl")] == [1, 2, 3]
    again = invoke(*options, str(tmp_path / "out"), *many[1:], "--ray", "auto")
    assert "has 3 of 3 results: carrying on" in " ".join(again.output.split()) and started[-2][0] == "auto"
    other = invoke(*options, str(tmp_path / "out"), *many, "--system", "Be kind.")
    assert other.exit_code == 2 and '--system was null and is "Be kind."' in other.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "{in}", "--actors", "2"], "an option of a run with --ray"),
        (["--input", "{in}", "--part-size", "2"], "an option of a run with --ray"),
        (["--input", "{in}", "--ray"], "results go to a folder: give one"),
        (["--input", "-", "--output", "x", "--ray"], "every machine reads its part of a file"),
        (["--ray", "local", "hello"], "a batch run needs an --input"),
        (["--actors", "2", "hello"], "a batch run needs an --input"),
        (["--input", "{in}", "--output", "{in}", "--ray"], "is a file"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    path = source(tmp_path / "in.jsonl")
    done = invoke("generate", *(each.replace("{in}", str(path)) for each in arguments))
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.output, done.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    path = source(tmp_path / "in.jsonl")
    done = invoke("generate", "--input", str(path), "--output", str(tmp_path / "out"), "--ray")
    assert done.exit_code == 1 and "--ray needs Ray Data: pip install 'hf-eft[ray]'" in done.stderr
    assert not (tmp_path / "out").exists()
