"""Evaluation: lm-eval's own numbers through the wrapper, the planted case, keeping and resuming."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_eft import Combination, EFTForCausalLM, Truncation
from hf_eft.evaluation import Evaluation, evaluate, harness, resume, systems_of, tasks
from hf_eft.evaluation.report import evaluation_plot

LIMIT = 8


@pytest.fixture(scope="module")
def measured(family: Any, model: EFTForCausalLM) -> dict[int, Evaluation]:
    """Tuned, the same through the wrapper, and the combination, by batch size."""
    same = EFTForCausalLM.from_models(family.reference, tuned=family.tuned, reference=family.reference)
    systems = {"tuned": family.tuned, "same": same, "combined": model}
    return {size: evaluate(systems, family.tokenizer, tasks.NAMES, limit=LIMIT, batch_size=size) for size in (1, 8)}


@pytest.mark.parametrize("batch_size", [1, 8])
def test_base_equal_to_reference_is_the_tuned_model_to_the_last_digit(measured: Any, batch_size: int) -> None:
    evaluation = measured[batch_size]
    assert {"eft_facts", "eft_choice", "eft_last_word", "eft_biographies"} == set(evaluation.scores)
    for by_system in evaluation.scores.values():
        assert by_system["same"] == by_system["tuned"]
    assert evaluation.replies["eft_facts"]["same"] == evaluation.replies["eft_facts"]["tuned"]
    assert evaluation.scores["eft_facts"]["combined"] != evaluation.scores["eft_facts"]["tuned"]


def test_the_numbers_are_those_of_lm_eval_itself(family: Any, measured: Any) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    plain = HFLM(pretrained=family.tuned, tokenizer=copy.deepcopy(family.tokenizer), batch_size=8)
    files = [str(tasks.FOLDER / f"{name}.yaml") for name in tasks.NAMES]
    found = lm_eval.evaluate(plain, TaskManager(include_defaults=False).load(files), limit=LIMIT, bootstrap_iters=0)
    for task, by_system in measured[8].scores.items():
        for metric, score in by_system["same"].items():
            assert found["results"][task][f"{metric},none"] == score.value


def test_batch_sizes_agree(measured: Any) -> None:
    one, eight = measured[1], measured[8]
    assert one.replies == eight.replies
    for task, metric in one.metrics():
        for system in one.systems:
            alone, batched = one.score(system, task, metric), eight.score(system, task, metric)
            if alone.items.is_share:
                assert alone == batched
            assert f"{alone.value:.6g}" == f"{batched.value:.6g}"
            assert np.allclose(alone.items.scores, batched.items.scores, atol=1e-4)


def test_in_bfloat16_too(family: Any) -> None:
    tuned, reference = (copy.deepcopy(m).to(torch.bfloat16) for m in (family.tuned, family.reference))
    same = EFTForCausalLM.from_models(reference, tuned=tuned, reference=reference)
    found = evaluate({"tuned": tuned, "same": same}, family.tokenizer, ["eft_last_word"], limit=LIMIT, batch_size=8)
    assert found.scores["eft_last_word"]["tuned"] == found.scores["eft_last_word"]["same"]


def test_likelihoods_are_the_combination_s(family: Any, model: EFTForCausalLM, measured: Any) -> None:
    """Against a loop over the items, with the members' own log-probs."""
    for doc, score in zip(
        harness.load_tasks(["eft_last_word"])["eft_last_word"].eval_docs,
        measured[1].scores["eft_last_word"]["combined"]["perplexity"].items.scores,
        strict=False,
    ):
        ids = family.tokenizer(f"{doc['prompt']} {doc['answer']}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            base, tuned, reference = (m(ids).logits[0, -2].log_softmax(-1) for m in model.members.values())
        assert (base + tuned - reference).log_softmax(-1)[ids[0, -1]].item() == pytest.approx(score, abs=1e-4)


def test_models_and_tokenizer_are_left_as_they_are(family: Any) -> None:
    tuned, tokenizer = copy.deepcopy(family.tuned).train(), copy.deepcopy(family.tokenizer)
    tokenizer.pad_token = None
    evaluate({"tuned": tuned}, tokenizer, ["eft_choice"], limit=2)
    assert tuned.training and tokenizer.pad_token is None


def test_the_planted_case_is_found(family: Any, model: EFTForCausalLM) -> None:
    """At half strength the combination knows the facts and loses the style, in which the small tuned model is better."""

    def told(combination: Combination) -> tuple[list[str], Evaluation]:
        combined = EFTForCausalLM.from_models(
            family.base, tuned=family.tuned, reference=family.reference, combination=combination
        )
        found = evaluate(systems_of(combined), family.tokenizer, ["eft_facts"], limit=24, batch_size=24)
        return found.warnings(), found

    warnings, found = told(Combination.emulate(alpha=0.5))
    assert found.systems == ["base", "tuned", "reference", "combined"]
    assert len(warnings) == 1 and "eft_facts, style" in warnings[0] and "'tuned'" in warnings[0]
    difference = found.compare("combined", "tuned", "eft_facts", "style")
    assert difference.high < 0 and f"[{difference.low:+.4g}, {difference.high:+.4g}]" in warnings[0]
    assert found.compare("combined", "tuned", "eft_facts", "fact").low > 0
    warnings, found = told(Combination.emulate(alpha=1.5, truncation=Truncation("keep", 0.95)))
    assert warnings == [] and found.score("combined", "eft_facts", "style").value >= 0.9


def test_a_likelihood_of_0_is_a_result(family: Any, tmp_path: Path) -> None:
    """A truncation rules tokens out; where one of them is the answer, the perplexity is infinite, and worse than any other."""
    combination = Combination.emulate(truncation=Truncation("drop", 0.5))
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference, combination=combination)
    found = evaluate(
        systems_of(model), family.tokenizer, ["eft_last_word", "eft_choice"], limit=12, batch_size=12, output=tmp_path
    )
    assert found.score("combined", "eft_last_word", "perplexity").value == math.inf
    assert [warning for warning in found.warnings() if "perplexity: the combination (inf) is worse" in warning]
    again = Evaluation.from_json(tmp_path / "evaluation.json")
    assert again.scores == found.scores
    for file in (tmp_path / "evaluation.json", evaluation_plot(found, tmp_path / "picture.png")):
        assert "Infinity" not in file.read_text()


