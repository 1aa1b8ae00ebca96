"""The playground: its sliders for every recipe, answers that stream and stop, and the page in a browser."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import threading
from typing import Any

import pytest
import torch
from browser import missing, opened
from serve_playground import STRENGTH, Served

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.playground.dials import dials_of
from hf_eft.playground.streaming import Answer


def no_page() -> str | None:
    """Why the page cannot be looked at here, or `None`."""
    return missing() if importlib.util.find_spec("gradio") else "gradio is not installed"


page = pytest.mark.skipif(no_page() is not None, reason=no_page() or "")

ALPHA, BETA, LAMBDA = "\N{GREEK SMALL LETTER ALPHA}", "\N{GREEK SMALL LETTER BETA}", "\N{GREEK SMALL LETTER LAMDA}"
AMPLIFICATION = f"amplification {BETA}"
QUESTION = "What does Oscar Palmer enjoy?"
THREE = ("base", "tuned", "reference")


@pytest.mark.parametrize(
    "names, recipe, labels, values, expected",
    [
        (THREE, Combination.emulate(), [STRENGTH, AMPLIFICATION], (0.5,), [1, 0.5, -0.5]),
        (THREE, Combination.emulate(beta=1.5), [AMPLIFICATION, STRENGTH], (1.2,), [1.2, 1, -1.2]),
        (THREE, Combination.emulate(alpha=[0.5, 2.0]), [STRENGTH, AMPLIFICATION], (0.0,), [1, 0, 0]),
        (
            ("base", "helpful", "brief", "reference"),
            Combination.steer({"helpful": 0.7, "brief": 0.3}),
            [f"weights {LAMBDA}"],
            (0.2, 0.5),
            [1, 0.2, 0.5, -0.7],
        ),
        (("tuned", "reference"), Combination.interpolate(0.5), [f"alignment {LAMBDA}"], (0.3,), [0.3, 0.7]),
        (("a", "b"), Combination.mix({"a": 0.5, "b": 0.5}), ["coefficients"], (0.9, 0.1), [0.9, 0.1]),
        (("base", "reference"), Combination.contrast(), ["coefficients"], (2.0, -1.0), [2, -1]),
        (
            THREE,
            Combination({"base": 1.0, "tuned": 0.5}),
            ["coefficients", STRENGTH, AMPLIFICATION],
            (1, 2, 3),
            [1, 2, 3],
        ),
    ],
)
def test_dials(names: Any, recipe: Combination, labels: list[str], values: Any, expected: list[float]) -> None:
    ways = dials_of(names, recipe)
    assert [way.label for way in ways] == labels
    made = ways[0].coefficients(values)
    assert [made.get(name, 0.0) for name in names] == pytest.approx(expected)
    start = ways[0].coefficients(tuple(dial.start for dial in ways[0].dials))
    assert [start.get(name, 0.0) for name in names] == pytest.approx(recipe.at([0], names)[0].tolist())
    for dial in ways[0].dials:
        assert dial.low <= dial.start <= dial.high


def test_sliders_offer_no_negative_strength_unless_the_recipe_has_one() -> None:
    assert dials_of(THREE, Combination.emulate())[0].dials[0].low == 0
    assert dials_of(THREE, Combination.emulate(alpha=-0.5))[0].dials[0].low == -1
    assert dials_of(THREE, Combination.emulate(alpha=3.5))[0].dials[0].high == 4


@pytest.fixture(scope="module")
def ids(family: Any) -> torch.Tensor:
    return torch.tensor(family.tokenizer(tiny.PROMPT.format(QUESTION))["input_ids"])


def test_an_answer_streams(model: EFTForCausalLM, family: Any, ids: torch.Tensor) -> None:
    answer = Answer(model, family.tokenizer, ids, 0, max_new_tokens=24, do_sample=False)
    texts = list(answer)
    assert len(texts) > 3 and all(after.startswith(before) for before, after in itertools.pairwise(texts))
    expected = model.generate(ids[None], max_new_tokens=24, do_sample=False)[0, len(ids) :]
    assert answer.tokens is not None and answer.tokens.tolist() == expected.tolist()
    assert texts[-1] == answer.text == family.tokenizer.decode(expected, skip_special_tokens=True)


def test_the_seed_decides(model: EFTForCausalLM, family: Any, ids: torch.Tensor) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5}
    one, same, other = (Answer(model, family.tokenizer, ids, seed, **options) for seed in (3, 3, 4))
    assert list(one)[-1] == list(same)[-1] != list(other)[-1]


def test_an_answer_stops(model: EFTForCausalLM, family: Any, ids: torch.Tensor) -> None:
    answer = Answer(model, family.tokenizer, ids, 0, max_new_tokens=400, min_new_tokens=400, do_sample=False)
    before = set(threading.enumerate())
    for _ in answer:
        break
    assert set(threading.enumerate()) <= before  # those of other tests may end
    assert answer.tokens is not None and 0 < len(answer.tokens) < 400


def test_an_error_is_raised_where_the_answer_is_read(model: EFTForCausalLM, family: Any, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        list(Answer(model, family.tokenizer, ids, 0, coefficients=torch.ones(1, 7), max_new_tokens=4))


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_what_goes_wrong_is_shown_and_the_next_prompt_is_answered(served: Served) -> None:
    """A template that raises what it likes, text that is none, and a seed that was deleted."""
    refused, no_text, empty, answered = served.typed
    assert "the chat template does not take these messages: no such" in refused
    assert "the prompt is no text" in no_text and "The prompt is empty" in empty
    assert "hockey" in answered


def test_without_gradio_it_says_what_to_install(model: EFTForCausalLM, family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_eft import playground

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-eft\[playground\]'"):
        playground.build(model, family.tokenizer)


def say(tab: Any, prompt: str) -> None:
    tab.wait_for_selector("#prompt textarea")
    tab.fill("#prompt textarea", prompt)
    tab.click("#generate")


def drag(tab: Any, label: str, share: float) -> None:
    """Move a slider with the mouse, to a share of its way."""
    slider = tab.get_by_label(f"range slider for {label}", exact=True)
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * share, middle, steps=4)
    tab.mouse.up()


@page
def test_the_page(served: Served, model: EFTForCausalLM, family: Any) -> None:
    with opened(served.at["three"]) as (tab, watch):
        say(tab, QUESTION)
        frame = tab.frame_locator(".heatmap iframe")
        frame.locator(".t").first.wait_for()
        said = {name: tab.input_value(f"#says-{name} textarea") for name in ("base", "tuned", "combined")}
        prompt = family.tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for name, system in {"base": family.base, "tuned": family.tuned, "combined": model}.items():
            ids = system.generate(torch.tensor([prompt]), max_new_tokens=128, do_sample=False)[0, len(prompt) :]
            assert said[name] == family.tokenizer.decode(ids, skip_special_tokens=True)
        shown = "".join(frame.locator(".t").all_text_contents())
        assert shown == said["combined"] + "<eos>"
        assert "base + tuned - reference" in frame.locator("h2").text_content()

        drag(tab, ALPHA, 0.0)
        tab.wait_for_function(f"document.querySelector('#says-combined textarea').value === {said['base']!r}")
        frame.locator("h2", has_text="base").filter(has_not_text="tuned").wait_for()
        assert tab.input_value("#says-tuned textarea") == said["tuned"]
        assert str(model.combination) == "base + tuned - reference"
        tab.get_by_label(AMPLIFICATION).check()
        tab.get_by_label(f"range slider for {BETA}", exact=True).wait_for()
        assert watch.complaints == []


@page
def test_errors_are_shown(served: Served) -> None:
    with opened(served.at["three"]) as (tab, watch):
        say(tab, "   ")
        tab.get_by_text("The prompt is empty").wait_for()
        assert watch.dialogs == [] and watch.requests == []


@page
def test_a_hostile_prompt(served: Served) -> None:
    text = "</script><img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}} &quot;' \" </iframe>"
    with opened(served.at["three"]) as (tab, watch):
        say(tab, text)
        frame = tab.frame_locator(".heatmap iframe")
        frame.locator(".t").first.wait_for()
        assert text in frame.locator(".prompt").text_content()
        assert tab.locator(".heatmap iframe").get_attribute("sandbox") == "allow-scripts"
        assert watch.complaints == []


@page
def test_stop_ends_the_generation(served: Served) -> None:
    with opened(served.at["endless"]) as (tab, watch):
        say(tab, QUESTION)
        tab.wait_for_function("document.querySelector('#says-base textarea').value.length > 20")
        tab.click("#stop")
        assert served.says("stopped", 120), "the generation went on"
        assert watch.complaints == []


@page
def test_several_tuned_members(served: Served) -> None:
    with opened(served.at["several"], color_scheme="dark") as (tab, watch):
        for name in ("helpful", "brief"):
            tab.get_by_label(f"range slider for {LAMBDA} of {name}", exact=True).wait_for()
        say(tab, QUESTION)
        tab.frame_locator(".heatmap iframe").locator(".t").first.wait_for()
        assert all(tab.input_value(f"#says-{name} textarea") for name in ("base", "helpful", "brief", "combined"))
        assert watch.complaints == []
