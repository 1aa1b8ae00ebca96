"""Options of a loading call: each that transformers has is heeded for every member, refused by name, or says nothing there either."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, prompts
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, pipeline
from transformers.utils import logging

from hf_eft import Combination, EFTConfig, EFTForCausalLM, hub, tiny
from hf_eft.folders import options

NAMES = ("base", "tuned", "reference")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    three = {name: build("llama", seed) for seed, name in enumerate(NAMES)}
    EFTForCausalLM.from_models(three["base"], tuned=three["tuned"], reference=three["reference"]).save_pretrained(folder)
    return folder


def dtypes(model: Any) -> set[torch.dtype]:
    assert model.config.dtype == model.dtype
    return {member.dtype for member in model.members.values()}


def asked_of_transformers() -> set[str]:
    """Every option that the installed `from_pretrained` reads, from its signature and its source."""
    function = PreTrainedModel.from_pretrained.__func__
    source = inspect.getsource(function)
    named = {name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    named |= set(re.findall(r'kwargs\.pop\(\s*"(\w+)"', source)) | set(re.findall(r'"(\w+)" in kwargs', source))
    for names in re.findall(r"for name in \[([^]]*)\]:\s*_ = kwargs\.pop", source):
        named |= set(re.findall(r'"(\w+)"', names))
    return named - {"kwargs"}


# A value that would change something, for what members are told.
TOLD: dict[str, Any] = {
    "dtype": torch.float16,
    "torch_dtype": torch.float16,
    "device_map": "cpu",
    "max_memory": {"cpu": "1GB"},
    "offload_folder": "offloaded",
    "offload_buffers": True,
    "quantization_config": {"quant_method": "nothing that there is"},
    "attn_implementation": "eager",
    "experts_implementation": "eager",
    "use_safetensors": True,
    "weights_only": True,
    "disable_mmap": True,
    "use_kernels": False,
    "kernel_config": {},
    "allow_all_kernels": False,
    "fusion_config": {},
    "key_mapping": {"nothing": "else"},
    "tqdm_class": type("Bar", (), {}),
}
# What `from_pretrained` has as parameters of its own.
OWN = {"config", "revision", "subfolder", "output_loading_info", "trust_remote_code", "generation_config"}


@pytest.mark.parametrize("name", sorted(asked_of_transformers() | {"code_revision"}))
def test_every_option_of_transformers(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def load_model(member: str, place: Any, config: Any, **given: Any) -> Any:
        told.append(given)
        return build("llama", 0), {}

    monkeypatch.setattr("hf_eft.folders.folder.load_model", load_model)
    if name in TOLD:
        EFTForCausalLM.from_pretrained(saved, **{name: TOLD[name]})
        key = "dtype" if name == "torch_dtype" else name
        assert [given[key] for given in told] == [TOLD[name]] * 3
        assert name in options.OF_A_MEMBER or name == "torch_dtype"
    elif name in options.REFUSED:
        with pytest.raises(ValueError, match=f"`{name}` cannot be given, got .*: {re.escape(options.REFUSED[name])}"):
            EFTForCausalLM.from_pretrained(saved, **{name: {"some": "thing"}})
        with (
            pytest.raises(ValueError, match=f"`{name}` cannot be given for the member 'tuned'")
            if name != "variant"
            else _nothing()
        ):
            EFTForCausalLM.from_pretrained(saved, member_kwargs={"tuned": {name: {"some": "thing"}}})
        assert EFTForCausalLM.from_pretrained(saved, **{name: None}) is not None
        assert not any(name in given for given in told[-3:])
    elif name in options.IGNORED:
        plain = {"dtype": "auto", "local_files_only": True}
        EFTForCausalLM.from_pretrained(saved, **{name: True})
        assert told == [plain] * 3
    else:
        assert name in {*OWN, *options.OF_THE_HUB}


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *raised: Any) -> None: ...


def test_no_option_is_taken_that_transformers_does_not_have() -> None:
    known = asked_of_transformers()
    assert {*options.OF_A_MEMBER, *options.IGNORED, *options.REFUSED, *options.OF_THE_HUB} - {"code_revision"} <= known


@pytest.fixture
def _the_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' Auto classes and pipelines say that `torch_dtype` is the old name, for every model."""
    for name in ("configuration_utils", "pipelines"):
        monkeypatch.setattr(logging.get_logger(f"transformers.{name}"), "disabled", True)


@pytest.mark.usefixtures("_the_old_name")
@pytest.mark.parametrize("cls", [EFTForCausalLM, AutoModelForCausalLM])
@pytest.mark.parametrize(
    "given, expected",
    [
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "auto"}, torch.float32),
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": torch.bfloat16, "torch_dtype": torch.float16}, torch.bfloat16),
        ({"dtype": "auto", "torch_dtype": torch.float16}, torch.float32),
        ({"dtype": None}, torch.float32),
    ],
)
def test_dtypes(cls: Any, given: dict[str, Any], expected: torch.dtype, saved: Path) -> None:
    assert dtypes(cls.from_pretrained(saved, **given)) == {expected}


@pytest.mark.usefixtures("_the_old_name")
def test_dtypes_of_a_pipeline_and_of_members(tmp_path: Path) -> None:
    places = {name: tiny.path(name) for name in NAMES}
    folder = hub.compose(places, tmp_path)
    for given in ({"torch_dtype": torch.bfloat16}, {"model_kwargs": {"torch_dtype": "bfloat16"}}, {"dtype": "bfloat16"}):
        assert dtypes(pipeline("text-generation", model=str(folder), **given).model) == {torch.bfloat16}, given
    own = {"tuned": {"torch_dtype": "float16"}}
    for model, _ in (hub.load(folder, member_kwargs=own), hub.load(places, member_kwargs=own)):
        assert [member.dtype for member in model.members.values()] == [torch.float32, torch.float16, torch.float32]


