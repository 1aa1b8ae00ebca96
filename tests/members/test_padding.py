"""Padding: found where it is named, asked for where it is not; and never looked up in a table that has no row for it."""

from __future__ import annotations

import copy
from typing import Any

import oracle
import pytest
import torch
from families import EOS, PAD, VOCAB, build, prompts, shared
from transformers import LogitsProcessor

from hf_eft import EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.bytes import ByteLevelModel
from hf_eft.members.padding import filling, guessed, readable, unfilled
from hf_eft.members.vocabulary import table_rows

# Where padding is not named ------------------------------------------------------------------------------------------------

A, B = [7, 8, 9, 10], [11, 12, 13, 14]
# pad, begin, ends, rows, and what is padding; `None` where only the caller knows.
GUESSES: list[tuple[int | None, int | None, list[int], list[list[int]], list[int] | None]] = [
    (0, 1, [2], [[0, 0, 5, 6], B], [2, 0]),
    (0, 1, [2], [A, B], [0, 0]),
    (0, 1, [2], [[1, 5, 6, 7], [0, 1, 8, 9]], [0, 1]),
    (0, 1, [2], [[2, 2, 5, 6], B], None),  # named, but another was used
    (0, 1, [2], [[2, 5, 6, 7], B], None),
    (None, 1, [2], [A, B], None),  # not named: any could be
    (None, 1, [2], [[3, 3, 3, 5], B], None),
    (None, 1, [2], [A, A], [0, 0]),  # one prompt, several times: nothing to bring to one length
    (None, 1, [2], [[2, 2, 5, 6]], None),
    (None, 1, [2], [[2, 5, 6, 7]], [0]),  # as models do that begin texts with what ends them
    (2, 1, [2], [[2, 2, 5, 6], [2, 7, 8, 9]], None),
    (2, 2, [2], [[2, 7, 5, 6], [2, 7, 8, 9]], [0, 0]),
    (2, 2, [2], [[2, 2, 5, 6], [2, 2, 8, 9]], None),
    (1, 1, [2], [[1, 1, 5, 6], [1, 7, 8, 9]], None),
]


@pytest.mark.parametrize(("pad", "begin", "ends", "rows", "expected"), GUESSES, ids=str)
def test_padding_is_told_or_asked_for(pad: Any, begin: Any, ends: Any, rows: Any, expected: Any) -> None:
    ids = torch.tensor(rows)
    if expected is None:
        with pytest.raises(ValueError, match=r"attention_mask=inputs\['attention_mask'\].*`pad_token_id=`"):
            guessed(ids, pad, begin, ends)
    else:
        assert guessed(ids, pad, begin, ends).sum(-1).tolist() == expected


def test_what_follows_a_prompt_is_no_padding_whatever_it_is() -> None:
    """A prompt of one token that is generated again and again, and one that ends with what pads."""
    tuned, reference = build("gpt2", 1), shared("gpt2", 2)
    tuned.generation_config.pad_token_id = None
    for first, add_on in (
        (EOS, EFTLogitsProcessor(tuned, reference)),
        (5, EFTLogitsProcessor(tuned, reference, pad_token_id=5)),
    ):
        ids = torch.tensor([[first]])
        for _ in range(3):
            delta = oracle.rows({"t": tuned, "r": reference}, {"t": 1.0, "r": -1.0}, ids, torch.ones_like(ids))
            torch.testing.assert_close(add_on(ids, torch.zeros(1, VOCAB)).double(), delta.log_softmax(-1), atol=2e-4, rtol=0)
            ids = torch.cat([ids, torch.tensor([[first]])], dim=1)
    with pytest.raises(ValueError, match="is that padding"):
        EFTLogitsProcessor(tuned, reference)(torch.tensor([[EOS, EOS, EOS]]), torch.zeros(1, VOCAB))


