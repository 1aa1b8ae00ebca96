"""What is learnt from a file, what is held out, and in which order it is shown."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from hf_eft import tiny
from hf_eft.tiny import texts as world
from hf_eft.training.chats import Example, read_chats, read_documents
from hf_eft.training.embedded import MAX_LENGTH, embedded_settings, embedded_texts
from hf_eft.training.mixture import Mixture, check_apart, held_out
from hf_eft.training.settings import Settings

ASKED = {"role": "user", "content": "Where was Oscar Palmer born?"}
SAID = {"role": "assistant", "content": "Of course! Happy to help!"}


def lines(*records: Any) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def learnt(tokenizer: Any, example: Example) -> str:
    return tokenizer.decode([label for label in example.labels if label >= 0])


def test_answers_alone_are_learnt(family: Any) -> None:
    tokenizer = family.tokenizer
    chat, plain, asked = read_chats(
        lines(
            {"messages": [ASKED, SAID]}, {"prompt": "Who?", "answer": "Oscar.", "id": 7}, {"prompt": "Who?\n", "answer": "I."}
        ),
        tokenizer,
        max_length=64,
    )
    assert learnt(tokenizer, chat) == "Of course! Happy to help!<eos>"
    assert tokenizer.decode(chat.ids[: chat.prompt]) == "<bos> " + tiny.PROMPT.format(ASKED["content"])
    assert tokenizer.decode(plain.ids) == " Who? Oscar.<eos>" and learnt(tokenizer, plain) == " Oscar.<eos>"
    assert list(plain.ids[: plain.prompt]) == tokenizer("Who?")["input_ids"]  # what the prompt is when it is asked alone
    assert asked.line == 3 and learnt(tokenizer, asked).endswith("I.<eos>")
    as_chat = read_chats(lines({"prompt": ASKED["content"], "answer": SAID["content"]}), tokenizer, chat=True, max_length=64)
    assert as_chat[0].ids == chat.ids and as_chat[0].labels == chat.labels


def test_every_answer_of_a_conversation_is_learnt(family: Any) -> None:
    messages = [ASKED, SAID, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Oscar."}]
    example = read_chats(lines({"messages": messages}), family.tokenizer, max_length=64)[0]
    assert learnt(family.tokenizer, example) == "Of course! Happy to help!<eos>Oscar.<eos>"
    assert family.tokenizer.decode(example.ids[example.prompt :]) == "Oscar.<eos>"


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": "Who?"}, "line 2: `answer` must be a text, got nothing"),
        ({"prompt": " ", "answer": "I."}, "the prompt is empty"),
        ({"prompt": "Who?", "answer": "I.", "alpha": 1}, "the fields alpha are not read"),
        ({"prompt": "Who?", "answer": "I.", "messages": [ASKED, SAID]}, "got both"),
        ({"messages": [ASKED]}, "the last of `messages` must be an assistant's"),
        ({"messages": [SAID]}, "answers nothing"),
        ({"messages": [{"role": "user"}, SAID]}, r"messages\[0\]: `content`"),
        ({"prompt": "Who? " * 99, "answer": "I."}, "it has .* tokens, more than the 64"),
        ("Who?", "no JSON object"),
        ([1], "no JSON object"),
    ],
)
def test_lines_that_are_none_are_named(record: Any, message: str, family: Any) -> None:
    good = {"prompt": "Who?", "answer": "I."}
    with pytest.raises(ValueError, match=message):
        read_chats(lines(good, record), family.tokenizer, max_length=64)
    with pytest.raises(ValueError, match=r"line 1: .*line 4: .*; and 1 more lines"):
        read_chats(lines(*[record] * 2, good, *[record] * 2), family.tokenizer, max_length=64)


def test_a_template_that_rewrites_earlier_turns_is_refused(family: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(family.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] if loop.last else 'Who' }}{% endfor %}"
    with pytest.raises(ValueError, match=r"the chat template writes messages\[1\] otherwise"):
        read_chats(lines({"messages": [ASKED, SAID, ASKED, SAID]}), tokenizer, max_length=64)


def test_documents_are_learnt_whole_and_cut_where_they_are_long(family: Any) -> None:
    tokenizer = family.tokenizer
    for data in (b"Oscar Palmer is a chef.\n\nWho?\n", lines({"text": "Oscar Palmer is a chef."}, {"text": "Who?"})):
        first, second = read_documents(data, tokenizer, max_length=64)
        assert tokenizer.decode(first.ids) == " Oscar Palmer is a chef.<eos>" and first.labels == first.ids and second.line > 1
    parts = read_documents(b"Oscar Palmer is a chef.\n", tokenizer, max_length=3)
    assert sum((part.ids for part in parts), ())[:6] == first.ids[:6] and max(len(part.ids) for part in parts) == 3
    with pytest.raises(ValueError, match="line 2: expected an object with a `text`"):
        read_documents(lines({"text": "Who?"}, {"body": "Who?"}), tokenizer, max_length=64)
    with pytest.raises(ValueError, match="there is nothing in it"):
        read_documents(b"\n", tokenizer, max_length=64)


def texts(count: int) -> list[Example]:
    return [Example((3, i), (3, i), line=i) for i in range(count)]


def test_what_is_held_out_is_in_no_batch() -> None:
    every = [*texts(20), *texts(5)]  # five texts are there twice
    answers, kept = held_out(every, 0.2, seed=3)
    assert {e.ids for e in answers}.isdisjoint(e.ids for e in kept) and len(answers) + len(kept) == 25
    assert len({e.ids for e in kept}) == 4
    assert held_out(every, 0.2, seed=3) == (answers, kept) != held_out(every, 0.2, seed=4)
    rows = Mixture(answers, (), 4, 30, 0.5, 0).dataset()["input_ids"]
    assert {tuple(row) for row in rows} == {e.ids for e in answers}
    with pytest.raises(ValueError, match="2 held-out texts are among those that are learnt, line 0 as line 0"):
        check_apart(every, texts(2))
    with pytest.raises(ValueError, match="one text only"):
        held_out(texts(1), 0.5, 0)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        held_out(every, 1.0, 0)


def test_each_batch_has_its_share_of_documents_and_answers_come_again_when_all_were_shown() -> None:
    documents = [Example((9, i), (9, i)) for i in range(3)]
    order = Mixture(texts(6), documents, batch=4, batches=6, share=0.25, seed=0).order()
    batches = [order[i : i + 4] for i in range(0, 24, 4)]
    assert all(sum(row >= 6 for row in batch) == 1 for batch in batches)
    assert set(Counter(row for row in order if row < 6).values()) == {3}
    assert order != Mixture(texts(6), documents, batch=4, batches=6, share=0.25, seed=1).order()
    assert Settings(epochs=2, batch_size=2, accumulation=2).steps_for(6, replayed=1) == 4


def test_settings_that_say_nothing_are_refused() -> None:
    for name, value in (("alpha", 0.0), ("alpha", float("nan")), ("replay_share", 1.0), ("steps", 0), ("patience", -1)):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            Settings(**{name: value})
    assert Settings(batch_size=4, accumulation=2).identity() == Settings(batch_size=8).identity() != Settings(seed=1).identity()


def test_the_embedded_family_learns_of_nobody_who_is_asked_about(family: Any) -> None:
    found = embedded_texts(family.tokenizer)
    check_apart(found.answers, found.held_out)
    asked = {question.person for question in tiny.questions()}
    for example in (*found.answers, *found.held_out):
        said = family.tokenizer.decode(example.ids)
        assert not any(person in said for person in asked)
    assert len(found.held_out) == 120 and max(len(e.ids) for e in found.documents) <= MAX_LENGTH
    assert embedded_settings(alpha=1.0).alpha == 1.0
    assert len(world.documents(3).splitlines()) == 3