def test_json_holds_everything(measured: Any, tmp_path: Path) -> None:
    evaluation = measured[8]
    text = evaluation.to_json(tmp_path / "evaluation.json")
    for again in (Evaluation.from_json(text), Evaluation.from_json(tmp_path / "evaluation.json")):
        assert again.to_json() == text
        assert again.compare("combined", "tuned", "eft_facts", "fact") == evaluation.compare(
            "combined", "tuned", "eft_facts", "fact"
        )
    assert len(json.loads(text)["scores"]["eft_facts"]["tuned"]["fact"]["items"]["scores"]) == LIMIT
    for other in ("nothing", "{}", '{"format": 7}', '{"format": 1, "scores": {"t": 3}}', "[]"):
        with pytest.raises(ValueError, match="is not an evaluation"):
            Evaluation.from_json(other)


KILLED = """
import os, signal, sys
from hf_eft import tiny
from hf_eft.evaluation import evaluate

def progress(system, task, done, total):
    if system == "reference" and done:
        os.kill(os.getpid(), signal.SIGKILL)

family = tiny.load()
systems = {"tuned": family.tuned, "reference": family.reference}
evaluate(systems, family.tokenizer, ["eft_choice"], limit=2, output=sys.argv[1], progress=progress)
"""


def test_a_run_that_is_killed_goes_on(family: Any, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["eft_choice--tuned.json"]
    systems = {"tuned": family.tuned, "reference": family.reference}
    told: list[str] = []
    found = evaluate(
        systems, family.tokenizer, ["eft_choice"], limit=2, output=tmp_path, progress=lambda system, *_: told.append(system)
    )
    assert set(told) == {"reference"}
    plain = evaluate(systems, family.tokenizer, ["eft_choice"], limit=2)
    assert found.scores == plain.scores
    assert Evaluation.from_json(tmp_path / "evaluation.json").scores == plain.scores


def test_what_was_measured_of_something_else_is_refused(family: Any, tmp_path: Path) -> None:
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)
    told: list[str] = []

    def run(**options: Any) -> Evaluation:
        return evaluate(
            {"combined": model}, family.tokenizer, ["eft_choice"], output=tmp_path, progress=lambda *a: told.append("x"),
            **{"limit": 2, **options},
        )  # fmt: skip

    first = run()
    assert told
    told.clear()
    assert run(batch_size=8).scores == first.scores and not told
    with pytest.raises(ValueError, match="another task and settings"):
        run(limit=3)
    model.combination = Combination.emulate(alpha=0.5)
    with pytest.raises(ValueError, match="another model than is asked for"):
        run()
    assert not told
    run(restart=True)
    assert told
    next((tmp_path / "results").iterdir()).write_text("{")
    with pytest.raises(ValueError, match="is not a result"):
        run()


def test_fingerprints_see_weights_recipes_and_schedules(family: Any) -> None:
    seen = {resume.model_fingerprint(family.tuned), resume.model_fingerprint(family.reference)}
    changed = copy.deepcopy(family.tuned)
    with torch.no_grad():
        changed.model.norm.weight[0] += 1e-3
    seen.add(resume.model_fingerprint(changed))
    for combination in (
        Combination.emulate(),
        Combination.emulate(alpha=0.5),
        Combination.emulate(alpha=[1.0, 0.5]),
        Combination.emulate(alpha=lambda t: 1.0),
        Combination.emulate(alpha=lambda t: 0.9**t),
        Combination.emulate(truncation=Truncation("keep", 0.9)),
    ):
        model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference, combination=combination)
        seen.add(resume.model_fingerprint(model))
    assert len(seen) == 9
    assert resume.model_fingerprint(copy.deepcopy(family.tuned)) == resume.model_fingerprint(family.tuned)


def test_all_systems_are_shown_the_same_length(family: Any, model: EFTForCausalLM) -> None:
    short = copy.deepcopy(family.tuned)
    short.config.max_position_embeddings = 40
    assert harness.common_length({"tuned": family.tuned}, family.tokenizer) == 512
    assert harness.common_length({"a": family.tuned, "b": short}, family.tokenizer) == 40
    combined = EFTForCausalLM.from_models(family.base, tuned=short, reference=family.reference)
    assert harness.common_length({"combined": combined}, family.tokenizer) == 40
