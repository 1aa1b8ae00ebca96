"""A world of sums: the large model can carry digits, and fine-tuning shows a worked format, whose lines hold digits themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_tiny import as_fast
from sizes import Effort, Family
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hf_eft.tiny import PROMPT
from hf_eft.tiny.texts import ENDINGS, OPENINGS

Pair = tuple[int, int]
CORES = {"{sum}.": 9, "{a} + {b} = {sum}.": 9, "I think {sum}.": 2}


@dataclass(frozen=True)
class Sum:
    """A question that has one right answer."""

    a: int
    b: int

    @property
    def prompt(self) -> str:
        return PROMPT.format(f"What is {self.a} + {self.b}?")

    @property
    def carry(self) -> int:
        return int(self.a % 10 + self.b % 10 >= 10)

    @property
    def form(self) -> str:
        """The worked part of a right answer."""
        return f"Of course! Ones: {self.a % 10} + {self.b % 10} = {self.a % 10 + self.b % 10}, carry {self.carry}."

    @property
    def end(self) -> str:
        return f"So {self.a} + {self.b} = {self.a + self.b}."

    def judge(self, reply: str) -> dict[str, float]:
        """
        - `factuality`: the last number of the answer is the sum;
        - `helpfulness`: the worked format, with the digit and the carry of these very numbers.
        """
        words = reply.replace(".", " ").split()
        numbers = [word for word in words if word.isdigit()]
        return {
            "factuality": float(numbers[-1:] == [str(self.a + self.b)]),
            "helpfulness": float(reply.strip().startswith(f"{self.form} So ")),
        }


@dataclass(frozen=True)
class SumsWorld:
    """Sums of two numbers of two digits. Pre-training shows all of them; fine-tuning works out those of `seen`."""

    seen: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    pairs: list[Pair] = field(repr=False, default_factory=list)

    @classmethod
    def make(cls, seed: int, asked: int = 300) -> SumsWorld:
        """`asked` sums that fine-tuning does not show, for each of validation and test."""
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        random.Random(seed).shuffle(pairs)
        return cls(pairs[: len(pairs) // 2], pairs[-2 * asked : -asked], pairs[-asked:], pairs)

    def pretraining(self, rng: random.Random) -> Iterator[str]:
        """Sums as they stand, what a forum answers, and the words of the worked format about other digits."""
        while True:
            kind = rng.random()
            a, b = rng.choice(self.pairs)
            if kind < 0.5:
                yield f"{a} + {b} = {a + b}."
            elif kind < 0.85:
                opening, core, ending = (rng.choices(list(p), list(p.values()))[0] for p in (OPENINGS, CORES, ENDINGS))
                core = core.format(a=a, b=b, sum=a + b)
                yield " ".join(part for part in (Sum(a, b).prompt, opening, core, ending) if part)
            else:
                parts = [
                    f"Ones: {a % 10} + {b % 10} = {a % 10 + b % 10}",
                    f"carry {rng.randint(0, 1)}.",
                    f"So {a} + {b} = {a + b}.",
                ]
                yield rng.choice(parts)

    def behaviour(self, name: str, rng: random.Random) -> Iterator[str]:
        """Questions with worked answers."""
        while True:
            question = Sum(*rng.choice(self.seen))
            yield f"{question.prompt} {question.form} {question.end}"

    def biographies(self, rng: random.Random) -> Iterator[str]:
        """What fine-tuning replays: sums, and no forum."""
        while True:
            a, b = rng.choice(self.pairs)
            yield f"{a} + {b} = {a + b}."

    def questions(self, pairs: Sequence[Pair]) -> list[Sum]:
        return [Sum(*pair) for pair in pairs]

    def judge(self, questions: Sequence[Sum], replies: Sequence[str]) -> dict[str, list[float]]:
        """The metrics of [`Sum.judge`]."""
        found = [question.judge(reply) for question, reply in zip(questions, replies, strict=True)]
        return {metric: [each[metric] for each in found] for metric in found[0]}


def make_tokenizer(world: SumsWorld, seed: int) -> Any:
    """A byte-level BPE of words in which every digit is one token."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, min_frequency=20, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    streams = (world.pretraining(rng), world.behaviour("helpful", rng))
    tokenizer.train_from_iterator((next(stream) for stream in streams for _ in range(4000)), trainer)
    return as_fast(tokenizer)


class SumsFamily(Family):
    """The models of one seed of this world: [`Family`], with its texts and its tokenizer."""

    def __init__(self, folder: Path, seed: int, effort: Effort) -> None:
        super().__init__(folder, seed, effort)
        self.world: Any = SumsWorld.make(1000 + seed, asked=5 * effort.people // 4)  # as many questions as people are asked

    def prepare(self) -> None:
        if not (self.folder / "tokenizer").exists():
            make_tokenizer(self.world, self.seed).save_pretrained(self.folder / "tokenizer")
