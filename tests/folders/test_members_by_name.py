"""Members that are named, by a folder or a repository: each place is loaded once, adapters stay adapters, and code runs only if allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import build, lora, prompts
from saveable import PEFT_SAYS, logits

from hf_eft import Combination, EFTForCausalLM, hub, tiny

pytestmark = PEFT_SAYS


def test_members_by_name() -> None:
    places = {name: tiny.path(name) for name in ("base", "tuned", "reference")}
    told: list[str] = []
    model, tokenizers = hub.load(places, alpha=0.8, progress=told.append)
    assert list(tokenizers) == list(model.members) == ["base", "tuned", "reference"]
    assert model.combination == Combination.emulate(alpha=0.8)
    assert [text.split(":")[0] for text in told] == [f"Loading the {name} model" for name in places]
    assert model.tokenizers == tokenizers
    assert model.sources == {name: (name, None) for name in places}
    base, tuned, reference, tokenizer = tiny.load()
    same = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=tokenizers, alpha=0.8)
    ids = tokenizer(tiny.questions()[0].prompt, return_tensors="pt", return_token_type_ids=False)
    assert torch.equal(model(**ids).logits, same(**ids).logits)


def test_the_same_place_is_loaded_once(tmp_path: Path) -> None:
    build("llama", 0).save_pretrained(tmp_path / "a")
    places = {"base": tmp_path / "a", "tuned": tmp_path / "a", "reference": str(tmp_path / "a")}
    models, _ = hub.load_members(places, member_kwargs={"tuned": {"dtype": torch.bfloat16}})
    assert models["base"] is models["reference"]
    assert models["tuned"] is not models["base"]
    assert models["tuned"].dtype == torch.bfloat16


def test_a_folder_of_an_adapter_stays_one(tmp_path: Path) -> None:
    build("llama", 1).save_pretrained(tmp_path / "small")
    build("llama", 0).save_pretrained(tmp_path / "large")
    lora(build("llama", 1)).save_pretrained(tmp_path / "adapter")
    places = {"base": tmp_path / "large", "tuned": tmp_path / "adapter", "reference": tmp_path / "small"}
    models, _ = hub.load_members(places)
    assert models["tuned"] == tmp_path / "adapter"
    folder = hub.compose(places, tmp_path / "saved", combination=Combination.emulate(alpha=0.5))
    model, _ = hub.load(places, alpha=0.5)
    assert torch.equal(logits(hub.load(folder)[0]), logits(model))
    assert (folder / "members/tuned/adapter_model.safetensors").is_file()
    assert model.sources["tuned"] == ("adapter", None)


_CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM


class CustomConfig(LlamaConfig):
    model_type = "custom_llama"


class Custom(LlamaForCausalLM):
    config_class = CustomConfig
"""


def test_code_of_a_member_runs_only_if_the_caller_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    build("llama", 1).save_pretrained(tmp_path / "custom")
    (tmp_path / "custom/custom.py").write_text(_CUSTOM)
    description = json.loads((tmp_path / "custom/config.json").read_text())
    description |= {
        "model_type": "custom_llama",
        "auto_map": {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.Custom"},
    }
    (tmp_path / "custom/config.json").write_text(json.dumps(description))
    build("llama", 0).save_pretrained(tmp_path / "plain")
    places = {"base": tmp_path / "plain", "tuned": tmp_path / "custom", "reference": tmp_path / "plain"}
    with pytest.raises(ValueError, match=r"member 'tuned' .*code of its own, which runs with `trust_remote_code=True` only"):
        hub.load(places)
    model, _ = hub.load(places, trust_remote_code=True)
    ids = prompts("left")
    assert torch.equal(model.tuned(**ids).logits, build("llama", 1)(**ids).logits)
    with pytest.raises(ValueError, match="'tuned' is a Custom"):
        model.save_pretrained(tmp_path / "saved")


def test_members_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    build("llama", 0).save_pretrained(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    for where, said in {"empty": "no config.json", "nowhere/at/all": "neither a folder"}.items():
        with pytest.raises(ValueError, match=f"'tuned' .*{said}"):
            hub.load_members({"base": tmp_path / "good", "tuned": tmp_path / where})
    with pytest.raises(ValueError, match="'tuned'"):
        hub.load_members({"base": tmp_path / "good"}, member_kwargs={"tuned": {}})
    with pytest.raises(ValueError, match="use_safetensors"):
        hub.load_members({"base": tmp_path / "good"}, member_kwargs={"base": {"use_safetensors": False}})
