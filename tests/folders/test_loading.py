"""A folder is loaded as asked: with dtypes, devices and recipes of all members or of one, and what is missing is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from families import build
from saveable import logits, three
from transformers import AutoModelForCausalLM, BitNetQuantConfig

from hf_eft import Combination, EFTConfig, EFTForCausalLM, hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    EFTForCausalLM.from_models(build("llama", 0), tuned=build("llama", 1), reference=build("llama", 2)).save_pretrained(folder)
    return folder


def test_dtype_of_all_and_of_one(saved: Path) -> None:
    model = EFTForCausalLM.from_pretrained(saved, dtype=torch.bfloat16, member_kwargs={"base": {"dtype": torch.float32}})
    assert {name: m.dtype for name, m in model.members.items()} == {
        "base": torch.float32,
        "tuned": torch.bfloat16,
        "reference": torch.bfloat16,
    }
    assert model.members["tuned"].config.dtype == model.config.tuned_config.dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(saved, dtype="bfloat16", member_kwargs={"tuned": {"dtype": "float32"}})
    assert [m.dtype for m in model.members.values()] == [torch.bfloat16, torch.float32, torch.bfloat16]
    with pytest.raises(ValueError, match="'other'"):
        EFTForCausalLM.from_pretrained(saved, member_kwargs={"other": {}})


def test_devices(saved: Path) -> None:
    for options in ({"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}):
        assert EFTForCausalLM.from_pretrained(saved, **options).device.type == "cpu"
    model = EFTForCausalLM.from_pretrained(saved, member_kwargs={"base": {"device_map": "meta"}})
    assert [m.device.type for m in model.members.values()] == ["meta", "cpu", "cpu"]
    model, _ = hub.load(saved, device="cpu")
    assert model.device.type == "cpu"


def test_offloading_to_disk_and_saving_from_there(saved: Path, tmp_path: Path) -> None:
    layers = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    whole = {**layers, "model.rotary_emb": "cpu", "lm_head": "cpu"}
    options = {"tuned": {"device_map": whole, "offload_folder": str(tmp_path / "offloaded")}}
    model = EFTForCausalLM.from_pretrained(saved, member_kwargs=options)
    expected = logits(EFTForCausalLM.from_pretrained(saved))
    assert torch.equal(logits(model), expected)
    with pytest.warns(UserWarning, match="offloaded"):
        model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path / "again")), expected)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # its layers are compiled at import
def test_a_quantised_member(saved: Path, tmp_path: Path) -> None:
    """BitNet's layers are what runs on a CPU with nothing else installed; transformers reads them, and makes none of a plain model."""
    ternary = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="online")
    with pytest.raises(ValueError, match=r"(?s)member 'tuned' cannot be loaded .* pre-quantized"):
        EFTForCausalLM.from_pretrained(saved, member_kwargs={"tuned": {"quantization_config": ternary}})

    places = {name: saved / "members" / name for name in ("base", "tuned", "reference")}
    shutil.copytree(places["tuned"], tmp_path / "ternary")
    description = json.loads((tmp_path / "ternary/config.json").read_text())
    description["quantization_config"] = ternary.to_dict()
    (tmp_path / "ternary/config.json").write_text(json.dumps(description))
    model, _ = hub.load({**places, "tuned": tmp_path / "ternary"})
    kinds = {name: type(m.model.layers[0].mlp.down_proj).__name__ for name, m in model.members.items()}
    assert kinds == {"base": "Linear", "tuned": "AutoBitLinear", "reference": "Linear"}
    model.save_pretrained(tmp_path / "saved")
    loaded = EFTForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(loaded.tuned.model.layers[0].mlp.down_proj).__name__ == "AutoBitLinear"
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(EFTForCausalLM.from_pretrained(saved)))


def test_what_transformers_takes(saved: Path, tmp_path: Path) -> None:
    model, report = EFTForCausalLM.from_pretrained(
        saved, output_loading_info=True, attn_implementation="eager", use_cache=False
    )
    assert report["missing_keys"] == report["unexpected_keys"] == set()
    assert model.config._attn_implementation == model.members["tuned"].config._attn_implementation == "eager"
    assert model.config.use_cache is False
    model = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager", use_cache=False, local_files_only=True)
    assert [m.config._attn_implementation for m in model.members.values()] == ["eager"] * 3
    assert model.config.use_cache is False
    shutil.copytree(saved, tmp_path / "a/b")
    model = EFTForCausalLM.from_pretrained(tmp_path, subfolder="a/b", config=EFTConfig.from_pretrained(tmp_path / "a/b"))
    assert torch.equal(logits(model), logits(EFTForCausalLM.from_pretrained(saved)))
    with pytest.raises(TypeError, match="unheard_of"):
        EFTForCausalLM.from_pretrained(saved, unheard_of=1)
    with pytest.raises(TypeError, match="unheard_of"):
        model.save_pretrained(tmp_path / "c", unheard_of=1)
    with pytest.raises(ValueError, match="neither a folder that exists nor"):
        EFTForCausalLM.from_pretrained("./no/such/folder")


def test_weights_that_are_not_there_are_named(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "members/tuned/model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"member 'tuned' .* are incomplete: 1 are missing \(lm_head.weight\)"):
        EFTForCausalLM.from_pretrained(tmp_path)
    tensors["lm_head.weight"] = torch.zeros(65, 32)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="member 'tuned' cannot be loaded"):
        EFTForCausalLM.from_pretrained(tmp_path)


def test_progress_names_the_member(saved: Path) -> None:
    told: list[str] = []
    hub.load(saved, progress=told.append)
    assert [text.split(":")[0] for text in told] == [f"Loading the {name} model" for name in ("base", "tuned", "reference")]


def test_a_recipe_at_load_time(saved: Path, tmp_path: Path) -> None:
    assert hub.load(saved, alpha=0.5)[0].combination == Combination.emulate(alpha=0.5)
    fading = three(alpha=lambda t: 0.9**t)
    fading.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="callables, which are not saved"):
        EFTForCausalLM.from_pretrained(tmp_path)
    loaded, _ = hub.load(tmp_path, combination=Combination.emulate())
    assert loaded.combination == Combination.emulate()
