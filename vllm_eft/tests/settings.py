"""
The ways of running an engine that the answers must not depend on, each in a process of its own.

    EFT_ORACLE=ORACLE python vllm_eft/tests/settings.py                # all, a line for each; about an hour on 2 cores
    EFT_ORACLE=ORACLE python vllm_eft/tests/settings.py V1 drafts      # those whose name has one of the words
    EFT_ORACLE=ORACLE python vllm_eft/tests/settings.py --json FILE    # what was found, with machine and date

`test_settings.py` runs them as nightly tests.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "found: "  # before what the process has to say; vLLM prints as well


@dataclass(frozen=True)
class Setting:
    r"""
    Args:
        name (`str`): For people; `V1` or `V2` in front is the model runner.
        options (`dict`): Of `LLM`, beside those that all have.
        env (`dict`): Of the process.
        count (`int`): Requests: short and of 200 tokens, at four strengths, mixed.
        again (`bool`): Asked twice, the second time out of the prefix cache.
        above (`dict`): Counters of vLLM's that must have grown beyond a number, or the setting was none.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    count: int = 300
    again: bool = False
    above: dict[str, int] = field(default_factory=dict)

    @property
    def v2(self) -> bool:
        return self.name.startswith("V2")


# A thread of each worker's on a core of its own: without it, vLLM looks for a NUMA node for each.
_TWO = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
_PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
_CHUNKS = {"max_num_batched_tokens": 48, "max_num_seqs": 32, "enable_prefix_caching": True}
# Room for one long prompt and a few short ones: as it grows, others have to go.
_FEW_BLOCKS = {"num_gpu_blocks_override": 10, "max_model_len": 256, "enable_prefix_caching": False}
_DRAFTS = {"speculative_config": {"model": "members/tuned", "method": "draft_model", "num_speculative_tokens": 3}}
_PREEMPTED = {"vllm:num_preemptions": 0}
_CACHED = {"vllm:prefix_cache_hits": 0}

SETTINGS = (
    Setting("V1"),
    Setting("V1, an engine in processes of its own", env=_PROCESSES),
    Setting("V1, prompts in chunks, then out of the prefix cache", _CHUNKS, again=True, above=_CACHED),
    Setting("V1, preemption", _FEW_BLOCKS, above=_PREEMPTED),
    Setting("V1, tensor parallel", {"tensor_parallel_size": 2}, _TWO),
    # Eager pipelines with a cache of a given size fail in vLLM's CPU worker for any model: it does not warm up.
    Setting("V1, pipeline", {"pipeline_parallel_size": 2, "enforce_eager": False}, _TWO),
    Setting("V1, compiled", {"enforce_eager": False}),
    Setting("V1, compiled, from the compile cache", {"enforce_eager": False}),
    Setting("V2"),
    Setting("V2, prompts in chunks, then out of the prefix cache", _CHUNKS, again=True, above=_CACHED),
    Setting("V2, preemption", _FEW_BLOCKS, above=_PREEMPTED),
    Setting("V2, drafts", _DRAFTS, above={"vllm:spec_decode_num_accepted_tokens": 0}),
    Setting("V2, tensor parallel", {"tensor_parallel_size": 2}, _TWO),
    Setting("V2, pipeline", {"pipeline_parallel_size": 2, "enforce_eager": False}, _TWO),
    Setting("V2, compiled", {"enforce_eager": False}),
)


def environment(setting: Setting) -> dict[str, str]:
    # Of modules beside this one: a safe path (`make vllm`) has not the folder of a script.
    path = [str(HERE), *[str(HERE / "interpreted")] * setting.v2, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": str(int(setting.v2)),
        "PYTHONPATH": os.pathsep.join(path),
        **setting.env,
    }


def unsupported(setting: Setting) -> str | None:
    """Why this vLLM has no such setting, if it has none."""
    from vllm_eft.releases import v2_processor

    return "this vLLM's V2 model runner takes no logits processors" if setting.v2 and v2_processor() is None else None


