"""Random JSON: values that nobody expects, places in a value, and texts that are JSON but for something."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# What number fields are known to stumble over: the ends of 32 and 64 bits, what no float has, and what JSON has not.
_NUMBERS = [0, 1, -1, 2, 3.0, 0.5, -0.5, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 1e308, 1e-320, -0.0, 1e16]
_NO_NUMBERS = [float("nan"), float("inf"), float("-inf")]
# Halves of surrogate pairs, zero bytes, line ends that are none, what a template or a shell could read, and words for values.
_TEXTS = [
    "", " ", "\n", "\0", "\ud800", "a\udfffb", "\u2028", "\u0085", "\ufeff", "é", "漢字", "🙂", "{{ 1 / 0 }}", "{% raise %}", "<unk>",
    "</s>", "null", "NaN", "1", "true", "[]", "{}", "../..", "a" * 300, "text", "user", "function",
]  # fmt: skip

_PIECES = [b"\n", b"\r", b'"', b"\\", b"{", b"]", b",", b"\xff\xfe", b"\0", b"-1", b"1e999", b"null", b"\xed\xa0\x80"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_NUMBERS),
    st.integers(-5, 2000),
    st.floats(-3, 3),
    st.sampled_from(_TEXTS),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_TEXTS), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a value another one could be put."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in _places(each, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, value: Any, most: int = 2) -> Any:
    """A value with something in it that is another, gone, twice there, or deeper."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(_places(value)))
        if not path:
            value = draw(st.one_of(values, st.just([value]))) if draw(st.integers(0, 9)) == 0 else value
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        match draw(st.integers(0, 9)):
            case 0:
                del holder[path[-1]]
            case 1:
                holder[path[-1]] = [holder[path[-1]]] * draw(st.integers(0, 3))
            case 2 if isinstance(holder, dict):
                holder[draw(st.one_of(st.text(max_size=6), st.sampled_from(_TEXTS)))] = holder.pop(path[-1])
            case _:
                holder[path[-1]] = draw(values)
    return value


@st.composite
def written(draw: st.DrawFn, value: Any) -> bytes:
    """JSON of a value; now and then not quite: cut, with numbers that JSON has not, nested without end, in other bytes."""
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    match draw(st.integers(0, 39)):
        case 0:
            text = text[: draw(st.integers(0, len(text)))]
        case 1:
            text = text.replace("1", json.dumps(draw(st.sampled_from(_NO_NUMBERS))), 1)
        case 2:
            text = text.replace('"', "[" * draw(st.sampled_from([3, 900, 3_000, 200_000])), 1)
        case 3:
            text = text.replace("1", "1" * draw(st.sampled_from([5, 400, 5_000])), 1)
        case 4:
            return text.encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32-le", "utf-16-be"])), "surrogatepass")
        case 5:
            return text.encode("utf-8", "surrogatepass")
        case 6:
            deep = draw(st.sampled_from([50, 200, 400, 900, 2_000]))
            text = text.replace("1", '{"a":' * deep + "1" + "}" * deep, 1)
        case 7:
            return draw(edited(text.encode("utf-8", "surrogatepass")))
    return text.encode("utf-8", "backslashreplace")


@st.composite
def edited(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with some cut out, put in, or doubled."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 1, 2, 8, 64])))
        piece = draw(st.one_of(st.binary(max_size=4), st.sampled_from(_PIECES)))
        data = data[:start] + piece + data[end if draw(st.booleans()) else start :]
    return data
