"""What is saved can be loaded, whatever was set on a configuration: what a file may not say is left out, and named."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, prompts
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.configuration_utils import PreTrainedConfig

from hf_eft import Combination, EFTConfig, EFTForCausalLM, hub
from hf_eft.files.trust import MAX_SIZE

# What cannot be set, or only under its present name.
_NOT_SET = {"use_return_dict", "model_type", "torch_dtype", "rope_scaling"}
FIELDS = sorted(
    {
        *(field.name for field in dataclasses.fields(PreTrainedConfig)),
        *(field.name for field in dataclasses.fields(EFTConfig)),
        *(name for name, value in vars(PreTrainedConfig).items() if isinstance(value, property)),
        *("mine", "auto_map", "quantization_config", "use_kernels", "trust_remote_code", "_commit_hash", "output_attentions"),
    }
    - _NOT_SET
    - {"text_config"}
)
# Where any other value would not be one.
SPECIAL: dict[str, list[Any]] = {
    "dtype": [torch.float16, "bfloat16", None],
    "num_labels": [5],  # which changes the labels
    "id2label": [{0: "a", 1: "b", 2: "c"}, {"0": "a"}],
    "label2id": [{"a": 0}],
    "_attn_implementation": ["eager"],
    "_experts_implementation": ["eager"],
    "output_attentions": [False],
    "quantization_config": [{"quant_method": "bitsandbytes"}, BitsAndBytesConfig(load_in_8bit=True), None],
    "name_or_path": ["/a/place", ""],
    "tie_word_embeddings": [True],
    "use_cache": [False],
    "bos_token_id": [None, 5],
    "eos_token_id": [None, [5, 6]],
    "pad_token_id": [None, 5],
}
PLAIN = [True, 3, 0.5, "word", None, [1, 2], {"a": {"b": 2**70}}, {1: 2}, object]


@pytest.fixture(scope="module")
def model() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(build("llama", 0), tuned=build("gpt2", 1), reference=build("llama", 2))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**prompts("left"), return_dict=True).logits


@pytest.mark.parametrize("name", FIELDS)
def test_any_field_of_the_configuration(name: str, model: EFTForCausalLM, tmp_path: Path, caplog: Any) -> None:
    whole = model.config
    for i, value in enumerate(SPECIAL.get(name, PLAIN)):
        model.config = copy.deepcopy(whole)
        try:
            try:
                setattr(model.config, name, value)
            except (TypeError, ValueError, AttributeError):
                continue  # transformers does not let it be set
            caplog.clear()
            model.save_pretrained(tmp_path / str(i))
        finally:
            changed, model.config = model.config, whole
        loaded = EFTForCausalLM.from_pretrained(tmp_path / str(i))
        assert torch.equal(logits(loaded), logits(model))
        assert loaded.combination == model.combination
        written = json.loads((tmp_path / str(i) / "config.json").read_text())
        said = " ".join(record.getMessage() for record in caplog.records)
        read = PreTrainedConfig.to_diff_dict(changed)
        expected = {key for key in read if key not in written} - {"_name_or_path", "name_or_path"}
        assert all(key in said for key in expected) and bool(expected) == ("Left out" in said), (expected, said)


def test_what_is_left_out_is_named_once(model: EFTForCausalLM, tmp_path: Path, caplog: Any) -> None:
    changed = EFTForCausalLM.from_models(*model.members.values())
    changed.config.output_hidden_states = True
    changed.config.mine = "word"
    changed.config.tuned_config.large = MAX_SIZE + 1
    changed.config.tuned_config.mine = {"kept": 1, "many": [2**40]}
    with caplog.at_level(logging.WARNING):
        changed.save_pretrained(tmp_path)
    [said] = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    assert "output_hidden_states" in said and " mine" in said and "base" not in said
    assert "tuned_config.large" in said and "tuned_config.mine.many" in said and str(tmp_path) not in said
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.output_hidden_states is False and loaded.config.tuned_config.mine == {"kept": 1}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path)
        model.config.save_pretrained(tmp_path / "alone")
    assert not [record for record in caplog.records if "Left out" in record.getMessage()]
    changed.config.save_pretrained(tmp_path / "alone")
    assert EFTConfig.from_pretrained(tmp_path / "alone").combination == model.config.combination


def test_a_file_that_says_more_stays_refused(model: EFTForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    for key, value in {"output_hidden_states": True, "mine": 1, "tuned": {}, "other_config": {}}.items():
        (tmp_path / "config.json").write_text(json.dumps({**description, key: value}))
        with pytest.raises(ValueError, match=f"keys that are not read: '{key}'"):
            EFTForCausalLM.from_pretrained(tmp_path)


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, (list, tuple)):
        return [*value, *value[-1:]]
    return {**value, "more": 2**40} if isinstance(value, Mapping) else 2**40


@pytest.mark.parametrize("family", ["llama", "mamba", "lfm2", "gpt2"])
def test_any_field_of_a_members_configuration(family: str, tmp_path: Path) -> None:
    """What loads alone loads as a member, unless weights are missing, which transformers makes up."""
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=build(family, 1), reference=build("gpt2", 2))
    member, whole = model.members["tuned"], copy.deepcopy(model.config)
    own, checked = copy.deepcopy(member.config), 0
    for name in [*own.to_dict(), "mine", "num_heads_of_mine"]:
        if name in ("dtype", "id2label", "label2id", "model_type", "_name_or_path"):
            continue
        member.config, model.config = copy.deepcopy(own), copy.deepcopy(whole)
        try:
            for config in (member.config, model.config.tuned_config):
                setattr(config, name, another(getattr(config, name, None)))
            model.save_pretrained(tmp_path / name)
            AutoModelForCausalLM.from_pretrained(tmp_path / name / "members/tuned")
        except Exception:
            continue  # no model of transformers, or none that loads alone
        try:
            EFTForCausalLM.from_pretrained(tmp_path / name)
            checked += 1
        except ValueError as error:
            assert "are incomplete" in str(error), name
    assert checked > 10


def test_a_member_that_is_none_any_more_is_refused(model: EFTForCausalLM, tmp_path: Path) -> None:
    member = model.members["tuned"]
    member.config.is_encoder_decoder = True
    try:
        with pytest.raises(ValueError, match="'tuned' is an encoder-decoder"):
            model.save_pretrained(tmp_path / "new")
    finally:
        member.config.is_encoder_decoder = False
    assert not (tmp_path / "new").exists()


def test_infinities_come_back(tmp_path: Path) -> None:
    """Mamba 2 has one in its configuration, which JSON does not have."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
    }
    config = AutoConfig.for_model("mamba2", vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    small = AutoModelForCausalLM.from_config(config).eval()
    assert config.time_step_limit[1] == float("inf")
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=small, reference=build("gpt2", 2))
    model.save_pretrained(tmp_path)
    for load in (EFTForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        loaded = load(tmp_path)
        assert tuple(loaded.members["tuned"].config.time_step_limit) == (0.0, float("inf"))
        assert torch.equal(logits(loaded), logits(model))
    places = {name: tmp_path / "members" / name for name in model.members}
    assert torch.equal(logits(hub.load(places, combination=Combination.emulate())[0]), logits(model))