def run(setting: Setting) -> dict[str, Any]:
    """
    What a process found that ran a setting: requests, tokens that are `generate`'s and all, the largest difference of log-probabilities,
    counters, seconds.
    """
    began = time.monotonic()
    command = [sys.executable, str(Path(__file__)), "--one", json.dumps(asdict(setting))]
    done = subprocess.run(command, env=environment(setting), capture_output=True, text=True)
    found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        return {"failed": (done.stdout + done.stderr)[-4000:]}
    return {**json.loads(found[-1]), "seconds in all": round(time.monotonic() - began)}


def wrong(setting: Setting, found: dict[str, Any], within: float = 1e-4) -> str | None:
    """What is wrong with it, if something is."""
    if "failed" in found:
        return found["failed"]
    if found["equal"] != found["requests"]:
        return (
            f"{found['requests'] - found['equal']} of {found['requests']} answers are not those of `generate`: {found['first']}"
        )
    if found["apart"] > within:
        return f"log-probabilities are {found['apart']:.1e} apart"
    low = {
        name: found["counters"].get(name, 0) for name, least in setting.above.items() if found["counters"].get(name, 0) <= least
    }
    return f"the setting did not come about: {low}" if low else None


def one(setting: Setting) -> dict[str, Any]:
    """In the process of a setting."""
    from answers import ask, logprobs, mixed
    from conftest import options_of
    from vllm import LLM

    folder = Path(os.environ["EFT_ORACLE"])
    cases = json.loads((folder / "oracle.json").read_text())
    requests = mixed(cases["tiny"]["requests"], setting.count)
    options = {
        **options_of("tiny", cases),
        "max_num_seqs": 64,
        "max_num_batched_tokens": 1024,
        "disable_log_stats": False,
        **setting.options,
    }
    if draft := options.get("speculative_config"):
        options["speculative_config"] = {**draft, "model": str(folder / "tiny" / draft["model"])}
    began = time.monotonic()
    llm = LLM(str(folder / "tiny"), **options)
    started = time.monotonic()
    found: dict[str, Any] = {"requests": 0, "tokens": 0, "equal": 0, "apart": 0.0, "first": None}
    for _ in range(1 + setting.again):
        for output, request in zip(ask(llm, requests), requests, strict=True):
            got = list(output.outputs[0].token_ids)
            found["requests"] += 1
            found["tokens"] += len(request["new"])
            if got != request["new"]:
                found["first"] = found["first"] or f"{request['extra']}: {got} for {request['new']}"
                continue
            found["equal"] += 1
            apart = [abs(a - b) for a, b in zip(logprobs(output, request), request["logprobs"], strict=True)]
            found["apart"] = max(found["apart"], *apart)
    ended = time.monotonic()
    counters = {
        metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value") and metric.name in _COUNTED
    }
    return {
        **found,
        "counters": counters,
        "seconds to start": round(started - began),
        "seconds to answer": round(ended - started),
    }


_COUNTED = (
    "vllm:num_preemptions",
    "vllm:prefix_cache_hits",
    "vllm:spec_decode_num_accepted_tokens",
    "vllm:spec_decode_num_draft_tokens",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("words", nargs="*", help="only settings whose name has one of them")
    parser.add_argument("--json", type=Path, help="where to keep what was found; what is there of other settings stays")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(MARK + json.dumps(one(Setting(**json.loads(args.one)))), flush=True)
        return 0
    chosen = [setting for setting in SETTINGS if not args.words or any(word in setting.name for word in args.words)]
    failures = 0
    for setting in chosen:
        if reason := unsupported(setting):
            print(f"skipped  {setting.name}: {reason}", flush=True)
            continue
        found = run(setting)
        problem = wrong(setting, found)
        failures += problem is not None
        print(f"{'held  ' if problem is None else 'FAILED'}  {setting.name}: {problem or json.dumps(found)}", flush=True)
        if args.json:
            keep(args.json, setting, found)
    held = sum(unsupported(setting) is None for setting in chosen) - failures
    print(f"{held} of {held + failures} settings held")
    return int(failures > 0 or not held)


def keep(file: Path, setting: Setting, found: dict[str, Any]) -> None:
    from importlib.metadata import version

    kept = json.loads(file.read_text()) if file.is_file() else {}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}"
    date = datetime.date.today().isoformat()
    kept[setting.name] = {"date": date, "machine": machine, "vllm_eft": version("vllm-eft"), **found}
    file.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
