"""Strength by phase: under every way of decoding the tokens are those of whole forwards, each with the coefficients of its phase."""

from __future__ import annotations

import threading
from typing import Any

import oracle
import paged
import pytest
import thinking
import torch
from families import EOS, PAD, build, tokenizer
from thinking import PLAN, RECIPE, STRENGTHS, THINK, TOKENS, model, prompts

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, Phase, Truncation
from hf_eft.decoding.phases import Phases
from hf_eft.decoding.speculative.coupling import Noise
from hf_eft.members.releases import cache_of
from hf_eft.recipe.phases import Markers

STEPS = 20
OPTIONS: dict[str, Any] = {"max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": PAD}
EIGHT = prompts(8)


def add_on(recipe: Combination = RECIPE, **more: Any) -> EFTLogitsProcessor:
    tuned, reference = thinking.member("qwen3", 1), thinking.member("qwen3", 2)
    given = {"attention_mask": EIGHT["attention_mask"], **more}
    return EFTLogitsProcessor(tuned, reference, combination=recipe, **given)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    rows = thinking.greedy(EIGHT, STEPS)
    whole = [[*ids[mask.bool()].tolist(), *row] for ids, mask, row in zip(*EIGHT.values(), rows, strict=True)]
    phases = [[thinking.standing(row[:n])[0] for n in range(len(row) - STEPS, len(row))] for row in whole]
    assert {name for row in phases for name in row} == set(STRENGTHS) and any(len(set(row)) > 1 for row in phases)
    return rows


@pytest.mark.parametrize(
    "how",
    [
        {}, {"use_cache": False}, {"prefill_chunk_size": 4}, {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3},
        *({"assistant_model": who, "num_assistant_tokens": block} for who in ("tuned", "base", "small") for block in (1, 2, 5)),
        {"assistant_model": "tuned"}, {"assistant_model": "outsider", "num_assistant_tokens": 3},
    ],
    ids=str,
)  # fmt: skip
def test_greedy(how: dict[str, Any], expected: list[list[int]]) -> None:
    combined = model()
    if who := how.get("assistant_model"):
        drafts = {"small": combined.small_combination, "outsider": thinking.member("llama", 7)}
        how = {**how, "assistant_model": drafts.get(who) or combined.members[who]}
    assert combined.generate(**EIGHT, **OPTIONS, **how)[:, 9:].tolist() == expected


def test_the_add_on(expected: list[list[int]]) -> None:
    base, options = thinking.member("llama", 0), {**OPTIONS, "logits_processor": [add_on()]}
    assert base.generate(**EIGHT, **options)[:, 9:].tolist() == expected
    one = {name: tensor[3:4, -int(EIGHT["attention_mask"][3].sum()) :] for name, tensor in EIGHT.items()}
    options["logits_processor"] = [add_on(attention_mask=None, pad_token_id=1)]  # where the prompt ends is not asked
    assert base.generate(**one, **options)[0, one["input_ids"].shape[1] :].tolist() == expected[3]
    drafted = base.generate(**one, **options, assistant_model=thinking.member("qwen3", 1))
    assert drafted[0, one["input_ids"].shape[1] :].tolist() == expected[3]


def test_an_assistant_that_transformers_rolls_back_itself(expected: list[list[int]]) -> None:
    one = {name: tensor[3:4, -int(EIGHT["attention_mask"][3].sum()) :] for name, tensor in EIGHT.items()}
    theirs = model(base=thinking.member("llama", 5), tuned=thinking.member("llama", 5))
    got = model().generate(**one, **OPTIONS, assistant_model=theirs)[0, one["input_ids"].shape[1] :]
    assert got.tolist() == expected[3]


def test_continuous_batching(expected: list[list[int]]) -> None:
    combined = EFTForCausalLM.from_models(
        *(build(family, seed, vocab_size=TOKENS) for family, seed in (("llama", 0), ("qwen3", 1), ("qwen3", 2))),
        combination=RECIPE,
    )
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(EIGHT["input_ids"], EIGHT["attention_mask"], strict=True)]
    combined.generation_config.eos_token_id = None
    config = paged.greedy(STEPS, eos_token_id=None)
    with torch.no_grad():
        got = paged.batched(combined, rows, config)
        assert got == paged.one_by_one(combined, rows, config)
        assert sum(a == b for a, b in zip(got, expected, strict=True)) >= 6  # in float32 a tie may fall elsewhere
        by_phase = {name: torch.tensor([[1.0, a, -a]] * 8) for name, a in STRENGTHS.items()}
        combined.combination = Combination.emulate(alpha=0.1, phases=[THINK, PLAN])
        assert paged.batched(combined, rows, config, coefficients=by_phase) == got
        with pytest.raises(ValueError, match=r"are by phase, .* of which the recipe must know each; it has the phases"):
            paged.batched(combined, rows, config, coefficients={"think": torch.ones(8, 3)})
        combined.combination = Combination.emulate()
        with pytest.raises(ValueError, match="it has none: give the model one"):
            paged.batched(combined, rows, config, coefficients=by_phase)


