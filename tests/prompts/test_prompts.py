"""A prompt for each member. With base and reference one model at one prompt, the result is the tuned model's own, on its own prompt."""

from __future__ import annotations

import copy
from typing import Any

import oracle
import pytest
import torch
from families import EOS, PAD, VOCAB, build, options_for, prompts, shared, tokenizer
from transformers import CompileConfig

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.members.releases import cache_of
from hf_eft.prompts import MemberPrompts, member_inputs

STRATEGIES = [
    # Processors that look back see the call's prompt, not the tuned member's: `no_repeat_ngram_size` is not among these.
    "greedy", "sample", "top_p", "num_return_sequences", "beam", "beam_long", "beam_sample", "min_length",
    "static", "no_cache", "renormalize",
]  # fmt: skip


def other_prompt(rows: int, seed: int = 11, most: int = 13) -> dict[str, torch.Tensor]:
    """Rows of any lengths, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, most + 1, (rows,), generator=generator).tolist()
    ids, mask = torch.full((rows, max(lengths)), PAD), torch.zeros(rows, max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, -length:] = 1
    return {"input_ids": ids, "attention_mask": mask}


def answer(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[list[list[int]], torch.Tensor | None]:
    torch.manual_seed(5)
    out = model.generate(**{**inputs, **options})
    tokens = out if isinstance(out, torch.Tensor) else out.sequences
    return tokens[:, inputs["input_ids"].shape[1] :].tolist(), None if out is tokens else out.get("sequences_scores")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "families, padding", [(("llama", "qwen3"), "left"), (("gpt2", "gemma3"), "even"), (("mistral", "gpt2"), "left")]
)
def test_the_tuned_model_on_its_own_prompt(families: tuple[str, str], padding: str, strategy: str) -> None:
    base, tuned = shared(families[0], 0), shared(families[1], 1)
    inputs, options = prompts(padding), options_for(strategy)
    own = other_prompt(len(inputs["input_ids"]))
    expected, beam_scores = answer(tuned, own, **options)
    for reference in (copy.deepcopy(base), base):
        model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
        got, scores = answer(model, inputs, member_inputs={"tuned": own}, **options)
        assert got == expected
        if beam_scores is not None:
            torch.testing.assert_close(scores, beam_scores, atol=1e-4, rtol=0)
    add_on = EFTLogitsProcessor(tuned, base, attention_mask=inputs["attention_mask"], member_inputs={"tuned": own})
    got, scores = answer(base, inputs, logits_processor=[add_on], **options)
    assert got == expected


@pytest.mark.parametrize("drafter", ["tuned", "base", "small_combination", "outsider", "lookup"])
@pytest.mark.parametrize("families", [("llama", "qwen3"), ("gemma3", "gpt2"), ("lfm2", "mistral")])
def test_speculation_with_a_prompt_for_each(families: tuple[str, str], drafter: str) -> None:
    base, tuned, reference = shared(families[0], 0), shared(families[1], 1), shared(families[1], 2)
    inputs = prompts("left")
    own = {"tuned": other_prompt(3), "reference": other_prompt(3, seed=12)}
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    draft: dict[str, Any] = (
        {"prompt_lookup_num_tokens": 3}
        if drafter == "lookup"
        else {"assistant_model": shared(families[1], 4) if drafter == "outsider" else getattr(model, drafter)}
    )
    for options in ({}, {"do_sample": True, "coupling": "match", "seed": 3}, {"min_new_tokens": 12}):
        plain = model.generate(**inputs, member_inputs=own, max_new_tokens=12, **options)
        fast = model.generate(**inputs, member_inputs=own, max_new_tokens=12, **options, **draft)
        assert fast.tolist() == plain.tolist()


@pytest.mark.parametrize("families", [("llama", "qwen3"), ("gpt2", "gemma3"), ("mamba", "llama"), ("llama", "mamba")])
def test_every_step_is_three_stateless_forwards(families: tuple[str, str]) -> None:
    """The oracle, each member at its own prompt."""
    models = {"base": shared(families[0], 0), "tuned": shared(families[1], 1), "reference": shared(families[1], 2)}
    model, coefficients = EFTForCausalLM.from_models(**models, alpha=0.7), {"base": 1.0, "tuned": 0.7, "reference": -0.7}
    inputs = prompts("left" if "mamba" not in families else "even")
    rows = len(inputs["input_ids"])
    own = {"tuned": other_prompt(rows, most=7), "reference": other_prompt(rows, seed=12)}
    if "mamba" in families:  # which pads no prompts
        own = {name: {"input_ids": torch.randint(3, VOCAB, (rows, n))} for name, n in (("tuned", 4), ("reference", 9))}
    out = model.generate(
        **inputs, member_inputs=own, max_new_tokens=5, min_new_tokens=5, output_scores=True, return_dict_in_generate=True
    )
    before = {"base": inputs, **own}
    for step in range(1, 5):
        generated = out.sequences[:, inputs["input_ids"].shape[1] :][:, :step]
        for row in range(rows):
            total: Any = 0.0
            for name, prompt in before.items():
                keep = prompt.get("attention_mask", torch.ones_like(prompt["input_ids"]))[row].bool()
                ids = torch.cat([prompt["input_ids"][row][keep], generated[row]])
                total = total + coefficients[name] * oracle.log_probs({"m": models[name]}, {"m": 1.0}, ids)
            expected, got = total.log_softmax(-1), out.scores[step][row].double()
            allowed = got.isfinite()
            torch.testing.assert_close(got[allowed].log_softmax(-1), expected[allowed].log_softmax(-1), atol=2e-4, rtol=1e-3)


def test_guidance_is_one_model_with_two_prompts() -> None:
    """Classifier-free guidance as a recipe, against transformers' own."""
    base = shared("llama", 0)
    inputs, negative = prompts("even"), other_prompt(2)
    model = EFTForCausalLM.from_models(base, reference=base, combination=Combination.guide(1.5))
    got, _ = answer(model, inputs, member_inputs={"reference": negative}, max_new_tokens=10, do_sample=False)
    expected, _ = answer(
        base, inputs, guidance_scale=1.5, max_new_tokens=10, do_sample=False,
        negative_prompt_ids=negative["input_ids"], negative_prompt_attention_mask=negative["attention_mask"],
    )  # fmt: skip
    assert got == expected
    add_on = EFTLogitsProcessor(
        reference=base, combination=Combination.guide(1.5), attention_mask=inputs["attention_mask"],
        member_inputs={"reference": negative},
    )  # fmt: skip
    assert answer(base, inputs, logits_processor=[add_on], max_new_tokens=10, do_sample=False)[0] == expected
    assert model.reference is base
    assert list(model.members) == ["base", "reference"]


