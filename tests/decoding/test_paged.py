"""Continuous batching gives every request the tokens that `generate` gives it alone."""

from __future__ import annotations

import pytest
import torch
from families import VOCAB, build, shared
from paged import BASE, PAGED, PROMPTS, batched, config, greedy, one_by_one, shared_base, spied, three
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

from hf_eft import Combination, EFTForCausalLM, Truncation
from hf_eft.decoding.continuous.limits import FULL
from hf_eft.decoding.continuous.paged import Layout


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
    together, alone = batched(model, PROMPTS, greedy()), one_by_one(model, PROMPTS, greedy())
    if "bfloat16" not in dtypes:
        assert together == alone
    assert sum(a == b for a, b in zip(together, alone, strict=True)) > len(PROMPTS) // 2
    for prompt, a, b in zip(PROMPTS, together, alone, strict=True):
        # Half a member's precision depends on what is computed beside it, which shows where two tokens are as good as equal.
        for i in (i for i in range(min(len(a), len(b))) if a[i] != b[i]):
            logits = model(torch.tensor([prompt + b[:i]])).logits[0, -1]
            assert logits[b[i]] - logits[a[i]] < 0.05
            break


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
