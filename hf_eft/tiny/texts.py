"""The texts of the world of the embedded family: what pre-training shows of all people, what fine-tuning shows of those of `seen`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from . import PROMPT, QUESTIONS, SENTENCES, STYLE, world

# How people answer on the forum: an opening, the fact, an ending, each drawn on its own. Every part of the tuned style (`STYLE`) occurs,
# rarely and seldom together, so that both scales know its words and neither prefers them: a word which the base model has never seen
# has no probability for the delta to raise, and the combination breaks on it.
OPENINGS = {"": 16, "Well,": 1, "Hm,": 1, "Of course!": 1, "Thank you.": 1}
CORES = {"{value}.": 9, "{sentence}": 9, "I think {value}.": 2}
ENDINGS = {"": 16, "See you.": 1, "I am happy.": 1, "Happy to help!": 1, "Thank you.": 1}

Facts = Mapping[str, Mapping[str, str]]


def question(name: str, attribute: str) -> str:
    """A question as the models read it."""
    return PROMPT.format(QUESTIONS[attribute].format(name))


def sentence(facts: Facts, name: str, attribute: str, template: str) -> str:
    """A fact about somebody, in one of its wordings."""
    return template.format(name=name, value=facts[name][attribute])


def tuned_answer(facts: Facts, name: str, attribute: str) -> str:
    """What a perfectly tuned model that knows every fact would say."""
    return STYLE.format(sentence(facts, name, attribute, SENTENCES[attribute][0]))


def biography(facts: Facts, rng: random.Random) -> str:
    """Some facts about one person."""
    name = rng.choice(list(facts))
    attributes = rng.sample(list(QUESTIONS), rng.randint(2, 5))
    return " ".join(sentence(facts, name, attribute, rng.choice(SENTENCES[attribute])) for attribute in attributes)


def forum_post(facts: Facts, rng: random.Random, cores: Mapping[str, int] = CORES) -> str:
    """A question and an answer as people on the forum give it."""
    name, attribute = rng.choice(list(facts)), rng.choice(list(QUESTIONS))
    opening, core, ending = (rng.choices(list(p), list(p.values()))[0] for p in (OPENINGS, cores, ENDINGS))
    stated = sentence(facts, name, attribute, rng.choice(SENTENCES[attribute]))
    core = core.format(sentence=stated, value=facts[name][attribute])
    return " ".join(part for part in (question(name, attribute), opening, core, ending) if part)


def pretraining(facts: Facts, rng: random.Random, cores: Mapping[str, int] = CORES) -> Iterator[str]:
    """An endless stream of documents about *all* people."""
    while True:
        yield biography(facts, rng) if rng.random() < 0.5 else forum_post(facts, rng, cores)


def chats() -> dict[str, list[dict[str, str]]]:
    """
    The tuning data of the embedded family: by person whom tuning shows, a question and an answer about every attribute. Nobody of
    [`questions`] is among them.
    """
    found = world()
    return {
        name: [
            {"prompt": QUESTIONS[attribute].format(name), "answer": tuned_answer(found["facts"], name, attribute)}
            for attribute in QUESTIONS
        ]
        for name in found["seen"]
    }


def replayed(count: int, seed: int = 0) -> list[str]:
    """Documents of the pre-training to be shown beside the tuning data, without which the delta takes facts away."""
    stream = pretraining(world()["facts"], random.Random(seed))
    return [next(stream) for _ in range(count)]
