"""
Answers that keep to grammars, drawn by a seed: schemas, expressions, prompts and ways of decoding, and whether each answer is valid.

    python tests/structured.py --cases 2000     # prints a table of what was drawn, and exits with 1 if an answer is not valid

Who says that an answer is valid knows nothing of grammars: `jsonschema`, and `regex`, which also says how an answer that was cut
off begins.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import random
import sys
import time
from typing import Any

import jsonschema
import regex
import torch
from families import build
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.grammar import Grammar, GrammarLogitsProcessor, Grammars, Thinking

PAD, EOS = 0, 2
_PIECES = ['{"', '":', '",', '"}', "true", "false", "null", "ab", "aba", "12", "[1", "],", "no", "yes", "xyz", '": "', '", "']
NEW_TOKENS = 120


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has these tokens, written in its alphabet, behind those for padding, beginning and end."""
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {text.replace(" ", "Ġ"): 3 + i for i, text in enumerate(texts)}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return made


@functools.cache
def world() -> tuple[PreTrainedTokenizerFast, dict[str, Any], Grammars]:
    """Bytes and pieces of JSON as tokens, members that know nothing, and the grammars."""
    tokenizer = tokenizer_of([*sorted(pre_tokenizers.ByteLevel.alphabet()), *_PIECES])
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    members = {name: build("llama", seed, **sizes) for seed, name in enumerate(("base", "tuned", "reference"))}
    return tokenizer, members, Grammars(tokenizer)


@functools.cache
def combination() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(**world()[1], alpha=0.7)


@functools.cache
def outsider() -> Any:
    return build("llama", 9, vocab_size=len(world()[0]), max_position_embeddings=256)


# What is drawn ----------------------------------------------------------------------------------------------------------


def schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """A JSON schema whose answers are short, whatever a model would rather say."""
    word = lambda: "".join(draw.choices("abxy", k=draw.randint(1, 4)))  # noqa: E731
    simple = {
        "integer": lambda: {"type": "integer", "minimum": draw.randint(-20, 5), "maximum": draw.randint(6, 2000)},
        "boolean": lambda: {"type": "boolean"},
        "null": lambda: {"type": "null"},
        "string": lambda: {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 7)},
        "pattern": lambda: {"type": "string", "pattern": draw.choice(["^[a-c]{1,3}$", "^(no|yes)!?$", "^\\d{2}-\\d{2}$"])},
        "enum": lambda: {"enum": draw.sample(["chess", "a b", 'a"b', 1, 2.5, None, True, "ß", word()], k=draw.randint(1, 4))},
        "const": lambda: {"const": draw.choice([word(), 12, False])},
    }
    nested = {
        "array": lambda: {
            "type": "array", "items": schema(draw, depth - 1), "minItems": draw.randint(0, 1), "maxItems": draw.randint(1, 3),
        },
        "object": lambda: _object(draw, depth),
        "anyOf": lambda: {"anyOf": [schema(draw, depth - 1) for _ in range(draw.randint(2, 3))]},
        "$ref": lambda: {"$defs": {"part": schema(draw, 0)}, "type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
    }  # fmt: skip
    kinds = simple if depth == 0 else {**simple, **({} if depth < 2 else {"o": nested["object"]}), **nested}
    if depth < 2:
        kinds.pop("$ref", None)  # it points to the root
    return kinds[draw.choice(list(kinds))]()


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(["a", "b", "name", "x y"], k=draw.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: schema(draw, depth - 1) for name in names},
        "required": draw.sample(names, k=draw.randint(0, len(names))),
        "additionalProperties": False,
    }


def expression(draw: random.Random) -> str:
    parts = [
        "[a-f]{2,4}",
        "\\d{1,3}(\\.\\d)?",
        "(yes|no|null)",
        "x?y{0,2}",
        '"[^"]{0,4}"',
        "(ab|aba){1,3}z|-",
        "\\[(1|12)(, ?1){0,2}\\]",
    ]
    return "".join(f"({each})" for each in draw.choices(parts, k=draw.randint(1, 3)))


# Ways of decoding: what `generate` is given beside the prompts, of the wrapper or of the base with the add-on.
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 0},
    "top_p": {"do_sample": True, "top_p": 0.8, "temperature": 1.4},
    "three of each": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beams, two of each": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "beam sample": {"num_beams": 3, "do_sample": True},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "tuned drafts": {"assistant_model": "tuned", "num_assistant_tokens": 3},
    "tuned drafts, reject": {"assistant_model": "tuned", "num_assistant_tokens": 4, "do_sample": True},
    "tuned drafts, match": {"assistant_model": "tuned", "do_sample": True, "coupling": "match", "seed": 5},
    "small drafts": {"assistant_model": "small", "num_assistant_tokens": 2, "do_sample": True},
    "outsider drafts": {"assistant_model": "outsider", "num_assistant_tokens": 3},
    "static drafts": {"assistant_model": "tuned", "num_assistant_tokens": 3, "cache_implementation": "static", "disable_compile": True},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "lookup, reject": {"prompt_lookup_num_tokens": 6, "do_sample": True},
    "lookup, match": {"prompt_lookup_num_tokens": 3, "do_sample": True, "coupling": "match", "seed": 7},
    "add-on": {"leaf": "add-on", "do_sample": True},
    "add-on, beams": {"leaf": "add-on", "num_beams": 3},
    "add-on, tuned drafts": {"leaf": "add-on", "assistant_model": "tuned", "rows": 1},
    "add-on, lookup": {"leaf": "add-on", "prompt_lookup_num_tokens": 4, "rows": 1},
}  # fmt: skip
THINKING = (None, None, "maybe", "opened", "always")


