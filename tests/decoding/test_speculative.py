"""Speculation: the same tokens as plain decoding (greedy and "match"), the same distribution ("reject")."""

from __future__ import annotations

import copy
import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import EOS, FAMILIES, PAD, SEED, STATEFUL, VOCAB, build, prompts, shared
from transformers import TextStreamer

from hf_eft import EFTForCausalLM
from hf_eft.decoding import speculative
from hf_eft.decoding.speculative.coupling import Noise, accept_equal, accept_ratio
from hf_eft.decoding.speculative.schedule import Automatic, Fixed, expected_tokens
from hf_eft.members.releases import cache_of

ROLLING = [family for family in FAMILIES if family not in STATEFUL]
CASES, CHUNK = 1000, 25


def double(family: str, seed: int) -> Any:
    """In float64, so that a block and single tokens give the same float32 logits and no tie is broken by rounding.

    (Transformers' grouped experts take no float64.)"""
    if (family, seed) not in _DOUBLES:
        model = build(family, seed)
        _DOUBLES[family, seed] = model if family == "mixtral" else model.double()
    return _DOUBLES[family, seed]


_DOUBLES: dict[tuple[str, int], Any] = {}


def random_case(
    number: int, pool: Sequence[str] = ROLLING, rows: int = 8
) -> tuple[EFTForCausalLM, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A model of families of `pool`, inputs of `rows` rows at most, options, and what makes the call speculative."""
    rng = random.Random(number)
    families = [rng.choice(pool) for _ in range(3)]
    base, tuned, reference = (double(family, i) for i, family in enumerate(families))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=rng.choice([0.3, 1.0]))
    rows = rng.randint(1, rows)
    lengths = [rng.randint(1, 9) for _ in range(rows)]
    ids, mask = torch.full((rows, max(lengths)), PAD), torch.zeros(rows, max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.tensor([rng.randrange(3, VOCAB) for _ in range(length)])
        mask[row, -length:] = 1
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 14)}
    if rng.random() < 0.5:
        options["eos_token_id"] = rng.sample(range(3, VOCAB), 4)  # rows end early
    for chance, extra in (
        (0.2, {"repetition_penalty": 1.5}),
        (0.2, {"no_repeat_ngram_size": 2}),
        (0.2, {"bad_words_ids": [[5], [6, 7]]}),
        (0.2, {"min_new_tokens": min(4, options["max_new_tokens"])}),
        (0.2, {"num_return_sequences": 2}),
    ):
        if rng.random() < chance and not ("num_return_sequences" in extra and rows > 4):
            options |= extra
    if rng.random() < 0.5 or "num_return_sequences" in options:
        options |= {"do_sample": True, "temperature": 0.7, "coupling": "match", "seed": rng.randrange(10**6)}
        if rng.random() < 0.5:
            options["top_k"] = 8
    if rng.random() < 0.2:
        options["coefficients"] = torch.tensor([[1.0, a, -a] for a in (rng.random() for _ in range(rows))])
    block = rng.choice([1, 2, 3, 4, 6, 8, 16, None])
    how: dict[str, Any] = {"num_assistant_tokens": block} if block else {}
    drafter = rng.choice(["tuned", "tuned", "tuned", "base", "reference", "outsider", "lookup"])
    if drafter == "lookup":
        how = {"prompt_lookup_num_tokens": block or 3}
    else:
        how["assistant_model"] = double("llama", 7) if drafter == "outsider" else model.members[drafter]
    return model, {"input_ids": ids, "attention_mask": mask}, options, how


@pytest.mark.parametrize("start", range(0, CASES, CHUNK))
def test_random_cases_give_the_tokens_of_plain_decoding(start: int) -> None:
    for number in range(start, start + CHUNK):
        model, inputs, options, how = random_case(number)
        expected = model.generate(**inputs, **options).tolist()
        got = model.generate(**inputs, **options, **how).tolist()
        assert got == expected, f"case {number}: {options} {how}"


# The distribution -------------------------------------------------------------------------------------------------------

TINY, STEPS = 6, 3


def tiny_vocabulary() -> EFTForCausalLM:
    sizes = {"vocab_size": TINY, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "eos_token_id": None}
    # Of one seed whatever `SEED` is: how plainly a planted bias is seen is a matter of the distribution.
    members = [build("llama", seed - 1000 * SEED, **sizes) for seed in (0, 1, 2)]
    with torch.no_grad():
        for member in members:
            member.lm_head.weight.mul_(1.5)
    return EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2], alpha=0.7)


@torch.no_grad()
def exact(model: EFTForCausalLM, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of `STEPS` tokens, from one forward for each prefix."""
    probabilities = {(): 1.0}
    for _ in range(STEPS):
        prefixes = list(probabilities)
        logits = model(torch.tensor([[*prompt, *prefix] for prefix in prefixes])).logits[:, -1].double().softmax(-1)
        probabilities = {
            (*prefix, token): probabilities[prefix] * float(logits[i, token])
            for i, prefix in enumerate(prefixes)
            for token in range(TINY)
        }
    return probabilities


def chi_square(counts: dict[Any, int], probabilities: dict[Any, float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; outcomes expected less than 8 times are taken together."""
    total = sum(counts.values())
    cells = [(counts.get(k, 0), total * p) for k, p in probabilities.items() if total * p >= 8]
    rest = total - sum(c for c, _ in cells), total - sum(e for _, e in cells)
    if rest[1] >= 1:
        cells.append(rest)
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1


def excess(rows: int, samples: int, block: int, outsider: bool = False) -> float:
    """By how many standard deviations the worst chi-square, per position and of whole continuations, is above its mean."""
    model, prompt = tiny_vocabulary(), [3, 4]
    drafter = copy.deepcopy(model.tuned) if outsider else model.tuned
    torch.manual_seed(12)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(samples // rows):
        ids = torch.tensor([prompt] * rows)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=True, top_k=0,
            assistant_model=drafter, num_assistant_tokens=block,
        )  # fmt: skip
        for row in out[:, 2:].tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    joint = exact(model, prompt)
    worst = -float("inf")
    for position in [*range(STEPS), None]:
        c: dict[Any, int] = {}
        p: dict[Any, float] = {}
        for sequence in itertools.product(range(TINY), repeat=STEPS):
            key = sequence if position is None else sequence[position]
            c[key] = c.get(key, 0) + counts.get(sequence, 0)
            p[key] = p.get(key, 0.0) + joint[sequence]
        statistic, freedom = chi_square(c, p)
        worst = max(worst, (statistic - freedom) / (2 * freedom) ** 0.5)
    return worst


@pytest.mark.parametrize(
    "rows, samples",
    [
        (64, 64 * 700),
        pytest.param(4, 20_000, marks=pytest.mark.nightly),
        pytest.param(1, 20_000, marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("block", [1, 2])
def test_reject_samples_from_the_combination(rows: int, samples: int, block: int) -> None:
    assert excess(rows, samples, block) < 4


def test_reject_with_an_outsider_samples_from_the_combination() -> None:
    assert excess(64, 64 * 300, 2, outsider=True) < 4


def test_a_planted_bias_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_kind(drafted: torch.Tensor, draft: torch.Tensor, target: torch.Tensor) -> Any:
        return accept_ratio(drafted, draft * 0.85, target)

    monkeypatch.setattr(speculative, "accept_ratio", too_kind)
    assert excess(64, 64 * 700, 2) > 8


def test_the_rejected_token_s_replacement_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_residual(drafted: torch.Tensor, draft: torch.Tensor, target: torch.Tensor) -> Any:
        kept, _ = accept_ratio(drafted, draft, target)
        at = kept.clamp(max=drafted.shape[1] - 1)
        return kept, torch.multinomial(target[torch.arange(len(kept)), at], 1).squeeze(1)

    monkeypatch.setattr(speculative, "accept_ratio", no_residual)
    assert excess(64, 64 * 700, 2) > 8


# The parts --------------------------------------------------------------------------------------------------------------


def test_noise_depends_on_seed_row_and_position_only() -> None:
    scores = torch.zeros(3, 50)
    noise = Noise(5)
    whole = [noise.pick(scores, [t, t + 1, t + 7]).tolist() for t in range(20)]
    assert whole == [Noise(5).pick(scores, [t, t + 1, t + 7]).tolist() for t in range(20)]
    alone = [noise.pick(scores[:1], [t]).item() for t in range(20)]
    assert alone == [step[0] for step in whole]
    by_row = Noise([11, 12, 13])
    swapped = Noise([13, 11, 12])
    assert [by_row.pick(scores, [t] * 3).tolist()[2] for t in range(9)] == [
        swapped.pick(scores, [t] * 3).tolist()[0] for t in range(9)
    ]
    assert len({Noise(seed).pick(scores[:1], [0]).item() for seed in range(40)}) > 10
    with pytest.raises(ValueError, match="one for each of the 3 rows, got 2"):
        Noise([1, 2]).check_rows(3)


def test_noise_samples_from_the_scores() -> None:
    p = torch.tensor([0.5, 0.3, 0.2])
    picks = torch.cat([Noise(3).pick(p.log().expand(200, 3), [t] * 200) for t in range(50)])
    counts = picks.bincount(minlength=3).double()
    statistic = float(((counts - 10_000 * p) ** 2 / (10_000 * p)).sum())
    assert statistic < 14  # 2 degrees of freedom: 1 in 1,000


def test_a_row_s_tokens_do_not_depend_on_its_batch() -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("gpt2", 1), reference=double("gpt2", 2))
    inputs, options = prompts("left"), {"max_new_tokens": 10, "do_sample": True, "coupling": "match"}
    together = model.generate(**inputs, **options, seed=[7, 8, 9])
    for row, seed in enumerate([7, 8, 9]):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        for how in ({}, {"assistant_model": model.tuned}):
            alone = model.generate(ids, **options, seed=[seed], **how)[0, ids.shape[1] :]
            length = len(alone)
            assert together[row, 9 : 9 + length].tolist() == alone.tolist()


def test_accept_equal() -> None:
    drafted = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    wanted = torch.tensor([[1, 2, 3, 9], [1, 5, 3, 9], [4, 2, 3, 9]])
    assert accept_equal(drafted, wanted).tolist() == [3, 1, 0]


def test_nothing_is_run_twice_and_the_cache_does_not_grow() -> None:
    base, tuned, reference = build("llama", 0), build("gpt2", 1), build("gpt2", 2)
    read: dict[str, int] = {}
    for name, member in (("base", base), ("tuned", tuned), ("reference", reference)):
        member.register_forward_pre_hook(
            lambda m, a, k, name=name: read.__setitem__(name, read.get(name, 0) + k["input_ids"].shape[1]), with_kwargs=True
        )
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    inputs = prompts("left")
    out = model.generate(
        **inputs,
        max_new_tokens=40,
        min_new_tokens=40,
        assistant_model=tuned,
        num_assistant_tokens=4,
        return_dict_in_generate=True,
    )
    report = model.speculation
    drafted = sum(report.blocks)
    assert read["base"] == read["reference"] == 9 + drafted + report.rounds
    assert 9 + drafted <= read["tuned"] <= 9 + drafted + report.rounds
    lengths = {name: cache.get_seq_length() for name, cache in cache_of(out).members.items()}
    assert len(set(lengths.values())) == 1 and set(lengths.values()) <= {
        n + 39 for n in (2, 9, 6)
    }  # of the row that ended last


@pytest.mark.parametrize("drafter", ["tuned", "outsider", "prompt", "nobody"])
def test_rows_that_have_ended_are_read_no_more(drafter: str) -> None:
    base, tuned, reference = double("llama", 0), double("llama", 1), double("llama", 2)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    inputs = prompts("left")
    how: dict[str, Any] = {}
    if drafter in ("tuned", "outsider"):
        how = {"assistant_model": tuned if drafter == "tuned" else double("llama", 7), "num_assistant_tokens": 2}
    elif drafter == "prompt":
        how = {"prompt_lookup_num_tokens": 2}
    # From the second token of row 1 on, it has ended; row 2 ends after its sixth.
    ends = {1: 2, 2: 6}
    options: dict[str, Any] = {
        "max_new_tokens": 12,
        "do_sample": True,
        "coupling": "match",
        "seed": 3,
        "repetition_penalty": 1.3,
    }
    options["suppress_tokens"] = [PAD, EOS]
    options["stopping_criteria"] = [lambda ids, _: torch.tensor([ids.shape[1] >= 9 + ends.get(r, 99) for r in range(len(ids))])]
    expected = model.generate(**inputs, **options)
    read: dict[str, list[int]] = {}
    hooks = [
        member.register_forward_pre_hook(
            lambda m, a, k, n=name: read.setdefault(n, []).append(len(k["input_ids"])), with_kwargs=True
        )
        for name, member in model.members.items()
    ]
    out = model.generate(**inputs, **options, **how, return_dict_in_generate=True)
    for hook in hooks:
        hook.remove()
    assert out.sequences.tolist() == expected.tolist()
    assert [len([t for t in row if t != PAD]) for row in out.sequences[:, 9:].tolist()] == [12, 2, 6]
    for rows in read.values():
        assert rows == sorted(rows, reverse=True) and set(rows) == {3, 2, 1}
    with pytest.raises(ValueError, match="states of 1 rows, but 3 are read"):
        model.generate(out.sequences, cache=cache_of(out), max_new_tokens=2)


@pytest.mark.parametrize("family", ["mamba", "lfm2"])  # states that are no keys and values leave with their rows as well
def test_rows_with_a_seed_end_early_among_recurrent_members(family: str) -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double(family, 1), reference=double(family, 2))
    inputs, ends = prompts("left"), {1: 2, 2: 6}
    options: dict[str, Any] = {
        "max_new_tokens": 12,
        "do_sample": True,
        "coupling": "match",
        "seed": 3,
        "suppress_tokens": [PAD, EOS],
    }
    whole = model.generate(**inputs, **options).tolist()
    stop = [lambda ids, _: torch.tensor([ids.shape[1] >= 9 + ends.get(r, 99) for r in range(len(ids))])]
    for r, row in enumerate(model.generate(**inputs, **options, stopping_criteria=stop).tolist()):
        length = 9 + ends.get(r, 12)
        assert row == whole[r][:length] + [PAD] * (21 - length)


def test_the_cache_of_a_call_that_ends_within_a_block_goes_on() -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("llama", 1), reference=double("llama", 1))
    ids = prompts("one")["input_ids"]
    whole = model.generate(ids, max_new_tokens=20)
    end = int(whole[0, ids.shape[1] + 4])
    options: dict[str, Any] = {"assistant_model": model.members["base"], "num_assistant_tokens": 8}
    first = model.generate(ids, max_new_tokens=20, eos_token_id=end, return_dict_in_generate=True, **options)
    read = first.sequences.shape[1] - 1
    assert read < ids.shape[1] + 8
    assert {cache.get_seq_length() for cache in cache_of(first).members.values()} == {read}
    more = model.generate(
        first.sequences,
        cache=cache_of(first),
        max_new_tokens=whole.shape[1] - read - 1,
        eos_token_id=None,
        **options,
    )
    assert more.tolist() == whole.tolist()


def test_a_row_that_drafts_beyond_its_end_stays_in_the_table_of_positions() -> None:
    base, tuned, reference = (build("gpt2", seed, n_positions=24).double() for seed in range(3))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=0.5)
    ids = torch.arange(3, 35).view(8, 4)
    # The last token is not read: this fills the table.
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 21, "min_new_tokens": 21}
    expected = model.generate(ids, **options).tolist()
    got = model.generate(ids, **options, assistant_model=tuned, num_assistant_tokens=7).tolist()
    assert got == expected
    assert model.speculation.blocks.count(7) > 3  # the row with most to go says how long a block may be


def test_sampled_prompt_lookup_whose_guess_is_forbidden() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    ids = torch.tensor([[5, 6, 5, 6, 5], [7, 7, 7, 7, 7]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=30,
        do_sample=True,
        prompt_lookup_num_tokens=4,
        suppress_tokens=[5, 6, 7],
    )
    assert out.shape[1] > 5 and not torch.isin(out[:, 5:], torch.tensor([5, 6, 7])).any()


def test_a_block_larger_than_the_answer() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    options = {"max_new_tokens": 6, "eos_token_id": list(range(3, 30))}
    expected = model.generate(**prompts("left"), **options).tolist()
    assert (
        model.generate(**prompts("left"), **options, assistant_model=model.tuned, num_assistant_tokens=500).tolist() == expected
    )


@pytest.mark.parametrize("rows", ["one", "left"])
def test_scores_and_logits_by_token(rows: str) -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("gpt2", 1), reference=double("gpt2", 2))
    options = {
        "max_new_tokens": 9,
        "output_scores": True,
        "output_logits": True,
        "return_dict_in_generate": True,
        "repetition_penalty": 1.3,
        "eos_token_id": None,
    }
    plain = model.generate(**prompts(rows), **options)
    fast = model.generate(**prompts(rows), **options, assistant_model=model.tuned, num_assistant_tokens=3)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    for a, b in zip(fast.scores + fast.logits, plain.scores + plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_streaming_and_confidence(capsys: pytest.CaptureFixture[str]) -> None:
    from hf_eft import tiny

    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    inputs = tokenizer(tiny.questions()[1].prompt, return_tensors="pt", return_token_type_ids=False)
    expected = model.generate(**inputs, max_new_tokens=24)
    for options in (
        {},
        {"assistant_confidence_threshold": 0.9, "num_assistant_tokens": 8},
        {"stop_strings": ["Happy"], "tokenizer": tokenizer},
    ):
        got = model.generate(
            **inputs, max_new_tokens=24, assistant_model=tuned, streamer=TextStreamer(tokenizer, skip_prompt=True), **options
        )
        text = tokenizer.decode(got[0, inputs["input_ids"].shape[1] :])
        assert capsys.readouterr().out.strip() == text.strip()
        assert tokenizer.decode(expected[0]).startswith(tokenizer.decode(got[0]))
        assert ("help" in text) == ("stop_strings" not in options)
    assert model.speculation.tokens_per_round > 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"use_cache": False}, "cache"),
        ({"guidance_scale": 1.5}, "`guidance_scale`"),
        ({"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}, "quantized"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "Hidden states"),
        ({"coupling": "both"}, "'reject' or 'match'"),
        ({"coupling": "match"}, "needs a `seed`"),
        ({"seed": 3}, "belongs to"),
        ({"coupling": "match", "seed": [1, 2], "do_sample": True}, "one for each of the 1 rows, got 2"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    with pytest.raises(ValueError, match=message):
        model.generate(**prompts("one"), max_new_tokens=4, assistant_model=model.tuned, **options)


# The schedule -----------------------------------------------------------------------------------------------------------


def simulate(
    agreement: float, step: float, verify: float, slope: float = 0.02, rounds: int = 300, jump: float = 0.0, seed: int = 4
) -> tuple[float, list[int]]:
    """
    Tokens per second of the automatic schedule against those of plain decoding, on made-up costs; `jump` is what any second position
    adds to verifying one, as it does where a processor multiplies a single row faster than two.
    """
    rows = 1
    rng = random.Random(seed)
    schedule, tokens, seconds, blocks = Automatic(), 0, 0.0, []
    for _ in range(rounds):
        block = schedule.next(rows)
        blocks.append(block)
        kept = [next((i for i in range(block) if rng.random() > agreement), block) for _ in range(rows)]
        whole = any(n == block for n in kept)
        agreed = [float(i < n) for n in kept for i in range(min(n + 1, block))] if block else [float(rng.random() < agreement)]
        verifying = verify * (1 + jump * (block > 0) + slope * block) * rng.uniform(0.9, 1.1)
        schedule.record(block, kept, agreed, step * rng.uniform(0.9, 1.1), verifying)
        tokens += sum(kept) + rows
        seconds += (block + whole) * step + verifying
    return (tokens / rows / seconds) * (step + verify), blocks


def test_automatic_finds_the_best_block() -> None:
    for agreement, step, verify in ((0.91, 1.0, 5.0), (0.94, 1.0, 10.0), (0.7, 1.0, 8.0)):
        got, _ = simulate(agreement, step, verify)
        rates = [
            expected_tokens(agreement, k) / ((k + agreement**k) * step + verify * (1 + 0.02 * k)) * (step + verify)
            for k in range(17)
        ]
        assert got > 0.93 * max(rates)


def test_automatic_leaves_speculation_that_cannot_win() -> None:
    got, blocks = simulate(0.1, 1.0, 1.2, slope=0.5)
    assert got > 0.95
    assert blocks[-100:].count(0) > 90


def test_automatic_loses_little_in_a_short_text_where_nothing_wins() -> None:
    short = [simulate(0.4, 1.0, 2.6, slope=0.012, rounds=40, jump=0.5, seed=seed)[0] for seed in range(200)]
    assert statistics.fmean(short) > 0.97


def test_fixed_schedules() -> None:
    constant, heuristic = Fixed(4, heuristic=False), Fixed(4, heuristic=True)
    for schedule in (constant, heuristic):
        schedule.record(4, [4, 4], [], 0.0, 0.0)
    assert (constant.next(2), heuristic.next(2)) == (4, 6)
    heuristic.record(6, [6, 2], [], 0.0, 0.0)
    assert heuristic.next(2) == 5
