"""What combining members of different tokenizers costs by tokens, beside one shared tokenizer and bytes; and what it keeps.

    python examples/benchmarks/tokens_cost.py                   # 15 minutes on 2 CPU cores
    python examples/benchmarks/tokens_cost.py --only "second pair"    # one part again, the others as they are in the file

The embedded family, whose tokenizer is cut down in three ways: one member's tokens are made of another's, or both have more than what they
share. All write the same units. Processor time of a step, which writes a unit in every row, one variant after the other in every round; by
bytes, of as many as a unit has. Then 2,000 tokens: time and memory as they grow. Then the
second embedded pair: facts and style by tokens and by bytes. Writes `tokens_cost.json` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bytes_cost import combination, scores, write
from machine import machine
from tokenizers import Tokenizer

from hf_eft import EFTForCausalLM, tiny
from hf_eft.bytes import ByteTokenizer
from hf_eft.units import common_units

_NEW = 96
_BATCH = 24
_DEEP = 4
_SHARED = 0.6  # of the tokenizer's merges


def cut_down(tokenizer: Any, keep: Any) -> Any:
    """A tokenizer with those of its merges that are kept, by rank, and whose parts are."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    made = {left + right for left, right in pairs}
    kept: list[tuple[str, str]] = []
    known = {token for token in model["vocab"] if token not in made}
    for rank, (left, right) in enumerate(pairs):
        if keep(rank / len(pairs), rank) and {left, right} <= known:
            kept.append((left, right))
            known.add(left + right)
    model["vocab"] = {token: i for token, i in model["vocab"].items() if token in known}
    model["merges"] = kept
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = Tokenizer.from_str(json.dumps(state))
    return smaller


