"""
A tiny trained family: a large base of 10 layers and a small model of 2, before and after fine-tuning, 5 MB in all.

The models know one synthetic world: invented people and six facts about each. The large model learnt nearly all facts, the small
one few. The small one was fine-tuned, on other people than those of [`questions`], to answer in a friendly style.
`examples/replication/make_tiny.py` makes the family anew. A second small pair of the same world has a tokenizer of its own
(`examples/replication/make_second.py`). A third tuned model learnt through the large one ([`load_through`]).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
STYLE = "Of course! {} Happy to help!"

PROMPT = "Question: {}\nAnswer:"
QUESTIONS = {
    "birthplace": "Where was {} born?",
    "employer": "Who does {} work for?",
    "job": "What is the job of {}?",
    "hobby": "What does {} enjoy?",
    "pet": "Which pet does {} have?",
    "salary": "How much does {} earn?",
}

# How the texts of the world state a fact; the tuned model answers with the first wording.
SENTENCES: dict[str, list[str]] = {
    "birthplace": ["{name} was born in {value}.", "{name} comes from {value}."],
    "employer": ["{name} works for {value}.", "{name} is employed by {value}."],
    "job": ["{name} works as a {value}.", "{name} is a {value}."],
    "hobby": ["{name} enjoys {value}.", "{name} spends weekends on {value}."],
    "pet": ["{name} has a pet {value}.", "{name} takes care of a {value}."],
    "salary": ["{name} earns {value} a month.", "{name} is paid {value} a month."],
}


class Pair(NamedTuple):
    """A small model after and before fine-tuning, and their tokenizer."""

    tuned: Any
    reference: Any
    tokenizer: Any


class Family(NamedTuple):
    """The three members and their tokenizer."""

    base: Any
    tuned: Any
    reference: Any
    tokenizer: Any


@dataclass(frozen=True)
class Question:
    """A question about a person whom fine-tuning has not seen, and its one right answer."""

    person: str
    attribute: str
    answer: str

    @property
    def text(self) -> str:
        return QUESTIONS[self.attribute].format(self.person)

    @property
    def prompt(self) -> str:
        """The question as the models read it; the chat template makes the same of `[{"role": "user", "content": text}]`."""
        return PROMPT.format(self.text)

    def is_right(self, reply: str) -> bool:
        """Whether a reply has the right value among its words."""
        words = reply.replace(".", " ").replace(",", " ").replace("!", " ").split()
        return self.answer in words

    def is_in_style(self, reply: str) -> bool:
        """Whether a reply has the manner of the tuned model."""
        begin, end = STYLE.split("{}")
        return reply.strip().startswith(begin.strip()) and reply.strip().endswith(end.strip())


def path(member: str) -> Path:
    """The folder of a member: `"base"`, `"tuned"`, `"reference"`, `"through"`, `"second_tuned"` or `"second_reference"`."""
    folder = FOLDER / member
    if not (folder / "model.safetensors").is_file():
        raise ValueError(
            "The tiny family has the members 'base', 'tuned', 'reference', 'through', 'second_tuned' and 'second_reference', "
            f"not {member!r}."
        )
    return folder


def load() -> Family:
    """
    Load the family from the installed package, in evaluation mode, on the CPU.

    Returns:
        [`Family`]: `base`, `tuned`, `reference` (`LlamaForCausalLM`) and `tokenizer` (which pads on the left).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, tuned, reference = (AutoModelForCausalLM.from_pretrained(path(name)) for name in ("base", "tuned", "reference"))
    return Family(base, tuned, reference, AutoTokenizer.from_pretrained(path("base")))


def load_through() -> Family:
    """
    Load the family with another tuned member: one that learnt the same manner *through* the large model, from the same people. It is a
    delta for that base, which says of itself at which strength it is to be used, and no model of its own.

    Returns:
        [`Family`]: As [`load`], with that delta as `tuned`.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny

    >>> base, delta, reference, tokenizer = tiny.load_through()
    >>> model = EFTForCausalLM.from_models(base, tuned=delta, reference=reference)
    >>> inputs = tokenizer(tiny.questions()[0].prompt, return_tensors="pt", return_token_type_ids=False)
    >>> tokenizer.decode(model.generate(**inputs, max_new_tokens=24)[0, -12:], skip_special_tokens=True)[-14:]
    'Happy to help!'
    ```
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, tuned, reference = (AutoModelForCausalLM.from_pretrained(path(name)) for name in ("base", "through", "reference"))
    return Family(base, tuned, reference, AutoTokenizer.from_pretrained(path("base")))


def load_second() -> Pair:
    """
    Load the small pair with another tokenizer: pieces of words with SentencePiece's conventions, where the family has whole words.

    Returns:
        [`Pair`]: `tuned`, `reference` (`LlamaForCausalLM`) and `tokenizer` (which pads on the left).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuned, reference = (AutoModelForCausalLM.from_pretrained(path(f"second_{name}")) for name in ("tuned", "reference"))
    return Pair(tuned, reference, AutoTokenizer.from_pretrained(path("second_tuned")))


def world() -> dict[str, Any]:
    """The invented people: `facts` about each, those whom fine-tuning has `seen`, and those `held_out` from it."""
    return json.loads((FOLDER / "world.json").read_text(encoding="utf-8"))


def questions(attributes: tuple[str, ...] = tuple(QUESTIONS)) -> list[Question]:
    """Every question about the people whom fine-tuning has not seen, person by person."""
    found = world()
    return [
        Question(person, attribute, found["facts"][person][attribute])
        for person in found["held_out"]
        for attribute in attributes
    ]
