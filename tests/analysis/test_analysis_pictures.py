"""The analysis of what is said of pictures, against stateless forwards with the picture; and the page that shows it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import missing, opened
from lookers import combination, own_inputs, picture, processor
from PIL import Image
from seeing import QWEN, along, log_probs

from hf_eft.analysis import analyse, passage
from hf_eft.analysis.heatmap import page

SAID = torch.tensor([40, 23, 61, 30, 22])
FAMILIES = {"one_processor": ("qwen2_vl",) * 3, "each_its_own": ("qwen2_vl", "llava", "llava")}
NAMES = ("base", "tuned", "reference")


def asked(case: str) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, tuple[str, torch.Tensor, dict[str, Any]]]]:
    """A combination, its processors, what `analyse` is given, and by member family, prompt and pictures."""
    families = dict(zip(NAMES, FAMILIES[case], strict=True))
    known = {family: processor(family) for family in families.values()}
    processors = {name: known[family] for name, family in families.items()}
    inputs = own_inputs(processors, "w20 w21", picture(1), "w22", picture(2, (8, 24)))
    own = inputs.pop("member_inputs")
    if case == "each_its_own":
        inputs["member_inputs"] = own
    seen = {}
    for name, family in families.items():
        given = {"base": inputs, **own}[name]
        pixels = {key: given[key] for key in ("pixel_values", "image_grid_thw") if key in given}
        seen[name] = (family if family in QWEN else None, given["input_ids"][0], pixels)
    ids = inputs.pop("input_ids")
    del inputs["attention_mask"]
    return combination(*FAMILIES[case]), processors, {"prompt": ids, **inputs}, seen


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "pieces"])
@pytest.mark.parametrize("case", FAMILIES)
def test_records_are_those_of_forwards_with_the_picture(case: str, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pieces:
        monkeypatch.setattr(passage, "_CELLS", 2 * 64)  # two tokens at a time, through the members' caches
    model, processors, given, seen = asked(case)
    analysis = analyse(model, processors["base"].tokenizer, continuation=SAID, **given)
    signs = {"base": 1.0, "tuned": 1.0, "reference": -1.0}
    terms = [(signs[name], model.members[name], *seen[name]) for name in NAMES]
    combined = log_probs(terms, SAID)
    for name in NAMES:
        family, prompt, pixels = seen[name]
        own = along(model.members[name], family, torch.cat([prompt, SAID]), pixels)[len(prompt) - 1 :]
        for i, record in enumerate(analysis.records):
            assert record.log_probs[name] == pytest.approx(float(own[i, SAID[i]]), abs=5e-4)
    for i, record in enumerate(analysis.records):
        assert record.log_prob == pytest.approx(float(combined[i, SAID[i]]), abs=5e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_what_is_generated_of_a_picture_is_analysed(case: str) -> None:
    model, processors, given, _ = asked(case)
    found = analyse(model, processors["base"].tokenizer, **given, max_new_tokens=4, do_sample=False)
    prompt = given.pop("prompt")
    expected = model.generate(prompt, **given, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :]
    assert [record.token.id for record in found.records] == expected.tolist()
    again = analyse(model, processors["base"].tokenizer, prompt, expected, **given)
    for one, other in zip(found.records, again.records, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def analysed() -> Any:
    model, processors, given, _ = asked("one_processor")
    return analyse(model, processors["base"].tokenizer, continuation=SAID, **given)


def test_the_page_shows_pictures_of_bounded_size() -> None:
    large = picture(1, (64, 32)).resize((2000, 1000))
    text = page([analysed()], images=[large, picture(2)])
    first, second = (
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', text)
    )
    assert first.size == (512, 256) and second.size == picture(2).size and large.size == (2000, 1000)
    difference = torch.tensor(np.asarray(first)).int() - torch.tensor(np.asarray(large.resize((512, 256)))).int()
    assert difference.abs().float().mean() < 8  # it is the picture
    assert "; img-src data:" in text and "img-src" not in page([analysed()]) and "<img" not in page([analysed()])
    with pytest.raises(ValueError, match=r"`images\[0\]` must be a picture"):
        page([analysed()], images=["a.png"])


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_a_browser_shows_pictures_and_texts(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page([analysed()], images=[picture(1, (64, 32))]), encoding="utf-8")
    with opened(file.as_uri()) as (shown, watch):
        assert shown.evaluate("document.querySelector('.pictures img').naturalWidth") == 64
        assert shown.locator(".t").count() == len(SAID)
        assert [each for each in watch.complaints if not each.startswith("data:image/jpeg")] == []
