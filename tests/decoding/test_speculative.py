"""Speculation gives the tokens of plain decoding (greedy and "match"), reads nothing twice, and what it cannot do is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import EOS, PAD, build, prompts, shared
from random_cases import double, random_case
from transformers import LogitsProcessor, TextStreamer

from hf_eft import EFTForCausalLM
from hf_eft.members.releases import cache_of

DAILY, CASES, CHUNK = 500, 1000, 25


@pytest.mark.parametrize(
    "start",
    [pytest.param(start, marks=[pytest.mark.nightly] if start >= DAILY else []) for start in range(0, CASES, CHUNK)],
)
def test_random_cases_give_the_tokens_of_plain_decoding(start: int) -> None:
    for number in range(start, start + CHUNK):
        model, inputs, options, how = random_case(number)
        expected = model.generate(**inputs, **options).tolist()
        got = model.generate(**inputs, **options, **how).tolist()
        assert got == expected, f"case {number}: {options} {how}"


# What is read ---------------------------------------------------------------------------------------------------------


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


def test_a_member_keeps_its_states_where_it_drafts() -> None:
    """Some models, of the Hub's own code above all, keep none unless `use_cache` says so."""
    base, tuned, reference = double("llama", 0), copy.deepcopy(double("llama", 1)), double("llama", 2)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    options: dict[str, Any] = {**prompts("one"), "max_new_tokens": 12, "eos_token_id": None}
    expected = model.generate(**options)

    def keep_if_asked(module: Any, args: Any, given: dict[str, Any]) -> Any:
        return args, given if given["use_cache"] else {**given, "past_key_values": copy.deepcopy(given["past_key_values"])}

    tuned.register_forward_pre_hook(keep_if_asked, with_kwargs=True)
    assert model.generate(**options, assistant_model=tuned, num_assistant_tokens=3).tolist() == expected.tolist()


@pytest.mark.parametrize("alpha", [0.5, lambda position: 0.5 + 0.1 * position])
def test_processors_are_asked_for_tokens_that_are_wanted_only(alpha: Any) -> None:
    lengths: set[int] = set()

    class Note(LogitsProcessor):
        is_stateless = True

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            lengths.add(input_ids.shape[1])
            return scores

    base, same = double("llama", 0), double("llama", 1)  # so that every draft of the base is kept
    model = EFTForCausalLM.from_models(base, tuned=same, reference=same, alpha=alpha)
    options: dict[str, Any] = {**prompts("one"), "max_new_tokens": 9, "eos_token_id": None, "logits_processor": [Note()]}
    model.generate(**options, assistant_model=base, num_assistant_tokens=3)
    start = options["input_ids"].shape[1]
    assert model.speculation.blocks == [3, 3] and lengths == set(range(start, start + 9))


# What is asked for ----------------------------------------------------------------------------------------------------


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
