"""The benchmark of real kinds of tokenizers runs, in small sizes and on few texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trained_cutters as cutters

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark, with a few files for Python's own library."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name in ("stdlib", "purelib"):
        (tmp_path / name).mkdir()
        for k in range(12):
            (tmp_path / name / f"{k}.py").write_text("\n".join(cutters.lines(k, 40)), encoding="utf-8")
    (tmp_path / "stdlib" / "none.py").write_bytes(b"\xff")  # is passed over
    import tokenizer_kinds

    monkeypatch.setattr(
        tokenizer_kinds.sysconfig, "get_paths", lambda: {"stdlib": tmp_path / "stdlib", "purelib": tmp_path / "purelib"}
    )
    return tokenizer_kinds


def test_it_makes_the_kinds_and_says_what_they_share(
    kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kinds"
    monkeypatch.setattr(sys, "argv", ["", "--output", str(folder), "--scale", "0.012", "--texts", "2"])
    kinds.main()
    found = json.loads((folder / "tokenizer_kinds.json").read_text())
    chosen = {name: row["vocabulary"] for name, row in found["pairs"].items()}
    by_tokens = {"trunk, llama3", "trunk, qwen", "llama3, qwen", "gpt2, gpt2-small"}
    assert {name for name, vocabulary in chosen.items() if vocabulary == "tokens"} == by_tokens
    assert len(chosen) == 22  # each two of seven, and the embedded family's
    for name in by_tokens:
        row = found["pairs"][name]
        assert row["texts whose units differ"] == 0 and row["ends of units that both have"] == 1
        assert 1 <= row["units per token of the base"] < 1.5 < row["bytes per unit"]
    assert (folder / "tokenizer_kinds.md").read_text() in capsys.readouterr().out
    made = {kind: (folder / kind / "tokenizer.json").read_bytes() for kind in found["sizes"]}
    assert set(found["seconds to make"]) == set(made)
    again = tmp_path / "again"
    kinds.build(0.012, kinds.files(1)[0], again)
    for kind, content in made.items():
        assert kind == "unigram" or (again / kind / "tokenizer.json").read_bytes() == content, kind


def test_a_text_on_which_members_do_not_agree_ends_the_run(kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--output", str(tmp_path / "kinds"), "--scale", "0.012", "--texts", "2"])
    compare = kinds.compare
    monkeypatch.setattr(kinds, "compare", lambda *given: compare(*given) | {"texts whose units differ": 1})
    with pytest.raises(SystemExit, match="said to agree"):
        kinds.main()
