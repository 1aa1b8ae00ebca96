"""What is refused of quantised members, without the backends: their marks on a plain model. (With them: `test_quantised_kept.py`.)"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS
from families import VOCAB, build, lora, prompts, shared
from transformers import QuantoConfig

from hf_eft import EFTForCausalLM
from hf_eft.evaluation.resume import model_fingerprint
from hf_eft.members.quantised import plain_conversions, values_of
from hf_eft.training import EFTForTraining

pytestmark = PEFT_SAYS


class Int8Params(torch.nn.Parameter):
    """What bitsandbytes calls its weights of 8 bits."""


def int8(seed: int, threshold: float) -> Any:
    model = build("llama", seed)
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = Int8Params(layer.weight.data)
    layer.state = SimpleNamespace(threshold=threshold)
    return model


def packed(seed: int, now: bool = True) -> Any:
    """With the mark of 4 bits that bitsandbytes packed for a CPU."""
    model = build("llama", seed)
    model.model.layers[1].mlp.up_proj.weight.quant_state = SimpleNamespace(packing_format_for_cpu=now)
    return model


def with_quantizer(seed: int, saved: bool) -> Any:
    model = build("llama", seed)
    model.hf_quantizer = SimpleNamespace(quantization_config=QuantoConfig(weights="int8"), is_serializable=lambda: saved)
    return model


def dynamic(seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch will drop it
        return torch.ao.quantization.quantize_dynamic(build("llama", seed), {torch.nn.Linear}, dtype=torch.qint8)


def other_size(seed: int) -> Any:
    model = build("llama", seed)
    model.lm_head = torch.nn.Linear(32, VOCAB + 1, bias=False)
    return model


def one_more(seed: int) -> Any:
    model = build("llama", seed)
    model.lm_head.register_buffer("scale", torch.ones(1))
    return model


CANNOT_BE_SAVED = {
    "dynamic": (dynamic, r"'lm_head\.\S+', of torch\.ao\.nn\.quantized.*quantise while loading"),
    "not serializable": (
        lambda seed: with_quantizer(seed, saved=False),
        "quantised by quanto, which transformers does not save",
    ),
    "packed": (packed, r"bitsandbytes packed its 4 bits.*Save it before it runs"),
    "other size": (
        other_size,
        r"1 of its weights are not as its configuration describes them \('lm_head\.weight', of torch\.nn",
    ),
    "one more": (one_more, r"1 of its weights are not .*'lm_head\.scale'"),
}


@pytest.mark.parametrize("kind", CANNOT_BE_SAVED)
def test_what_would_not_come_back_is_not_saved(kind: str, tmp_path: Path) -> None:
    make, said = CANNOT_BE_SAVED[kind]
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=make(1), reference=shared("llama", 2))
    with pytest.raises(ValueError, match=rf"The member 'tuned' \(LlamaForCausalLM\) cannot be saved: .*{said}"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_the_quantisation_did_is_not_reverted() -> None:
    """Nor can it be. What transformers did beside it is."""
    quantised, renamed = SimpleNamespace(operations=[SimpleNamespace(hf_quantizer=1)]), SimpleNamespace()
    merged = SimpleNamespace(operations=[SimpleNamespace()])
    model = with_quantizer(1, saved=True)
    assert plain_conversions(model) is None
    model._weight_conversions = [renamed, quantised, merged]
    assert plain_conversions(model) == [renamed, merged]
    del model.hf_quantizer
    assert plain_conversions(model) is None


def test_weights_that_were_unpacked_are_no_member() -> None:
    with pytest.raises(ValueError, match=r"The member 'base' .*other weights than it was quantised to.*Load it anew"):
        EFTForCausalLM.from_models(packed(0, now=False), tuned=shared("llama", 1), reference=shared("llama", 2))


def test_a_threshold_is_refused_where_other_tokens_are_read_together() -> None:
    inputs, refused = prompts("left"), r"The member 'tuned' .*LLM\.int8 with a threshold.*llm_int8_threshold=0\.0"
    for threshold in (6.0, 0.0):
        model = EFTForCausalLM.from_models(shared("llama", 0), tuned=int8(1, threshold), reference=shared("llama", 2))
        expected = model.generate(**inputs, max_new_tokens=4)  # never refused
        asked: list[dict[str, Any]] = [{"assistant_model": model.tuned}, {"prompt_lookup_num_tokens": 2}]
        if threshold:
            for options in (*asked, {"do_sample": True, "coupling": "match", "seed": 1}):
                with pytest.raises(ValueError, match=refused):
                    model.generate(**inputs, max_new_tokens=4, **options)
            with pytest.raises(ValueError, match=refused):
                model.generate_batch([[5, 6, 7], [8, 9]], max_new_tokens=2)
        else:
            for options in asked:
                assert torch.equal(model.generate(**inputs, max_new_tokens=4, **options), expected)


def test_adapters_with_a_threshold_below_them_are_not_run_in_one_pass() -> None:
    for threshold, passes in ((6.0, 0), (0.0, 1)):
        model = EFTForCausalLM.from_models(shared("llama", 0), tuned=lora(int8(1, threshold), target_modules=["q_proj"]))
        assert len(model._members.stacks) == passes


def test_no_adapter_learns_on_packed_weights() -> None:
    from peft import LoraConfig

    inputs = prompts("even")
    batch = {**inputs, "labels": inputs["input_ids"]}
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = EFTForTraining.from_models(shared("llama", 0), reference=packed(1), peft_config=config).train()
    with pytest.raises(ValueError, match=r"The member 'tuned' .*cannot learn: bitsandbytes packed.*bfloat16 or float32"):
        model(**batch)
    with torch.no_grad():
        assert bool(model(**batch).loss.isfinite())


def test_the_values_of_weights_that_are_made_of_others() -> None:
    model = build("llama", 1)
    assert dict(values_of(model)).keys() == model.state_dict().keys()
    unasked = packed(1)
    unasked.state_dict = None  # would change them
    assert dict(values_of(unasked)).keys() >= dict(model.named_parameters()).keys()
    whole = dict(values_of(dynamic(1)))
    assert whole["lm_head._packed_params._packed_params.0"].shape == (VOCAB, 32)
    first, other = dynamic(1), dynamic(1)
    assert model_fingerprint(first) == model_fingerprint(other)
    other.lm_head = copy.deepcopy(dynamic(2).lm_head)
    assert model_fingerprint(first) != model_fingerprint(other)
