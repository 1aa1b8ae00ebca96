"""Requests put to vLLM, and what came held against what hf_eft answered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

# Whether this process has the V2 model runner, which without a GPU runs in Triton's interpreter (interpreted/sitecustomize.py).
V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
NEW = 24  # tokens of an answer, as oracle.py has it


def ask(llm: Any, requests: Sequence[dict[str, Any]], **more: Any) -> list[Any]:
    """All requests in one batch, each with what it asks for."""
    from vllm import SamplingParams

    # The embedded family ends its answers; random models are asked for a number of tokens.
    ends = "kind" in requests[0]
    options = {"temperature": 0, "max_tokens": NEW, "logprobs": 1, "ignore_eos": not ends, "detokenize": False, **more}
    return llm.generate(
        [{"prompt_token_ids": request["prompt"]} for request in requests],
        [SamplingParams(**options, extra_args=request["extra"] or None) for request in requests],
        use_tqdm=False,
    )


def logprobs(output: Any, request: dict[str, Any]) -> list[float]:
    """Those of the expected tokens."""
    return [found[token].logprob for found, token in zip(output.outputs[0].logprobs, request["new"], strict=True)]


def hold(outputs: Sequence[Any], requests: Sequence[dict[str, Any]], within: float = 1e-4) -> None:
    for number, (output, request) in enumerate(zip(outputs, requests, strict=True)):
        assert list(output.outputs[0].token_ids) == request["new"], f"request {number}, {request['extra']}"
        assert logprobs(output, request) == pytest.approx(request["logprobs"], abs=within), (
            f"request {number}, {request['extra']}"
        )


def mixed(requests: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` of the requests, of each strength and kind alike, a request of one beside those of the others."""
    by_group: dict[str, list[dict[str, Any]]] = {}
    for request in requests:
        by_group.setdefault(f"{request['extra']} {request.get('kind')}", []).append(request)
    turns = [
        group[turn] for turn in range(max(map(len, by_group.values()))) for group in by_group.values() if turn < len(group)
    ]
    return turns[:count]
