"""The playground asked about a picture: what members make of it, and the page in a browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from browser import opened
from lookers import own_inputs, picture
from serve_playground import Served, page_of
from test_playground import page, say

from hf_eft import playground
from hf_eft.programs.pictures import Processors

QUESTION = "w20 w21 w22"
NAMES = ("base", "tuned", "reference")


def expected(image: Any) -> dict[str, str]:
    """What base, tuned and the combination say of a picture."""
    model, first, others = page_of("pictures", None)
    inputs = own_inputs(dict(zip(NAMES, (first, others["tuned"], others["reference"]), strict=True)), image, QUESTION)
    own = inputs["member_inputs"]
    alone = {name: value for name, value in inputs.items() if name != "member_inputs"}
    given = {
        "base": (model.members["base"], alone),
        "tuned": (model.members["tuned"], own["tuned"]),
        "combined": (model, inputs),
    }
    said = {}
    for name, (system, each) in given.items():
        ids = system.generate(**each, max_new_tokens=128, do_sample=False)[0, each["input_ids"].shape[1] :]
        said[name] = first.tokenizer.decode(ids, skip_special_tokens=True)
    return said


@page
def test_the_page_shows_a_picture_and_what_was_made_of_it(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    picture(1, (64, 32)).save(file)
    said = expected(picture(1, (64, 32)))
    with opened(served.at["pictures"], viewport={"width": 1280, "height": 1500}) as (tab, watch):
        tab.set_input_files("#picture input[type=file]", file)
        tab.wait_for_selector("#picture img")
        say(tab, QUESTION)
        frame = tab.frame_locator(".heatmap iframe")
        frame.locator(".t").first.wait_for()
        for name, text in said.items():
            assert tab.input_value(f"#says-{name} textarea") == text
        assert frame.locator(".pictures img").evaluate("image => image.naturalWidth") == 64
        # Gradio says that of the stream in which it follows an upload, when it is over.
        assert {each for each in watch.complaints if not each.startswith(("data:image/jpeg", "blob:"))} <= {
            "Method not implemented."
        }


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_a_picture_is_asked_about_in_a_chat() -> None:
    model, first, others = page_of("pictures", None)
    viewers = Processors(model, first, others)
    with pytest.raises(ValueError, match="choose `as a chat message`"):
        playground._prompt(first.tokenizer, viewers, QUESTION, False, picture())
    plain = playground._prompt(first.tokenizer, viewers, QUESTION, False, None)
    assert plain.prompt == first.tokenizer(QUESTION)["input_ids"] and plain.pictures == {}
    seen = playground._prompt(first.tokenizer, viewers, QUESTION, True, picture())
    assert set(seen.own) == {"tuned", "reference"} and "pixel_values" in seen.pictures


def test_processors_are_those_of_all_members() -> None:
    model, first, _ = page_of("pictures", None)
    with pytest.raises(ValueError, match="'tuned', the member 'reference', which has no processor"):
        playground.build(model, first.tokenizer, processors={"base": first})
