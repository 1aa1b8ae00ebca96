"""What a draft model costs in vLLM, which keeps a second copy of the tuned member's weights and states for it, and what it gives.

    EFT_ORACLE=ORACLE VLLM_USE_V2_MODEL_RUNNER=1 PYTHON examples/benchmarks/vllm_drafts.py

`PYTHON` is the interpreter of an environment that has vLLM and `vllm-eft`, `ORACLE` a folder that vllm_eft/tests/oracle.py wrote.
Drafts need the V2 model runner: without a GPU, put vllm_eft/tests/interpreted on PYTHONPATH, and its kernels run in Triton's interpreter.
How many tokens a cache holds is the same there; tokens a second are not what a GPU gives. Prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS, CACHE = 5, 256 << 20
MARK = "measured: "  # before what a process has to say; vLLM prints as well


def measure(drafts: int) -> dict[str, Any]:
    """With a number of drafted tokens in a round, on the embedded family at a strength of 1."""
    from vllm import LLM, SamplingParams

    folder = Path(os.environ["EFT_ORACLE"])
    asked = [
        request
        for request in json.loads((folder / "oracle.json").read_text())["tiny"]["requests"]
        if request["kind"] == "short" and request["extra"] == {"alpha": 1.0}
    ]
    more: dict[str, Any] = {}
    if drafts:
        tuned = str(folder / "tiny" / "members" / "tuned")
        more["speculative_config"] = {"model": tuned, "method": "draft_model", "num_speculative_tokens": drafts}
    llm = LLM(
        str(folder / "tiny"), dtype="float32", enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=CACHE, block_size=32,
        max_num_seqs=64, max_num_batched_tokens=1024, enable_prefix_caching=False, disable_log_stats=False, seed=0, **more,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=24, extra_args={"alpha": 1.0}, detokenize=False)

    def tokens_a_second(requests: list[dict[str, Any]]) -> float:
        start = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": each["prompt"]} for each in requests], params, use_tqdm=False)
        taken = time.perf_counter() - start
        if wrong := [
            each for each, out in zip(requests, outputs, strict=True) if list(out.outputs[0].token_ids) != each["new"]
        ]:
            raise SystemExit(f"{len(wrong)} answers of {len(requests)} are not those of `generate`.")
        return sum(len(output.outputs[0].token_ids) for output in outputs) / taken

    tokens_a_second(asked[:2])  # what is done once is not counted
    cache = llm.llm_engine.vllm_config.cache_config
    found: dict[str, Any] = {"drafts": drafts, "tokens that the cache holds": cache.num_gpu_blocks * cache.block_size}
    for count in (1, 16):
        rates = [tokens_a_second(asked[:count]) for _ in range(ROUNDS)]
        found[f"tokens/s at {count}"] = [round(each, 1) for each in (median(rates), min(rates), max(rates))]
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    if drafts:
        kept, drawn = (counters[f"vllm:spec_decode_num_{key}_tokens"] for key in ("accepted", "draft"))
        found["accepted"] = round(kept / drawn, 2)
    return found


def main() -> None:
    if len(sys.argv) > 1:
        print(MARK + json.dumps(measure(int(sys.argv[1]))), flush=True)
        return
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    for drafts in (0, 3):
        done = subprocess.run([sys.executable, __file__, str(drafts)], env=env, stdout=subprocess.PIPE, text=True)
        found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
        if done.returncode or not found:
            sys.exit("It ended with an error, which is above.")
        print(found[-1], flush=True)


if __name__ == "__main__":
    main()
