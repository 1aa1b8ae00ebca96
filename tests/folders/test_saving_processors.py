"""Processors lie in the folder where the tokenizers of members that see would lie, and come back with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_hub import serving
from families import build
from lookers import combination, own_inputs, picture, processor
from seeing import seeing
from transformers import AutoProcessor, pipeline

from hf_eft import EFTForCausalLM, hub
from hf_eft.programs.pictures import Processors

NAMES = ("base", "tuned", "reference")
CHAT = [{"role": "user", "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "w20 w21"}]}]


def processors(**change: Any) -> dict[str, Any]:
    """Those of three members; the base's makes other pixels of a picture."""
    made = {name: processor("llava") for name in NAMES}
    for key, value in change.items():
        setattr(made["base"].image_processor, key, value)
    return made


def model(given: dict[str, Any]) -> EFTForCausalLM:
    members = combination("llava", "llava", "llava").members
    return EFTForCausalLM.from_models(members["base"], tuned=members["tuned"], reference=members["reference"], tokenizers=given)


def asked(combined: EFTForCausalLM, **options: Any) -> list[int]:
    """What follows the chat with a picture, each member at what the processor that the model keeps for it makes."""
    tokenizer = next(iter(combined.tokenizers.values()))
    _, seen = Processors(combined, tokenizer).read(CHAT)
    given = {name: seen.inputs[name] for name in ("input_ids", "attention_mask")}
    return combined.generate(**given, **seen.pictures, max_new_tokens=8, do_sample=False, **options)[0].tolist()


def test_each_member_s_processor_comes_back(tmp_path: Path) -> None:
    given = processors(image_mean=[0.9, 0.1, 0.4])
    kept = model(given)
    assert kept.processors == given and kept.tokenizers == {name: each.tokenizer for name, each in given.items()}
    kept.save_pretrained(tmp_path)
    assert {p.parent for p in tmp_path.rglob("processor_config.json")} == {tmp_path, tmp_path / "members/base"}
    loaded, tokenizers = hub.load(tmp_path)
    assert list(loaded.processors) == list(NAMES) and loaded.processors["tuned"] is loaded.processors["reference"]
    assert tokenizers["base"].get_vocab() == given["base"].tokenizer.get_vocab()
    inputs = own_inputs(given, picture(3), "w20 w21")
    expected = kept.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    assert asked(loaded) == asked(kept) == expected
    same = own_inputs(dict.fromkeys(NAMES, given["tuned"]), picture(3), "w20 w21")
    assert expected != kept.generate(**same, max_new_tokens=8, do_sample=False)[0].tolist()


def test_processors_that_agree_are_there_once_and_pipelines_find_them(tmp_path: Path) -> None:
    kept = model(processors())
    kept.save_pretrained(tmp_path)
    assert [p.parent for p in tmp_path.rglob("*processor_config.json")] == [tmp_path]
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "LlavaProcessor"
    ask = pipeline("image-text-to-text", model=str(tmp_path))
    out = ask(text=CHAT, max_new_tokens=8, generate_kwargs={"do_sample": False}, return_full_text=False)
    prompt = own_inputs({"base": kept.processors["base"]}, picture(3), "w20 w21")["input_ids"].shape[1]
    expected = kept.tokenizers["tuned"].decode(asked(kept)[prompt:], skip_special_tokens=True)
    assert out[0]["generated_text"].split() == expected.split()


def test_the_tokenizers_of_processors_are_compared_and_members_that_read_have_tokenizers(tmp_path: Path) -> None:
    seen = processor("llava")
    mixed = EFTForCausalLM.from_models(
        build("llama", 2), tuned=seeing("llava", 1), reference=seeing("llava", 3), tokenizers={"tuned": seen}
    )
    assert list(mixed.processors) == ["tuned"]
    mixed.save_pretrained(tmp_path)
    loaded, tokenizers = hub.load(tmp_path)
    assert list(loaded.processors) == ["tuned", "reference"] and list(tokenizers) == list(NAMES)
    with pytest.raises(ValueError, match="to the member 'base', which has no processor"):
        Processors(loaded, tokenizers["tuned"]).read(CHAT)
    other = processor("llava")
    other.tokenizer.add_tokens(["w1000"])
    seen.tokenizer.add_tokens(["w2000"])
    with pytest.raises(ValueError, match="differ in content"):
        mixed.tokenizers = {"base": seen, "tuned": other}


def test_a_processor_that_no_folder_brings_back_is_refused(tmp_path: Path) -> None:
    kept = model({**processors(), "reference": processor("qwen2_vl")})  # of a class of the tests
    with pytest.raises(ValueError, match="'reference' is a Pictures, which is none of transformers'"):
        kept.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    kept.save_pretrained(tmp_path, tokenizers=kept.tokenizers)
    assert not any(tmp_path.rglob("*processor_config.json")) and not hub.load(tmp_path)[0].processors


def test_nothing_of_an_earlier_processor_is_left(tmp_path: Path) -> None:
    kept = model(processors())
    kept.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    kept.save_pretrained(tmp_path, tokenizers=kept.tokenizers)
    assert not any(tmp_path.rglob("*processor_config.json")) and (tmp_path / "chat_template.jinja").is_file() is False


def spoil(change: Callable[[dict[str, Any]], Any], path: Path) -> None:
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def test_a_processor_whose_library_is_missing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model(processors()).save_pretrained(tmp_path)
    spoil(
        lambda found: found["image_processor"].update(image_processor_type="NoSuchImageProcessor"),
        tmp_path / "processor_config.json",
    )
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").propagate = True
        loaded, tokenizers = hub.load(tmp_path)
    assert "The processor of the member 'base'" in caplog.text and "pictures are refused" in caplog.text
    assert not loaded.processors and list(tokenizers) == list(NAMES)
    with pytest.raises(ValueError, match="which has no processor"):
        Processors(loaded, tokenizers["tuned"]).read(CHAT)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # what huggingface_hub does without Xet
def test_processors_are_published_and_found_through_recipes(tmp_path: Path) -> None:
    given = processors(image_mean=[0.9, 0.1, 0.4])
    kept = model(given)
    with serving(tmp_path / "cache", "hf_stored") as online:
        kept.push_to_hub("me/seeing", token="hf_mine")
        loaded, _ = hub.load("me/seeing")
        assert asked(loaded) == asked(kept)
        for name in NAMES:
            kept.members[name].save_pretrained(tmp_path / name)
            given[name].save_pretrained(tmp_path / name)
            online.add(f"family/{name}", tmp_path / name)
        hub.compose({name: f"family/{name}" for name in NAMES}, tmp_path / "recipe", references=True)
        referred, _ = hub.load(tmp_path / "recipe", allow_references=True)
        assert asked(referred) == asked(kept)
    by_name, _ = hub.load({name: tmp_path / name for name in NAMES})
    assert asked(by_name) == asked(kept)
