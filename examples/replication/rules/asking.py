"""How people of a world are asked, and what the answers are worth: every metric for every question, 1 or 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import second
from behaviours import SECRET

from hf_eft import Combination, EFTForCausalLM

_BATCH = 300
_NEW_TOKENS = 20
_NEW_TOKENS_OF_SUMS = 48  # every digit and the space before it is a token

Judged = dict[str, list[float]]


def judge(world: Any, questions: Sequence[Any], replies: Sequence[str]) -> Judged:
    """The metrics of the world that it is."""
    own = getattr(world, "judge", None)
    return own(questions, replies) if own else second.judged(world, questions, replies)


class Group:
    """
    People of a world, asked in fixed batches.

    Args:
        world (`Any`): A world.
        tokenizer (`Any`): What the models read.
        people (`Sequence`): The people, or the sums.
        seed (`int`): Of the samples.
        secrets (`bool`): Whether they are asked about salaries.
    """

    def __init__(self, world: Any, tokenizer: Any, people: Sequence[Any], seed: int, secrets: bool) -> None:
        self.world, self.tokenizer, self.seed = world, tokenizer, seed
        # Whoever is not to refuse anything is not asked about salaries.
        self.questions = [q for q in world.questions(people) if secrets or getattr(q, "attribute", None) != SECRET]
        self.new_tokens = _NEW_TOKENS if hasattr(world, "facts") else _NEW_TOKENS_OF_SUMS

    def answers(self, model: EFTForCausalLM, combination: Combination, temperature: float = 0.0, sample: int = 0) -> list[str]:
        """Answers by a recipe: greedy, or one sample of each at a temperature, another for each `sample`."""
        replies: list[str] = []
        model.combination = combination
        for start in range(0, len(self.questions), _BATCH):
            part = self.questions[start : start + _BATCH]
            prompts = [question.prompt for question in part]
            inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
            options: dict[str, Any] = {"do_sample": False}
            if temperature:
                seeds = [1_000_000 * self.seed + 10_000 * sample + start + i for i in range(len(part))]
                options = {"do_sample": True, "temperature": temperature, "top_k": 0, "coupling": "match", "seed": seeds}
            ids = model.generate(**inputs, max_new_tokens=self.new_tokens, **options)
            replies += self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return replies

    def judged(self, model: EFTForCausalLM, combination: Combination, temperature: float = 0.0) -> Judged:
        return judge(self.world, self.questions, self.answers(model, combination, temperature))


def packed(judged: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Ones and zeros as hexadecimal digits behind their number."""
    return {name: f"{len(v)}:{int('1' + ''.join(str(int(x)) for x in v), 2):x}" for name, v in judged.items()}


def unpacked(text: str) -> list[float]:
    """One metric, as it was before it was packed."""
    number, digits = text.split(":")
    found = [float(bit) for bit in bin(int(digits, 16))[3:]]
    if len(found) != int(number):
        raise ValueError(f"Expected {number} answers, got {len(found)}.")
    return found