def test_a_static_cache_compiles() -> None:
    base, tuned = shared("llama", 0), shared("qwen3", 1)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=copy.deepcopy(base))
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiled._compile_all_devices = True
    torch._dynamo.reset()
    own = other_prompt(3)
    options = {"cache_implementation": "static", "compile_config": compiled, "max_new_tokens": 10}
    assert (
        answer(model, prompts("left"), member_inputs={"tuned": own}, **options)[0] == answer(tuned, own, max_new_tokens=10)[0]
    )


def test_a_conversation_goes_on_from_the_cache() -> None:
    base, tuned = shared("llama", 0), shared("gpt2", 1)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=copy.deepcopy(base))
    inputs, own = {"input_ids": prompts("even")["input_ids"]}, {"input_ids": torch.randint(3, VOCAB, (2, 9))}
    out = model.generate(
        **inputs, member_inputs={"tuned": own}, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True
    )
    said = out.sequences[:, inputs["input_ids"].shape[1] :]
    more = torch.randint(3, VOCAB, (2, 3))
    second = {"input_ids": torch.cat([out.sequences, more], dim=1)}
    longer = {"input_ids": torch.cat([own["input_ids"], said, more], dim=1)}
    got, _ = answer(model, second, cache=cache_of(out), member_inputs={"tuned": longer}, max_new_tokens=5)
    assert got == answer(tuned, longer, max_new_tokens=5)[0]


def test_forward_aligns_on_the_right() -> None:
    base, tuned = shared("llama", 0), shared("qwen3", 1)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=copy.deepcopy(base))
    ids, own = prompts("even")["input_ids"], torch.randint(3, VOCAB, (2, 4))
    logits = model(ids, member_inputs={"tuned": {"input_ids": own}}).logits
    assert logits.shape[1] == 4
    torch.testing.assert_close(logits.log_softmax(-1), tuned(own).logits.log_softmax(-1), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="4 positions in common"):
        model(ids, member_inputs={"tuned": {"input_ids": own}}, logits_to_keep=5)


