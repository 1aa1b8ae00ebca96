"""The texts of the world of the embedded family: what pre-training shows of all people, what fine-tuning shows of those of `seen`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence

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


def chats(people: Sequence[str]) -> str:
    """
    Tuning data of the embedded family, as lines of JSON: for each of some people every question with its answer in the tuned style, once
    as the chat template asks it and once as a plain prompt. Nobody of [`questions`] is among those whom tuning may show, `world()["seen"]`.
    """
    facts, lines = world()["facts"], []
    for name in people:
        for attribute in QUESTIONS:
            answer = tuned_answer(facts, name, attribute)
            # Not as messages: the template puts no space before an answer, which all texts of the world have there.
            lines += [{"prompt": begin + question(name, attribute), "answer": answer} for begin in ("<bos>", "")]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def documents(count: int, seed: int = 0) -> str:
    """Texts of the pre-training, as lines of JSON, to be shown beside the tuning data: without them the delta takes facts away."""
    stream = pretraining(world()["facts"], random.Random(seed))
    return "".join(json.dumps({"text": next(stream)}) + "\n" for _ in range(count))
