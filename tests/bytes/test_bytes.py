"""Probabilities of texts are those of exhaustive enumeration; what is left out is known; prompts are read as the tokenizer cuts them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from byte_members import EXACT, OFFSET, ids_of, probabilities, texts
from byte_oracle import ALPHABETS, Oracle, model, tokenizer
from families import BOS

from hf_eft import EFTForCausalLM
from hf_eft.bytes import ByteLevelModel
from hf_eft.spelling.reader import Asked
from hf_eft.spelling.sums import measure
from hf_eft.spelling.texts import State

# Exhaustive -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overlapping", "nested", "letters"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "lfm2", "mamba"])
def test_distributions_are_those_of_the_enumeration_at_every_prefix(name: str, family: str) -> None:
    small = model(name, 0, family)
    oracle, reader = Oracle(small, name), ByteLevelModel(small, tokenizer(name), **EXACT)
    # mistral's window is 5 tokens: texts that are longer than it
    chosen = [text * 2 if family == "mistral" else text for text in texts(name, 4)[:: 3 if family == "mistral" else 1]]
    logits = reader(**ids_of(*chosen)).logits
    for text, row in zip(chosen, logits, strict=True):
        expected = torch.stack([oracle.next(text[: n + 1], ALPHABETS[name]) for n in range(len(text))])
        assert torch.allclose(probabilities(row, ALPHABETS[name]), expected, atol=2e-5, rtol=1e-4), text


def test_a_space_in_front_of_every_text_is_part_of_the_conventions() -> None:
    """With SentencePiece's conventions the model's own text begins with a space, and two tokens may be the same bytes."""
    small = model("sentencepiece", 0)
    oracle, reader = Oracle(small, "sentencepiece"), ByteLevelModel(small, tokenizer("sentencepiece"), **EXACT)
    for text in (b"a", b"ab", b"ab a", b"b ab", b"bab"):
        p = probabilities(reader(**ids_of(text)).logits[0, -1], b" ab")
        assert torch.allclose(p, oracle.next(b" " + text, b" ab"), atol=1e-5, rtol=1e-4), text


@pytest.mark.parametrize("end", [False, True])
def test_log_probs_of_texts_are_those_of_the_enumeration(end: bool) -> None:
    small = model("overlapping", 3)
    oracle, reader = Oracle(small, "overlapping"), ByteLevelModel(small, tokenizer("overlapping"), **EXACT)
    for text in texts("overlapping", 5):
        low, high = reader.log_prob(text, end=end)
        assert low == high == pytest.approx(math.log((oracle.ended if end else oracle.joint)(text)), abs=1e-4)
        conditional = reader.log_prob(text[2:], prompt=text[:2], end=end).lower
        assert conditional == pytest.approx(low - math.log(oracle.joint(text[:2])), abs=1e-4)


def test_padding_and_batches_change_nothing() -> None:
    reader = ByteLevelModel(model("nested", 1), tokenizer("nested"), **EXACT)
    rows = [b"ab", b"aabba", b"b", b"aabba", b"aabbb"]
    together = reader(**ids_of(*rows)).logits
    for row, text in zip(together, rows, strict=True):
        fresh = ByteLevelModel(reader.model, reader.tokenizer, **EXACT)
        alone = fresh(input_ids=ids_of(text)["input_ids"]).logits[0]
        assert torch.allclose(row[-len(text) :], alone, atol=1e-4)


def exact_combination(models: dict[str, Any]) -> EFTForCausalLM:
    readers = {
        name: ByteLevelModel(member, tokenizer("overlapping" if name == "base" else "nested"), **EXACT)
        for name, member in models.items()
    }
    return EFTForCausalLM.from_models(**readers)


def test_combination_of_two_vocabularies_is_the_enumerations_combination() -> None:
    models = {"base": model("overlapping", 0), "tuned": model("nested", 1), "reference": model("nested", 2)}
    combined = exact_combination(models)
    oracles = {name: Oracle(member, "overlapping" if name == "base" else "nested") for name, member in models.items()}
    chosen = texts("nested", 4)
    logits = combined(**ids_of(*chosen)).logits
    for text, row in zip(chosen, logits, strict=True):
        for n in range(1, len(text) + 1):
            by_member = {name: oracle.next(text[:n], b"ab").log() for name, oracle in oracles.items()}
            expected = (by_member["base"] + by_member["tuned"] - by_member["reference"]).softmax(-1)
            assert torch.allclose(probabilities(row[n - 1], b"ab"), expected, atol=1e-4, rtol=1e-3)


def test_what_a_member_cannot_write_has_no_probability_and_says_nothing_after() -> None:
    reader = ByteLevelModel(model("overlapping", 0), tokenizer("overlapping"), **EXACT)
    assert reader.log_prob(b"abXa").lower == -math.inf
    logits = reader(**ids_of(b"abXa")).logits[0]
    assert logits[1, ord("X") + OFFSET] == -torch.inf
    assert torch.allclose(logits[2, OFFSET:], logits[2, OFFSET])


# What is left out -----------------------------------------------------------------------------------------------------


def state_of(reader: ByteLevelModel, text: bytes) -> State:
    state = reader._read([Asked(ids_of(text)["input_ids"][0].int().numpy().tobytes(), 0, [len(text)])])[0][0]
    measure([state], reader._covers.lexicon)
    return state


@pytest.mark.parametrize(
    "limits", [{"covers": 1}, {"covers": 2}, {"covers": None, "threshold": 0.1}, {"threshold": 0.02}], ids=str
)
def test_what_is_left_out_is_known(limits: dict[str, Any]) -> None:
    small = model("overlapping", 0)
    oracle = Oracle(small, "overlapping")
    reader = ByteLevelModel(small, tokenizer("overlapping"), prompt="bytes", **limits)
    left_out = []
    for text in texts("overlapping", 5):
        exact = oracle.joint(text)
        low, high = (math.exp(bound) for bound in reader.log_prob(text))
        assert low <= exact * (1 + 1e-4) and exact <= high * (1 + 1e-4)
        logits = reader(**ids_of(text)).logits[0, -1]
        [missing] = reader.missing
        state = state_of(reader, text)
        assert state.next is not None
        known = state.next.exp()  # without the share of what no kept cover leads to
        p = torch.cat([known[list(b"ab")], known[-1:]])
        wrong = 0.5 * float((p - oracle.next(text, b"ab")).abs().sum())
        assert wrong <= missing.bound + 1e-5
        assert 0 <= missing.estimate <= 1
        left_out.append(1 - low / exact)
        assert torch.isfinite(logits[[1, *(byte + OFFSET for byte in range(256))]]).all() == bool(state.spares)
    assert max(left_out) > 1e-3  # something was


def test_more_covers_leave_less_out() -> None:
    small = model("nested", 0)
    readers = [
        ByteLevelModel(small, tokenizer("nested"), covers=limit, threshold=0.0, prompt="bytes") for limit in (1, 2, None)
    ]
    reached = [sum(math.exp(reader.log_prob(text).lower) for text in texts("nested", 4)) for reader in readers]
    assert reached == sorted(reached) and reached[0] < reached[-1]


def test_the_most_likely_covers_are_kept() -> None:
    reader = ByteLevelModel(model("nested", 0), tokenizer("nested"), covers=1, threshold=0.0, prompt="bytes")
    for text in (b"aa", b"aab", b"bb", b"abb"):
        state = state_of(reader, text)
        [ending] = [context.log_prob for context, node in state.covers if node.depth == 0]
        left = [spare.log_prob for spare in state.spares if not spare.tail]
        assert left and ending >= max(left)


def test_a_text_off_the_kept_covers_goes_on_from_the_most_likely_one_left_out() -> None:
    """With one cover and a high threshold texts leave the covers; what follows is still the model's own, after some cut of the text."""
    revived = checked = 0
    for small in (model("overlapping", seed) for seed in range(5)):
        reader = ByteLevelModel(small, tokenizer("overlapping"), covers=1, threshold=0.5, prompt="bytes")
        left = [off_the_covers(small, reader, text) for text in texts("overlapping", 4)]
        revived += sum(off for off, _ in left)
        checked += sum(held for _, held in left)
    assert revived and checked


