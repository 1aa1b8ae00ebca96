"""Bad input: the error names the member, what was expected, what was given and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build, prompts, shared, tokenizer
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaModel

from hf_eft import Combination, EFTConfig, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.vocabulary import check_tokenizers


def encoder_decoder() -> Any:
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    return BartForConditionalGeneration(BartConfig(vocab_size=64, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes))


def headless() -> Any:
    return LlamaModel(
        LlamaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


CASES: list[tuple[Any, type[Exception], str]] = [
    (lambda b, t, r: {"tuned": None, "reference": r}, ValueError, "names 'tuned', but the members are 'base', 'reference'"),
    (lambda b, t, r: {"tuned": t, "reference": None}, ValueError, "names 'reference'"),
    (lambda b, t, r: {"tuned": t, "reference": encoder_decoder()}, ValueError, "'reference' is an encoder-decoder"),
    (lambda b, t, r: {"tuned": headless(), "reference": r}, ValueError, "'tuned'.*has no language modeling head"),
    (lambda b, t, r: {"tuned": "gpt2", "reference": r}, TypeError, "'tuned' must be a model of transformers, got str"),
    (
        lambda b, t, r: {"tuned": {"a": None}, "reference": r, "combination": Combination.steer({"a": 1})},
        ValueError,
        "'a' is missing",
    ),
    (lambda b, t, r: {"tuned": t, "reference": r, "alpha": float("nan")}, ValueError, "'tuned' must be a finite number"),
    (lambda b, t, r: {"tuned": t, "reference": r, "alpha": 1.0, "beta": 1.0}, ValueError, "not both"),
    (lambda b, t, r: {"tuned": t, "reference": r, "alpha": 1.0, "combination": Combination.emulate()}, ValueError, "not both"),
    (lambda b, t, r: {"tuned": {"a": t}, "reference": r}, ValueError, "With the tuned members 'a'"),
    (lambda b, t, r: {"tuned": {"base": t}, "reference": r, "combination": Combination.emulate()}, ValueError, "'base'"),
    (lambda b, t, r: {"tuned": t, "reference": r, "combination": Combination({"x": 1.0})}, ValueError, "names 'x'"),
    (
        lambda b, t, r: {"tuned": build("gpt2", 1, vocab_size=200), "reference": r},
        ValueError,
        "differ by more than padding, got .*'tuned': 200, 'reference': 64.*tokenizers=",
    ),
]


@pytest.mark.parametrize("leaf", ["wrapper", "processor"])
@pytest.mark.parametrize("make, kind, message", CASES, ids=[message[:30] for _, _, message in CASES])
def test_bad_members_and_recipes(make: Any, kind: type[Exception], message: str, leaf: str) -> None:
    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2)
    arguments = make(base, tuned, reference)
    with pytest.raises(kind, match=message):
        if leaf == "wrapper":
            EFTForCausalLM.from_models(base, **arguments)
        else:
            EFTLogitsProcessor(**arguments)


@pytest.fixture
def model() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2))


@pytest.mark.parametrize("name", ["config", "generate", "not a name"])
def test_member_names_that_cannot_be_attributes(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        EFTForCausalLM.from_models(
            shared("llama", 0),
            tuned={name: shared("gpt2", 1)},
            reference=shared("gpt2", 2),
            combination=Combination.steer({name: 1}),
        )


def test_vocabularies_that_differ_in_content() -> None:
    check_tokenizers({"base": tokenizer(), "tuned": tokenizer()})
    with pytest.raises(ValueError, match=r"the token 'w.*' is .* in 'base' but .* in 'tuned'"):
        check_tokenizers({"base": tokenizer(), "tuned": tokenizer(offset=1)})
    wider = tokenizer()
    wider.add_tokens(["<new>"])
    check_tokenizers({"base": tokenizer(), "tuned": wider})
    other, swapped = tokenizer(), tokenizer()
    other.add_tokens(["<other>"])
    with pytest.raises(ValueError, match=r"the id 64 is '<new>' in 'base' but '<other>' in 'tuned'"):
        check_tokenizers({"base": wider, "tuned": other})
    wider.add_tokens(["<other>"])
    swapped.add_tokens(["<other>", "<new>"])  # all before these are alike
    with pytest.raises(ValueError, match=r"the token '<(new|other)>' is 6\d in 'base' but 6\d in 'tuned'"):
        check_tokenizers({"base": wider, "tuned": swapped})
    with pytest.raises(ValueError, match="differ in content"):
        EFTForCausalLM.from_models(
            shared("llama", 0),
            tuned=shared("gpt2", 1),
            reference=shared("gpt2", 2),
            tokenizers={"base": tokenizer(), "tuned": tokenizer(), "reference": tokenizer(offset=2)},
        )


def test_masks_of_a_wrong_shape(model: EFTForCausalLM) -> None:
    ids = prompts("even")["input_ids"]
    for mask in (torch.ones(2, 5), torch.ones(3, 6), torch.ones(2, 9)):
        with pytest.raises(
            ValueError, match=r"`attention_mask` must cover the 0 cached and 6 new tokens of 2 rows, shape \(2, 6\)"
        ):
            model(ids, attention_mask=mask)


def test_coefficients_by_row_that_do_not_fit(model: EFTForCausalLM) -> None:
    inputs = prompts("even")
    with pytest.raises(ValueError, match=r"\['base', 'tuned', 'reference'\], shape \(2, 3\), got \(2, 2\)"):
        model.generate(**inputs, coefficients=torch.ones(2, 2), max_new_tokens=2)
    with pytest.raises(ValueError, match="got nan for the member 'tuned' in row 1"):
        model.generate(**inputs, coefficients=torch.tensor([[1.0, 1.0, -1.0], [1.0, torch.nan, -1.0]]), max_new_tokens=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_members_that_are_not_finite_are_named(value: float) -> None:
    base, tuned = shared("llama", 0), build("gpt2", 1)
    handle = tuned.transformer.register_forward_hook(lambda m, a, out: _poison(out, value))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=shared("gpt2", 2))
    with pytest.raises(FloatingPointError, match=r"'tuned'.*row 1"):
        model.generate(**prompts("left"), max_new_tokens=2)
    with pytest.raises(FloatingPointError, match=r"'tuned'.*row 1"):
        add_on = EFTLogitsProcessor(tuned, shared("gpt2", 2))
        base.generate(**prompts("left"), max_new_tokens=2, logits_processor=[add_on])
    handle.remove()


def _poison(out: Any, value: float) -> Any:
    out.last_hidden_state = out.last_hidden_state.clone()
    out.last_hidden_state[1] = value
    return out


def test_both_or_neither_of_ids_and_embeds(model: EFTForCausalLM) -> None:
    ids = prompts("one")["input_ids"]
    with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
        model()
    with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))


def test_a_plain_model_s_folder_is_refused(tmp_path: Any) -> None:
    build("llama", 0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'llama', expected 'eft'"):
        EFTConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'llama', expected 'eft'"):
        EFTForCausalLM.from_pretrained(tmp_path)


def test_a_misspelt_option_is_refused(model: EFTForCausalLM) -> None:
    with pytest.raises(ValueError, match="coeficients"):
        model.generate(**prompts("one"), coeficients=torch.ones(1, 3), max_new_tokens=2)
