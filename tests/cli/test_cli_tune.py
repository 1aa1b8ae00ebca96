"""`hf-eft tune`: what it is given, what it says, what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import EMBEDDED, WHO, invoke

from hf_eft import tiny
from hf_eft.cli import tune as command
from hf_eft.programs import tuning as program

BASE, _, REFERENCE = EMBEDDED
QUICK = ["--steps", "2", "--batch-size", "1", "--evaluations", "1", "--learning-rate", "1e-3", "--alpha", "0.5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    asked = tiny.questions()[:4]
    file.write_text("".join(json.dumps({"prompt": q.text, "answer": f"{q.answer}."}) + "\n" for q in asked))
    return file


def test_a_run_from_files_to_an_answer(data: Path, tmp_path: Path) -> None:
    replay = tmp_path / "replay.txt"
    replay.write_text("Oscar Palmer is a chef.\n")
    files = [f"--data={data}", "--chat", f"--replay={replay}", "--held-out=0.25", f"--combination={tmp_path / 'whole'}"]
    options = [BASE, REFERENCE, "--batch-size=2", *files, *QUICK[:2], *QUICK[4:], "-o", str(tmp_path / "delta")]
    done = invoke("tune", *options, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "delta" / "tuning.json").read_text())
    assert f"a delta for strength {record['recommended']:g}" in done.output.replace("\n", " ")
    assert (tmp_path / "delta" / "losses.png").is_file() and record["stopped"] == 2
    again = invoke("tune", *options)
    assert again.exit_code == 0 and json.loads((tmp_path / "delta" / "tuning.json").read_text()) == record
    answers = [
        invoke("generate", *where, WHO, "--chat", "--max-new-tokens", "8", "--no-stream").stdout
        for where in (["--model", str(tmp_path / "whole")], [BASE, f"--tuned={tmp_path / 'delta'}", REFERENCE])
    ]
    assert answers[0] == answers[1] and answers[0].strip()


def test_without_models_the_embedded_family_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(request: Any, settings: Any, progress: Any) -> Any:
        asked.update(request=request, settings=settings)
        raise MemoryError("There was no memory: --batch-size 16")

    monkeypatch.setattr(program, "run_tuning", run)
    done = invoke("tune", "-o", str(tmp_path / "delta"), "--steps", "7")
    assert done.exit_code == 1 and "There was no memory: --batch-size 16" in done.output
    assert not asked["request"].given
    assert (asked["settings"].steps, asked["settings"].alpha, asked["settings"].patience) == (7, 0.25, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ([BASE], "--reference and --data missing"),
        ([BASE, REFERENCE, "--data=/nowhere"], "/nowhere"),
        ([BASE, REFERENCE, "--data={data}", "--alpha=0"], "`alpha` must be"),
        ([BASE, REFERENCE, "--data={data}", "--held-out=many"], "there is no file 'many'"),
        ([BASE, REFERENCE, "--data={data}", "--held-out={data}"], "among those that are learnt"),
        ([BASE, REFERENCE, "--data={data}", "--max-length=3"], "chats.jsonl: line 1: it has"),
        ([BASE, REFERENCE, "--data={data}", "--replay={empty}"], "there is nothing in it: expected documents"),
        ([BASE, "--reference=/nowhere", "--data={data}"], "/nowhere"),
    ],
)
def test_what_is_wrong_is_said(options: list[str], message: str, data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    given = [option.format(data=data, empty=empty) for option in options]
    done = invoke("tune", *given, *QUICK[:-2], "-o", str(tmp_path / "delta"), env={"COLUMNS": "400"})
    assert done.exit_code == 2, done.output
    assert message in done.output.replace("\n", " ")
    assert not (tmp_path / "delta").exists() or not any((tmp_path / "delta").glob("*.safetensors"))


def test_a_missing_package_is_said_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_eft.training import tuning

    monkeypatch.setattr(tuning, "find_spec", lambda name: None if name == "datasets" else object())
    done = invoke("tune", "-o", str(tmp_path / "delta"))
    assert done.exit_code == 1 and "pip install 'hf-eft[train]'" in done.output.replace("\n", " ")
    assert command.__doc__
