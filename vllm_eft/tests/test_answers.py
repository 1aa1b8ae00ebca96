"""Every answer is hf_eft's, token for token, its log-probabilities within 1e-4."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

KINDS = ["llama", "qwen3", "qwen2", "mistral", "gemma3_text", "gpt2", "qwen3_moe", "olmo2"]
RECIPES = ["keep", "drop", "base", "plausible", "steer", "shared", "interpolated", "mixed", "narrow", "adapter"]


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    """An engine in this process holds its memory, and its groups of processes, until it is told."""
    yield
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    gc.collect()


def ask(llm: Any, requests: Sequence[dict[str, Any]], **more: Any) -> list[Any]:
    """All requests in one batch."""
    from vllm import SamplingParams

    options = {
        "temperature": 0,
        "max_tokens": 24,
        "logprobs": 1,
        "ignore_eos": "kind" not in requests[0],
        "detokenize": False,
        **more,
    }
    return llm.generate(
        [{"prompt_token_ids": request["prompt"]} for request in requests],
        [SamplingParams(**options, extra_args=request["extra"] or None) for request in requests],
        use_tqdm=False,
    )


def hold(outputs: Sequence[Any], requests: Sequence[dict[str, Any]], within: float = 1e-4) -> None:
    for number, (output, request) in enumerate(zip(outputs, requests, strict=True)):
        answer = output.outputs[0]
        assert list(answer.token_ids) == request["new"], f"request {number}, {request['extra']}"
        got = [found[token].logprob for found, token in zip(answer.logprobs, request["new"], strict=True)]
        assert got == pytest.approx(request["logprobs"], abs=within), f"request {number}, {request['extra']}"


def test_four_strengths_in_one_batch_in_chunks_and_again_from_the_prefix_cache(
    engine: Callable[..., Any], cases: dict[str, Any]
) -> None:
    requests = cases["tiny"]["requests"]
    assert len(requests) >= 240
    assert len({request["extra"]["alpha"] for request in requests}) == 4
    llm = engine("tiny", max_num_batched_tokens=48, enable_prefix_caching=True)
    hold(ask(llm, requests), requests)
    again = [request for request in requests if request["kind"] == "long"]
    outputs = ask(llm, again)
    hold(outputs, again)
    assert all(output.num_cached_tokens for output in outputs)  # states do not depend on the strength


def test_requests_that_are_put_off_are_taken_up_again(engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    """Room for two of the long prompts: others are preempted in the middle of their answers."""
    requests = [request for request in cases["tiny"]["requests"] if request["kind"] == "long"][::2]
    llm = engine("tiny", kv_cache_memory_bytes=6 << 20, enable_prefix_caching=False)
    hold(ask(llm, requests), requests)


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_every_kind(kind: str, engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    hold(ask(engine(kind), cases[kind]["requests"]), cases[kind]["requests"])


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_and_members_that_share(name: str, engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    hold(ask(engine(name), cases[name]["requests"]), cases[name]["requests"])


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"alpha": "much"}, "`alpha` must be a finite number"),
        ({"alpha": float("nan")}, "`alpha` must be a finite number"),
        ({"alpha": 1.0, "beta": 1.0}, "Give one of"),
        ({"alpha": [0.5, 1.0]}, "A schedule needs the V2 model runner"),
        ({"coefficients": [1.0]}, "a number for each of base, tuned, reference"),
        ({"coefficients": {"other": 1.0}}, "names 'other'"),
        ({"coefficients": [0.0, 0.0, 0.0]}, "no member with a say"),
    ],
)
def test_what_is_no_strength_is_refused_and_the_engine_goes_on(
    extra: dict[str, Any], reason: str, engine: Callable[..., Any], cases: dict[str, Any]
) -> None:
    requests = cases["llama"]["requests"][:2]
    llm = engine("llama")
    with pytest.raises(Exception, match=reason):  # vLLM's own class of error, a 400 over HTTP
        ask(llm, [{**requests[0], "extra": extra}])
    hold(ask(llm, requests), requests)


def test_log_probabilities_of_a_prompt_are_those_of_its_strength(engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    """An answer, asked for again as a prompt."""
    llm = engine("llama", enable_prefix_caching=False)
    requests = cases["llama"]["requests"][-3:] + cases["llama"]["requests"][:3]
    told = [{**request, "prompt": request["prompt"] + request["new"]} for request in requests]
    for output, request in zip(ask(llm, told, prompt_logprobs=0, max_tokens=1), requests, strict=True):
        got = [found[token].logprob for found, token in zip(output.prompt_logprobs[-24:], request["new"], strict=True)]
        assert got == pytest.approx(request["logprobs"], abs=1e-4)


def test_a_strength_for_all_where_the_model_is_told_nothing(engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    requests = cases["llama"]["requests"]
    llm = engine("llama", hf_overrides={"fixed_coefficients": True})
    plain = [request for request in requests if not request["extra"]]
    hold(ask(llm, plain), plain)
    with pytest.raises(Exception, match="one strength to all"):
        ask(llm, [request for request in requests if request["extra"]][:1])


def test_speculation_under_v1_is_refused_by_name(engine: Callable[..., Any], oracle: Any) -> None:
    draft = {"model": str(oracle / "llama" / "members" / "tuned"), "method": "draft_model", "num_speculative_tokens": 3}
    with pytest.raises(Exception, match="V1 model runner tells a model nothing of requests"):
        engine("llama", speculative_config=draft)


def test_more_positions_than_a_member_has_are_refused(engine: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match=r"256"):
        engine("llama", max_model_len=300)
