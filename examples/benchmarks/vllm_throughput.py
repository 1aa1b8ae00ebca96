"""Tokens a second of a combination in vLLM, beside the base alone in vLLM and beside this package's own batches.

    python examples/benchmarks/vllm_throughput.py --vllm PYTHON        # about 40 minutes of one core
    python examples/benchmarks/vllm_throughput.py --vllm PYTHON --sizes small --requests 1 16 --rounds 2

`PYTHON` is the interpreter of an environment that has vLLM and `vllm-eft` (vllm_eft/README.md); this one has `hf_eft`. Every system runs in
a process of its own, which waits while another is measured; in a round all do the same once, in an order that turns. One thread each,
vLLM's engine in the process that asks. Random Llamas in float32, prompts of 10 tokens, 64 new ones, no cache of prefixes. Writes
`vllm_throughput.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
MARK = "measured: "  # before what a process has to say; vLLM prints as well
PROMPT, NEW = 10, 64
# Layers and width of the base, of each small member, and the vocabulary: the small members have a fifth of the base's weights, together.
SIZES = {"small": ((10, 256), (2, 128), 2000), "large": ((30, 512), (8, 256), 8000)}
SYSTEMS = ("vLLM, base alone", "vLLM, combination", "hf_eft, generate_batch", "hf_eft, generate on one batch")


def make(folder: Path, size: str) -> dict[str, int]:
    """A combination as a folder; numbers of parameters by member."""
    import torch
    from speed_family import llama

    from hf_eft import EFTForCausalLM

    torch.manual_seed(0)
    base, small, vocab = SIZES[size]
    members = {name: llama(*(base if name == "base" else small), vocab) for name in ("base", "tuned", "reference")}
    EFTForCausalLM.from_models(**members).save_pretrained(folder)
    return {name: sum(p.numel() for p in model.parameters()) for name, model in members.items()}


def prompts(size: str, count: int) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(3, SIZES[size][2]) for _ in range(PROMPT)] for _ in range(count)]


# In the process of a system ---------------------------------------------------------------------------------------------


def of_vllm(folder: Path, most: int, eager: bool) -> Callable[[list[list[int]]], int]:
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder), dtype="float32", enforce_eager=eager, max_model_len=128, kv_cache_memory_bytes=2 << 30, max_num_seqs=most,
        max_num_batched_tokens=max(2048, most), enable_prefix_caching=False, skip_tokenizer_init=True, seed=0,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)

    def answer(asked: list[list[int]]) -> int:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return answer


def of_hf_eft(folder: Path, most: int, batched: bool) -> Callable[[list[list[int]]], int]:
    import torch
    from transformers import ContinuousBatchingConfig

    from hf_eft import EFTForCausalLM

    torch.set_num_threads(1)
    model = EFTForCausalLM.from_pretrained(folder)
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}

    def answer(asked: list[list[int]]) -> int:
        if not batched:
            out = model.generate(torch.tensor(asked), **options)
            return int(out.shape[0] * (out.shape[1] - PROMPT))
        # The cache is made anew by every call, and no larger than it needs: that would be time of its own.
        blocks = len(asked) * (1 + -(-(PROMPT + NEW) // 32))
        batching = ContinuousBatchingConfig(num_blocks=blocks, block_size=32, max_batch_tokens=max(2048, most))
        outputs = model.generate_batch(asked, continuous_batching_config=batching, progress_bar=False, **options)
        return sum(len(output.generated_tokens) for output in outputs.values())

    return answer


def measure(system: str, folder: Path, size: str, most: int, eager: bool) -> None:
    """Answer lines with a number of requests by the tokens a second that they took, until there are no more."""
    if system.startswith("vLLM"):
        answer = of_vllm(folder if "combination" in system else folder / "members" / "base", most, eager)
    else:
        answer = of_hf_eft(folder, most, "batch" in system.split(",")[1].split(" on ")[0])
    answer(prompts(size, 2))  # what is done once is not counted
    print(MARK + "ready", flush=True)
    for line in sys.stdin:
        asked = prompts(size, int(line))
        start = time.perf_counter()
        tokens = answer(asked)
        taken = time.perf_counter() - start
        if tokens != NEW * len(asked):
            raise SystemExit(f"{system}: {tokens} tokens for {len(asked)} requests, expected {NEW} for each.")
        print(MARK + json.dumps(tokens / taken), flush=True)


# In the process that compares -------------------------------------------------------------------------------------------


class Process:
    """A system that waits until it is asked."""

    def __init__(self, python: str, system: str, folder: Path, size: str, args: argparse.Namespace) -> None:
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "0",
            "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2",
        }  # fmt: skip
        command = [python, str(HERE), "--one", system, str(folder), size, "--requests", *map(str, args.requests)]
        self.log = folder.parent / f"{size}, {system}.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, *(["--compiled"] if args.compiled else [])],
                env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self._said()

    def tokens_a_second(self, count: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._said())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _said(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).strip()
        raise SystemExit(f"A process ended: {self.log.read_text()[-3000:]}")


def compare(folder: Path, size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second by number of requests and system, of every round, and ratios with their spread."""
    pythons = {system: args.vllm if system.startswith("vLLM") else sys.executable for system in SYSTEMS}
    processes = {system: Process(python, system, folder, size, args) for system, python in pythons.items()}
    rounds: dict[int, dict[str, list[float]]] = {count: {system: [] for system in SYSTEMS} for count in args.requests}
    for turn in range(args.rounds):
        for count, found in rounds.items():
            for place in range(len(SYSTEMS)):
                system = SYSTEMS[(turn + place) % len(SYSTEMS)]
                found[system].append(processes[system].tokens_a_second(count))
            print(
                f"{size}, round {turn + 1}, {count} requests: { ({name: round(each[-1]) for name, each in found.items()}) }",
                flush=True,
            )
    for process in processes.values():
        process.close()
    return {str(count): summary(found) for count, found in rounds.items()}


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    base, combination, batch, one = (found[system] for system in SYSTEMS)
    pairs = {
        "vLLM, combination / base alone": (combination, base),
        "vLLM, combination / generate_batch": (combination, batch),
        "generate_batch / generate on one batch": (batch, one),
    }
    ratios = {name: spread([a / b for a, b in zip(*pair, strict=True)], 3) for name, pair in pairs.items()}
    return {"tokens a second": {system: spread(values, 1) for system, values in found.items()}, "ratios": ratios}