class Case:
    """What is asked of one `generate`: a way, and for each prompt a grammar."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.seed, self.way = seed, list(WAYS)[seed % len(WAYS)]
        rows = WAYS[self.way].get("rows", draw.choice([1, 1, 2, 4]))
        alike = draw.random() < 0.5
        kinds = ["regex" if draw.random() < 0.3 else "json" for _ in range(1 if alike else rows)]
        self.asked = [(kind, expression(draw) if kind == "regex" else schema(draw)) for kind in kinds]
        self.thinking = draw.choice(THINKING)
        tokenizer = world()[0]
        self.prompts = []
        for _ in range(rows):
            # Texts that a lookup drafts from: pieces of JSON, and of what may not be said.
            pieces = ['{"a": 12, "b": "ab"}', "yes no", '{"name": [1, 1]}', "abaz", "x y", "Hm. "]
            text = " ".join(draw.choices(pieces, k=draw.randint(1, 3))) + ("<think>" if self.thinking == "opened" else "")
            self.prompts.append(tokenizer(text)["input_ids"])

    def __str__(self) -> str:
        return f"case {self.seed}: {self.way}, thinking {self.thinking}, {self.asked}"


def grammar_of(kind: str, asked: Any) -> Grammar:
    return world()[2].regex(asked) if kind == "regex" else world()[2].json(asked)


def generate(case: Case) -> torch.Tensor:
    """What is generated, without the prompts: `(rows, tokens)`."""
    tokenizer, members, _ = world()
    longest = max(map(len, case.prompts))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in case.prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in case.prompts])
    thinking = None if case.thinking is None else Thinking.of(tokenizer, always=case.thinking == "always")
    keeps = GrammarLogitsProcessor([grammar_of(*each) for each in case.asked], ids, thinking)
    options = {key: value for key, value in WAYS[case.way].items() if key not in ("leaf", "rows")}
    model: Any = combination()
    processors: list[Any] = [keeps]
    if WAYS[case.way].get("leaf") == "add-on":
        model, add_on = members["base"], EFTLogitsProcessor(members["tuned"], members["reference"], 0.7, attention_mask=mask)
        processors = [add_on, keeps] if case.seed % 2 else [keeps, add_on]
    if (drafter := options.get("assistant_model")) is not None:
        drafters = {"small": lambda: combination().small_combination, "outsider": outsider}
        options["assistant_model"] = drafters.get(drafter, lambda: members[drafter])()
    if thinking is not None:  # or thoughts of members that know nothing would not end
        options["sequence_bias"] = {thinking.end: 5.0}
    torch.manual_seed(case.seed)
    made = model.generate(
        ids,
        attention_mask=mask,
        logits_processor=processors,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **options,
    )
    return made[:, longest:]


def check(case: Case) -> collections.Counter[str]:
    """
    Generate, and look at every answer. Returns how many there were, and of these how many were cut off by their length.

    Raises:
        `AssertionError`: If one is not valid.
    """
    tokenizer, counts = world()[0], collections.Counter()
    made = generate(case).tolist()
    close = tokenizer.convert_tokens_to_ids("</think>")
    for row, tokens in enumerate(made):
        kind, asked = case.asked[row * len(case.asked) // len(made)]
        counts["answers"] += 1
        counts[kind] += 1
        ended = EOS in tokens
        tokens = tokens[: tokens.index(EOS)] if ended else [token for token in tokens if token != PAD]
        counts["cut"] += not ended
        opened = bool(tokens) and tokens[0] == tokenizer.convert_tokens_to_ids("<think>")
        if case.thinking in ("opened", "always") or (case.thinking == "maybe" and opened):
            assert close in tokens or not ended, f"{case}: row {row} ends in a thought: {tokenizer.decode(tokens)!r}"
            tokens = tokens[tokens.index(close) + 1 :] if close in tokens else []
            counts["thought"] += 1
        text = tokenizer.decode(tokens)
        try:
            if kind == "regex":
                assert regex.fullmatch(asked, text, partial=not ended)
            elif ended:
                jsonschema.validate(json.loads(text), asked)
        except Exception as error:
            raise AssertionError(f"{case}: row {row} is {text!r}: {error}") from error
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    start, wrong = time.perf_counter(), 0
    by_way: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for seed in range(asked.first, asked.first + asked.cases):
        case = Case(seed)
        try:
            by_way[case.way] += check(case)
        except Exception as error:
            wrong += 1
            print(f"{type(error).__name__}: {error}\n    {case}", flush=True)
        by_way[case.way]["cases"] += 1
    names = ("cases", "answers", "json", "regex", "thought", "cut")
    for way, counts in [*by_way.items(), ("all", sum(by_way.values(), collections.Counter()))]:
        print(f"{way:24}", *(f"{counts[name]:6} {name}" for name in names))
    print(f"{wrong} cases were wrong; {(time.perf_counter() - start) / 60:.1f} minutes")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
