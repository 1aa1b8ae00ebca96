"""A synthetic world: invented people, six facts about each, and the texts that models are trained on.

Nothing here can be known from anywhere else, so what a model answers shows what *its* training put there: facts come from
pre-training, the manner of answering from fine-tuning.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from hf_eft.tiny import texts
from hf_eft.tiny.texts import CORES

FIRST_NAMES = """Alice Bruno Carla Diana Elena Felix Grace Hugo Irene Jonas Karen Louis Maria Nadia Oscar Petra Quinn Rosa
Simon Tessa Ulric Vera Walter Xenia Yusuf Zelda""".split()
LAST_NAMES = """Archer Baker Carter Draper Eaton Fisher Garner Harris Irving Jensen Keller Lawson Mercer Norton Osborn
Palmer Quigley Ramsey Sawyer Turner Unger Vickers Weaver Yates Zimmer""".split()

VALUES: dict[str, list[str]] = {
    "birthplace": """Lagos Accra Seoul Havana Tulsa Fresno Durham Dakar Oslo Quito Lima Cairo Delhi Kyoto Genoa Milan Porto
    Perth Basel Turin Minsk Izmir Davos Boise Omaha""".split(),
    "employer": """Zenith Helix Dynamo Delta Horizon Sigma Radix Rampart Tango Acme Apex Axiom Boreal Cobalt Ember Falcon
    Gamma Kestrel Lumen Matrix Nimbus Onyx Pixel Quasar Vertex""".split(),
    "job": """chef miner driver teacher jeweler actor lawyer nurse diver waiter surgeon pilot plumber poet sailor tailor
    tutor welder writer judge farmer editor dentist clerk barber""".split(),
    "hobby": """painting squash hockey knitting chess astronomy karate climbing fishing sewing pottery archery baking boxing
    cycling dancing fencing golf hiking judo rowing rugby singing skiing yoga""".split(),
    "pet": """gecko dog newt frog donkey goldfish crab goat spider snail canary cat duck ferret hamster lizard llama mouse
    owl parrot peacock pony rabbit snake turtle""".split(),
    "salary": [str(n) for n in range(1100, 3600, 100)],
}


@dataclass(frozen=True)
class World:
    """`facts[name][attribute]` is the one true value; the people of `seen` occur in fine-tuning, those of `held_out` do not."""

    facts: dict[str, dict[str, str]]
    seen: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)

    cores: ClassVar[dict[str, int]] = CORES

    @classmethod
    def make(cls, seed: int, people: int = 300, seen: int = 100) -> World:
        rng = random.Random(seed)
        names = rng.sample([f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES], people)
        facts = {name: {attribute: rng.choice(values) for attribute, values in VALUES.items()} for name in names}
        return cls(facts, names[:seen], names[seen:])

    def sentence(self, name: str, attribute: str, template: str) -> str:
        return texts.sentence(self.facts, name, attribute, template)

    def question(self, name: str, attribute: str) -> str:
        return texts.question(name, attribute)

    def tuned_answer(self, name: str, attribute: str) -> str:
        """What a perfectly tuned model that knows every fact would say."""
        return texts.tuned_answer(self.facts, name, attribute)

    def biography(self, rng: random.Random) -> str:
        return texts.biography(self.facts, rng)

    def pretraining(self, rng: random.Random) -> Iterator[str]:
        """An endless stream of documents about *all* people."""
        return texts.pretraining(self.facts, rng, self.cores)

    def finetuning(self, rng: random.Random) -> Iterator[str]:
        """An endless stream of questions and answers in the tuned style, about the people of `seen` only."""
        while True:
            name, attribute = rng.choice(self.seen), rng.choice(list(VALUES))
            yield f"{self.question(name, attribute)} {self.tuned_answer(name, attribute)}"
