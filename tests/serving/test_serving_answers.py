"""How tokens become answers: text as it comes, what ends it, what is held back."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from transformers.cli.serving.utils import get_response_template

from hf_eft import tiny
from hf_eft.serving.answers import LENGTH, STOP, Answer, Decoder, Stops
from hf_eft.serving.penalties import Penalties
from hf_eft.serving.tools import Parser, Thought

TEXTS = ["Of course! Oscar Palmer enjoys hockey.", "naïve café 😀 日本語 \u200d👩", "a\n\n  b ", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_whole(text: str) -> None:
    tokenizer = tiny.load().tokenizer
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    for special in (False, True):
        decoder = Decoder(tokenizer, special=special)
        pieces = [decoder.feed(token) for token in ids]
        assert "".join(pieces) + decoder.close() == tokenizer.decode(ids, skip_special_tokens=not special)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_text_that_has_half_a_character_ends_with_it() -> None:
    tokenizer = tiny.load().tokenizer
    ids = tokenizer("hockey 😀")["input_ids"][:-1]
    decoder = Decoder(tokenizer, special=False)
    assert "".join(map(decoder.feed, ids)) + decoder.close() == tokenizer.decode(ids)


def test_stops_are_found_wherever_the_text_is_cut() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("ab", k=12))
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 5))) for _ in range(2)]
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        finder, told, at = Stops(stops), "", 0
        while at < len(text) and not finder.found:
            size = draw.randint(1, 4)
            piece = finder.feed(text[at : at + size])
            told, at = told + piece, at + size
            assert not any(stop in told for stop in stops)
        if not finder.found:
            told += finder.close()
        assert finder.found == bool(found)
        # Of stops that come with one piece, the one that begins first ends the text; one that came before has ended it already.
        assert told == text[: len(told)] and (len(told) in found if found else told == text)


def test_an_answer_says_why_it_ended() -> None:
    tokenizer = tiny.load().tokenizer
    ids = tokenizer("Of course! Happy to help!")["input_ids"]
    for ends, limit, stops, reason in (({ids[-1]}, 99, [], STOP), ((), 3, [], LENGTH), ((), 99, ["Happy"], STOP)):
        answer = Answer(tokenizer, ends, limit, stops)
        for token in ids:
            if answer.finish is None:
                answer.feed(token)
        assert answer.finish == reason
    answer = Answer(tokenizer, (), 99, ["help!!"])
    text = "".join(piece.text for token in ids for piece in answer.feed(token))
    assert answer.finish is None and not text.endswith("help!")
    assert text + "".join(piece.text for piece in answer.cut()) == tokenizer.decode(ids) and answer.finish == LENGTH


def test_a_frequency_counts_each_time_and_a_presence_once() -> None:
    ids = torch.tensor([[1, 1, 2, 3, 3, 3, 0]])  # the first two are the prompt
    changed = Penalties(0.5, 0.25, 2)(ids, torch.zeros(1, 5))
    assert changed.tolist() == [[-0.75, 0.0, -0.75, -1.25, 0.0]]


def test_what_a_prompt_says_of_thoughts_is_no_thought() -> None:
    qwen = get_response_template(SimpleNamespace(), SimpleNamespace(config=SimpleNamespace(model_type="qwen3")))
    told = Parser(qwen, "What does <think> mean?").feed("It opens a thought")
    assert not any(isinstance(part, Thought) for part in told) and "".join(map(str, told)) == "It opens a thought"
    begun = Parser(qwen, "<|im_start|>assistant\n<think>\n").feed("Hm")  # the template has opened one
    assert begun == ["Hm"] and isinstance(begun[0], Thought)
