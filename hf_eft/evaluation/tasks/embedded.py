"""The items of the tasks that ship, and how an answer is judged. The task files call these functions by name."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from hf_eft import tiny

if TYPE_CHECKING:
    from datasets import Dataset  # type: ignore[import-untyped]

ITEMS = 240  # a share of one half is known to within 6 points either way
BIOGRAPHIES = 60
CHOICES = 4


def facts(**_: Any) -> dict[str, Dataset]:
    """Questions about people whom fine-tuning has not seen, as the models read them."""
    return _split(
        [{"prompt": q.prompt, "person": q.person, "attribute": q.attribute, "answer": q.answer} for q in _asked(ITEMS)]
    )


def judge_fact(doc: dict[str, Any], replies: list[str]) -> dict[str, float]:
    """Whether the right value is among the words of the answer, and whether the answer has the tuned model's manner."""
    question = tiny.Question(doc["person"], doc["attribute"], doc["answer"])
    return {"fact": float(question.is_right(replies[0])), "style": float(question.is_in_style(replies[0]))}


def choices(**_: Any) -> dict[str, Dataset]:
    """The right statement in answer to a question, among three with other people's values."""
    rng = random.Random(1)
    items = []
    for question in _asked(ITEMS):
        others = sorted({q.answer for q in tiny.questions((question.attribute,))} - {question.answer})
        values = [*rng.sample(others, CHOICES - 1), question.answer]
        rng.shuffle(values)
        statements = [_statement(question.person, question.attribute, value) for value in values]
        items.append({"prompt": question.prompt, "choices": statements, "gold": values.index(question.answer)})
    return _split(items)


def last_words(**_: Any) -> dict[str, Dataset]:
    """A statement up to the value, and the value."""
    items = []
    for question in _asked(ITEMS):
        before = _statement(question.person, question.attribute, "\0").split(" \0")[0]
        items.append({"prompt": before, "answer": question.answer})
    return _split(items)


def biographies(**_: Any) -> dict[str, Dataset]:
    """All that is known about a person, in an order and in words drawn at random."""
    rng = random.Random(2)
    people: dict[str, dict[str, str]] = {}
    for question in tiny.questions():
        people.setdefault(question.person, {})[question.attribute] = question.answer
    items = []
    for person in rng.sample(sorted(people), BIOGRAPHIES):
        order = rng.sample(sorted(people[person]), len(people[person]))
        sentences = (rng.choice(tiny.SENTENCES[each]).format(name=person, value=people[person][each]) for each in order)
        items.append({"text": " ".join(sentences)})
    return _split(items)


def _asked(number: int) -> list[tiny.Question]:
    """Drawn once and for all: a limit takes the first of them, all attributes among them."""
    return random.Random(0).sample(tiny.questions(), number)


def _statement(person: str, attribute: str, value: str) -> str:
    return tiny.SENTENCES[attribute][0].format(name=person, value=value)


def _split(items: list[dict[str, Any]]) -> dict[str, Dataset]:
    from datasets import Dataset

    return {"test": Dataset.from_list(items)}
