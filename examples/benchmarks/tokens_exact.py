"""Is a text as likely by tokens as by bytes, with vocabularies of real sizes? Next bytes of the same texts, without any limit of covers.

    python examples/benchmarks/tokenizer_kinds.py --output kinds
    python examples/benchmarks/tokens_exact.py --kinds kinds        # 20 minutes on 2 CPU cores

Tiny random models over 32k to 150k tokens. What follows a text is asked of each member's byte-level view, and of a byte-level view of its
units: by both, the sum over all ways to write the text. Then the distribution of the next unit with the limits that are the default, and
without any. Random models spread probability over ways to write a text that a trained one does not know; the embedded family is trained.
Writes `tokens_exact.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_eft import tiny
from hf_eft.bytes import ByteLevelModel, ByteTokenizer
from hf_eft.units import TokenLevelModel, common_units, read_in_units

_PAIRS = [
    ("trunk", "llama3"),
    ("llama3", "trunk"),
    ("llama3", "qwen"),
    ("qwen", "llama3"),
    ("gpt2", "gpt2-small"),
    ("llama3", "sentencepiece"),
]
_EXACT: dict[str, Any] = {"covers": None, "threshold": 0.0}
_TAIL = 4  # bytes behind the last settled token


def model_of(tokenizer: Any, seed: int) -> Any:
    """A tiny random model over the tokens of a tokenizer, in float64, whose predictions are not all alike."""
    torch.manual_seed(seed)
    ends = [tokenizer.eos_token_id]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=ends,
    )
    model = LlamaForCausalLM(config).double().eval()
    model.lm_head.weight.data.mul_(20)
    return model


def contexts(count: int) -> Iterator[tuple[str, str]]:
    """Passages, each with the beginning of another."""
    drawn = random.Random(5)
    texts = [question.prompt for question in tiny.questions()]
    for _ in range(count):
        first, second = drawn.sample(texts, 2)
        start = drawn.randrange(len(second) - _TAIL)
        yield first, second[start : start + drawn.randrange(_TAIL + 1)]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The total variation of two distributions, from their log-probs."""
    return 0.5 * float((one.double().exp() - other.double().exp()).abs().sum())


def compared(pair: tuple[str, str], tokenizers: Mapping[str, Any], models: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Of every member: how far bytes and units are from each other, and units with limits from units without."""
    exact = read_in_units(models, tokenizers, **_EXACT)
    limited = read_in_units(models, tokenizers)
    base, speaker = tokenizers["base"], ByteTokenizer()
    bytes_off: list[float] = []
    limits_off: list[float] = []
    missing: list[float] = []
    for name, model in exact.items():
        if not isinstance(model, TokenLevelModel):
            continue  # all its tokens are units
        own = ByteLevelModel(models[name], tokenizers[name], **_EXACT)
        through = ByteLevelModel(model, base, **_EXACT)
        for before, behind in contexts(count):
            if (
                pair[0] != "embedded"
            ):  # its tokenizers put a space behind a special token, or do not: these texts are others for each
                texts = [f"{before}{tokenizers[name].eos_token}{behind}", f"{before}{base.eos_token}{behind}"]
                inputs = [speaker(text, return_tensors="pt") for text in texts]
                says = [view(**each, logits_to_keep=1).logits[0, -1] for view, each in zip((own, through), inputs, strict=True)]
                bytes_off.append(distance(*says))
            ids = base(before + behind, return_tensors="pt")["input_ids"]
            whole, part = (view(input_ids=ids, logits_to_keep=1).logits[0, -1] for view in (model, limited[name]))
            limits_off.append(distance(whole, part))
            missing.append(limited[name].missing[0].estimate)
    units = common_units(tokenizers)
    return {
        "base, small": pair,
        "kind": units.kind,
        "units": len(units.ids),
        "contexts": len(limits_off),
        "next byte, by units and by bytes: most": max(bytes_off, default=None),
        "next unit, with limits and without: median": statistics.median(limits_off),
        "next unit, with limits and without: most": max(limits_off),
        "said to be left out: median": statistics.median(missing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", type=Path, required=True, help="what `tokenizer_kinds.py` has written")
    parser.add_argument("--contexts", type=int, default=20, help="for each member of a pair")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()

    start, rows = time.monotonic(), []
    base, *_, first = tiny.load()
    tuned, _, second = tiny.load_second()
    trained = {"base": base.double(), "tuned": tuned.double()}
    rows.append(compared(("embedded", "its second pair"), {"base": first, "tuned": second}, trained, args.contexts))
    print(json.dumps(rows[-1]), flush=True)
    for pair in _PAIRS:
        tokenizers = {
            name: AutoTokenizer.from_pretrained(args.kinds / kind) for name, kind in zip(("base", "tuned"), pair, strict=True)
        }
        models = {name: model_of(tokenizer, seed) for seed, (name, tokenizer) in enumerate(tokenizers.items())}
        rows.append(compared(pair, tokenizers, models, args.contexts))
        print(json.dumps(rows[-1]), flush=True)
    results = {
        "command": "python examples/benchmarks/tokens_exact.py --kinds kinds",
        "machine": machine(),
        "date": date.today().isoformat(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "pairs": rows,
    }
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
