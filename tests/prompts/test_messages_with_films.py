"""Each member's processor makes its own of a conversation with films; frames are given, files of films are not decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lookers import combination, picture, processor
from seeing import IMAGE, PLACES, VIDEO, log_probs

from hf_eft.prompts import member_inputs
from hf_eft.prompts.messages import read_messages

NAMES = ("base", "tuned", "reference")


def chat(*parts: Any) -> list[dict[str, Any]]:
    """Lists and arrays are films, texts are texts, and whatever else is a picture."""

    def part(given: Any) -> dict[str, Any]:
        if isinstance(given, str):
            return {"type": "text", "text": given}
        kind = "video" if isinstance(given, list | np.ndarray) else "image"
        return {"type": kind, kind: given}

    return [{"role": "user", "content": [part(each) for each in parts]}]


FILM = [picture(seed) for seed in range(4)]


def test_members_see_films_of_messages() -> None:
    """A film of pictures and a picture; an array and a text: padded on the left, no frame left out, in order."""
    model, made = combination(*["qwen2_vl"] * 3), processor("qwen2_vl")
    chats = [chat("w20", FILM, "w21", picture(9)), chat(np.stack([np.asarray(each) for each in FILM[:2]]), "w22 w23 w24")]
    inputs = member_inputs(chats, dict.fromkeys(NAMES, made))["base"]
    assert (inputs["input_ids"] == VIDEO).sum(-1).tolist() == [4, 2] and (inputs["input_ids"] == IMAGE).sum(-1).tolist() == [
        2,
        0,
    ]
    assert inputs["video_grid_thw"].tolist() == [[2, 2, 4], [1, 2, 4]]
    assert torch.equal(inputs["mm_token_type_ids"] == 2, inputs["input_ids"] == VIDEO)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=PLACES, eos_token_id=None)
    ends = [0, 16, 24]
    for i, sequence in enumerate(out):
        prompt, text = inputs["input_ids"][i][inputs["attention_mask"][i].bool()], sequence[-4:]
        shown = {
            "pixel_values_videos": inputs["pixel_values_videos"][ends[i] : ends[i + 1]],
            "video_grid_thw": inputs["video_grid_thw"][i : i + 1],
            **({name: inputs[name] for name in ("pixel_values", "image_grid_thw")} if i == 0 else {}),
        }
        terms = [(c, model.members[name], "qwen2_vl", prompt, shown) for c, name in zip((1, 1, -1), NAMES, strict=True)]
        expected = log_probs(terms, text[:-1])
        expected[:, PLACES] = -torch.inf
        assert text.tolist() == expected.argmax(-1).tolist()
    turned = member_inputs([chat("w20", FILM[::-1], "w21", picture(9))], {"base": made})["base"]
    assert not torch.equal(turned["pixel_values_videos"], inputs["pixel_values_videos"][:16])


def test_a_member_whose_processor_reads_no_films_is_named() -> None:
    with pytest.raises(ValueError, match=r"the member 'tuned' \(LlavaProcessor\) reads no films. Show the frames"):
        member_inputs([chat("w20", FILM)], {"base": processor("qwen2_vl"), "tuned": processor("llava")})


def test_a_tokenizer_is_not_shown_films() -> None:
    made = processor("qwen2_vl")
    with pytest.raises(ValueError, match="the member 'tuned' has a tokenizer, which reads text alone"):
        member_inputs([chat("w20", FILM)], {"base": made, "tuned": made.tokenizer})


@pytest.mark.parametrize(
    "part, expected",
    [
        (
            {"video": "film.mp4"},
            r"content\[0\].video` must be the frames of a film.*got \"film.mp4\"; files of films are not decoded",
        ),
        ({"video": []}, "must be the frames of a film"),
        ({"video": np.zeros((8, 8, 3))}, r"shape \(frames, height, width, channels\)"),
        ({"video": None}, "must be the frames of a film"),
        ({"video": ["https://example.org/one.png"]}, r"content\[0\].video\[0\].image` must be a picture of PIL or the path"),
        ({"video": FILM, "fps": 2}, r"content\[0\].fps` is not read"),
    ],
)
def test_what_is_no_film_is_refused(part: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=rf"messages\[0\]: `{expected}" if expected.startswith("content") else expected):
        read_messages([{"role": "user", "content": [{"type": "video", **part}]}], pictures=True)
    with pytest.raises(ValueError, match="members read text only"):
        read_messages([{"role": "user", "content": [{"type": "video", **part}]}])
