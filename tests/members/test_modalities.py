"""Multimodal members: exact for text; with images and their like, refused by name."""

from __future__ import annotations

import functools
from typing import Any

import oracle
import pytest
import torch
import transformers
from families import EOS, PAD, VOCAB, shared

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.modalities import placeholders

IMAGE, VIDEO, START, STOP = 5, 6, 7, 8
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": PAD,
}  # fmt: skip


def qwen2_vl() -> Any:
    vision = {
        "depth": 1,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "temporal_patch_size": 2,
    }
    rope = {"type": "default", "mrope_section": [1, 1, 2], "rope_type": "default"}
    config = transformers.Qwen2VLConfig(
        text_config={**_TEXT, "rope_scaling": rope},
        vision_config={**vision, "spatial_merge_size": 2},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=STOP,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config)


def gemma3() -> Any:
    text = {**_TEXT, "head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=STOP,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


MAKERS = {"qwen2_vl": qwen2_vl, "gemma3": gemma3}


@functools.cache
def multimodal(kind: str, seed: int) -> Any:
    torch.manual_seed(seed)
    model = MAKERS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.generation_config = transformers.GenerationConfig(pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS)
    return model


def texts() -> dict[str, torch.Tensor]:
    """Rows padded on the left, without placeholders."""
    ids = torch.randint(9, VOCAB, (3, 8), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :2] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "static": {"cache_implementation": "static"},
    "speculative": {"assistant_model": "tuned", "num_assistant_tokens": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MAKERS)
def test_text_of_a_multimodal_base_is_exact(kind: str, way: str) -> None:
    """The identity: with one model as base and reference, the text is the tuned model's."""
    base, tuned = multimodal(kind, 1), multimodal(kind, 2)
    reference = multimodal(kind, 1)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    options = {"max_new_tokens": 8, **{key: model.tuned if key == "assistant_model" else v for key, v in WAYS[way].items()}}
    plain = {key: value for key, value in options.items() if "assistant" not in key}
    assert model.generate(**texts(), **options).tolist() == tuned.generate(**texts(), **plain).tolist()


@pytest.mark.parametrize("small", ["gpt2", *MAKERS])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_step_of_a_multimodal_base_is_the_oracles(kind: str, small: str) -> None:
    pair = [multimodal(small, s) if small in MAKERS else shared(small, s) for s in (2, 3)]
    models = {"base": multimodal(kind, 1), "tuned": pair[0], "reference": pair[1]}
    model, inputs = EFTForCausalLM.from_models(**models), texts()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(5):
        log_probs = oracle.rows(models, {"base": 1.0, "tuned": 1.0, "reference": -1.0}, ids, mask)
        ids = torch.cat([ids, log_probs.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    got = model.generate(**inputs, max_new_tokens=5, eos_token_id=None)
    assert torch.equal(got, ids)
    if not bool((inputs["input_ids"] == IMAGE).any()):
        add_on = EFTLogitsProcessor(pair[0], pair[1], pad_token_id=PAD)
        got = models["base"].generate(**inputs, max_new_tokens=5, eos_token_id=None, logits_processor=[add_on])
        assert torch.equal(got, ids)


GIVEN: dict[str, dict[str, Any]] = {
    "image_grid_thw": {"image_grid_thw": torch.tensor([[1, 4, 4]])},
    "image_embeds": {"image_embeds": torch.randn(4, 32)},
    "mm_encoder_outputs": {"mm_encoder_outputs": {"image": torch.randn(4, 32)}},
    "input_features": {"input_features": torch.randn(1, 8, 4).numpy()},
    "mm_token_type_ids": {"mm_token_type_ids": torch.tensor([[0, 1, 1, 0]])},
    "speech": {"speech": {"values": torch.randn(1, 8)}},
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_wrapper_refuses_whatever_is_no_text_and_no_picture(name: str) -> None:
    """Pixels that are not there, what one model's encoder made of them, and sounds."""
    model = EFTForCausalLM.from_models(
        multimodal("qwen2_vl", 1), tuned=multimodal("qwen2_vl", 2), reference=multimodal("qwen2_vl", 3)
    )
    ids = torch.tensor([[9, IMAGE, IMAGE, 10]])
    for call in (lambda: model(ids, **GIVEN[name]), lambda: model.generate(ids, **GIVEN[name], max_new_tokens=1)):
        with pytest.raises(ValueError, match=f"`{name}` is no text and no picture.*Members read text, pictures and films"):
            call()


def test_what_describes_text_is_taken() -> None:
    model = EFTForCausalLM.from_models(multimodal("qwen2_vl", 1), tuned=shared("gpt2", 1), reference=shared("gpt2", 2))
    ids = torch.tensor([[9, 10, 11]])
    zeros = torch.zeros_like(ids)
    got = model(ids, token_type_ids=None, mm_token_type_ids=zeros, output_hidden_states=True)
    torch.testing.assert_close(got.logits, model(ids).logits)
    generated = model.generate(ids, max_new_tokens=4, mm_token_type_ids=zeros)
    assert torch.equal(generated, model.generate(ids, max_new_tokens=4))


def test_the_add_on_refuses_prompts_with_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pictures cannot be looked up in a call that is running."""
    base, tuned, reference = (multimodal("qwen2_vl", seed) for seed in (1, 2, 3))
    add_on = EFTLogitsProcessor(tuned, reference)
    ids = torch.tensor([[9, START, IMAGE, IMAGE, IMAGE, IMAGE, STOP, 20]])
    with pytest.raises(ValueError, match=r"token \d \(`\w+_token_id`\), which holds the place of something that is no text"):
        base.generate(ids, max_new_tokens=2, logits_processor=[add_on])
    monkeypatch.setattr(base, "_validate_model_kwargs", lambda given: None)  # as of a model that hears
    with pytest.raises(ValueError, match="`input_features` is no text and no picture"):
        base.generate(ids[:, -1:], input_features=torch.zeros(1, 2), max_new_tokens=2, logits_processor=[add_on])
    # One that the base generates by itself stands for itself.
    scores = torch.zeros(1, VOCAB)
    prompt = torch.tensor([[20, 21]])
    add_on(prompt, scores)
    add_on(torch.tensor([[20, 21, IMAGE]]), scores)
    with pytest.raises(ValueError, match=r"token 5 \(`image_token_id`\)"):
        add_on(torch.tensor([[22, 23, IMAGE]]), scores)
    EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2), combination=Combination.emulate())(
        ids, scores
    )  # text alone: a token


def test_placeholders_are_those_of_the_configuration() -> None:
    found = placeholders([shared("gpt2", 1).config, multimodal("qwen2_vl", 1).config, multimodal("gemma3", 1).config])
    assert set(found) == {IMAGE, VIDEO, START, STOP}
    assert found[VIDEO] == "video_token_id"


def test_how_to_attend_is_said_of_what_is_nested_too() -> None:
    models = {name: MAKERS["qwen2_vl"]() for name in ("base", "tuned", "reference")}
    model = EFTForCausalLM.from_models(models.pop("base"), **models)
    model.set_attn_implementation("eager")
    for config in model.config.member_configs.values():
        assert {config._attn_implementation, config.text_config._attn_implementation} == {"eager"}
        assert config.vision_config._attn_implementation == "eager"
