"""The heat-map as data, and in a browser: hostile texts, long texts, keys, colours, and what it may load."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import missing, opened
from families import shared

from hf_eft import Combination, EFTForCausalLM, Truncation
from hf_eft.analysis import Analysis, analyse
from hf_eft.analysis.heatmap import page
from hf_eft.analysis.records import Shift
from hf_eft.analysis.token_text import Token

browser = pytest.mark.skipif(missing() is not None, reason=missing() or "")

QUESTION = "Question: What does Oscar Palmer enjoy?\nAnswer:"
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--<script>",
    "]]>",
    "&lt;b&gt; &amp;amp;",
    "\"'`${alert(1)}",
    "\u2028\u2029",
    "\u202eabc\u202c",
    "\u2067x\u2066y",
    "\x00\x1b[31m\x7f",
    "\ud800",
    "\ufeff\u200b\u200f",
    "{data}{script}",
    "</style><style>*{display:none}</style>",
    "<link rel=stylesheet href=http://example.invalid/x.css>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid/'>",
    "שלום",
    "مرحبا",
    "日本語 👩‍👩‍👧",
    "\n",
    " ",
    "",
]


@pytest.fixture(scope="module")
def analysis(family: Any) -> Analysis:
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)
    return analyse(model, family.tokenizer, QUESTION, max_new_tokens=24)


@pytest.fixture(scope="module")
def hostile(analysis: Analysis) -> Analysis:
    """Every text in every place that shows one."""
    model = analysis.records[0]
    records = []
    for i, text in enumerate(HOSTILE):
        token = Token(i, text)
        shift = Shift(i, text, 0.1, 0.9)
        choices = dict.fromkeys(model.choices, token)
        made = {
            "token": token,
            "choice": token,
            "choices": choices,
            "raised": (shift,),
            "lowered": (shift,),
            "changed_by": text,
        }
        records.append(dataclasses.replace(model, position=i, changed=True, **made))
    everything = "".join(HOSTILE)
    return dataclasses.replace(analysis, records=records, prompt=everything, continuation=everything, recipe=everything)


def written(folder: Path, text: str) -> str:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def data_of(text: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.S)[0])


class Elements(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_data_are_the_records(analysis: Analysis) -> None:
    data = data_of(page([analysis, analysis]))
    words, (one, two) = data["words"], data["analyses"]
    assert one == two
    assert "".join(words[i] for i in one["tokens"]) == analysis.continuation
    for i, record in enumerate(analysis.records):
        assert one["ids"][i] == record.token.id and one["changed"][i] == record.changed
        assert one["logProb"][i] == pytest.approx(record.log_prob, rel=1e-4)
        assert one["values"]["delta"][i] == pytest.approx(record.delta, rel=1e-4)
        assert one["values"]["total_variation"][i] == pytest.approx(record.total_variation["base"], rel=1e-4)
        assert {name: words[one["choices"][name][i]] for name in one["members"]} == {
            n: t.text for n, t in record.choices.items()
        }
    for quantity in data["quantities"]:
        sizes = [abs(value) for each in data["analyses"] for value in each["values"][quantity["key"]]]
        assert quantity["clipped"] == (max(sizes) > quantity["limit"])
        assert sum(size <= quantity["limit"] for size in sizes) >= 0.98 * len(sizes)


def test_nothing_in_a_text_is_markup(hostile: Analysis) -> None:
    plain, text = page([dataclasses.replace(hostile, records=hostile.records[:1])]), page([hostile], title="".join(HOSTILE))
    elements = Elements(text).found
    assert [tag for tag, _ in elements] == [tag for tag, _ in Elements(plain).found]
    assert not [
        attrs for _, attrs in elements if any(name in ("src", "href", "style") or name.startswith("on") for name in attrs)
    ]
    island = text.split('id="data">', 1)[1].split("</script>", 1)[0]
    assert island.isascii() and not set("<>&") & set(island)
    assert data_of(text)["analyses"][0]["recipe"] == "".join(HOSTILE)
    assert "\u202e" not in text


def test_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        page([])


@browser
def test_a_hostile_text_is_shown_and_does_nothing(hostile: Analysis, tmp_path: Path) -> None:
    with opened(written(tmp_path, page([hostile], title="<script>alert(2)</script>")), color_scheme="dark") as (tab, watch):
        shown = tab.eval_on_selector_all(".t", "all => all.map(item => item.textContent)")
        assert len(shown) == len(HOSTILE)
        for text, seen in zip(HOSTILE, shown, strict=True):
            if text.isprintable() and text.strip() and "\u200d" not in text:
                assert seen == text
        assert "U+202E" in shown[HOSTILE.index("\u202eabc\u202c")] and "U+2028" in shown[HOSTILE.index("\u2028\u2029")]
        assert shown[HOSTILE.index("\n")] == "↵\n" and shown[HOSTILE.index(" ")] == "␣" and shown[HOSTILE.index("")] == "◌"
        tab.focus(".t")
        for _ in HOSTILE:  # the details of every token
            tab.keyboard.press("ArrowRight")
        body = tab.evaluate("document.body.innerText")
        assert not set("\u202e\u202c\u2066\u2067\u200b\u200f\x00\x1b") & set(body)
        assert tab.evaluate("window.hacked") is None
        assert tab.text_content("h1") == "<script>alert(2)</script>"
        assert watch.complaints == []


@browser
def test_the_policy_holds_where_escaping_would_not(analysis: Analysis, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        loads = f"<img src='{address}x.png' onerror='window.hacked = 1'><link rel=stylesheet href='{address}x.css'>"
        text = page([analysis]).replace("<main", f"<script>window.hacked = 1</script>{loads}<main")
        with opened(written(tmp_path, text)) as (tab, watch):
            assert tab.locator(".t").count() == len(analysis.records)
            assert tab.evaluate("window.hacked") is None
            assert tab.evaluate(f"fetch('{address}').then(() => 'loaded', () => 'refused')") == "refused"
            assert any("Content Security Policy" in error for error in watch.errors)
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


@browser
def test_details_keys_and_colours(analysis: Analysis, tmp_path: Path) -> None:
    with opened(written(tmp_path, page([analysis, analysis]))) as (tab, watch):
        tokens = tab.locator("section").first.locator(".t")
        last = len(analysis.records) - 1
        tokens.nth(3).hover()
        record = analysis.records[3]
        details = tab.inner_text("#details")
        assert f"token 4 of {last + 1}, id {record.token.id}" in details
        assert f"{abs(record.log_prob):.3f}" in details and f"{math.exp(record.log_probs['tuned']):.4f}" in details
        assert f"{record.raised[0].before:.3f} → {record.raised[0].after:.3f}" in details
        tokens.nth(0).focus()
        tab.keyboard.press("End")
        assert f"token {last + 1} of" in tab.inner_text("#details")
        assert tab.evaluate("document.activeElement.dataset.i") == str(last)
        tab.keyboard.press("Home")
        changed = [i for i, each in enumerate(analysis.records) if each.changed and i > 0]
        tab.keyboard.press("n")
        assert f"token {changed[0] + 1} of" in tab.inner_text("#details")
        assert tokens.evaluate_all("all => all.filter(item => item.classList.contains('changed')).length") == sum(
            each.changed for each in analysis.records
        )
        assert tab.evaluate("getComputedStyle(document.querySelector('.t.changed')).borderBottomStyle") == "solid"
        tab.select_option("#quantity", label="delta")
        lowest = min(range(last + 1), key=lambda i: analysis.records[i].delta or 0.0)
        assert "less" in tokens.nth(lowest).get_attribute("class")
        weights = tokens.evaluate_all("all => all.map(item => Number(item.style.getPropertyValue('--w')))")
        limit = next(q["limit"] for q in data_of(page([analysis]))["quantities"] if q["key"] == "delta")
        assert weights == pytest.approx([min(1.0, abs(each.delta or 0.0) / limit) for each in analysis.records], abs=2e-3)
        tab.check("#with-numbers")
        assert tokens.nth(lowest).get_attribute("data-value").startswith("\N{MINUS SIGN}")
        chart = tab.locator(".chart").first
        box = chart.bounding_box()
        chart.click(position={"x": box["width"] - 12, "y": 40})
        assert f"token {last + 1} of" in tab.inner_text("#details") and tab.locator(".chart .plus").first.get_attribute("d")
        assert watch.complaints == []


@browser
def test_a_long_text_stays_usable(analysis: Analysis, tmp_path: Path) -> None:
    count = 20_000
    records = [
        dataclasses.replace(analysis.records[i % len(analysis.records)], position=i, reward=float(i)) for i in range(count)
    ]
    text = page([dataclasses.replace(analysis, records=records, continuation="".join(r.token.text for r in records))])
    assert len(text) < 400 * count
    with opened(written(tmp_path, text)) as (tab, watch):
        assert tab.locator(".t").count() == count
        assert tab.evaluate("getComputedStyle(document.querySelector('.block')).contentVisibility") == "auto"
        assert tab.evaluate("Math.max(...[...document.querySelectorAll('.block')].map(b => b.childElementCount))") <= 500
        tab.focus(".t")
        tab.keyboard.press("End")
        assert f"token {count} of {count}" in tab.inner_text("#details")
        tab.locator(".t").nth(9_000).hover()
        assert f"token 9001 of {count}" in tab.inner_text("#details")
        tab.select_option("#quantity", label="reward so far")
        assert len(tab.locator(".chart .plus").get_attribute("d")) < 100_000
        assert watch.complaints == []


@browser
def test_recipes_of_every_kind_are_shown(family: Any, tmp_path: Path) -> None:
    base, one, two, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2), shared("gpt2", 3)
    made = [
        EFTForCausalLM.from_models(
            base,
            tuned={"helpful": one, "brief": two},
            reference=reference,
            combination=Combination.steer({"helpful": 0.7, "brief": 0.3}),
        ),
        EFTForCausalLM.from_models(None, tuned=one, reference=reference, combination=Combination.interpolate(0.5)),
        EFTForCausalLM.from_models(None, tuned={"a": one, "b": two}, combination=Combination.mix({"a": 0.5, "b": 0.5})),
        EFTForCausalLM.from_models(base, reference=reference, combination=Combination.contrast()),
        EFTForCausalLM.from_models(
            base, tuned=one, reference=reference, combination=Combination.emulate(truncation=Truncation("drop", 0.1))
        ),
    ]
    import torch

    analyses = [analyse(model, family.tokenizer, torch.tensor([5, 9, 30]), torch.tensor([7, 40, 3, 22])) for model in made]
    with opened(written(tmp_path, page(analyses))) as (tab, watch):
        assert tab.locator("section").count() == len(made)
        for option in tab.eval_on_selector_all("#quantity option", "all => all.map(option => option.label)"):
            tab.select_option("#quantity", label=option)
        tab.select_option("#quantity", label="lift")
        assert tab.locator("section").nth(4).locator(".t.out").count() > 0  # ruled out: hatched, not coloured
        assert watch.complaints == []