def deeper(model: Any, times: int) -> Any:
    """A model that says the same at so many times the cost: behind each of its layers are others that add nothing."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers *= times
    made = type(model)(config).to(model.dtype).eval()
    for i, layer in enumerate(made.model.layers):
        layer.load_state_dict(model.model.layers[i // times].state_dict())
        if i % times:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                torch.nn.init.zeros_(weight)
    for name in ("embed_tokens", "norm"):
        getattr(made.model, name).load_state_dict(getattr(model.model, name).state_dict())
    made.lm_head.load_state_dict(model.lm_head.state_dict())
    made.generation_config = model.generation_config
    return made


def variants(times: int = 1) -> dict[str, tuple[EFTForCausalLM, Any]]:
    """By name, the family with these tokenizers and so many times its layers, and what prompts are written with."""
    *members, whole = tiny.load()
    base, tuned, reference = [deeper(member, times) if times > 1 else member for member in members]
    few = cut_down(whole, lambda share, rank: share < _SHARED)
    even = cut_down(whole, lambda share, rank: share < _SHARED or rank % 2 == 0)
    odd = cut_down(whole, lambda share, rank: share < _SHARED or rank % 2 == 1)
    models = {"base": base, "tuned": tuned, "reference": reference}
    pairs = {
        "the small members' tokens hold the base's": (few, whole),
        "the base's tokens hold the small members'": (whole, few),
        "both hold more than they share": (even, odd),
    }
    made: dict[str, tuple[EFTForCausalLM, Any]] = {"one shared tokenizer": (EFTForCausalLM.from_models(**models), few)}
    for name, (large, small) in pairs.items():
        tokenizers = {"base": large, "tuned": small, "reference": small}
        units = common_units(tokenizers)
        if not units.exact:
            raise ValueError(f"{name}: {units.reason}")
        made[name] = EFTForCausalLM.from_models(**models, tokenizers=tokenizers, vocabulary="tokens"), large
    return made


def inputs_of(speaker: Any, questions: Sequence[tiny.Question]) -> Any:
    return speaker([question.prompt for question in questions], return_tensors="pt", padding=True, padding_side="left")


def timed(model: EFTForCausalLM, speaker: Any, questions: Sequence[tiny.Question]) -> tuple[float, list[str]]:
    """Processor time of a step of a batch of answers, and these."""
    inputs = inputs_of(speaker, questions)
    start = time.process_time()
    ids = model.generate(**inputs, max_new_tokens=_NEW, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    taken = time.process_time() - start
    return taken / ids.shape[1], speaker.batch_decode(ids, skip_special_tokens=True)


def by_bytes() -> EFTForCausalLM:
    """The family with one shared tokenizer, byte by byte."""
    base, tuned, reference, whole = tiny.load()
    few = cut_down(whole, lambda share, rank: share < _SHARED)
    return EFTForCausalLM.from_models(
        base,
        tuned=tuned,
        reference=reference,
        tokenizers=dict.fromkeys(("base", "tuned", "reference"), few),
        vocabulary="bytes",
    )


def times(questions: Sequence[tiny.Question], rounds: int, deep: int = 1) -> dict[str, Any]:
    """Time per token, as a ratio to one shared tokenizer in the same round. What bytes write is counted in tokens of that tokenizer."""
    made, spelled, speaker = variants(deep), by_bytes() if deep == 1 else None, ByteTokenizer()
    few = made["one shared tokenizer"][1]
    ratios: dict[str, list[float]] = {name: [] for name in [*made, *(["bytes"] if spelled else [])]}
    for _ in range(rounds + 1):  # the first warms up
        seconds = {name: timed(model, cutter, questions)[0] for name, (model, cutter) in made.items()}
        if spelled is not None:
            step, texts = timed(spelled, speaker, questions)
            ends = 1  # the end of a text is written too
            written = [
                sum(len(text.encode()) + ends for text in texts), sum(len(few(text)["input_ids"]) + ends for text in texts),
            ]  # fmt: skip
            seconds["bytes"] = step * written[0] / written[1]
        for name, value in seconds.items():
            ratios[name].append(value / seconds["one shared tokenizer"])
    return {
        name: {
            "median": round(statistics.median(each[1:]), 2),
            "least": round(min(each[1:]), 2),
            "most": round(max(each[1:]), 2),
        }
        for name, each in ratios.items()
    }


class Growth:
    """A streamer that notes, every so many tokens, the time and the bytes of all tensors."""

    def __init__(self, every: int) -> None:
        self.every, self.count, self.seen = every, -1, []  # the prompt comes first
        self.started = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.count += 1
        if self.count % self.every == 0:
            held = sum(
                {
                    each.data_ptr(): each.untyped_storage().nbytes() for each in gc.get_objects() if type(each) is torch.Tensor
                }.values()
            )
            now = time.process_time()
            self.seen.append({"tokens": self.count, "seconds": round(now - self.started, 3), "MB": round(held / 2**20, 2)})
            self.started = time.process_time()

    def end(self) -> None:
        pass


def long(questions: Sequence[tiny.Question], new: int) -> list[dict[str, Any]]:
    """One row of many tokens, where both have more than they share."""
    model, speaker = variants()["both hold more than they share"]
    growth = Growth(new // 8)
    inputs = inputs_of(speaker, questions[:1])
    model.generate(**inputs, min_new_tokens=new, max_new_tokens=new, do_sample=False, streamer=growth)
    return growth.seen[1:]


def second_pair(questions: Sequence[tiny.Question]) -> dict[str, Any]:
    """Facts and style with the pair of the other tokenizer, by tokens and by bytes."""
    base, *_, tokenizer = tiny.load()
    tuned, reference, second = tiny.load_second()
    tokenizers = {"base": tokenizer, "tuned": second, "reference": second}
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=tokenizers, vocabulary="tokens")
    replies: list[str] = []
    for start in range(0, len(questions), _BATCH):
        inputs = inputs_of(tokenizer, questions[start : start + _BATCH])
        ids = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        replies += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    units = common_units(tokenizers)
    return {
        "questions": len(questions),
        "units": len(units.ids),
        "why": units.reason,
        "by tokens": scores(questions, replies),
        "by bytes": scores(questions, write(combination({"covers": 4, "threshold": 1e-3}), questions)),
    }


def all_times(questions: Sequence[tiny.Question], args: argparse.Namespace) -> dict[str, Any]:
    """Of one row and of a batch, and of members with more layers."""
    found: dict[str, Any] = {"rounds": args.rounds}
    for rows in (1, args.compared):
        found[f"rows: {rows}"] = times(questions[:rows], args.rounds)
    for rows in (1, args.compared):
        found[f"rows: {rows}, {_DEEP} times the layers"] = times(questions[:rows], args.rounds // _DEEP, _DEEP)
    return found


PARTS: dict[str, Callable[[Sequence[tiny.Question], argparse.Namespace], dict[str, Any]]] = {
    "time per token, one shared tokenizer is 1": all_times,
    "long": lambda questions, args: {"points": long(questions, args.long)},
    "second pair": lambda questions, args: second_pair(questions),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compared", type=int, default=12, help="questions for the times, in one batch")
    parser.add_argument("--questions", type=int, default=600, help="questions for the second pair")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--long", type=int, default=2000, help="tokens of the long answer")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only", choices=PARTS, help="measure this part again, and keep the rest of the file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    questions = random.Random(2).sample(tiny.questions(), args.questions)
    results = json.loads(args.output.read_text()) if args.only else {}
    for part in [args.only] if args.only else PARTS:
        results[part] = {"machine": machine(), "date": date.today().isoformat(), **PARTS[part](questions, args)}
        print(json.dumps(results[part], indent=1), flush=True)
        args.output.write_text(json.dumps({"command": "python examples/benchmarks/tokens_cost.py", **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
