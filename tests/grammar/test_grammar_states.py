"""A state is a function of a row's own tokens: whatever was asked before, the answer is that of a state that was asked nothing."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from structured import EOS, PAD, Case, check, expression, grammar_of, schema, tokenizer_of, world
from transformers import LogitsProcessor, LogitsProcessorList

from hf_eft import EFTForCausalLM
from hf_eft.grammar import GrammarLogitsProcessor, Grammars, Thinking
from hf_eft.grammar.states import _KEPT, RowState
from hf_eft.grammar.thinking import Begun


@pytest.mark.parametrize("seed", range(6))
def test_what_may_follow_does_not_depend_on_what_was_asked_before(seed: int) -> None:
    draw = random.Random(seed)
    grammar = grammar_of("regex", expression(draw)) if seed % 2 else grammar_of("json", schema(draw))
    state, text = RowState(grammar), []
    for _ in range(150):
        fresh = RowState(grammar).allowed(text)
        for _ in range(2):  # the second time from memory
            got = state.allowed(text)
            assert (got is None) == (fresh is None) and (fresh is None or torch.equal(got, fresh)), text
        way = draw.random()
        if way < 0.15:
            text = text[: draw.randint(0, len(text))]  # a draft is taken back
        elif way < 0.25:
            text = [draw.randint(0, grammar.size - 1) for _ in range(draw.randint(0, 3))]  # another text: a beam, leftovers
        elif way < 0.3 and text:
            text = [*text[:-1], draw.randint(0, grammar.size + 3)]  # another last token, maybe of nobody
        elif fresh is not None:
            text = [*text, draw.choice(fresh.nonzero().flatten().tolist())]
        else:
            text = []


def test_masks_are_not_kept_for_ever() -> None:
    state = RowState(world()[2].regex("a*"))
    for length in range(3 * _KEPT):
        assert state.allowed([world()[0].convert_tokens_to_ids("a")] * length) is not None
    assert len(state._masks) <= _KEPT


def test_rows_that_have_ended_go_on_with_the_end_and_lost_ones_with_nothing() -> None:
    tokenizer, _, grammars = world()
    state, only = RowState(grammars.regex("ab?")), torch.nn.functional.one_hot(torch.tensor(EOS), len(tokenizer)).bool()
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    assert torch.equal(state.allowed([a, EOS]), only) and torch.equal(state.allowed([a, EOS, PAD, PAD]), only)
    assert torch.equal(state.allowed([a, PAD]), only)  # ended by a stop string: what fills it is no text
    assert torch.equal(state.allowed([a, b]), only)
    assert state.allowed([c]) is None and state.allowed([a, c, b]) is None
    assert torch.equal(state.allowed([EOS]), only)  # it has ended, if not well: the last look says so
    assert state.is_kept([a, EOS], cut=False) and state.is_kept([a, b], cut=False)
    assert not state.is_kept([EOS], cut=True) and not state.is_kept([c], cut=True)
    long = RowState(grammars.regex("abc"))
    assert long.is_kept([a, b], cut=True) and not long.is_kept([a, b], cut=False) and not long.is_kept([a, EOS], cut=True)


def test_a_text_that_no_token_has_leaves_nothing() -> None:
    state = RowState(Grammars(tokenizer_of(["a", "b"])).regex("a(ß|bß)"))
    for _ in range(2):  # again after the dead end
        assert state.allowed([3]).nonzero().flatten().tolist() == [4]
        assert not state.allowed([3, 4]).any()


def test_a_text_that_is_sure_may_stand_in_any_tokens() -> None:
    tokenizer, _, grammars = world()
    for grammar, text in (
        (grammars.regex("abc"), ""),
        (grammars.json({"enum": ["abc"]}), '"'),
        (grammars.lark('%llguidance {"no_forcing": false}\nstart: "abc"'), ""),
    ):
        allowed = RowState(grammar).allowed(tokenizer(text)["input_ids"] if text else [])
        assert sorted(map(tokenizer.decode, allowed.nonzero())) == ["a", "ab"]


def test_a_grammar_that_is_too_complex_is_refused_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = world()[2].regex("(a|b)*abb(a|b){9}")
    begun, limits = (
        grammar.begun,
        grammar.engine.LLParserLimits(step_lexer_fuel=1, initial_lexer_fuel=10_000, max_lexer_states=12),
    )
    few = lambda: grammar.engine.LLMatcher(grammar.tokenizer, grammar.text, log_level=0, limits=limits)  # noqa: E731
    monkeypatch.setattr(grammar, "begun", few)
    state, a = RowState(grammar), world()[0].convert_tokens_to_ids("a")
    with pytest.raises(ValueError, match="cannot be followed any further"):
        state.allowed([a] * 30)
    monkeypatch.setattr(grammar, "begun", begun)
    state._begin()
    assert state.allowed([a] * 30).any()


@pytest.mark.parametrize(
    ("prompt", "said", "expected"),
    [
        ([9], [], Begun(0, 1)),
        ([9], [1], Begun(0, 2)),
        ([9], [1, 3], Begun(0)),
        ([9], [5], Begun(0)),
        ([9], [1, 2], Begun(None)),
        ([9], [1, 2, 7, 3, 7, 4], Begun(None)),
        ([9], [1, 2, 7, 3, 4], Begun(5)),
        ([9], [1, 2, 3, 4, 1, 2], Begun(4)),  # no second thought
        ([1, 2], [], Begun(None)),
        ([1, 2, 5], [1, 2, 3, 3, 4, 5], Begun(5)),
        ([1, 2, 3, 4], [], Begun(0, 1)),
        ([1, 2, 3, 4, 1, 2], [3], Begun(None)),
        ([9, 2, 1], [2], Begun(0)),  # a mark of two tokens stands in one text
    ],
    ids=str,
)
def test_where_an_answer_begins(prompt: list[int], said: list[int], expected: Begun) -> None:
    assert Thinking((1, 2), (3, 4)).begun(prompt, said) == expected
    always = Thinking((1, 2), (3, 4), always=True).begun(prompt, said)
    assert always.answer == (None if 4 not in said else said.index(4) + 1 if said[-2:] != [3, 4] else len(said)) or 7 in said


def test_a_thought_cannot_end_the_row() -> None:
    tokenizer, _, grammars = world()
    keeps = GrammarLogitsProcessor(grammars.regex("ab"), 1, Thinking.of(tokenizer))
    first, last, a = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "a"])
    ids = torch.tensor([[9, first, 7, 7], [9, first, last, a], [first, 7, 7, 7]])
    allowed = keeps.allowed(ids, len(tokenizer) + 5)
    assert not allowed[0, EOS] and allowed[0, :EOS].all() and allowed[0, EOS + 1 : len(tokenizer)].all()
    assert not allowed[0, len(tokenizer) :].any()
    assert tokenizer.decode(allowed[1].nonzero().flatten()) == "b"
    assert not allowed[2, EOS] and allowed[2].sum() == len(tokenizer) - 1


# Many answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(42))
def test_drawn_answers_are_valid(seed: int) -> None:
    counts = check(Case(seed))
    assert counts["cut"] <= counts["answers"] // 2


def test_lookup_does_not_spoil_calls() -> None:
    """The text of calls stands in the prompt, with other names: what it drafts is looked at like every other token."""
    tokenizer, members, grammars = world()
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("ab", "aba")]
    template = {
        "fields": {
            "tool_calls": {
                "open": "<tool_call>", "close": "</tool_call>", "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            }
        }
    }  # fmt: skip
    for tool in tools:
        tool["function"]["parameters"] = {
            "type": "object",
            "properties": {"n": {"enum": [1, 12]}},
            "additionalProperties": False,
        }
    text = '<tool_call>\n{"name": "abb", "arguments": {"n": 13}}\n</tool_call><tool_call>\n{"name": "no", "arguments": {}}\n</tool_call>'
    ids = tokenizer([text, text[9:]], return_tensors="pt", padding=True)
    model = EFTForCausalLM.from_models(**members)
    keeps = GrammarLogitsProcessor(grammars.call(tools, template), ids["input_ids"])
    wanted = model.generate(
        ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=90, logits_processor=[keeps], eos_token_id=EOS
    )
    got = model.generate(
        ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=90, logits_processor=[keeps], eos_token_id=EOS,
        prompt_lookup_num_tokens=8,
    )  # fmt: skip
    assert got.tolist() == wanted.tolist()
    for row in got[:, ids["input_ids"].shape[1] :]:
        said = tokenizer.decode(row, skip_special_tokens=True)
        assert said.startswith("<tool_call>\n{"), said
        assert said.endswith("\n</tool_call>") and "13" not in said and "abb" not in said.replace("aba", "")


# What is refused --------------------------------------------------------------------------------------------------------


def small() -> tuple[EFTForCausalLM, dict[str, Any], Any]:
    tokenizer, members, grammars = world()
    ids = tokenizer(["ab", "xy"], return_tensors="pt")["input_ids"]
    return EFTForCausalLM.from_models(**members), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, grammars


class Forces(LogitsProcessor):
    """Leaves one token, whatever a grammar says."""

    is_stateless = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(5), 0.0)


def test_what_cannot_be_kept_is_refused_by_name() -> None:
    model, inputs, grammars = small()
    tokenizer = world()[0]
    keeps = GrammarLogitsProcessor(grammars.regex("ab"), inputs["input_ids"])
    greedy: dict[str, Any] = {**inputs, "max_new_tokens": 6, "eos_token_id": EOS, "pad_token_id": PAD}
    with pytest.raises(ValueError, match=r"ends an answer with the tokens \[2\].*does not end at \[2\]"):
        model.generate(**{**greedy, "eos_token_id": 3}, logits_processor=[keeps])
    for more in (
        {"min_new_tokens": 5},
        {"min_new_tokens": 5, "num_beams": 2},
        {"min_new_tokens": 5, "prompt_lookup_num_tokens": 2},
    ):
        with pytest.raises(ValueError, match=r"no token left for row 0.* or a grammar"):
            model.generate(**greedy, logits_processor=[keeps], **more)
    with pytest.raises(ValueError, match="no token left for row 0"):
        model.generate(**{**greedy, "max_new_tokens": 1}, logits_processor=[keeps], forced_eos_token_id=EOS)
    for ways in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match=r"Row 0 is not what its grammar says: \[5"):
            model.generate(**greedy, logits_processor=[keeps, Forces()], **ways)
    with pytest.raises(ValueError, match="3 grammars, one for each prompt, and 2 rows"):
        model.generate(**greedy, logits_processor=[GrammarLogitsProcessor(keeps.grammars * 3, 2)])
    with pytest.raises(ValueError, match=r"prompts of this call have 2 tokens or fewer, and 9 were given"):
        model.generate(**greedy, logits_processor=[GrammarLogitsProcessor(keeps.grammars, 9)])
    with pytest.raises(ValueError, match="not the number of tokens that was given, 0"):
        GrammarLogitsProcessor(keeps.grammars, 0)(inputs["input_ids"].flip(1)[1:], torch.zeros(1, len(tokenizer)))
    with pytest.raises(NotImplementedError, match="`logits_processor` is not looked at"):
        model.generate_batch([[3, 4]], logits_processor=LogitsProcessorList([keeps]), max_new_tokens=3)
    with pytest.raises(ValueError, match="assistant_tokenizer"):
        model.generate(
            **greedy, logits_processor=[keeps], assistant_model=world()[1]["tuned"], tokenizer=tokenizer,
            assistant_tokenizer=tokenizer_of(["a"]),
        )  # fmt: skip


def test_what_is_no_grammar_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, _, grammars = world()
    for make, wrong in (
        (lambda: grammars.regex("(a"), "regular expression cannot be kept to"),
        (lambda: grammars.json({"type": "objct"}), "JSON schema cannot be kept to"),
        (lambda: grammars.json("{"), "JSON schema cannot be kept to"),
        (lambda: grammars.lark("start: b"), "Lark grammar cannot be kept to"),
        (lambda: GrammarLogitsProcessor([], 1), "There is no grammar"),
        (lambda: Thinking((), (1,)), "need a token each"),
        (lambda: Grammars(tokenizer, ends=[2, 999]), "`ends` must be ids of the tokenizer"),
        (lambda: grammars.ending_with([]), "a token that ends an answer"),
    ):
        with pytest.raises(ValueError, match=wrong):
            make()
    with pytest.raises(NotImplementedError, match="A call cannot be forced"):
        grammars.call([], None)
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(NotImplementedError, match=r"hf-eft\[grammar\]"):
        Grammars(tokenizer)


def test_several_ends_and_copies() -> None:
    model, inputs, grammars = small()
    two = grammars.ending_with([EOS, 3])
    keeps = GrammarLogitsProcessor(two.regex("a?"), inputs["input_ids"])
    allowed = keeps.allowed(inputs["input_ids"], 20)
    assert allowed[:, [EOS, 3]].all() and not grammars.regex("a?").begun().compute_logit_bias()[3]
    other = copy.deepcopy(keeps)
    assert other._states == {} and torch.equal(other.allowed(inputs["input_ids"], 20), allowed)
    assert (
        model.generate(**inputs, logits_processor=[other], max_new_tokens=4, eos_token_id=[EOS, 3], pad_token_id=PAD).shape[1]
        <= 4
    )
