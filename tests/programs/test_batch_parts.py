"""An input in parts: however it is cut, all parts together ask what the whole asks, line by line."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_eft.programs import parts as parts_of_inputs
from hf_eft.programs.batch import Item, read_items
from hf_eft.programs.parts import Input, Part, find, fingerprint_of, storage_of

pa = pytest.importorskip("pyarrow", reason="the extra `ray` brings it")

LINES = [
    b'{"prompt": "one"}',
    b'{"id": 2, "messages": [{"role": "user", "content": "two"}]}',
    b'{"prompt":',
    b"",
    b"[1]",
    b"[{",
    b"\xff\xfe is no mark here",
    b"\xef\xbb\xbfnor here",
    '{"prompt": "\u2028 é \u0085", "alpha": 0.5}'.encode(),
]


def cut(source: Input, lines: int) -> tuple[list[Part], list[Item], str]:
    looked = {path: source.look(path, lines) for path in source.files}
    found = source.parts(looked, lines)
    return found, [item for part in found for item in source.items(part)], fingerprint_of(source.files, looked)


def test_parts_of_lines_ask_what_the_whole_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a line, wherever a part begins, and however the file is read in pieces."""
    path, draw = tmp_path / "in", random.Random(0)
    for case in range(60):
        monkeypatch.setattr(parts_of_inputs, "_CHUNK", draw.choice([1, 2, 7, 2**24]))
        lines = [LINES[0], *draw.choices(LINES, k=draw.randrange(12))]  # the first one says neither array nor encoding
        ends = [draw.choice([b"\n", b"\r\n", b"\r"]) for _ in lines]
        mark = draw.choice([b"", b"\xef\xbb\xbf"])
        data = mark + b"".join(line + end for line, end in zip(lines, ends, strict=True))
        if draw.random() < 0.5:  # the last line need not end
            data = data[: len(data) - len(ends[-1])]
        path.write_bytes(data)
        as_json = draw.random() < 0.5
        source = replace(find(str(path), as_json=False), kind="json" if as_json else "text")
        size = draw.choice([1, 2, 3, 100])
        found, items, _ = cut(source, size)
        assert items == read_items(data, as_json), (case, data)
        assert all(part.lines == size for part in found[:-1])


def test_errors_are_those_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(line for line in LINES if line != b"[{"))
    for size in (1, 2, 4):
        assert cut(find(str(path)), size)[1] == read_items(path.read_bytes(), True)


def test_the_first_line_says_what_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "in"
    for data, kind in ((b"\n one", "text"), (b'\n{"prompt": "one"}', "json"), (b"[1] one\ntwo", "text"), (b"", "text")):
        path.write_bytes(data)
        assert find(str(path)).kind == kind
    assert find(str(path), as_json=True).kind == "json"


def rows() -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = [{"prompt": f"of {n}", "alpha": None if n % 2 else 0.5, "id": n} for n in range(11)]
    asked[4]["prompt"] = None
    asked[5]["alpha"] = float("nan")
    return asked


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_rows_of_tables_are_lines(size: int, tmp_path: Path) -> None:
    """Nulls are absent; what JSON has not is an error of its row; groups of rows need not be parts."""
    from pyarrow import parquet

    datasets = pytest.importorskip("datasets")
    parquet.write_table(pa.Table.from_pylist(rows()), tmp_path / "in.parquet", row_group_size=4)
    datasets.Dataset.from_list(rows()).save_to_disk(tmp_path / "saved")
    expected = read_items(b"\n".join(json.dumps(row).encode() for row in rows()), True)
    expected[5] = replace(expected[5], id=None, error="the row is no JSON: NaN is no JSON")
    for name in ("in.parquet", "saved"):
        found, items, _ = cut(find(str(tmp_path / name)), size)
        assert items == expected
        assert [part.lines for part in found] == [min(size, 11 - at) for at in range(0, 11, size)]


def test_what_a_row_has_that_json_has_not(tmp_path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([{"prompt": b"x"}]), tmp_path / "in.parquet")
    [item] = cut(find(str(tmp_path / "in.parquet")), 1)[1]
    assert item.line == 1 and "the row is no JSON: Object of type bytes" in str(item.error)


def test_files_of_a_folder_are_numbered_through(tmp_path: Path) -> None:
    def folder(name: str, texts: Sequence[str]) -> Path:
        for n, text in enumerate(texts):
            (tmp_path / name / str(n)).mkdir(parents=True)
            (tmp_path / name / str(n) / "in.txt").write_text(text)
        return tmp_path / name

    source = folder("a", ["one\ntwo\nthree", "four\n", "", "five"])
    (source / "_SUCCESS").write_text("")
    (source / ".hidden.jsonl").write_text("{}")
    found, items, before = cut(find(str(source)), 2)
    assert [(item.line, item.prompt) for item in items] == list(enumerate(["one", "two", "three", "four", "five"], start=1))
    assert [(part.number, part.first, part.lines) for part in found] == [(0, 1, 2), (1, 3, 1), (2, 4, 1), (3, 5, 1)]
    # What was read tells inputs apart, and not where it lies.
    assert cut(find(str(folder("b", ["one\ntwo\nthree", "four\n", "", "five"]))), 2)[2] == before
    assert cut(find(str(folder("c", ["one\ntwo\nthree", "four\n", "", "six"]))), 2)[2] != before


def test_a_file_that_changes_under_the_run(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("one\ntwo\n")
    source = find(str(path))
    [part] = cut(source, 2)[0]
    path.write_text("one two ")
    with pytest.raises(ValueError, match="was changed while it was read: expected 2 lines, got 1"):
        source.items(part)


def test_what_cannot_be_read_in_parts_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(rows())
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "splits")
    (tmp_path / "wide.txt").write_bytes("one".encode("utf-16"))
    (tmp_path / "array.json").write_text('[{"prompt": "a"},\n {"prompt": "b"}]')
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name in ("a.txt", "b.parquet"):
        (tmp_path / "mixed" / name).write_text("")
    for name, error in {
        "nowhere": "No such file or folder",
        "splits": r"several data sets: give one of .*splits/test, .*splits/train\.",
        "wide.txt": "UTF-16 or UTF-32",
        "array.json": "one JSON array",
        "empty": "there are no files in",
        "mixed": r"several kinds, by their endings: \.parquet, \.txt",
    }.items():
        with pytest.raises(ValueError, match=error):
            find(str(tmp_path / name))
    with pytest.raises(ValueError, match="cannot be reached"):
        storage_of("nothing://x")
