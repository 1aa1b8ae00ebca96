"""JSON Lines: every encoding that says what it is, every line break, arrays, and values that are read strictly."""

from __future__ import annotations

import codecs
import json
from typing import Any

import pytest

from hf_eft.files.json_lines import json_lines, parsed, text_lines, without_nulls

TEXT = 'a\u2028\u0085\x0b\x0c"é😀\\\nb\r\nc\rd'
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKED)
def test_a_mark_says_the_encoding(encoding: str) -> None:
    lines = text_lines(MARKED[encoding] + TEXT.encode(encoding))
    assert [line.value for line in lines] == ['a\u2028\u0085\x0b\x0c"é😀\\', "b", "c", "d"]
    assert [line.number for line in lines] == [1, 2, 3, 4]
    records = [{"text": "é\u2028"}, {"text": "b"}]
    data = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    assert [line.value for line in json_lines(MARKED[encoding] + data.encode(encoding))] == records


def test_the_last_line_need_not_end() -> None:
    for end in (b"", b"\n", b"\r\n", b"\r"):
        assert [line.value for line in text_lines(b"a\n\nb" + end)] == ["a", "", "b"]
    assert text_lines(b"") == [] == json_lines(b"") == text_lines(codecs.BOM_UTF8)


def test_what_is_in_another_encoding_is_named() -> None:
    one, two, three = text_lines(b"good\nca\xe9 no\ngood")
    assert (one.value, three.value) == ("good", "good")
    assert two.value is None and two.error == "the line is not UTF-8: invalid continuation byte at byte 2"
    assert "UTF-16" in str(text_lines("one".encode("utf-16-le"))[0].error)
    with pytest.raises(ValueError, match="line 2: its byte order mark says UTF-16-LE, but it is not: truncated data"):
        text_lines(codecs.BOM_UTF16_LE + "one\ntwo".encode("utf-16-le")[:-1])


@pytest.mark.parametrize(
    "data, values",
    [
        ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('\n [\r\n{"a": 1},\r{"a":\n2}\n] \n', [{"a": 1}, {"a": 2}]),
        ("[]", []),
        ("[1]", [1]),
        ("[1]\n[2]\n", [[1], [2]]),  # a value on each line
    ],
)
def test_an_array_is_its_elements(data: str, values: list[Any]) -> None:
    lines = json_lines(data.encode())
    assert [line.value for line in lines] == values and not any(line.error for line in lines)
    assert [line.number for line in lines] == list(range(1, len(values) + 1))


@pytest.mark.parametrize(
    "data, error",
    [
        (b'[\n{"a": 1},\n', "it begins as a JSON array and is none: Expecting value: line 2"),
        (b'[{"a": 1},]', "it begins as a JSON array and is none"),
        (b'[{"a": NaN}]', "it begins as a JSON array and is none: NaN is no JSON"),
        (b'[\n"ca\xe9"]', "line 2: the line is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_half_an_array_is_refused(data: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        json_lines(data)


def test_lines_that_cannot_be_read_leave_the_others_alone() -> None:
    lines = json_lines(b'{"a": 1}\n \n{"a": 2, "a": 2}\n{"a": {"b": Infinity}}\n{"a": 1e999}\n{\n\xff\n{"a": 2}')
    assert [line.value for line in lines] == [{"a": 1}, None, None, None, None, None, None, {"a": 2}]
    assert [line.blank for line in lines] == [False, True, *[False] * 6]
    said = [str(line.error) for line in lines[1:7]]
    for error, what in zip(
        said, ("blank", '"a" is there twice', "Infinity", "1e999 is too large", "Expecting", "not UTF-8"), strict=True
    ):
        assert what in error


def test_numbers_and_texts_are_as_they_are() -> None:
    assert parsed('{"a": [1, 1.5, -0.0, 1e300, "\\u00e9", null, true]}') == {"a": [1, 1.5, -0.0, 1e300, "é", None, True]}


def test_null_is_absent() -> None:
    assert without_nulls({"a": None, "b": {"c": None}, "d": 0, "e": "", "f": False}) == {
        "b": {"c": None},
        "d": 0,
        "e": "",
        "f": False,
    }
