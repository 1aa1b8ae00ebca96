"""What combining byte by byte costs, and what it keeps: the embedded family's base with the small pair of the other tokenizer.

    python examples/benchmarks/bytes_cost.py            # 10 minutes on 2 CPU cores

Counts, for several limits of covers: sequences that the members continued for every token that their own tokenizer makes of what was
written, and what was left out. Processor time: the family with its own small pair, by tokens and by bytes, in turn. Writes
`bytes_cost.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from machine import machine

from hf_eft import EFTForCausalLM, tiny
from hf_eft.bytes import ByteLevelModel
from hf_eft.bytes.tokens import ByteTokenizer
from hf_eft.programs.demo import ask
from hf_eft.spelling.covers import Cost

_BATCH = 24
_BYTES = 96
_LIMITS: list[dict[str, Any]] = [
    {"covers": 1, "threshold": 0.1},
    {"covers": 1, "threshold": 1e-3},
    {"covers": 4, "threshold": 1e-2},
    {"covers": 4, "threshold": 1e-3},
    {"covers": 4, "threshold": 1e-4},
    {"covers": 16, "threshold": 1e-5},
]
_DEFAULT = _LIMITS[3]


def combination(limits: dict[str, Any], second: bool = True) -> EFTForCausalLM:
    """The base with a small pair, all read as bytes."""
    base, tuned, reference, tokenizer = tiny.load()
    other = tokenizer
    if second:
        tuned, reference, other = tiny.load_second()
    return EFTForCausalLM.from_models(
        ByteLevelModel(base, tokenizer, **limits),
        tuned=ByteLevelModel(tuned, other, **limits),
        reference=ByteLevelModel(reference, other, **limits),
    )


def write(model: Any, questions: Sequence[tiny.Question], new: int = _BYTES) -> list[str]:
    """Greedy answers, in batches."""
    speaker, replies = ByteTokenizer(), []
    for start in range(0, len(questions), _BATCH):
        prompts = [question.prompt for question in questions[start : start + _BATCH]]
        inputs = speaker(prompts, return_tensors="pt", padding=True)
        ids = model.generate(**inputs, max_new_tokens=new, do_sample=False)
        replies += speaker.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def scores(questions: Sequence[tiny.Question], replies: Sequence[str]) -> dict[str, float]:
    """The share of facts that are right, and of answers in the tuned style."""
    pairs = list(zip(questions, replies, strict=True))
    return {
        "facts": round(sum(q.is_right(reply) for q, reply in pairs) / len(pairs), 3),
        "style": round(sum(q.is_in_style(reply) for q, reply in pairs) / len(pairs), 3),
    }


def cost(limits: dict[str, Any], questions: Sequence[tiny.Question]) -> dict[str, Any]:
    """What was answered with these limits, and what it took."""
    model = combination(limits)
    members: dict[str, ByteLevelModel] = model.members  # type: ignore[assignment]
    write(model, questions, new=1)
    prompts = {name: member.cost.covers for name, member in members.items()}
    for member in members.values():
        member.cost = Cost()
    replies = write(model, questions)
    ends = 1  # the end of text is a token too
    row: dict[str, Any] = {**limits, **scores(questions, replies), "members": {}}
    for name, member in members.items():
        tokens = sum(len(member.tokenizer(reply.strip())["input_ids"]) + ends for reply in replies)
        written = sum(len(reply.encode()) + ends for reply in replies)
        continued = member.cost.covers - prompts[name]
        row["members"][name] = {
            "continued per token": round(continued / tokens, 3),
            "continued per byte": round(continued / written, 3),
            "left out, estimate": round(statistics.mean(each.estimate for each in member.missing), 5),
        }
    return row


def times(questions: Sequence[tiny.Question], rounds: int) -> dict[str, Any]:
    """The same members and questions by bytes and by tokens, in turn. Processor time, which others on the machine change less."""
    base, tuned, reference, tokenizer = tiny.load()
    by_tokens = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    by_bytes = combination(_DEFAULT, second=False)
    ratios = []
    for _ in range(rounds):
        start = time.process_time()
        ask(by_tokens, tokenizer, questions)
        middle = time.process_time()
        write(by_bytes, questions)
        ratios.append((time.process_time() - middle) / (middle - start))
    ratio = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {**{key: round(value, 1) for key, value in ratio.items()}, "rounds": rounds, "questions": len(questions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--compared", type=int, default=24, help="questions for each limit of covers, and for the times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only-times", action="store_true", help="measure the times again, and keep the rest of the file")
    args = parser.parse_args()

    results: dict[str, Any]
    if args.only_times:
        results = json.loads(args.output.read_text())
        questions = random.Random(2).sample(tiny.questions(), args.compared)
        results["processor time, bytes over tokens"] = times(questions, args.rounds)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
        return
    questions = random.Random(2).sample(tiny.questions(), args.questions)
    base, tuned, reference, tokenizer = tiny.load()
    second_tuned, _, second = tiny.load_second()
    by_tokens = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    results = {
        "command": f"python examples/benchmarks/bytes_cost.py --questions {args.questions}",
        "machine": machine(),
        "date": date.today().isoformat(),
        "questions": args.questions,
        "scores": {
            "large base, alone, by bytes": scores(questions, write(ByteLevelModel(base, tokenizer), questions)),
            "second small tuned, alone, by bytes": scores(questions, write(ByteLevelModel(second_tuned, second), questions)),
            "base and second pair, by bytes": scores(questions, write(combination(_DEFAULT), questions)),
            "base and the family's own pair, by tokens": scores(questions, ask(by_tokens, tokenizer, questions)),
            "base and the family's own pair, by bytes": scores(questions, write(combination(_DEFAULT, False), questions)),
        },
    }
    print(json.dumps(results["scores"], indent=1), flush=True)
    compared = questions[: args.compared]
    results["limits"] = []
    for limits in _LIMITS:
        results["limits"].append(cost(limits, compared))
        print(json.dumps(results["limits"][-1]), flush=True)
    results["processor time, bytes over tokens"] = times(compared, args.rounds)
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