@pytest.mark.parametrize("beams", [2, 3])
def test_beams(beams: int) -> None:
    searched, found = (
        {**OPTIONS, "max_new_tokens": 12, "num_beams": beams, "return_dict_in_generate": True, "output_scores": True},
        [],
    )
    together = model().generate(**EIGHT, **searched)
    theirs = thinking.member("llama", 0).generate(**EIGHT, **searched, logits_processor=[add_on()])
    assert together.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(together.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=0)
    stateless = oracle.Stateless(lambda ids: torch.stack([thinking.log_probs(row) for row in ids]).float(), TOKENS)
    for row in range(3):
        ids = EIGHT["input_ids"][row : row + 1, EIGHT["attention_mask"][row].bool()]
        alone = stateless.generate(ids, **searched, use_cache=False)
        assert together.sequences[row, 9:].tolist() == alone.sequences[0, ids.shape[1] :].tolist()
        torch.testing.assert_close(
            together.sequences_scores[row].double(), alone.sequences_scores[0].double(), atol=1e-4, rtol=0
        )
        found.append({thinking.standing(alone.sequences[0, :n].tolist())[0] for n in range(ids.shape[1], 20)})
    assert any(len(names) > 1 for names in found)


def test_sampled_rows_are_those_of_their_seeds() -> None:
    seeds, combined = list(range(30, 38)), model()
    options = {**OPTIONS, "do_sample": True, "coupling": "match", "seed": seeds}
    rows = []
    for n, (ids, mask) in enumerate(zip(EIGHT["input_ids"], EIGHT["attention_mask"], strict=True)):
        row, noise = ids[mask.bool()], Noise([seeds[n]])
        for step in range(STEPS):
            row = torch.cat([row, noise.pick(thinking.log_probs(row)[None], [step])])
        rows.append(row[int(mask.sum()) :].tolist())
    for how in ({}, {"assistant_model": combined.tuned, "num_assistant_tokens": 3}, {"prompt_lookup_num_tokens": 2}):
        assert combined.generate(**EIGHT, **options, **how)[:, 9:].tolist() == rows, how
    torch.manual_seed(5)
    plain = combined.generate(**EIGHT, **OPTIONS, do_sample=True, top_k=5)
    torch.manual_seed(5)
    theirs = thinking.member("llama", 0).generate(**EIGHT, **OPTIONS, do_sample=True, top_k=5, logits_processor=[add_on()])
    assert plain.tolist() == theirs.tolist()


def test_coefficients_of_rows_by_phase_and_budgets_that_hold_all_the_same() -> None:
    combined = model(Combination.emulate(alpha=0.7, phases=[THINK, PLAN]))
    factors = torch.linspace(0.2, 1.6, 8)
    by_phase = {name: torch.stack([torch.ones(8), a * factors, -a * factors], dim=1) for name, a in STRENGTHS.items()}
    for how in ({}, {"assistant_model": combined.tuned, "num_assistant_tokens": 3}, {"num_beams": 2}):
        together = combined.generate(**EIGHT, **OPTIONS, coefficients=by_phase, **how)[:, 9:].tolist()
        for row in range(0, 8, 2):
            strengths = {name: a * float(factors[row]) for name, a in STRENGTHS.items()}
            alone = model(Combination.emulate(alpha=strengths, phases=[THINK, PLAN]))
            ids = EIGHT["input_ids"][row : row + 1, EIGHT["attention_mask"][row].bool()]
            assert (
                alone.generate(ids, **OPTIONS, **({"num_beams": 2} if "num_beams" in how else {}))[0, ids.shape[1] :].tolist()
                == together[row]
            )
    numbers = torch.tensor([[1.0, 0.4, -0.4]] * 8)
    got = combined.generate(**EIGHT, **OPTIONS, coefficients=numbers)
    assert got.tolist() == model(Combination.emulate(alpha=0.4, phases=[THINK, PLAN])).generate(**EIGHT, **OPTIONS).tolist()
    assert "67" in "".join(map(str, got[0, 9:14].tolist()))  # after three tokens at most
    for wrong in ({"think": numbers}, {**by_phase, "plan": numbers[:, :2]}, {**by_phase, "plan": numbers[:2]}):
        with pytest.raises(ValueError, match="by phase must be a tensor for each of"):
            combined.generate(**EIGHT, **OPTIONS, coefficients=wrong)
    with pytest.raises(ValueError, match="must be finite"):
        combined.generate(**EIGHT, **OPTIONS, coefficients={**by_phase, "plan": numbers * torch.nan})


