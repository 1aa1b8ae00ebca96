"""Two checkouts of this project against each other, in turn in one run: did a change of the code make anything slower?

    git worktree add ../before COMMIT
    python examples/benchmarks/beside.py ../before            # about 3 minutes of one core

Each checkout runs in a process of its own; a round has both do the same once, in alternating order. What is compared is processor time,
which other work on the machine changes less than time on the clock. Writes `beside.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
NEW_TOKENS = 48


def cases() -> dict[str, Callable[[], Any]]:
    """What is done once in a round, with the embedded family."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig
    from transformers.utils import logging

    from hf_eft import EFTForCausalLM, EFTLogitsProcessor, tiny

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=tokenizer.pad_token_id)
    prompts = [question.prompt for question in tiny.questions()[:8]]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    one = tokenizer(prompts[:1], return_tensors="pt", return_token_type_ids=False)
    plain = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    folder = tempfile.TemporaryDirectory()

    def saved_and_loaded(keep: Any = folder) -> None:
        model.save_pretrained(keep.name)
        EFTForCausalLM.from_pretrained(keep.name)

    return {
        "wrapper, one row": lambda: model.generate(**one, **plain),
        "wrapper, 8 rows padded": lambda: model.generate(**batch, **plain),
        "add-on, 8 rows padded": lambda: base.generate(**batch, **plain, logits_processor=[add_on]),
        "drafts": lambda: model.generate(**batch, **plain, assistant_model=model.tuned),
        "beams": lambda: model.generate(**one, **plain, num_beams=4),
        "continuous batching": lambda: model.generate_batch(
            [tokenizer(prompt)["input_ids"] for prompt in prompts],
            GenerationConfig(**{**plain, "eos_token_id": -1, "pad_token_id": tokenizer.pad_token_id}),
            ContinuousBatchingConfig(num_blocks=128, page_size=8, max_batch_tokens=64),
            progress_bar=False,
        ),
        "members, 200 times": lambda: [EFTForCausalLM.from_models(base, tuned=tuned, reference=reference) for _ in range(200)],
        "saved and loaded": saved_and_loaded,
    }


def serve() -> None:
    """Do what is asked for on standard input, and say the seconds of processor time."""
    made = cases()
    print(json.dumps(list(made)), flush=True)
    for line in sys.stdin:
        before = time.process_time()
        made[json.loads(line)]()
        print(time.process_time() - before, flush=True)


class Checkout:
    """A checkout in a process of its own."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE), "--serve"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.cases = json.loads(self._line())

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit("A checkout could not be run: its error is above.")
        return line

    def seconds(self, case: str) -> float:
        if self._process.stdin is None:
            raise SystemExit("A checkout takes no requests.")
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def imported(self, folder: Path) -> float:
        """Processor seconds of `import hf_eft`, which needs a process of its own each time."""
        before = os.times()
        subprocess.run([sys.executable, "-c", "import hf_eft"], check=True, env={**os.environ, "PYTHONPATH": str(folder)})
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system


def compare(folders: dict[str, Path], rounds: int) -> dict[str, dict[str, Any]]:
    """By case: the ratio of the new checkout's time to the old one's, with quartiles, and both medians in milliseconds."""
    checkouts = {name: Checkout(folder) for name, folder in folders.items()}
    names = [*checkouts["new"].cases, "import"]
    found = {}
    for number, case in enumerate(names):
        times: dict[str, list[float]] = {name: [] for name in checkouts}
        for turn in range(-2, rounds):
            for name in sorted(checkouts, reverse=bool(turn % 2)):
                own = checkouts[name]
                spent = own.imported(folders[name]) if case == "import" else own.seconds(case)
                if turn >= 0:
                    times[name].append(spent)
            print(f"\r{number + 1} of {len(names)}: {case}, round {max(0, turn + 1)} of {rounds}   ", end="", file=sys.stderr)
        ratios = [new / old for new, old in zip(times["new"], times["old"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        found[case] = {
            "new / old": round(median(ratios), 3),
            "quartiles": [round(low, 3), round(high, 3)],
            **{f"{name} ms": round(1000 * median(values), 2) for name, values in times.items()},
        }
        print(f"\r{case}: {found[case]['new / old']} ({low:.3f}-{high:.3f})" + " " * 30, file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, nargs="?", help="the other checkout")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=HERE.with_suffix(".json"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    if args.old is None or not (args.old / "hf_eft").is_dir():
        parser.error("give the folder of another checkout")
    from machine import machine

    commits = {
        name: subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        for name, folder in {"new": ROOT, "old": args.old}.items()
    }
    found = compare({"new": ROOT, "old": args.old.resolve()}, args.rounds)
    about = {"command": f"python examples/benchmarks/beside.py --rounds {args.rounds} OLD", "machine": machine()}
    about |= {"date": date.today().isoformat(), "commits": commits}
    args.output.write_text(json.dumps({**about, "processor time": found}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
