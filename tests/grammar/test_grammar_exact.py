"""The distribution under a grammar is the combination's, renormalised over what it allows: held against three stateless forwards."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import oracle
import pytest
import regex
import torch
from families import EOS, PAD, SEED, build
from structured import tokenizer_of

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.grammar import GrammarLogitsProcessor, Grammars, Thinking

TEXTS = ["a", "b", "c", "ab", "ba", "bb", "xx"]
EXPRESSION = "(ab|bba?|c)+(a|xx)?"
STEPS = 6
WIDTH = 24  # logits, of which the last have no tokens


@functools.cache
def world() -> tuple[Any, dict[str, Any], dict[str, float], Grammars]:
    tokenizer = tokenizer_of(TEXTS)
    members = {}
    for seed, name in enumerate(("base", "tuned", "reference")):
        # Of one seed whatever `SEED` is: how plainly a planted bias is seen is a matter of the distribution.
        members[name] = build("llama", seed - 1000 * SEED, vocab_size=WIDTH, num_hidden_layers=1)
        with torch.no_grad():
            members[name].lm_head.weight.mul_(1.5)
    return tokenizer, members, {"base": 1.0, "tuned": 0.7, "reference": -0.7}, Grammars(tokenizer)


@functools.cache
def allowed(said: tuple[int, ...]) -> torch.Tensor:
    """Which tokens may follow, by `regex`: those with which the text may yet match as a whole, and the end where it does."""
    tokenizer = world()[0]
    text = tokenizer.decode(said)
    mask = torch.zeros(WIDTH, dtype=torch.bool)
    for token in range(3, len(tokenizer)):
        mask[token] = bool(regex.fullmatch(EXPRESSION, text + tokenizer.decode([token]), partial=True))
    mask[EOS] = bool(regex.fullmatch(EXPRESSION, text))
    return mask


def allowed_thinking(prompt: tuple[int, ...], said: tuple[int, ...]) -> torch.Tensor:
    """The same behind a thought, if there is one."""
    first, last = world()[0].convert_tokens_to_ids(["<think>", "</think>"])
    opened = first in prompt and last not in prompt[len(prompt) - prompt[::-1].index(first) :]
    if not opened and said[:1] != (first,):
        mask = allowed(said)
        return mask | torch.nn.functional.one_hot(torch.tensor(first), len(mask)).bool() if not said else mask
    if last in said:
        return allowed(said[said.index(last) + 1 :])
    mask = torch.arange(WIDTH) < len(world()[0])
    mask[EOS] = False
    return mask


def expected(prompt: list[int], said: list[int], thinking: bool = False) -> torch.Tensor:
    """`(vocab,)`: the log-probability of each token."""
    _, members, coefficients, _ = world()
    mask = allowed_thinking(tuple(prompt), tuple(said)) if thinking else allowed(tuple(said))
    values = oracle.log_probs(members, coefficients, torch.tensor([*prompt, *said]))
    return values.masked_fill(~mask, -torch.inf).log_softmax(-1)


def prompts(rows: int, thinking: bool = False) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    made = [torch.randint(3, 10, (1 + row * 3 % 7,), generator=draw).tolist() for row in range(rows)]
    first, last = world()[0].convert_tokens_to_ids(["<think>", "</think>"])
    return [[*row, *([], [first], [first, 5, last])[i % 3]] for i, row in enumerate(made)] if thinking else made


def inputs_of(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])}


SCORES = {"return_dict_in_generate": True, "output_scores": True}
SAMPLE = {"do_sample": True, "top_k": 0}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": SAMPLE,
    "static": {"cache_implementation": "static", "disable_compile": True},
    "tuned drafts": {"assistant_model": "tuned", "num_assistant_tokens": 3},
    "tuned drafts, reject": {"assistant_model": "tuned", "num_assistant_tokens": 3, **SAMPLE},
    "tuned drafts, match": {"assistant_model": "tuned", "num_assistant_tokens": 2, "coupling": "match", "seed": 3, **SAMPLE},
    "static drafts": {"assistant_model": "tuned", "num_assistant_tokens": 3, "cache_implementation": "static", "disable_compile": True},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "lookup, reject": {"prompt_lookup_num_tokens": 3, **SAMPLE},
    "add-on before": {"leaf": 0},
    "add-on behind": {"leaf": 1, **SAMPLE},
}  # fmt: skip


def run(way: str, rows: list[list[int]], **more: Any) -> Any:
    """What `generate` returns, with the grammar."""
    _, members, coefficients, grammars = world()
    inputs, options = inputs_of(rows), dict(WAYS.get(way, {}))
    keeps: Any = GrammarLogitsProcessor(grammars.regex(EXPRESSION), inputs["input_ids"], more.pop("thinking", None))
    model: Any = EFTForCausalLM.from_models(**members, alpha=coefficients["tuned"])
    processors = [keeps]
    if (place := options.pop("leaf", None)) is not None:
        model, mask = members["base"], inputs["attention_mask"]
        add_on = EFTLogitsProcessor(members["tuned"], members["reference"], alpha=0.7, attention_mask=mask)
        processors.insert(place, add_on)
    if options.get("assistant_model"):
        options["assistant_model"] = members["tuned"]
    torch.manual_seed(11)
    return model.generate(**inputs, logits_processor=processors, **{"max_new_tokens": STEPS, **options, **more})


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("way", WAYS)
def test_every_step_is_the_combination_renormalised(way: str, rows: int) -> None:
    for thinking in (None, Thinking.of(world()[0])):
        given = prompts(rows, thinking is not None)
        out = run(way, given, thinking=thinking, **SCORES)
        for row, prompt in enumerate(given):
            said = out.sequences[row, max(map(len, given)) :].tolist()
            said = said[: said.index(EOS) + 1] if EOS in said else said
            for step, token in enumerate(said):
                wanted = expected(prompt, said[:step], thinking is not None)
                got = out.scores[step][row].double().log_softmax(-1)
                assert (got == -torch.inf).equal(wanted == -torch.inf), f"row {row}, step {step} of {said}"
                torch.testing.assert_close(got.clamp(min=-99), wanted.clamp(min=-99), atol=3e-4, rtol=0)
                if "do_sample" not in WAYS[way]:
                    assert wanted[token] >= wanted.max() - 3e-4


@pytest.mark.parametrize("rows", [1, 8])
def test_beams_are_those_of_the_renormalised_distribution(rows: int) -> None:
    given = [row[-1:] * 2 for row in prompts(rows)]

    def ask(ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([_of_a_beam(row[:2].tolist(), row[2:].tolist()) for row in ids]).float()

    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, **SCORES}
    stateless = oracle.Stateless(ask, WIDTH)
    stateless.generation_config.pad_token_id, stateless.generation_config.eos_token_id = PAD, EOS
    wanted, got = stateless.generate(torch.tensor(given), use_cache=False, **options), run("beams", given, **options)
    assert got.sequences.tolist() == wanted.sequences.tolist()
    torch.testing.assert_close(got.sequences_scores, wanted.sequences_scores, atol=3e-4, rtol=0)


def _of_a_beam(prompt: list[int], said: list[int]) -> torch.Tensor:
    """As `expected`; behind an end, where searches do not look, anything."""
    if set(said) & {EOS, PAD} or not all(allowed(tuple(said[:i]))[token] for i, token in enumerate(said)):
        return torch.zeros(WIDTH, dtype=torch.float64)
    return expected(prompt, said)


def excess(way: str, rows: int, samples: int, steps: int = 3) -> float:
    """By how many standard deviations the chi-square of whole continuations is above its mean."""
    prompt = [3, 4]
    probabilities: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(steps):
        longer: dict[tuple[int, ...], float] = {}
        for said, p in probabilities.items():
            if EOS in said:
                longer[*said, PAD] = p
                continue
            by_token = expected(prompt, list(said)).exp()
            longer |= {(*said, token): p * float(by_token[token]) for token in range(WIDTH) if by_token[token] > 0}
        probabilities = longer
    assert sum(probabilities.values()) == pytest.approx(1)
    counts: dict[tuple[int, ...], int] = {}
    _, members, coefficients, grammars = world()
    model = EFTForCausalLM.from_models(**members, alpha=coefficients["tuned"])
    options = dict(WAYS[way])
    if options.get("assistant_model"):
        options["assistant_model"] = members["tuned"]
    ids = torch.tensor([prompt] * rows)
    keeps = GrammarLogitsProcessor(grammars.regex(EXPRESSION), ids)
    torch.manual_seed(12)
    for _ in range(samples // rows):
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[keeps], max_new_tokens=steps, **options
        )
        for row in out[:, 2:].tolist():
            key = tuple(row + [PAD] * (steps - len(row)))
            counts[key] = counts.get(key, 0) + 1
    assert counts.keys() <= probabilities.keys()
    statistic, freedom = oracle.chi_square(counts, probabilities)
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("rows", "samples"),
    [
        (64, 64 * 60),
        pytest.param(8, 20_000, marks=pytest.mark.nightly),
        pytest.param(1, 6_000, marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("way", ["sample", "tuned drafts, reject", "lookup, reject"])
def test_samples_are_of_the_renormalised_distribution(way: str, rows: int, samples: int) -> None:
    assert excess(way, rows, samples) < 4


def test_a_grammar_that_only_the_draft_keeps_to_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: drafts that are looked at without the grammar have another distribution."""
    true = GrammarLogitsProcessor.__call__
    turns = itertools.cycle([True, True, True, False])

    def forgets(self: Any, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return true(self, ids, scores if next(turns) else scores * 0.7)

    monkeypatch.setattr(GrammarLogitsProcessor, "__call__", forgets)
    assert excess("tuned drafts, reject", 64, 64 * 60) > 8