def test_a_dtype_by_part_is_refused(saved: Path) -> None:
    by_part = {"text_config": torch.float16}
    for load in (EFTForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, hub.load):
        with pytest.raises(ValueError, match=r"`dtype` must be one dtype, got .*member_kwargs"):
            load(saved, dtype=by_part)
    with pytest.raises(ValueError, match="`dtype` must be one dtype for the member 'tuned'"):
        hub.load({"base": tiny.path("base"), "tuned": tiny.path("tuned")}, member_kwargs={"tuned": {"dtype": by_part}})


@pytest.mark.parametrize("cls", [EFTForCausalLM, AutoModelForCausalLM])
def test_an_attention_of_each(cls: Any, saved: Path) -> None:
    model = cls.from_pretrained(saved, attn_implementation={"text_config": "eager", "reference_config": "eager"})
    assert [member.config._attn_implementation for member in model.members.values()] == ["eager", "sdpa", "eager"]
    again = EFTForCausalLM.from_pretrained(saved, config=model.config)
    assert [member.config._attn_implementation for member in again.members.values()] == ["eager", "sdpa", "eager"]


def test_devices_by_module(saved: Path) -> None:
    devices = {"base": "meta", "tuned": "cpu", "": "cpu"}
    for model in (EFTForCausalLM.from_pretrained(saved, device_map=devices), hub.load(saved, device=devices)[0]):
        assert [member.device.type for member in model.members.values()] == ["meta", "cpu", "cpu"]
    parts = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    whole = {**{f"base.{part}": "meta" for part in parts}, "tuned": "cpu", "reference": "meta"}
    model = EFTForCausalLM.from_pretrained(saved, device_map=whole)
    assert [member.device.type for member in model.members.values()] == ["meta", "cpu", "meta"]
    assert EFTForCausalLM.from_pretrained(saved, device_map=parts).device.type == "cpu"  # of each member's own modules
    with pytest.raises(ValueError, match="no device for the member 'reference'"):
        EFTForCausalLM.from_pretrained(saved, device_map={"base": "cpu", "tuned": "cpu"})


@pytest.mark.parametrize("cls", [EFTForCausalLM, AutoModelForCausalLM])
def test_a_recipe_a_configuration_and_a_generation_configuration(cls: Any, saved: Path) -> None:
    for recipe in (Combination.emulate(alpha=0.5), Combination.emulate(alpha=lambda step: 0.5**step)):
        assert cls.from_pretrained(saved, combination=recipe).combination == recipe
    assert (
        EFTConfig.from_pretrained(saved, combination=Combination.emulate(alpha=0.5)).combination["coefficients"]["tuned"] == 0.5
    )
    assert (
        cls.from_pretrained(saved, generation_config=GenerationConfig(max_new_tokens=3)).generation_config.max_new_tokens == 3
    )


def test_a_configuration_elsewhere(saved: Path, tmp_path: Path) -> None:
    config = EFTConfig.from_pretrained(saved)
    config.combination = Combination.emulate(alpha=0.25).to_dict()
    config.save_pretrained(tmp_path)
    assert EFTForCausalLM.from_pretrained(saved, config=str(tmp_path)).combination == Combination.emulate(alpha=0.25)
    with pytest.raises(TypeError, match="`config` must be an `EFTConfig`, or the folder of one, got dict"):
        EFTForCausalLM.from_pretrained(saved, config={})


def test_what_no_member_takes_is_named(saved: Path) -> None:
    for wrong in ("unheard_of", "config", "trust_remote_code", "revision"):
        with pytest.raises(TypeError, match=f"member 'tuned' that no member takes: '{wrong}'"):
            EFTForCausalLM.from_pretrained(saved, member_kwargs={"tuned": {wrong: 1}})
        with pytest.raises(TypeError, match=f"member 'tuned' that no member takes: '{wrong}'"):
            hub.load_members({"tuned": tiny.path("tuned")}, member_kwargs={"tuned": {wrong: 1}})


def test_options_of_members_that_are_not_loaded_are_refused(tmp_path: Path) -> None:
    base = build("llama", 0)
    EFTForCausalLM.from_models(base, tuned=build("llama", 1), reference=base).save_pretrained(tmp_path / "shared")
    with pytest.raises(ValueError, match=r"\['reference'\], but those that are loaded are \['base', 'tuned'\]"):
        EFTForCausalLM.from_pretrained(tmp_path / "shared", member_kwargs={"reference": {"dtype": "float16"}})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_options_of_an_adapter_are_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    build("llama", 1).save_pretrained(tmp_path / "small")
    peft.get_peft_model(build("llama", 1), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    places = {"base": tmp_path / "small", "tuned": tmp_path / "adapter", "reference": tmp_path / "small"}
    with pytest.raises(ValueError, match="'tuned', which is an adapter"):
        hub.load_members(places, member_kwargs={"tuned": {"dtype": "float16"}})


def test_trust_is_not_stored(saved: Path, tmp_path: Path) -> None:
    model = EFTForCausalLM.from_pretrained(saved, trust_remote_code=True)
    model.save_pretrained(tmp_path)
    assert not any("trust_remote_code" in path.read_text() for path in tmp_path.rglob("*.json"))
    assert torch.equal(model(**prompts("left")).logits, EFTForCausalLM.from_pretrained(tmp_path)(**prompts("left")).logits)