def test_a_schedule_beside_phases() -> None:
    recipe = Combination({"base": [1.0, 0.5, 1.5], "tuned": STRENGTHS, "reference": -0.4}, phases=[THINK, PLAN])
    combined, rows = model(recipe), []
    for ids, mask in zip(EIGHT["input_ids"][:3], EIGHT["attention_mask"][:3], strict=True):
        row = ids[mask.bool()]
        for step in range(10):
            phase, token = thinking.standing(row.tolist())
            c = {"base": [1.0, 0.5, 1.5][min(step, 2)], "tuned": STRENGTHS[phase], "reference": -0.4}
            row = torch.cat(
                [
                    row,
                    torch.tensor([token]) if token is not None else oracle.log_probs(thinking.members(), c, row).argmax()[None],
                ]
            )
        rows.append(row[-10:].tolist())
    three = {name: tensor[:3] for name, tensor in EIGHT.items()}
    for how in ({}, {"assistant_model": combined.tuned, "num_assistant_tokens": 3}):
        assert combined.generate(**three, **{**OPTIONS, "max_new_tokens": 10}, **how)[:, 9:].tolist() == rows
    adds = add_on(recipe, attention_mask=three["attention_mask"])
    got = thinking.member("llama", 0).generate(**three, **{**OPTIONS, "max_new_tokens": 10}, logits_processor=[adds])
    assert got[:, 9:].tolist() == rows


