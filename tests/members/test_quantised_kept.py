"""What quantised members are when they are saved, loaded back, evaluated and taught: as they were, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS
from families import lora, prompts
from peft import LoraConfig
from quantising import ON_IMPORT, PACKAGES, in_place, load, needs

from hf_eft import EFTForCausalLM
from hf_eft.evaluation.resume import model_fingerprint
from hf_eft.training import EFTForTraining

pytestmark = [pytest.mark.nightly, ON_IMPORT, *PEFT_SAYS]
IDS = prompts("left")


@pytest.fixture(params=PACKAGES)
def backend(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return request.param


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(**IDS).logits


def packs() -> bool:
    """Whether bitsandbytes packs 4 bits for this CPU when they are read with."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def trio(backend: str) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(load("base"), tuned=load("tuned", backend), reference=load("reference"))


def test_saved_before_and_after_it_ran(backend: str, tmp_path: Path) -> None:
    model = trio(backend)
    if backend == "quanto":
        with pytest.raises(
            ValueError, match=r"(?s)member 'tuned' .*quantised by quanto.* does not save.*'tuned': {'quantization_config'"
        ):
            model.save_pretrained(tmp_path / "quanto")
        assert not (tmp_path / "quanto").exists()
        return
    model.save_pretrained(tmp_path / "before")
    expected = logits(model)
    assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path / "before")), expected)
    if backend == "nf4" and packs():
        with pytest.raises(
            ValueError, match=r"member 'tuned' .*cannot be saved: bitsandbytes packed its 4 bits.*before it runs"
        ):
            model.save_pretrained(tmp_path / "after")
        assert not (tmp_path / "after").exists()
    else:
        model.save_pretrained(tmp_path / "after")
        assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path / "after")), expected)
    assert torch.equal(logits(model), expected)  # saving, or being refused, leaves it as it is


def test_saved_again_by_who_loaded_it(backend: str, tmp_path: Path) -> None:
    if backend == "quanto":
        pytest.skip("quanto is not saved")
    trio(backend).save_pretrained(tmp_path / "once")
    EFTForCausalLM.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    once, twice = (EFTForCausalLM.from_pretrained(tmp_path / each) for each in ("once", "twice"))
    assert torch.equal(logits(twice), logits(once))


def test_quantised_after_it_was_loaded_is_not_saved(backend: str, tmp_path: Path) -> None:
    model = EFTForCausalLM.from_models(load("base"), tuned=in_place(backend, load("tuned")), reference=load("reference"))
    said = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao": "torchao", "quanto": "optimum.quanto"}[backend]
    with pytest.raises(ValueError, match=rf"member 'tuned' .*cannot be saved: .*of {said}.*quantise while loading"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_adapter_on_a_quantised_model_comes_back(backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EFTForCausalLM.from_models(load("base"), tuned=lora(load("reference", backend)))
    if backend == "quanto":
        with pytest.raises(ValueError, match=r"member 'reference' .*quantised by quanto"):
            model.save_pretrained(tmp_path / "saved")
        return
    model.save_pretrained(tmp_path / "saved")
    expected = logits(model)
    torch.testing.assert_close(logits(EFTForCausalLM.from_pretrained(tmp_path / "saved")), expected)
    torch.testing.assert_close(logits(model), expected)


def test_looking_at_the_weights_leaves_them(backend: str) -> None:
    model = trio(backend)
    expected = logits(model)
    first = model_fingerprint(model)
    assert torch.equal(logits(model), expected)
    assert model_fingerprint(model) == first
    others = EFTForCausalLM.from_models(load("base"), tuned=load("tuned", backend), reference=load("tuned"))
    assert model_fingerprint(others) != first


def test_weights_that_were_unpacked_wrongly_are_no_member() -> None:
    """What `state_dict()` does to 4 bits that ran on a CPU; where it does no harm, nothing is refused."""
    needs("nf4")
    tuned = load("tuned", "nf4")
    expected = logits(tuned)
    tuned.state_dict()
    if torch.equal(logits(tuned.eval()), expected):
        assert not packs()
        return
    tuned = load("tuned", "nf4")
    logits(tuned)
    tuned.state_dict()
    with pytest.raises(ValueError, match=r"member 'tuned' .*other weights than it was quantised to.*Load it anew"):
        EFTForCausalLM.from_models(load("base"), tuned=tuned, reference=load("reference"))


def test_with_a_threshold_tokens_depend_on_each_other() -> None:
    """So that drafts, seeds and continuous batching are refused; what transformers itself does with it goes on."""
    needs("int8")
    model = EFTForCausalLM.from_models(
        load("base"),
        tuned=load("tuned", "int8", llm_int8_threshold=6.0),
        reference=load("tuned", "int8", llm_int8_threshold=6.0),
    )
    base = load("base")
    with torch.no_grad():
        alone = model.tuned(IDS["input_ids"][1:2]).logits
        beside = model.tuned(IDS["input_ids"]).logits[1:2]
    assert float((alone - beside).abs().max()) > 1e-2  # or there would be nothing to refuse
    assert torch.equal(model.generate(**IDS, max_new_tokens=8), base.generate(**IDS, max_new_tokens=8))
    refused = pytest.raises(ValueError, match=r"member 'tuned' .*LLM\.int8 with a threshold.*llm_int8_threshold=0\.0")
    for asked in ({"assistant_model": model.tuned}, {"do_sample": True, "coupling": "match", "seed": 1}):
        with refused:
            model.generate(**IDS, max_new_tokens=4, **asked)
    with refused:
        model.generate_batch([[5, 6, 7], [8, 9]])


def test_an_adapter_learns_on_quantised_weights_or_says_that_it_cannot(backend: str) -> None:
    """4 bits that are packed for a CPU let no gradient through, and say nothing of it."""
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    torch.manual_seed(0)
    model = EFTForTraining.from_models(load("base"), reference=load("reference", backend), peft_config=config)
    batch = {**IDS, "labels": IDS["input_ids"].masked_fill(IDS["attention_mask"] == 0, -100)}

    def taught() -> set[str]:
        model.zero_grad()
        model.train()
        model(**batch).loss.backward()
        return {name for name, each in model.named_parameters() if each.grad is not None and bool(each.grad.any())}

    if backend == "nf4" and packs():
        with pytest.raises(ValueError, match=r"member 'tuned' .*cannot learn.*packed .*no gradient"):
            taught()
        return
    first = taught()
    assert (
        len(first) == 2 * model.reference.config.num_hidden_layers
    )  # of each layer's two modules one matrix: the other begins at zero
    model.eval()
    logits(model)
    assert taught() == first
