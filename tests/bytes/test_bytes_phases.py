"""Strength by phase over bytes: phases of bytes, in texts of members whose tokenizers differ, against the enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import thinking
from byte_members import EXACT, MODELS, OFFSET, PROMPTS, generated, members, written
from byte_oracle import Oracle, model
from families import build

from hf_eft import Combination, EFTForCausalLM, Phase, tiny
from hf_eft.bytes.tokens import ByteTokenizer

A, B = (byte + OFFSET for byte in b"ab")
PHASES = [Phase("think", [B, A], [B, B], budget=1), Phase("plan", [A, A], [B], budget=None)]
STRENGTHS = {"think": 1.6, "plan": -0.7, "answer": 0.4}
RECIPE = Combination.emulate(alpha=STRENGTHS, phases=PHASES)
STEPS = 7


def combined(recipe: Combination = RECIPE, **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(**members(**options), combination=recipe)


def test_each_byte_is_weighed_by_its_phase() -> None:
    oracles = {name: Oracle(model(which, seed), which) for name, (which, seed) in MODELS.items()}
    stood = set()
    for text, row in zip(PROMPTS, generated(combined(**EXACT), max_new_tokens=STEPS), strict=True):
        expected = text
        for _ in range(STEPS):
            phase, forced = thinking.standing([byte + OFFSET for byte in expected], PHASES)
            stood.add((phase, forced is not None))
            if forced is None:
                p = {name: oracle.next(expected, b"ab").log() for name, oracle in oracles.items()}
                best = int((p["base"] + STRENGTHS[phase] * (p["tuned"] - p["reference"])).argmax())
                if best == 2:
                    break
                expected += b"ab"[best : best + 1]
            else:
                expected += bytes([forced - OFFSET])
        assert written(row) == expected
    assert {("think", True), ("think", False), ("answer", False)} <= stood  # so that phases matter here


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "coupling": "match", "seed": [5, 6, 7]}], ids=str)
def test_rows_have_phases_of_their_own(options: dict[str, Any]) -> None:
    whole = combined(**EXACT)
    together = generated(whole, max_new_tokens=5, **options)
    plain = combined(Combination.emulate(alpha=STRENGTHS["answer"]), **EXACT)
    assert together != generated(plain, max_new_tokens=5, **options)
    assert together == generated(combined(**EXACT), max_new_tokens=5, **options)


def test_markers_that_are_texts_need_the_tokenizer_of_bytes() -> None:
    given = dict(zip(("base", "tuned", "reference"), (build("llama", seed, vocab_size=512) for seed in (1, 2, 3)), strict=True))
    texts = tiny.load()[-1]
    recipe = Combination.emulate(alpha={"think": 1.5, "answer": 0.5}, phases=[Phase("think", "<t>", "</t>", budget=3)])
    named = EFTForCausalLM.from_models(
        given["base"], tuned=given["tuned"], reference=given["reference"], combination=recipe, vocabulary="bytes",
        tokenizers=dict.fromkeys(given, texts),
    )  # fmt: skip
    inputs = ByteTokenizer()("It is <t>so", return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": None}
    spelt = [[b + OFFSET for b in mark] for mark in (b"<t>", b"</t>")]
    ids = Combination.emulate(alpha={"think": 1.5, "answer": 0.5}, phases=[Phase("think", *spelt, budget=3)])
    expected = EFTForCausalLM.from_models(
        given["base"], tuned=given["tuned"], reference=given["reference"], combination=ids, vocabulary="bytes",
        tokenizers=dict.fromkeys(given, texts),
    ).generate(**inputs, **options)  # fmt: skip
    assert b"</t>" in written(expected[0])
    assert named.generate(**inputs, **options).tolist() == expected.tolist()