def test_bad_prompts() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2))
    inputs, own = prompts("left"), other_prompt(3)
    for given, match in (
        ({"base": own}, r"prompt for 'base'; .* \['tuned', 'reference'\].*`input_ids`"),
        ({"nobody": own}, "prompt for 'nobody'"),
        ({"tuned": {"ids": own["input_ids"]}}, "got \\['ids'\\]"),
        ({"tuned": {"input_ids": own["input_ids"][:, :0]}}, "one token or more"),
        ({"tuned": {"input_ids": own["input_ids"], "attention_mask": 1 - own["attention_mask"]}}, "end in ones"),
        ({"tuned": other_prompt(2)}, "has 2 rows, but there are 3"),
    ):
        with pytest.raises(ValueError, match=match):
            model.generate(**inputs, member_inputs=given, max_new_tokens=2)
    with pytest.raises(ValueError, match="`prefill_chunk_size` cuts"):
        model.generate(**inputs, member_inputs={"tuned": own}, max_new_tokens=2, prefill_chunk_size=3)
    with pytest.raises(ValueError, match="or the prompt may draft"):
        model.generate(**prompts("one"), member_inputs={"tuned": other_prompt(1)}, max_new_tokens=2, assistant_model=model)
    add_on = EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2), member_inputs={"tuned": own}, pad_token_id=PAD)
    with pytest.raises(ValueError, match="which the add-on is not told"):
        model.base.generate(**inputs, logits_processor=[add_on], max_new_tokens=2)
    assert model.generate(**inputs, max_new_tokens=2).shape == (3, inputs["input_ids"].shape[1] + 2)  # nothing was left behind


def test_the_add_on_is_told_of_other_prompts_between_calls() -> None:
    base, tuned = shared("llama", 0), shared("qwen3", 1)
    inputs = prompts("left")
    add_on = EFTLogitsProcessor(tuned, copy.deepcopy(base), attention_mask=inputs["attention_mask"])
    for seed in (1, 2, 1):
        own = other_prompt(3, seed=seed)
        add_on.member_inputs = {"tuned": own}
        assert (
            answer(base, inputs, logits_processor=[add_on], num_beams=2, max_new_tokens=8)[0]
            == (answer(tuned, own, num_beams=2, max_new_tokens=8)[0])
        )
    add_on.member_inputs = None
    assert answer(base, inputs, logits_processor=[add_on], max_new_tokens=8)[0] == answer(tuned, inputs, max_new_tokens=8)[0]


def test_prompts_from_messages() -> None:
    *_, chat = tiny.load()
    plain = tokenizer()
    plain.chat_template = None
    conversations = [
        [{"role": "user", "content": "What does Oscar Palmer enjoy?"}],
        [{"role": "user", "content": "What is the job of Oscar Palmer, and where does he live?"}],
    ]
    built = member_inputs(conversations, {"tuned": chat, "reference": plain}, plain=lambda m: "w5 w6 " * len(m[0]["content"]))
    expected = chat.apply_chat_template(conversations[1], add_generation_prompt=True, return_dict=False)
    tuned = built["tuned"]
    assert tuned["input_ids"][1][tuned["attention_mask"][1].bool()].tolist() == list(expected)
    assert tuned["attention_mask"][:, -1].tolist() == [1, 1]
    lengths = built["reference"]["attention_mask"].sum(-1).tolist()
    assert lengths[0] < lengths[1]
    MemberPrompts(built, ("tuned", "reference"))
    with pytest.raises(ValueError, match="no conversations"):
        member_inputs([], {"tuned": chat})


def test_messages_of_prompts_are_read_as_everywhere() -> None:
    *_, chat = tiny.load()
    plain = tokenizer()
    plain.chat_template = None
    parts = [{"role": "user", "content": [{"type": "text", "text": "w5"}, {"type": "text", "text": "w6"}], "name": None}]
    built = member_inputs([parts], {"tuned": chat, "reference": plain})
    expected = member_inputs([[{"role": "user", "content": "w5 w6"}]], {"tuned": chat, "reference": plain})
    assert all(torch.equal(built[name]["input_ids"], expected[name]["input_ids"]) for name in built)
    with pytest.raises(ValueError, match=r"messages\[0\]: `content` must be a text"):
        member_inputs([[{"role": "user"}]], {"tuned": chat})
    called = [{"role": "user", "content": "w5"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}]
    with pytest.raises(ValueError, match="no place for `tool_calls`"):
        member_inputs([called], {"reference": plain})
    member_inputs([called], {"reference": plain}, plain=lambda messages: messages[1]["tool_calls"][0]["name"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_may_have_a_prompt_of_its_own() -> None:
    peft = pytest.importorskip("peft")
    small = build("llama", 1)
    adapter = peft.get_peft_model(
        small, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    model = EFTForCausalLM.from_models(small, tuned=adapter, reference=small)
    inputs, own = prompts("left"), other_prompt(3)
    got, _ = answer(model, inputs, member_inputs={"tuned": own}, max_new_tokens=10, eos_token_id=EOS)
    assert got == answer(adapter, own, max_new_tokens=10, do_sample=False)[0]
