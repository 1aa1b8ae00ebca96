"""Members whose weights are not where, or not what, a plain model's are: offloaded, quantised on the way, compiled."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from families import PAD, VOCAB, build, prompts, shared
from transformers import AutoModelForCausalLM

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.bytes import ByteLevelModel
from hf_eft.members.devices import execution_device
from hf_eft.members.vocabulary import table_rows, width


def offloaded(family: str, seed: int, folder: Path | None = None) -> Any:
    model = build(family, seed)
    if folder is None:
        return cpu_offload(model, execution_device="cpu")
    return disk_offload(model, folder, execution_device="cpu")


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "static": {"cache_implementation": "static"},
    "speculative": {"assistant_model": "tuned", "num_assistant_tokens": 2},
    "match": {"do_sample": True, "coupling": "match", "seed": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["base", "tuned", "reference"])
def test_an_offloaded_member_changes_nothing(which: str, way: str) -> None:
    models = {name: shared(family, seed) for name, family, seed in TRIO}
    family, seed = next((family, seed) for name, family, seed in TRIO if name == which)
    inputs, options = prompts("left"), {"max_new_tokens": 6, **WAYS[way]}
    model = EFTForCausalLM.from_models(**models)
    away = EFTForCausalLM.from_models(**{**models, which: offloaded(family, seed)})
    assert away.device.type == "cpu" and execution_device(away.members[which]).type == "cpu"
    assert next(away.members[which].parameters()).device.type == "meta"  # or the test would test nothing

    def run(each: EFTForCausalLM) -> list[list[int]]:
        own = {k: each.members[v] if k == "assistant_model" else v for k, v in options.items()}
        return each.generate(**inputs, **own).tolist()

    assert run(away) == run(model)


TRIO = (("base", "llama", 0), ("tuned", "gpt2", 1), ("reference", "gpt2", 2))


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_the_add_on_of_offloaded_small_models(place: str, tmp_path: Path) -> None:
    base, tuned, reference = (shared(family, seed) for _, family, seed in TRIO)
    inputs = prompts("left")
    expected = base.generate(**inputs, max_new_tokens=6, logits_processor=[EFTLogitsProcessor(tuned, reference)])
    away = offloaded("gpt2", 1, tmp_path if place == "disk" else None)
    got = base.generate(**inputs, max_new_tokens=6, logits_processor=[EFTLogitsProcessor(away, reference)])
    assert torch.equal(got, expected)


def test_embeddings_of_an_offloaded_main_member_are_looked_up() -> None:
    models = {name: shared(family, seed) for name, family, seed in TRIO}
    ids = prompts("one")["input_ids"]
    embeds = models["base"].get_input_embeddings()(ids)
    expected = EFTForCausalLM.from_models(**models)(inputs_embeds=embeds).logits
    got = EFTForCausalLM.from_models(**{**models, "base": offloaded("llama", 0)})(inputs_embeds=embeds).logits
    torch.testing.assert_close(got, expected)


def test_a_folder_whose_members_are_all_on_the_disk(tmp_path: Path) -> None:
    models = {name: shared(family, seed) for name, family, seed in TRIO}
    model = EFTForCausalLM.from_models(**models)
    model.save_pretrained(tmp_path / "saved")
    on_disk = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "away")}
    try:  # a member alone: accelerate before 1.15 takes no model that is on the disk as a whole
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "members" / "base", **on_disk)
    except ValueError as error:
        with pytest.raises(ValueError, match="The member 'base' cannot be loaded") as refused:
            AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **on_disk)
        assert str(error) in str(refused.value)
        return
    away = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **on_disk)
    inputs = prompts("left")
    assert torch.equal(away.generate(**inputs, max_new_tokens=5), model.generate(**inputs, max_new_tokens=5))


def test_offloaded_members_read_bytes() -> None:
    from hf_eft import tiny

    base, *_, tokenizer = tiny.load()
    ids = torch.tensor([[byte + 3 for byte in b"Question: Where"]])
    expected = ByteLevelModel(base, tokenizer)(ids).logits
    away = ByteLevelModel(cpu_offload(copy.deepcopy(base), execution_device="cpu"), tokenizer)
    torch.testing.assert_close(away(ids).logits, expected)


def quantised(family: str, seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch will drop it is for those to know who use it
        return torch.ao.quantization.quantize_dynamic(build(family, seed), {torch.nn.Linear}, dtype=torch.qint8)


def test_members_that_are_quantised_on_the_way() -> None:
    base, small = shared("llama", 0), quantised("qwen3", 1)
    assert not isinstance(small.get_output_embeddings().weight, torch.Tensor)  # the kind of head that is meant
    assert width(small) == VOCAB and table_rows(small) == VOCAB
    inputs = prompts("one")
    expected = small.generate(**inputs, max_new_tokens=8).tolist()
    model = EFTForCausalLM.from_models(base, tuned=small, reference=copy.deepcopy(base))
    assert model.generate(**inputs, max_new_tokens=8).tolist() == expected
    add_on = EFTLogitsProcessor(small, copy.deepcopy(base))
    assert base.generate(**inputs, max_new_tokens=8, logits_processor=[add_on]).tolist() == expected
    main = EFTForCausalLM.from_models(small, tuned=base, reference=copy.deepcopy(base))
    assert main.generate(**inputs, max_new_tokens=8).tolist() == expected


def test_compiled_wrappers_are_refused_with_the_remedy() -> None:
    base, tuned, reference = (shared(family, seed) for _, family, seed in TRIO)
    compiled = torch.compile(build("gpt2", 1), backend="eager")
    for make in (
        lambda: EFTForCausalLM.from_models(base, tuned=compiled, reference=reference),
        lambda: EFTLogitsProcessor(compiled, reference),
        lambda: setattr(EFTForCausalLM.from_models(base, tuned=tuned, reference=reference), "tuned", compiled),
    ):
        with pytest.raises(TypeError, match=r"'tuned' is wrapped by `torch.compile`.*`model.compile\(\)`"):
            make()


def test_models_that_are_compiled_in_place() -> None:
    torch.compiler.reset()
    shallow = {"llama": {"num_hidden_layers": 1}, "gpt2": {"n_layer": 1}}  # what a graph takes to be made goes by the layers
    base, tuned, reference = (build(family, seed, **shallow[family]) for _, family, seed in TRIO)
    inputs, options = prompts("left"), {"max_new_tokens": 4, "pad_token_id": PAD}
    expected = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference).generate(**inputs, **options).tolist()
    small = copy.deepcopy(tuned)
    small.compile(backend="eager")
    model = EFTForCausalLM.from_models(base, tuned=small, reference=reference)
    assert model.generate(**inputs, **options).tolist() == expected
    add_on = EFTLogitsProcessor(small, reference)
    assert base.generate(**inputs, **options, logits_processor=[add_on]).tolist() == expected
    whole = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    whole.compile(backend="eager")
    assert whole.generate(**inputs, **options).tolist() == expected
    torch.compiler.reset()


ATTENTION: list[tuple[Any, dict[str, str]]] = [
    ("eager", {"base": "eager", "tuned": "eager", "reference": "eager"}),
    ({"text_config": "eager"}, {"base": "eager", "tuned": "sdpa", "reference": "sdpa"}),
    ({"base": "eager", "tuned_config": "eager"}, {"base": "eager", "tuned": "eager", "reference": "sdpa"}),
    ({"": "eager", "tuned": "sdpa"}, {"base": "eager", "tuned": "sdpa", "reference": "eager"}),
]


@pytest.mark.parametrize(("asked", "expected"), ATTENTION, ids=str)
def test_how_to_attend_reaches_the_members(asked: Any, expected: dict[str, str]) -> None:
    model = EFTForCausalLM.from_models(**{name: build(family, seed, attn_implementation="sdpa") for name, family, seed in TRIO})
    model.set_attn_implementation(asked)
    for name, member in model.members.items():
        inner = [module.config for module in member.modules() if hasattr(module, "config")]
        assert {config._attn_implementation for config in inner} == {expected[name]}, name
    assert {name: config._attn_implementation for name, config in model.config.member_configs.items()} == expected
    assert model.config._attn_implementation == expected["base"]
    with pytest.raises(ValueError, match=r"names \['helpful'\]; how to attend can be said for"):
        model.set_attn_implementation({"helpful": "eager"})