def off_the_covers(small: Any, reader: ByteLevelModel, text: bytes) -> tuple[bool, bool]:
    """Whether a text has left the covers, and whether what follows it was held against the oracle."""
    state = state_of(reader, text)
    [(context, node)] = state.covers[:1]
    off = state.kept < 0.5
    if not off or len(state.covers) != 1 or node.depth:
        return off, False
    # The one cover ends where the text does: what it says of the next token is what the model says after some cut of the text.
    oracle = Oracle(small, "overlapping")
    says = context.table.exp()
    cuts = [oracle.following(cut).exp() for cut, _ in oracle._exactly(text, (BOS,), 0.0)]
    assert any(torch.allclose(says.double(), cut, atol=1e-5) for cut in cuts), text
    return True, True


# Prompts --------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_read_as_its_tokenizer_cuts_it_but_for_its_end() -> None:
    small, cut = model("overlapping", 0), tokenizer("overlapping")
    reader = ByteLevelModel(small, cut, covers=None, threshold=0.0)
    prompt = b"abbaababbaba"
    ids = cut(prompt.decode())["input_ids"]
    settled = ids[:-4]
    rest = prompt[len(cut.decode(settled)) :]
    p = probabilities(reader(**ids_of(prompt), logits_to_keep=1).logits[0, -1], b"ab")
    oracle = Oracle(small, "overlapping", start=settled)
    assert torch.allclose(p, oracle.next(rest, b"ab"), atol=1e-5, rtol=1e-4)
    byte_by_byte = Oracle(small, "overlapping").next(prompt, b"ab")
    assert not torch.allclose(p, byte_by_byte, atol=1e-3)


def test_special_tokens_and_half_letters_in_a_prompt() -> None:
    small, cut = model("letters", 0), tokenizer("letters")
    reader = ByteLevelModel(small, cut, covers=None, threshold=0.0)
    for prompt, start, rest in (
        (b"a<eos>aa\xc3\xa9", cut("a<eos>")["input_ids"], b"aa\xc3\xa9"),
        (b"<bos>a\xc3", [BOS], b"a\xc3"),
    ):
        p = probabilities(reader(**ids_of(prompt), logits_to_keep=1).logits[0, -1], b"a\xc3\xa9")
        expected = Oracle(small, "letters", start=start).next(rest, b"a\xc3\xa9")
        assert torch.allclose(p, expected, atol=1e-5, rtol=1e-4), prompt
    ended = ids_of(b"a<aa\xc3\xa9")
    ended["input_ids"][0, 1] = 1  # the end of text of the byte tokenizer is the member's own
    p = probabilities(reader(**ended, logits_to_keep=1).logits[0, -1], b"a\xc3\xa9")
    assert torch.allclose(p, Oracle(small, "letters", cut("a<eos>")["input_ids"]).next(b"aa\xc3\xa9", b"a\xc3\xa9"), atol=1e-5)
