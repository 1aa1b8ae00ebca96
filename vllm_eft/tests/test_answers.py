"""Every answer is hf_eft's, token for token, its log-probabilities within 1e-4."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answers import V2, ask, hold, logprobs, mixed
from safetensors.torch import load_file, save_file

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

KINDS = ["llama", "qwen3", "qwen2", "mistral", "gemma3_text", "gpt2", "qwen3_moe", "olmo2"]
RECIPES = ["scheduled"] * V2 + [
    "keep",
    "drop",
    "base",
    "plausible",
    "steer",
    "shared",
    "interpolated",
    "mixed",
    "narrow",
    "adapter",
]


def preemptions(llm: Any) -> int:
    return next(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def test_four_strengths_in_one_batch_in_chunks_and_again_from_the_prefix_cache(
    engine: Callable[..., Any], cases: dict[str, Any]
) -> None:
    requests = mixed(cases["tiny"]["requests"], 12 if V2 else 300)
    first = {str(request["extra"]) for request in requests[:8]}
    assert len(first) == 4, "not mixed"
    llm = engine("tiny", max_num_batched_tokens=48, enable_prefix_caching=True)
    hold(ask(llm, requests), requests)
    again = [request for request in requests if request["kind"] == "long"]
    outputs = ask(llm, again)
    hold(outputs, again)
    assert all(output.num_cached_tokens for output in outputs)  # states do not depend on the strength


def test_a_strength_makes_a_difference(cases: dict[str, Any]) -> None:
    """What would be left unseen if it did not: a request with the coefficients of another."""
    answers: dict[str, set[str]] = {}
    for request in cases["tiny"]["requests"]:
        answers.setdefault(str(request["prompt"]), set()).add(str([request["new"], request["logprobs"]]))
    assert all(len(each) == 4 for each in answers.values())


@pytest.mark.skipif(V2, reason="settings.py has it for the V2 model runner, interpreted, which is slow")
def test_requests_that_are_put_off_are_taken_up_again(engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    """Room for nine short prompts: as their answers grow, others are preempted in the middle of theirs."""
    requests = sorted(mixed(cases["tiny"]["requests"], 300), key=lambda request: -len(request["new"]))[:60]
    few = {"num_gpu_blocks_override": 10, "max_model_len": 256, "enable_prefix_caching": False}
    llm = engine("tiny", **few, disable_log_stats=False)
    hold(ask(llm, requests), requests)
    assert preemptions(llm)


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_every_kind(kind: str, engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    requests = mixed(cases[kind]["requests"], 9)
    hold(ask(engine(kind), requests), requests)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_and_members_that_share(name: str, engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    requests = mixed(cases[name]["requests"], 12)
    hold(ask(engine(name), requests), requests)


@pytest.mark.parametrize("name", ["int8", "int8_base"])
def test_members_in_int8(name: str, engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    """An activation in the middle between two steps may go to either, by the last bit of another sum, and is then a step away."""
    requests = cases[name]["requests"]
    apart = []
    for output, request in zip(ask(engine(name), requests), requests, strict=True):
        assert list(output.outputs[0].token_ids) == request["new"], request["extra"]
        apart += [abs(a - b) for a, b in zip(logprobs(output, request), request["logprobs"], strict=True)]
    assert sum(each < 1e-4 for each in apart) > 0.9 * len(apart) and max(apart) < 0.02, sorted(apart)[-20:]


@pytest.mark.parametrize("case", ["decompressed", "of another"])
def test_members_that_are_nearly_in_int8_are_refused(
    case: str, engine: Callable[..., Any], oracle: Path, tmp_path: Path
) -> None:
    """Saved after transformers had decompressed it: vLLM would cut its weights to whole numbers. And by a method that vLLM has not."""
    folder = shutil.copytree(oracle / "int8", tmp_path / "int8")
    if case == "decompressed":
        file = folder / "members" / "tuned" / "model.safetensors"
        save_file({key: x.float() for key, x in load_file(file).items()}, file, {"format": "pt"})
        reason = "'tuned' was saved decompressed"
    else:
        config = json.loads((folder / "config.json").read_text())
        config["reference_config"]["quantization_config"] = {"quant_method": "eetq"}
        (folder / "config.json").write_text(json.dumps(config))
        reason = "cannot run the member 'reference' as it is quantised.*eetq"
    with pytest.raises(Exception, match=reason):
        engine("int8", folder)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"alpha": "much"}, "`alpha` must be a finite number"),
        ({"alpha": float("nan")}, "`alpha` must be a finite number"),
        ({"alpha": 1.0, "beta": 1.0}, "Give one of"),
        *([] if V2 else [({"alpha": [0.5, 1.0]}, "A schedule needs the V2 model runner")]),
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


def test_a_request_goes_back_to_the_folders_recipe(engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    """One that says nothing has not the strength of the one before it in its place."""
    llm = engine("llama", max_num_seqs=1)
    for request in mixed(cases["llama"]["requests"], 4):
        hold(ask(llm, [request]), [request])


def test_a_compiled_graph_is_kept_for_its_member_alone(engine: Callable[..., Any]) -> None:
    """Their configurations are equal, and a graph has the names of its layers in it. (Loading another's fails on CPUs, unseen.)"""
    from vllm.compilation.caching import aot_compile_hash_factors
    from vllm_eft.releases import of_member

    config = engine("llama").llm_engine.vllm_config
    members = config.model_config.hf_config.member_configs()
    assert members["tuned"].to_dict() == members["reference"].to_dict()
    keys = [aot_compile_hash_factors(of_member(config, name, member)) for name, member in members.items()]
    assert len(set(map(str, keys))) == 3


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


def drafts(oracle: Any) -> dict[str, Any]:
    return {"model": str(oracle / "llama" / "members" / "tuned"), "method": "draft_model", "num_speculative_tokens": 3}


@pytest.mark.skipif(V2, reason="of the V1 model runner")
def test_speculation_under_v1_is_refused_by_name(engine: Callable[..., Any], oracle: Any) -> None:
    with pytest.raises(Exception, match="V1 model runner tells a model nothing of requests"):
        engine("llama", speculative_config=drafts(oracle))


@pytest.mark.skipif(not V2, reason="of the V2 model runner")
@pytest.mark.parametrize("name", ["llama", "scheduled"])
def test_a_draft_changes_no_answer_of_any_strength(
    name: str, engine: Callable[..., Any], oracle: Any, cases: dict[str, Any]
) -> None:
    requests = mixed(cases[name]["requests"], 6)
    hold(ask(engine(name, speculative_config=drafts(oracle)), requests), requests)


@pytest.mark.skipif(not V2, reason="of the V2 model runner")
def test_a_schedule_goes_on_where_a_request_was_put_off(engine: Callable[..., Any], cases: dict[str, Any]) -> None:
    """What it said before is read again as if it were of the prompt."""
    requests = sorted(cases["scheduled"]["requests"], key=lambda request: -len(request["prompt"]))[:8]
    llm = engine("scheduled", num_gpu_blocks_override=6, enable_prefix_caching=False, disable_log_stats=False)
    hold(ask(llm, requests), requests)
    assert preemptions(llm)


def test_more_positions_than_a_member_has_are_refused(engine: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match=r"256"):
        engine("llama", max_model_len=300)