def test_another_padding_token_for_the_same_prompt_is_heeded() -> None:
    tuned, reference = shared("gpt2", 1), shared("gpt2", 2)
    ids, scores = torch.tensor([[5, 5, 6, 7]]), torch.zeros(1, VOCAB)
    add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=9)
    add_on(ids, scores)
    add_on.pad_token_id = 5
    torch.testing.assert_close(add_on(ids, scores), EFTLogitsProcessor(tuned, reference, pad_token_id=5)(ids, scores))


# What no table has a row for -----------------------------------------------------------------------------------------------

OUTSIDE = VOCAB + 3  # a padding token that some members were resized for


def widened(model: Any, rows: int = VOCAB + 6) -> Any:
    wide = copy.deepcopy(model)
    wide.resize_token_embeddings(rows, mean_resizing=False)
    return wide


def trio(*knowing: str) -> dict[str, Any]:
    models = {"base": shared("llama", 0), "tuned": shared("gpt2", 1), "reference": shared("mistral", 2)}
    return {name: widened(model) if name in knowing else model for name, model in models.items()}


def padded_with(pad: int) -> dict[str, torch.Tensor]:
    inputs = prompts("left")
    return {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad)}


OWN = {
    "tuned": {
        "input_ids": torch.tensor([[OUTSIDE, 5], [6, 7], [8, 9]]),
        "attention_mask": torch.tensor([[0, 1], [1, 1], [1, 1]]),
    }
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "no_cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "member drafts": {"assistant_model": "tuned", "num_assistant_tokens": 2},
    "prompt drafts": {"prompt_lookup_num_tokens": 2},
    "match": {"do_sample": True, "coupling": "match", "seed": 3},
    "own prompts": {"member_inputs": OWN},
    "own prompts, static": {"member_inputs": OWN, "cache_implementation": "static"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("knowing", [("base",), ("tuned",), ("base", "reference")], ids="+".join)
def test_padding_that_members_have_no_row_for_changes_nothing(knowing: tuple[str, ...], way: str) -> None:
    model = EFTForCausalLM.from_models(**trio(*knowing))
    options = {"max_new_tokens": 6, "pad_token_id": PAD, **WAYS[way]}
    if "assistant_model" in options:
        options["assistant_model"] = model.tuned
    plain = copy.deepcopy(options)
    if own := plain.get("member_inputs"):
        own["tuned"]["input_ids"][0, 0] = PAD
    plain.pop("assistant_model", None)
    length = prompts("left")["input_ids"].shape[1]
    expected = model.generate(**padded_with(PAD), **plain)[:, length:]
    assert torch.equal(model.generate(**padded_with(OUTSIDE), **options)[:, length:], expected)
    logits = model(**padded_with(OUTSIDE)).logits[:, -1]
    torch.testing.assert_close(logits, model(**padded_with(PAD)).logits[:, -1])


@pytest.mark.parametrize("told", ["mask", "token"])
def test_the_add_on_of_models_that_have_no_row_for_padding(told: str) -> None:
    base, tuned, reference = trio("base").values()
    options = {"max_new_tokens": 6, "num_beams": 2}
    length = prompts("left")["input_ids"].shape[1]
    mask = prompts("left")["attention_mask"]
    how = {"attention_mask": mask} if told == "mask" else {"pad_token_id": OUTSIDE}
    expected = base.generate(**padded_with(PAD), **options, logits_processor=[EFTLogitsProcessor(tuned, reference)])
    got = base.generate(**padded_with(OUTSIDE), **options, logits_processor=[EFTLogitsProcessor(tuned, reference, **how)])
    assert torch.equal(got[:, length:], expected[:, length:])


@pytest.mark.parametrize(
    ("kind", "way"),
    [("wrapper", way) for way in ("greedy", "no_cache", "static", "member drafts", "match")]
    + [("add-on", way) for way in ("greedy", "no_cache", "static")],
)
def test_rows_that_end_are_filled_with_it(kind: str, way: str) -> None:
    models = trio("base")
    base, tuned, reference = models.values()
    model = EFTForCausalLM.from_models(**models)
    inputs, length = prompts("left"), prompts("left")["input_ids"].shape[1]
    options = {"max_new_tokens": 8, **{key: model.tuned if key == "assistant_model" else v for key, v in WAYS[way].items()}}
    first = model.generate(**inputs, **{**options, "eos_token_id": None})
    options["eos_token_id"] = int(first[0, length + 1])  # ends at once, the others do not
    which: Any = model
    if kind == "add-on":
        which, options["logits_processor"] = (
            base,
            [EFTLogitsProcessor(tuned, reference, attention_mask=inputs["attention_mask"])],
        )
    expected = which.generate(**inputs, **options, pad_token_id=PAD)
    got = which.generate(**inputs, **options, pad_token_id=OUTSIDE)
    assert bool((got[0, length + 2 :] == OUTSIDE).all()) and got.shape[1] > length + 3  # the test needs a row that is filled
    assert torch.equal(got.masked_fill(got == OUTSIDE, PAD), expected)


def test_a_token_that_is_read_and_has_no_row_is_refused_by_name() -> None:
    model = EFTForCausalLM.from_models(**trio("base"))
    ids = torch.tensor([[5, 6, 7], [5, OUTSIDE, 7]])
    match = rf"Row 1 has the token {OUTSIDE}, .*got 'tuned': {VOCAB}, 'reference': {VOCAB} rows"
    for options in ({}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match=match):
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, **options)
    for call in (lambda: model(ids), lambda: model.member_logits(ids), lambda: model(ids, attention_mask=torch.ones_like(ids))):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(ValueError, match=r"Row 0 has the token -1, .*'base': 70, 'tuned'"):
        model(torch.tensor([[5, -1]]))
    with pytest.raises(ValueError, match=rf"Row 1 has the token {OUTSIDE}"):
        EFTLogitsProcessor(model.tuned, model.reference, pad_token_id=PAD)(ids, torch.zeros(2, VOCAB))
    own = {"tuned": {"input_ids": torch.tensor([[OUTSIDE, 5]])}}
    with pytest.raises(ValueError, match=rf"the token {OUTSIDE}, .*got 'tuned': {VOCAB} rows"):
        model.generate(ids[:1], max_new_tokens=2, member_inputs=own)


def test_a_token_that_a_processor_forces_is_refused_by_name() -> None:
    class Forces(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            forced = torch.full_like(scores, -torch.inf)
            forced[:, OUTSIDE] = 0.0
            return forced

    model = EFTForCausalLM.from_models(**trio("base"))
    with pytest.raises(ValueError, match=rf"Row 0 has the token {OUTSIDE}"):
        model.generate(**prompts("one"), max_new_tokens=3, logits_processor=[Forces()], pad_token_id=PAD)


def test_bytes_have_rows_of_their_own() -> None:
    base, *_, tokenizer = tiny.load()
    model = ByteLevelModel(base, tokenizer)
    ids, mask = torch.tensor([[999, 80, 81]]), torch.tensor([[0, 1, 1]])
    torch.testing.assert_close(
        model(ids, attention_mask=mask).logits[:, 1:], model(torch.tensor([[0, 80, 81]]), attention_mask=mask).logits[:, 1:]
    )
    with pytest.raises(ValueError, match=r"token 999.*'ByteLevelModel': 259 rows"):
        model(ids)
    assert table_rows(model) == 259


def test_the_pieces() -> None:
    ids = torch.tensor([[5, 9, 9], [9, 5, 9]])
    assert filling(ids, 9).tolist() == [[0, 1, 1], [0, 0, 1]] and filling(ids, 10).sum() == 0
    assert filling(ids.flip(0), 9).tolist() == [[0, 0, 1], [0, 1, 1]]  # each row by itself
    assert unfilled(ids, 1, 9, 8).tolist() == [[5, 0, 0], [9, 5, 0]]
    for prompt, pad, fewest in ((None, 9, 8), (1, None, 8), (1, 9, 10), (3, 9, 8)):
        assert unfilled(ids, prompt, pad, fewest) is ids
    assert readable(ids, None, {"tuned": 10}) is ids
    mask = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0]])  # the first column is cached
    assert readable(ids, mask, {"tuned": 9}).tolist() == [[5, 0, 0], [0, 5, 0]]