def test_a_member_s_own_prompt_opens_a_phase_where_the_call_s_does_not() -> None:
    ids = torch.tensor([[3, 6, 4, 4], [3, 4, 5, 3]])  # the second thinks already, after one token
    own = {"tuned": {"input_ids": torch.tensor([[0, 3, 5], [3, 3, 3]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}}
    recipe = Combination.emulate(alpha={"think": 1.4, "answer": 0.3}, phases=[THINK])
    combined, options = model(recipe), {**OPTIONS, "attention_mask": torch.ones_like(ids), "max_new_tokens": 12}
    rows = []
    for n, prefix in enumerate(([5], [5, 3])):  # as if that were all that says where the text stands
        said: list[int] = []
        for _ in range(12):
            phase, token = thinking.standing([*prefix, *said], [THINK])
            if token is None:
                alpha = {"think": 1.4, "answer": 0.3}[phase]
                mine = {"base": ids[n], "tuned": own["tuned"]["input_ids"][n, 1 - n :], "reference": ids[n]}
                total = sum(
                    c * oracle.along(thinking.members()[name], torch.tensor([*mine[name].tolist(), *said]))[-1].log_softmax(-1)
                    for name, c in (("base", 1.0), ("tuned", alpha), ("reference", -alpha))
                )
                token = int(total.argmax())
            said.append(token)
        rows.append(said)
    for how in ({}, {"assistant_model": combined.tuned, "num_assistant_tokens": 3}, {"num_beams": 1, "use_cache": False}):
        assert combined.generate(ids, member_inputs=own, **options, **how)[:, 4:].tolist() == rows, how
    adds = add_on(recipe, attention_mask=options["attention_mask"], member_inputs=own)
    assert thinking.member("llama", 0).generate(ids, **options, logits_processor=[adds])[:, 4:].tolist() == rows


def test_a_call_that_goes_on_where_another_ended(expected: list[list[int]]) -> None:
    combined = model()
    first = combined.generate(**EIGHT, **{**OPTIONS, "max_new_tokens": 7}, return_dict_in_generate=True)
    mask = torch.cat([EIGHT["attention_mask"], torch.ones(8, 7, dtype=torch.long)], dim=1)
    rest = {**OPTIONS, "max_new_tokens": STEPS - 7, "attention_mask": mask}
    assert combined.generate(first.sequences, **rest)[:, 9:].tolist() == expected
    assert combined.generate(first.sequences, **rest, cache=cache_of(first))[:, 9:].tolist() == expected


def test_forward_reads_the_phases_of_what_it_is_given() -> None:
    combined, ids = model(), EIGHT["input_ids"][:4]
    logits = combined(**{name: tensor[:4] for name, tensor in EIGHT.items()}).logits
    for row in range(4):
        padding = int((EIGHT["attention_mask"][row] == 0).sum())
        for column in range(padding, 9):
            want = thinking.log_probs(ids[row, padding : column + 1])
            torch.testing.assert_close(logits[row, column].double().log_softmax(-1), want, atol=1e-4, rtol=1e-4)
    read = combined(ids, use_cache=True)
    with pytest.raises(ValueError, match="depends on all tokens before them"):
        combined(ids[:, :1], cache=cache_of(read))


def test_what_a_mask_hides_within_a_phase_does_not_count() -> None:
    """A marker and a budget go by the tokens that members read."""
    phases = Phases(Markers([Phase(start=[5, 6], end=[7], budget=4)]))
    ids, mask = torch.tensor([[9, 5, PAD, 6, 8, PAD, PAD, 8]]), torch.tensor([[1, 1, 0, 1, 1, 0, 0, 1]])
    (states,) = phases.after(ids, mask, 5)
    assert [(state.phase, state.length) for state in states] == [(1, 0), (1, 1), (1, 1), (1, 1), (1, 2)]


def test_what_ends_a_text_ends_its_phases() -> None:
    """A user may write of a marker, in a turn that is over."""
    words = tokenizer()
    members = {name: build("llama", seed).double() for seed, name in enumerate(("base", "tuned", "reference"))}
    recipe = Combination.emulate(alpha={"think": 1.4, "answer": 0.0}, phases=[Phase("think", "w5", "w6")])
    told = EFTForCausalLM.from_models(**members, combination=recipe, tokenizers=dict.fromkeys(members, words))
    ids = torch.tensor([[3, 5, 4, EOS, 7, 8]])
    assert told.generate(ids, **OPTIONS).tolist() == members["base"].generate(ids, **OPTIONS).tolist()
    ids[0, 3] = 9
    assert told.generate(ids, **OPTIONS).tolist() != members["base"].generate(ids, **OPTIONS).tolist()


def test_what_cannot_be_is_refused_by_name() -> None:
    inputs = {name: tensor[:1] for name, tensor in EIGHT.items()}
    options = {**OPTIONS, "max_new_tokens": 8}
    for how in ({}, {"assistant_model": model().tuned, "num_assistant_tokens": 2}, {"num_beams": 2}):
        with pytest.raises(ValueError, match=r"no token left for row 0.*phase whose budget is used up"):
            model().generate(**inputs, **options, bad_words_ids=[[6]], **how)
    with pytest.raises(ValueError, match="phase whose budget is used up"):
        thinking.member("llama", 0).generate(
            **inputs, **options, bad_words_ids=[[6]], logits_processor=[add_on(attention_mask=inputs["attention_mask"])]
        )
    with pytest.raises(ValueError, match="no tokenizer says which tokens that is"):
        model(Combination.emulate(phases=[Phase()])).generate(**inputs, **options)
    with pytest.raises(ValueError, match=r"'think' could never end: the token 99 .* none that all members have"):
        model(Combination.emulate(phases=[Phase("think", [5], [99])])).generate(**inputs, **options)
    embeds = thinking.member("llama", 0).get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="pass `input_ids` beside `inputs_embeds`"):
        model().generate(inputs_embeds=embeds, **options)
    beside = model().generate(inputs_embeds=embeds, **inputs, **options)
    assert beside[:, -8:].tolist() == model().generate(**inputs, **options)[:, -8:].tolist()


def test_a_truncation_beside_phases_and_threads_that_call_at_once(expected: list[list[int]]) -> None:
    cut = model(Combination.emulate(alpha=STRENGTHS, phases=[THINK, PLAN], truncation=Truncation("keep", 0.7)))
    plain = cut.generate(**EIGHT, **OPTIONS).tolist()
    assert cut.generate(**EIGHT, **OPTIONS, assistant_model=cut.tuned, num_assistant_tokens=3).tolist() == plain
    combined, got = model(), [None, None]

    def call(place: int, rows: slice) -> None:
        got[place] = combined.generate(**{name: tensor[rows] for name, tensor in EIGHT.items()}, **OPTIONS)[:, 9:].tolist()

    threads = [threading.Thread(target=call, args=(place, slice(4 * place, 4 * place + 4))) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [*got[0], *got[1]] == expected  # type: ignore[misc]