def spread(values: list[float], digits: int) -> dict[str, float]:
    return {name: round(of(values), digits) for name, of in (("median", median), ("least", min), ("most", max))}


def versions(python: str, *names: str) -> dict[str, str]:
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    return json.loads(subprocess.check_output([python, "-c", code], text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm", help="the Python of an environment with vLLM and vllm-eft")
    parser.add_argument("--engine", default="vllm-cpu", help="the name of its distribution")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--requests", nargs="*", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="vLLM's graphs compiled, rather than eager")
    parser.add_argument("--output", type=Path, default=HERE.with_suffix(".json"))
    parser.add_argument("--one", nargs=3, metavar=("SYSTEM", "FOLDER", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        system, folder, size = args.one
        return measure(system, Path(folder), size, max(args.requests), not args.compiled)
    if not args.vllm:
        parser.error("--vllm must name the Python of an environment that has vLLM and vllm-eft.")
    from machine import machine

    results: dict[str, Any] = {
        "machine": machine(), "vLLM": versions(args.vllm, args.engine, "vllm-eft", "torch", "transformers"), "rounds": args.rounds,
        "date": date.today().isoformat(), "command": f"python examples/benchmarks/{HERE.name} --vllm PYTHON --sizes {' '.join(args.sizes)}",
    }  # fmt: skip
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / size
            parameters = make(folder, size)
            results[size] = {"parameters": parameters, "requests": compare(folder, size, args)}
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
