"""Continuous batching gives every request the tokens that `generate` gives it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import families
import pytest
import torch
from families import BOS, EOS, PAD, VOCAB, build, shared
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

from hf_eft import Combination, EFTForCausalLM, Truncation
from hf_eft.continuous.limits import FULL
from hf_eft.continuous.paged import Layout

PAGED = [name for name in families.FAMILIES if name not in {"falcon", "lfm2", "mamba"}]
# Deeper and narrower than the members that the tests combine with it.
BASE: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


# Some shorter than a page, one longer than a batch, so that its prefill is cut, and two that begin as it does.
_FIVE = prompts(2, 9, 6, 17, 30)
PROMPTS = [*_FIVE, [*_FIVE[4][:20], 5, 6], _FIVE[4][:11]]


def config(**options: Any) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(**{"num_blocks": 64, "page_size": 8, "max_batch_tokens": 16, **options})


def greedy(new_tokens: int = 10, **options: Any) -> GenerationConfig:
    return GenerationConfig(
        **{
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            **options,
        }
    )


def one_by_one(
    model: EFTForCausalLM, inputs: list[list[int]], generation: GenerationConfig, rows: Any = None
) -> list[list[int]]:
    rows = [None] * len(inputs) if rows is None else [row[None] for row in rows]
    return [
        model.generate(torch.tensor([ids]), generation_config=generation, coefficients=row)[0, len(ids) :].tolist()
        for ids, row in zip(inputs, rows, strict=True)
    ]


def batched(model: EFTForCausalLM, inputs: list[list[int]], generation: GenerationConfig, **options: Any) -> list[list[int]]:
    outputs = model.generate_batch(inputs, generation, options.pop("batching", config()), **options)
    return [output.generated_tokens for output in outputs.values()]


def three(family: str = "llama", **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(shared_base(), shared(family, 2), shared(family, 3), **options)


def shared_base() -> Any:
    return build("llama", 1, **BASE)


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[list[Any]]:
    """What a method returns, as it is called."""
    original, seen = getattr(owner, name), []

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, spy)
        yield seen


@pytest.mark.parametrize("family", PAGED)
def test_members_of_any_shape_give_the_tokens_of_generate(family: str) -> None:
    model = three(family)
    assert batched(model, PROMPTS, greedy()) == one_by_one(model, PROMPTS, greedy())


@pytest.mark.parametrize("family", ["gemma3", "mistral", "gpt2"])
def test_the_main_member_may_be_of_any_kind(family: str) -> None:
    model = EFTForCausalLM.from_models(shared(family, 1), shared("llama", 2), shared("gemma3", 3))
    assert batched(model, PROMPTS, greedy()) == one_by_one(model, PROMPTS, greedy())


@pytest.mark.parametrize("dtypes", [("float32", "float64", "float64"), ("float64", "float32", "bfloat16")], ids=str)
def test_members_of_any_dtype_give_the_tokens_of_generate(dtypes: tuple[str, ...]) -> None:
    kinds = zip(("llama", "gpt2", "gemma3"), (1, 2, 3), dtypes, strict=True)
    models = [build(family, seed).to(getattr(torch, dtype)) for family, seed, dtype in kinds]
    model = EFTForCausalLM.from_models(*models)
    assert batched(model, PROMPTS, greedy()) == one_by_one(model, PROMPTS, greedy())


def test_base_and_reference_the_same_give_the_tuned_member() -> None:
    base, tuned = shared_base(), shared("gemma3", 2)
    model = EFTForCausalLM.from_models(base, tuned, base)
    expected = [tuned.generate(torch.tensor([ids]), generation_config=greedy())[0, len(ids) :].tolist() for ids in PROMPTS]
    assert batched(model, PROMPTS, greedy()) == expected


@pytest.mark.parametrize(
    "recipe",
    [
        Combination.emulate(beta=1.5),
        Combination.emulate(alpha=1.5, truncation=Truncation("keep", 0.8)),
        Combination.emulate(alpha=1.5, truncation=Truncation("base", 0.8)),
        Combination.interpolate(1.5),
    ],
    ids=str,
)
def test_every_recipe_is_kept(recipe: Combination) -> None:
    model = three(combination=recipe)
    assert batched(model, PROMPTS, greedy()) == one_by_one(model, PROMPTS, greedy())


def test_every_prompt_may_have_its_own_coefficients() -> None:
    model, inputs = three(), PROMPTS * 3
    rows = torch.tensor([[1.0, 0.1 * i - 1, 1 - 0.1 * i] for i in range(len(inputs))])
    expected = one_by_one(model, inputs, greedy(), rows)
    assert batched(model, inputs, greedy(), coefficients=rows) == expected
    assert expected != one_by_one(model, inputs, greedy())


def test_requests_with_and_without_coefficients_share_a_batch() -> None:
    model = three(alpha=0.5)
    rows = torch.tensor([[1.0, 0.5, -0.5] if i % 2 else [1.0, 2.0, -2.0] for i in range(len(PROMPTS))])
    with model.continuous_batching_context_manager(greedy(), continuous_batching_config=config()) as manager:
        for i, ids in enumerate(PROMPTS):
            manager.add_request(ids, request_id=str(i), coefficients=None if i % 2 else rows[i].tolist())
        results = [manager.get_result() for _ in PROMPTS]
    answers = {result.request_id: result.generated_tokens for result in results}
    assert [answers[str(i)] for i in range(len(PROMPTS))] == one_by_one(model, PROMPTS, greedy(), rows)


def test_prefixes_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three("gemma3")
    rows = torch.tensor([[1.0, i / 4, -i / 4] for i in range(len(PROMPTS))])  # states do not depend on coefficients
    batching = config(max_requests_per_batch=1)
    with spied(monkeypatch, PagedAttentionCache, "search_prefix_match") as matched:
        answers = batched(model, PROMPTS, greedy(), batching=batching, coefficients=rows)
    assert sum(matched) >= 16 + 8
    assert answers == one_by_one(model, PROMPTS, greedy(), rows)


def test_forks_of_a_request_go_on_from_its_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three("gpt2")
    with spied(monkeypatch, PagedAttentionCache, "perform_cache_copy") as copied:
        answers = batched(model, PROMPTS, greedy(do_sample=True, top_k=1, num_return_sequences=3))
    assert copied
    assert answers == [tokens for tokens in one_by_one(model, PROMPTS, greedy()) for _ in range(3)]


def test_requests_that_do_not_fit_wait_and_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three("mistral")
    with spied(monkeypatch, OffloadingManager, "offload_requests") as offloaded:
        answers = batched(model, PROMPTS, greedy(20, eos_token_id=-1), batching=config(num_blocks=8, safety_margin=0.0))
    assert any(offloaded)
    assert answers == one_by_one(model, PROMPTS, greedy(20, eos_token_id=-1))


def test_requests_that_do_not_fit_are_swapped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, empty = three("mistral"), torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *args, pin_memory=False, **kwargs: empty(*args, **kwargs)
    )  # for accelerators only
    batching = config(num_blocks=8, safety_margin=0.0, cpu_offload_space=0.001)
    with spied(monkeypatch, OffloadingManager, "_offload_to_cpu") as offloaded:
        answers = batched(model, PROMPTS, greedy(20, eos_token_id=-1), batching=batching)
    assert any(offloaded)
    assert answers == one_by_one(model, PROMPTS, greedy(20, eos_token_id=-1))


def test_a_cancelled_request_leaves_the_others_alone() -> None:
    model = three("gemma3")
    with model.continuous_batching_context_manager(greedy(), continuous_batching_config=config()) as manager:
        first = manager.add_request(PROMPTS[3], max_new_tokens=90, eos_token_id=-1, streaming=True)
        others = [manager.add_request(ids, max_new_tokens=10) for ids in PROMPTS[:3]]
        assert manager.get_result().request_id is not None  # it has begun
        manager.cancel_request(first)
        answers = {}
        while len(answers) < len(others):
            result = manager.get_result()
            if result.request_id != first:
                answers[result.request_id] = result.generated_tokens
    assert [answers[name] for name in others] == one_by_one(model, PROMPTS[:3], greedy())


def test_a_manager_is_kept_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    expected = one_by_one(model, PROMPTS, greedy())
    assert batched(model, PROMPTS, greedy(), persistent_manager=True) == expected
    kept = model._cached_continuous_batching_manager
    assert model.init_continuous_batching() is kept
    assert batched(model, PROMPTS[::-1], greedy()) == expected[::-1]
    model.destroy_cached_continuous_batching_manager()


def test_generate_takes_the_paged_cache() -> None:
    model = three()
    ids = torch.tensor([PROMPTS[1]])
    rows = torch.tensor([[1.0, 2.0, -2.0]])
    paged = {"cache_implementation": "paged", "continuous_batching_config": config()}
    answer = model.generate(ids, max_new_tokens=10, coefficients=rows, **paged)
    assert answer[0, 0, ids.shape[1] :].tolist() == one_by_one(model, [PROMPTS[1]], greedy(), rows)[0]


def test_sampled_tokens_are_likely_ones() -> None:
    model = three()
    sampled = greedy(do_sample=True, top_k=2, temperature=2.0)
    answers = batched(model, PROMPTS * 4, sampled)
    assert len({tuple(answer) for answer in answers}) > len(PROMPTS)
    for ids, answer in zip(PROMPTS * 4, answers, strict=True):
        logits = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        assert (logits.topk(2).indices == torch.tensor(answer)[:, None]).any(-1).all()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_adapters_are_batched() -> None:
    peft = pytest.importorskip("peft")
    small = build("llama", 2)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        small, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    model = EFTForCausalLM.from_models(shared_base(), adapted)
    answers = batched(model, PROMPTS, greedy())
    assert answers == one_by_one(model, PROMPTS, greedy())
    model.combination = Combination.emulate(alpha=0.0)
    assert answers != one_by_one(model, PROMPTS, greedy())


def test_the_memory_plan_holds_for_all_members() -> None:
    models = {"base": build("llama", 1, **BASE), "tuned": build("gpt2", 2), "reference": build("gpt2", 3).to(torch.float64)}
    model = EFTForCausalLM.from_models(*models.values())
    manager = model.init_continuous_batching(greedy(), config())
    manager.warmup()
    cache = manager.batch_processor.cache
    # Keys and values of one token: 3 layers of 4 heads of 4, and 2 layers of 4 heads of 8, at 4, 4 and 8 bytes.
    needed = [2 * 3 * 16 * 4, 2 * 2 * 32 * 4, 2 * 2 * 32 * 8]
    layout = Layout(model._members.distinct_models, "base")
    assert layout.row == 32 * 8
    assert layout.layers == 1 + 1 + 2  # three of the base's side by side, two of the tuned member's
    per_token = cache.cache_allocators[FULL].bytes_per_block // 8
    assert per_token == 2 * layout.layers * layout.row >= sum(needed)
    assert cache.cache_tensor.numel() >= 64 * 8 * per_token

    assert layout.config.vocab_size == VOCAB * 4  # the logits of three members and of their combination

    spans = [
        (place.layer, place.start, place.start + place.heads * place.width * place.dtype.itemsize)
        for places in layout.places.values()
        for place in places
    ]
    for i, (layer, start, end) in enumerate(spans):
        assert end <= layout.row
        assert not any(layer == other and start < stop and begin < end for other, begin, stop in spans[i + 1 :])
    manager.destroy()


def test_more_members_leave_room_for_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    total = 2**28
    breakdown = (torch.device("cpu"), total, 0, 0)
    monkeypatch.setattr("transformers.generation.continuous_batching.cache.get_device_and_memory_breakdown", lambda: breakdown)
    base, small = shared_base(), shared("gpt2", 2)
    alone = EFTForCausalLM.from_models(base, combination=Combination({"base": 1.0}))
    blocks = []
    for model in (
        alone,
        EFTForCausalLM.from_models(base, small, base),
        EFTForCausalLM.from_models(base, small, shared("gpt2", 3)),
    ):
        manager = model.init_continuous_batching(greedy(), config(num_blocks=None, max_memory_percent=0.5))
        manager.warmup()
        cache = manager.batch_processor.cache
        assert cache.cache_tensor.numel() <= total / 2
        blocks.append(cache.num_blocks)
        manager.destroy()
    assert blocks[0] > blocks[1] > blocks[2]


def test_members_are_left_as_they_are() -> None:
    model = three()
    before = {name: (member.config.to_dict(), member.training) for name, member in model.members.items()}
    batched(model, PROMPTS[:2], greedy())
    assert {name: (member.config.to_dict(), member.training) for name, member in model.members.items()} == before


def refused(model: EFTForCausalLM, match: str, generation: GenerationConfig | None = None, **options: Any) -> None:
    with pytest.raises(NotImplementedError, match=match):
        batched(model, PROMPTS[:2], greedy() if generation is None else generation, **options)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mamba", "'tuned'.*not paged"), ("lfm2", "'tuned'.*conv"), ("falcon", "'tuned'.*attention of its own")],
)
def test_members_whose_states_are_not_paged_are_refused(family: str, reason: str) -> None:
    refused(three(family), reason)


def test_other_attentions_are_refused() -> None:
    tuned = build("llama", 2)
    tuned.set_attn_implementation("eager")
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    refused(model, "'tuned' uses the attention 'eager'")
    tuned.set_attn_implementation("paged|eager")
    answers = batched(model, PROMPTS, greedy())
    tuned.set_attn_implementation("sdpa")
    assert answers == one_by_one(model, PROMPTS, greedy())


def test_members_in_training_mode_are_refused() -> None:
    tuned = build("llama", 2).train()
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    with pytest.raises(ValueError, match="'tuned' is in training mode"):
        batched(model, PROMPTS, greedy())


def test_members_on_other_devices_are_refused() -> None:
    model = EFTForCausalLM.from_models(shared_base(), build("llama", 2).to("meta"), shared("llama", 3))
    refused(model, "'tuned' is on meta")


def test_schedules_are_refused() -> None:
    refused(three(combination=Combination.emulate(alpha=[1.0, 0.5])), "schedule")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"repetition_penalty": 1.5}, "RepetitionPenalty"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGram"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidance"),
        ({"stop_strings": ["a"]}, "stop_strings"),
    ],
    ids=str,
)
def test_ways_of_choosing_tokens_that_need_more_are_refused(options: dict[str, Any], reason: str) -> None:
    refused(three(), reason, greedy(**options))


@pytest.mark.parametrize(
    "options",
    [{"use_async_batching": True}, {"use_cuda_graph": True}, {"use_cuda_graph": (False, True)}, {"default_compile_level": 1}],
    ids=str,
)
def test_what_is_for_one_model_is_refused(options: dict[str, Any]) -> None:
    refused(three(), next(iter(options)), batching=config(**options))


def test_arguments_of_generate_that_would_be_left_out_are_refused() -> None:
    model = three()
    inputs = families.prompts("left")
    paged: dict[str, Any] = {"cache_implementation": "paged", "max_new_tokens": 3}
    with pytest.raises(ValueError, match="not padded"):
        model.generate(**inputs, **paged)
    ids = inputs["input_ids"][:1, -2:]
    with pytest.raises(NotImplementedError, match="member_inputs"):
        own = {"tuned": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
        model.generate(ids, member_inputs=own, **paged)
    with pytest.raises(NotImplementedError, match="seed"):
        model.generate(ids, coupling="match", seed=1, **paged)
    with pytest.raises(NotImplementedError, match="position_ids"):
        model.generate(ids, position_ids=torch.tensor([[3, 4]]), **paged)


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        ([[5, 6], []], {}, "no tokens"),
        ([[5, VOCAB]], {}, "from 0 to 63"),
        ([[5, -1]], {}, "from 0 to 63"),
        ([[5] * 60], {"batching": config(num_blocks=4)}, "tokens of the cache"),
        ([[5] * 120], {}, "128 positions of the member 'base'"),
        ([[5]], {"coefficients": torch.ones(1, 2)}, "for each of"),
        ([[5]], {"coefficients": torch.tensor([[1.0, float("nan"), 0.0]])}, "finite"),
        ([[5]], {"coefficients": torch.ones(2, 3)}, "a row for each of 1 prompts"),
        ([[5]], {"max_new_tokens": None, "generation": greedy(max_new_tokens=None)}, "max_new_tokens"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_served_are_refused(inputs: list[list[int]], options: dict[str, Any], reason: str) -> None:
    model = three()
    with pytest.raises(ValueError, match=reason):
        batched(model, inputs, options.pop("generation", greedy()), **options)
    assert batched(model, PROMPTS[:2], greedy()) == one_by_one(model, PROMPTS[:2], greedy())


def test_a_layer_that_does_not_page_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    attention = model.tuned.model.layers[1].self_attn
    forward = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, cache=None, **kwargs: forward(*args, **kwargs))
    refused(model, "1 layers of the member 'tuned' do not use the paged cache")


def test_states_of_another_shape_are_noticed() -> None:
    tuned = build("llama", 2)
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    tuned.config.num_key_value_heads = 4  # what a layer of another width looks like
    refused(model, "Layer 0 of the member 'tuned'")


def test_logits_that_are_no_numbers_are_raised() -> None:
    tuned = build("llama", 2)
    with torch.no_grad():
        tuned.lm_head.weight[5] = float("nan")
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    with pytest.raises(FloatingPointError, match="'tuned'"):
        batched(model, PROMPTS[:2], greedy())
