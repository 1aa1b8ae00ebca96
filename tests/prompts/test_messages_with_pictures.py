"""Each member's processor makes its own of one conversation with pictures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tokenizer as of_text
from seeing import IMAGE, PLACES, log_probs, seeing
from tokenizers import AddedToken
from transformers import LlavaProcessor, pipeline
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_eft import EFTForCausalLM
from hf_eft.prompts import member_inputs
from hf_eft.prompts.messages import read_messages

Image = pytest.importorskip("PIL.Image")
TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %} w5 {% else %} {{ p['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} w9{% endif %}"
)


@functools.cache
def processor(size: int) -> Any:
    """Of a LLaVA whose pictures are squares of `size` pixels, and whose placeholder is a word."""
    tokenizer = of_text()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("w5", special=True)]})
    tokenizer.image_token, tokenizer.image_token_id = "w5", IMAGE
    image_processor = CLIPImageProcessorPil(size={"height": size, "width": size}, do_center_crop=False)
    return LlavaProcessor(
        image_processor, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="w5", chat_template=TEMPLATE,
    )  # fmt: skip


def picture(seed: int) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chats(folder: Path) -> list[list[dict[str, Any]]]:
    """A row with a picture of PIL and one in a file, and a row with one."""
    picture(1).save(folder / "one.png")
    text = {"type": "text", "text": "w20 w21"}
    shown = {"type": "image", "image": picture(2)}
    return [
        [{"role": "user", "content": [text, {"type": "image", "image": folder / "one.png"}, shown]}],
        [{"role": "user", "content": [shown, text]}],
    ]


def test_members_read_what_their_processors_make(tmp_path: Path) -> None:
    models = [seeing("llava", seed) for seed in (1, 2, 3)]
    names = ("base", "tuned", "reference")
    prompts = member_inputs(chats(tmp_path), dict.fromkeys(names, processor(8)))
    assert (prompts["base"]["input_ids"] == IMAGE).sum(-1).tolist() == [8, 4]
    inputs = prompts.pop("base")
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    out = model.generate(
        **inputs, member_inputs=prompts, max_new_tokens=4, do_sample=False, suppress_tokens=PLACES, eos_token_id=None
    )
    starts = [0, 2, 3]
    for i, sequence in enumerate(out):
        prompt = inputs["input_ids"][i][inputs["attention_mask"][i].bool()]
        pictures = {"pixel_values": inputs["pixel_values"][starts[i] : starts[i + 1]]}
        text = sequence[-4:]
        expected = log_probs(
            [(c, each, "llava", prompt, pictures) for c, each in zip((1, 1, -1), models, strict=True)], text[:-1]
        )
        expected[:, PLACES] = -torch.inf
        assert text.tolist() == expected.argmax(-1).tolist()


def test_a_tokenizer_is_not_shown_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the member 'tuned' has a tokenizer, which reads text alone"):
        member_inputs(chats(tmp_path), {"base": processor(8), "tuned": of_text()})
    with pytest.raises(ValueError, match="members read text only"):
        member_inputs(chats(tmp_path), {"tuned": of_text()})


def test_rows_without_pictures(tmp_path: Path) -> None:
    text = [{"role": "user", "content": "w30 w31"}]
    both = member_inputs([text, chats(tmp_path)[1]], {"tuned": processor(8)})["tuned"]
    assert (both["input_ids"] == IMAGE).sum(-1).tolist() == [0, 4]
    assert both["attention_mask"][0].tolist()[-3:] == [1, 1, 1] and both["attention_mask"][0, 0] == 0
    alone = member_inputs([text], {"tuned": processor(8)})["tuned"]
    assert "pixel_values" not in alone


@pytest.mark.parametrize("image", ["https://example.org/one.png", "data:image/png;base64,AA==", "nowhere.png", None])
def test_only_pictures_that_are_here_are_read(image: Any) -> None:
    with pytest.raises(ValueError, match=r"messages\[0\]: `content\[0\]"):
        read_messages([{"role": "user", "content": [{"type": "image", "image": image}]}], pictures=True)


def test_a_processor_without_a_template_is_refused(tmp_path: Path) -> None:
    bare = LlavaProcessor(processor(8).image_processor, processor(8).tokenizer, patch_size=4, image_token="w5")
    with pytest.raises(ValueError, match="The processor of the member 'tuned' has no chat template"):
        member_inputs(chats(tmp_path), {"tuned": bare})


def test_the_pipeline_of_pictures_and_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = [seeing("llava", seed) for seed in (1, 2, 3)]
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    options = {"max_new_tokens": 4, "suppress_tokens": PLACES, "eos_token_id": None}
    pipe = pipeline("image-text-to-text", model=model, processor=processor(8))
    assert not [record for record in caplog.records if "not supported" in record.message]
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(2)}, {"type": "text", "text": "w20 w21"}]}]
    found = pipe(text=chat, generate_kwargs=options)[0]["generated_text"][-1]["content"]
    inputs = member_inputs([chat], {"base": processor(8)})["base"]
    expected = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert found.split() == processor(8).tokenizer.decode(expected).split()
