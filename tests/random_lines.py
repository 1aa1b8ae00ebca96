"""Random lines of batch runs: every line has its one result, an answer or an error that says what is wrong, wherever the run is cut."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from random_bodies import GREEDY, LONGEST, OPTIONS, messages, some, texts
from random_json import changed, edited, values, written
from random_server import small

from hf_eft.programs.answer import Answerer
from hf_eft.programs.batch import Item, Results, read_items, run_batches

# What nobody foresaw: an error of a line that begins so names no option and no field.
_FOREIGN = re.compile(
    "(Key|Attribute|Index|Recursion|Type|Assertion|Runtime|Overflow|Memory|UnicodeEncode|UnicodeDecode|ZeroDivision)Error"
)
_OWN: dict[str, st.SearchStrategy[Any]] = {
    "id": values,
    "alpha": st.floats(-2, 3),
    "beta": st.floats(-2, 3),
    "weights": st.fixed_dictionaries({}, optional={"tuned": st.floats(-2, 2), "other": st.just(1.0)}),
    "seed": st.integers(-5, 2**70),
}


@dataclass(frozen=True)
class Lines:
    """A file, what stands in those of its lines that `generate` answers as well, and how it is run."""

    data: bytes
    plain: dict[int, dict[str, Any]]
    batch_size: int
    cut: float  # where the run is cut, as a part of its results


@st.composite
def plain(draw: st.DrawFn) -> dict[str, Any]:
    """A greedy line."""
    line = {
        "prompt": draw(texts.filter(lambda text: bool(text.strip()) and "</s>" not in text)),
        "max_new_tokens": draw(st.integers(1, LONGEST)),
    }
    line |= draw(some({name: OPTIONS[name] for name in GREEDY}, 2))
    return line | draw(some({"alpha": _OWN["alpha"], "seed": _OWN["seed"]}, 1))


@st.composite
def any_line(draw: st.DrawFn) -> bytes:
    """A line that may be wrong."""
    asked = draw(st.sampled_from([{"prompt": texts}, {"messages": st.lists(messages, min_size=1, max_size=3)}]))
    line = {**draw(st.fixed_dictionaries(asked)), **draw(some(OPTIONS, 3)), **draw(some(_OWN, 2))}
    line.setdefault("max_new_tokens", 2)
    if draw(st.booleans()):
        line = draw(changed(line))
    return draw(written(line)).replace(b"\n", b" ").replace(b"\r", b" ")


@st.composite
def files(draw: st.DrawFn) -> Lines:
    """A file of some lines."""
    rows: list[bytes] = []
    known: dict[int, dict[str, Any]] = {}
    for number in range(1, draw(st.integers(1, 5)) + 1):
        if draw(st.booleans()):
            known[number] = draw(plain())
            rows.append(json.dumps(known[number]).encode())
        else:
            rows.append(draw(any_line()))
    data = b"\n".join(rows)
    if draw(st.integers(0, 9)) == 0:
        data, known = draw(edited(data)), {}
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff", b"\xef\xbb\xbf", b"[")):
        known = {}  # of another encoding, or an array: nothing is known of its lines
    return Lines(data, known, draw(st.integers(1, 3)), draw(st.floats(0, 1)))


class Runs:
    """Batch runs of one model, and what must be in them."""

    def __init__(self) -> None:
        self.model, self.tokenizer = small("llama")
        self.answerer = Answerer(self.model, self.tokenizer, {"max_new_tokens": LONGEST})

    def check(self, given: Lines, folder: Path) -> int:
        """Run, cut, and carry on. Raises `AssertionError` for a result that may not be. Returns how many lines were answered."""
        try:
            items = read_items(given.data, as_json=True)
        except ValueError as error:
            assert (str(error) and "line" in str(error)) or "array" in str(error), error
            return 0
        path = folder / "results.jsonl"
        for left in (path, path.with_name(path.name + ".meta.json")):
            left.unlink(missing_ok=True)
        self._run(items, path, given.batch_size)
        whole = path.read_bytes()
        results = [json.loads(line) for line in whole.split(b"\n")[:-1]]
        assert [result["line"] for result in results] == [item.line for item in items]
        for item, result in zip(items, results, strict=True):
            self._check_result(item, result)
            if item.line in given.plain:
                self._check_plain(given.plain[item.line], result)
        path.write_bytes(whole[: int(len(whole) * given.cut)])
        self._run(items, path, given.batch_size)
        assert path.read_bytes() == whole, "what is carried on is not what was cut"
        return sum("error" not in result for result in results)

    def _run(self, items: list[Item], path: Path, batch_size: int) -> None:
        with Results(path, {"the input": "random"}) as results:
            for _ in run_batches(items, results, self.answerer, batch_size):
                pass

    def _check_result(self, item: Item, result: dict[str, Any]) -> None:
        assert result.get("id") == item.id
        if "error" in result:
            assert isinstance(result["error"], str) and result["error"], result
            assert not _FOREIGN.match(result["error"]), result
            return
        for reply in result.get("replies", [result]):
            assert isinstance(reply["text"], str) and reply["tokens"] >= 0 and reply["finish"] in ("stop", "length"), result

    def _check_plain(self, line: dict[str, Any], result: dict[str, Any]) -> None:
        ids = self.tokenizer(line["prompt"], return_tensors="pt")["input_ids"]
        alpha = line.get("alpha", 1.0)
        own = {name: value for name, value in line.items() if name not in _OWN and name != "prompt"}
        row = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), coefficients=torch.tensor([[1.0, alpha, -alpha]]), do_sample=False, **own
        )[0]
        assert result.get("text") == self.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True), result
