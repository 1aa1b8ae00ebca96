"""A saved folder brings the combination back: the same logits bit for bit, every weight once, nothing of the user's changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from families import FAMILIES, build, lora, prompts
from safetensors import safe_open
from saveable import COMPOSITIONS, PEFT_SAYS, adapter, logits, three
from transformers import AutoConfig, AutoModelForCausalLM

from hf_eft import EFTForCausalLM

pytestmark = PEFT_SAYS


def distinct_bytes(model: EFTForCausalLM) -> int:
    """Of the parameters and persistent buffers of all members, each storage once, without what ties make anew."""
    tensors = {t.data_ptr(): t for member in model.members.values() for t in member.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def stored_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(t.numel() * t.element_size() for key in file.keys() for t in [file.get_tensor(key)])  # noqa: SIM118
    return total


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_folder_brings_it_back(composition: str, tmp_path: Path) -> None:
    model = COMPOSITIONS[composition]()
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = EFTForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded), expected)
    assert not loaded.training
    assert list(loaded.members) == list(model.members)
    assert loaded.combination == model.combination
    assert str(loaded.combination) == str(model.combination)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert stored_bytes(tmp_path / "saved") == distinct_bytes(model)
    pairs = [(a, b) for a in model.members for b in model.members]
    assert all((loaded.members[a] is loaded.members[b]) == (model.members[a] is model.members[b]) for a, b in pairs)

    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert isinstance(again, EFTForCausalLM)
    assert torch.equal(logits(again), expected)
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((tmp_path / "saved/config.json").read_text())


def test_a_model_under_an_adapter_that_transformers_loaded_loads_alone(tmp_path: Path) -> None:
    """Loading the adapter changes what transformers calls the model's weights when it saves them."""
    for family in ("llama", "mixtral"):
        build(family, 1).save_pretrained(tmp_path / family)
        small, ids = AutoModelForCausalLM.from_pretrained(tmp_path / family), prompts("left")
        expected = small(**ids).logits
        source = lora(build(family, 1), target_modules=["q_proj"])
        state = peft.get_peft_model_state_dict(source)
        small.load_adapter(peft_config=source.peft_config["default"], adapter_state_dict=state)
        model = EFTForCausalLM.from_models(build("gpt2", 0), tuned=small, reference=small)
        model.save_pretrained(tmp_path / f"{family}_saved")
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / f"{family}_saved/members/reference")
        assert torch.equal(alone(**ids).logits, expected)
        assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path / f"{family}_saved")), logits(model))


def test_adapters_come_back_as_views_of_one_copy(tmp_path: Path) -> None:
    adapter().save_pretrained(tmp_path)
    assert {p.name for p in (tmp_path / "members/tuned").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    weights = {p.data_ptr() for p in loaded.members["reference"].parameters()}
    assert weights <= {p.data_ptr() for p in loaded.members["tuned"].parameters()}
    assert loaded._members.stacks  # and run as one pass


def test_every_member_loads_alone(tmp_path: Path) -> None:
    model = adapter()
    ids = prompts("left")
    model.save_pretrained(tmp_path)
    for name in ("base", "reference"):
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "members" / name)
        assert torch.equal(alone(**ids).logits, model.members[name](**ids).logits)
    alone = peft.PeftModel.from_pretrained(alone, str(tmp_path / "members/tuned"))
    assert torch.equal(alone(**ids).logits, model.members["tuned"](**ids).logits)


def test_shards_as_transformers_makes_them(tmp_path: Path) -> None:
    model = three()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list((tmp_path / "members/base").glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_state_dict_is_saved_in_place_of_the_weights(tmp_path: Path) -> None:
    model = three()
    state = {key: value * 2 for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match="adapters"):
        adapter().save_pretrained(tmp_path, state_dict={})


def test_saving_leaves_everything_as_it_is(tmp_path: Path) -> None:
    def state(model: EFTForCausalLM) -> Any:
        return [
            (
                repr(vars(m.config)),
                m.generation_config.to_dict(),
                m.training,
                set(vars(m)),
                [p.requires_grad for p in m.parameters()],
            )
            for m in [model, *model.members.values()]
        ]

    tuned = lora(build("llama", 1))
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=tuned)
    settings = tuned.peft_config["default"].to_dict()
    before = state(model)
    model.save_pretrained(tmp_path)
    assert state(model) == before
    assert tuned.peft_config["default"].to_dict() == settings


def test_nothing_says_where_it_was(tmp_path: Path) -> None:
    secret = tmp_path / "secret_place"
    build("llama", 1).save_pretrained(secret)
    small = AutoModelForCausalLM.from_pretrained(secret)
    small.config._commit_hash = "c" * 40
    EFTForCausalLM.from_models(build("llama", 0), tuned=lora(small)).save_pretrained(tmp_path / "saved")
    texts = [p.read_text() for p in (tmp_path / "saved").rglob("*.json")]
    for word in ("secret_place", "c" * 40, "trust_remote_code"):
        assert not any(word in text for text in texts), word


# Refused --------------------------------------------------------------------------------------------------------------


def test_adapters_whose_weights_cannot_be_brought_back_are_refused(tmp_path: Path) -> None:
    tuned = lora(build("llama", 1), init_lora_weights="pissa")
    model = EFTForCausalLM.from_models(build("gpt2", 0), tuned=tuned, reference=build("gpt2", 2))
    with pytest.raises(ValueError, match="pissa"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_that_its_configuration_does_not_make_is_refused(tmp_path: Path) -> None:
    class Other(transformers.LlamaForCausalLM):
        pass

    Other.__module__ = "transformers_modules.other"
    Other._auto_class = "AutoModelForCausalLM"
    other = Other(AutoConfig.for_model(**FAMILIES["llama"], vocab_size=64))
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=other, reference=build("llama", 2))
    with pytest.raises(ValueError, match="'tuned' is a Other"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_a_member_that_peft_changed_after_it_was_combined_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    reference = build("llama", 2)
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=build("llama", 1), reference=reference)
    peft.get_peft_model(reference, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"\['default'\] into the model of the member 'reference' after it was combined"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_member_that_is_written_in_another_form_is_described_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compressed-tensors writes of a model that has run is decompressed, and its own file says so: the root's must as well."""
    save, said = (
        transformers.PreTrainedModel.save_pretrained,
        {"quant_method": "compressed-tensors", "quantization_status": "frozen"},
    )

    def saved(self: Any, folder: Any, **kwargs: Any) -> None:
        save(self, folder, **kwargs)
        if Path(folder).name == "tuned":
            path = Path(folder) / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": said}))

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", saved)
    three().save_pretrained(tmp_path / "saved")
    root = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert root["tuned_config"]["quantization_config"] == said
    assert "quantization_config" not in root["reference_config"]
