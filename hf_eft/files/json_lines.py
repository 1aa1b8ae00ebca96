"""JSON as others write it: strictly read values, the lines of a text in any encoding that says what it is, and files of JSON Lines."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The marks of 4 bytes before those of 2: UTF-32's begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BREAK = re.compile("\r\n|\n|\r")  # what editors and shells end a line with; JSON lets U+2028 and U+0085 stand within a string
_SPACE = " \t\r\n"  # JSON's own
_DEEPEST = 200  # Python reads and writes about a thousand, fewer of them the deeper the call is in which it does


@dataclass(frozen=True)
class Line:
    """A line of text, or an element of an array: what was read, or why it cannot be."""

    number: int  # from 1
    value: Any = None
    error: str | None = None
    blank: bool = False


def parsed(text: str) -> Any:
    r"""
    A JSON value, read strictly: a name twice in one object, numbers that JSON has not (`NaN`, `Infinity`, `1e999`), and what is nested
    deeper than anybody can write again, are refused.

    Args:
        text (`str`): The JSON.

    Raises:
        `ValueError`: If it is none, saying where.
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST + 1):
        if not level:
            return value
        inner = [each for holder in level for each in (holder.values() if isinstance(holder, dict) else holder)]
        level = [each for each in inner if isinstance(each, dict | list)]
    raise ValueError("it is nested too deeply")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"the number {text} is too large")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the name {shown(name)} is there twice")
        made[name] = value
    return made


def shown(value: Any) -> str:
    """A value as an error shows it: JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def text_lines(data: bytes) -> list[Line]:
    r"""
    The lines of a text.

    Args:
        data (`bytes`):
            UTF-8, or UTF-16 or UTF-32 where a byte order mark says so. Lines end in `\n`, `\r\n` or `\r`; the last one need not.

    Returns:
        `list[Line]`: One for each line, whose value is a `str`; one that is no text has an `error`.

    Raises:
        `ValueError`: If the data is not in the encoding that its mark names, saying in which line.

    Example:

    ```python
    >>> from hf_eft.files.json_lines import text_lines

    >>> [line.value for line in text_lines(b"one\r\ntwo\n")]
    ['one', 'two']
    ```
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    data = data.removeprefix(mark)
    if encoding == "utf-8":
        whole = data.decode(encoding, "surrogateescape")
    else:
        try:
            whole = data.decode(encoding)
        except UnicodeDecodeError as error:
            before = data[: error.start].decode(encoding, "ignore")
            number = len(_BREAK.findall(before)) + 1
            raise ValueError(
                f"line {number}: its byte order mark says {encoding.upper()}, but it is not: {error.reason}"
            ) from None
    lines = _BREAK.split(whole)
    if not lines[-1]:
        lines.pop()
    return [_line(number, text) for number, text in enumerate(lines, start=1)]


def _line(number: int, text: str) -> Line:
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        return Line(number, error=f"the line is not UTF-8: {error.reason} at byte {error.start}")
    if "\0" in text:
        return Line(
            number, error="the line has a zero byte in it, as UTF-16 without a byte order mark has: save the file as UTF-8"
        )
    return Line(number, text, blank=not text.strip())


def whole_text(data: bytes) -> str:
    r"""
    A text that is one, whose lines end in `\n`, without the end of the last one.

    Raises:
        `ValueError`: If it is not in its encoding, saying in which line.
    """
    return _joined(text_lines(data))


def _joined(lines: list[Line]) -> str:
    for line in lines:
        if line.error:
            raise ValueError(f"line {line.number}: {line.error}")
    return "\n".join(line.value for line in lines)


def json_lines(data: bytes) -> list[Line]:
    r"""
    The values of JSON Lines, or of a file that is one JSON array.

    Args:
        data (`bytes`): As for [`text_lines`].

    Returns:
        `list[Line]`:
            One for each line, or for each element of the array, numbered from 1. One that cannot be read has an `error`; a blank line
            has one, too, and `blank=True` for those who let it be.

    Raises:
        `ValueError`: If the data is not in the encoding that its mark names, or begins as an array and is none.

    Example:

    ```python
    >>> from hf_eft.files.json_lines import json_lines

    >>> [line.value for line in json_lines(b'{"a": 1}\n{"a": 2}')]
    [{'a': 1}, {'a': 2}]
    >>> [line.value for line in json_lines(b'[\n {"a": 1},\n {"a": 2}\n]')]
    [{'a': 1}, {'a': 2}]
    >>> json_lines(b'{"a": NaN}')[0].error
    'the line is no JSON: NaN is no JSON'
    ```
    """
    lines = text_lines(data)
    if not is_array(lines):
        return [json_value(line) for line in lines]
    text = _joined(lines)
    try:
        values = parsed(text)
    except ValueError as error:
        raise ValueError(f"it begins as a JSON array and is none: {error}") from None
    return [Line(number, value) for number, value in enumerate(values, start=1)]


def looks_like_json(lines: list[Line]) -> bool:
    """Whether a text is JSON Lines, or an array, rather than plain text: it begins with an object, or with a list that is JSON."""
    first, *more = [line for line in lines if not line.blank] or [Line(0, "")]
    if first.error:
        return False
    text = first.value.lstrip(_SPACE)
    if text.startswith("["):
        # A list of objects, whole or broken; other lists only if they are whole, since a plain text may begin with a bracket.
        inside = text.removeprefix("[") + "".join(line.value for line in more[:1] if not line.error)
        whole = not any(line.error for line in more) and _is_json(_joined([first, *more]))
        return whole or inside.lstrip(_SPACE).startswith("{")
    return text.startswith("{")


def is_array(lines: list[Line]) -> bool:
    """Whether lines are those of one array, rather than a value each, the first of which is an array."""
    first, *more = [line for line in lines if not line.blank][:2] or [Line(0, "")]
    if first.error or not first.value.lstrip(_SPACE).startswith("["):
        return False
    return not (more and _is_json(first.value))


def _is_json(text: str) -> bool:
    try:
        parsed(text)
    except ValueError:
        return False
    return True


def json_value(line: Line) -> Line:
    """A line of text as the JSON that it is."""
    if line.error:
        return line
    if line.blank:
        return Line(line.number, error="the line is no JSON: it is blank", blank=True)
    try:
        return Line(line.number, parsed(line.value))
    except ValueError as error:
        return Line(line.number, error=f"the line is no JSON: {error}")


def without_nulls(given: Mapping[str, Any]) -> dict[str, Any]:
    """What an object says: null is absent."""
    return {name: value for name, value in given.items() if value is not None}
