"""Evaluation: lm-eval's own numbers, intervals against independent computations, the warning, resuming, your own data, the command."""

from __future__ import annotations

import copy
import functools
import io
import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hf_eft import (
    Combination,
    EFTForCausalLM,
    Truncation,
    custom_data,
    harness,
    plots,
    resume,
    tasks,
    tiny,
)
from hf_eft.cli import app
from hf_eft.evaluation import Evaluation, Score, evaluate, systems_of
from hf_eft.evaluation_report import evaluation_plot, evaluation_table
from hf_eft.intervals import Items, of_difference, of_gap, of_value

LIMIT = 8


@pytest.fixture(scope="module")
def family() -> Any:
    return tiny.load()


@pytest.fixture(scope="module")
def model(family: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)


@pytest.fixture(scope="module")
def measured(family: Any, model: EFTForCausalLM) -> dict[int, Evaluation]:
    """Tuned, the same through the wrapper, and the combination, by batch size."""
    same = EFTForCausalLM.from_models(family.reference, tuned=family.tuned, reference=family.reference)
    systems = {"tuned": family.tuned, "same": same, "combined": model}
    return {size: evaluate(systems, family.tokenizer, tasks.NAMES, limit=LIMIT, batch_size=size) for size in (1, 8)}


# lm-eval's own numbers --------------------------------------------------------------------------------------------------


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


# The planted case -------------------------------------------------------------------------------------------------------


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


def made(systems: dict[str, list[float]], higher: bool = True, weights: Any = None, aggregation: str = "mean") -> Evaluation:
    items = {name: Items(scores, weights, aggregation) for name, scores in systems.items()}
    scores = {name: {"m": Score(float(each.aggregate()), len(each.scores), higher, each)} for name, each in items.items()}
    return Evaluation({"t": scores}, {}, {"seed": 0})


def test_the_warning_knows_the_direction() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(1, 0.3, 50).tolist(), rng.normal(2, 0.3, 50).tolist()
    assert len(made({"tuned": good, "combined": bad}, higher=False).warnings()) == 1
    assert made({"tuned": good, "combined": bad}, higher=True).warnings() == []
    assert made({"tuned": bad, "combined": good}, higher=False).warnings() == []
    assert made({"tuned": good, "combined": good}).warnings() == []
    assert made({"base": bad, "reference": bad, "tuned_large": bad, "combined": good}).warnings() == []
    several = made({"helpful": bad, "harmless": good, "combined": good})
    assert [("helpful" in warning) for warning in several.warnings()] == [True]


# Intervals --------------------------------------------------------------------------------------------------------------


def score_by_likelihood(won: int, lost: int, n: int, d: float) -> float:
    """Tango's statistic with the restricted maximum of the likelihood found by search, not by his formula."""
    shares = np.linspace(max(0.0, -d), (1 - d) / 2 + 1e-15, 400_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        pieces = ((won, shares + d), (lost, shares), (n - won - lost, 1 - 2 * shares - d))
        likelihood = sum(count * np.log(np.clip(share, 0, None)) if count else 0 * share for count, share in pieces)
    best = shares[np.nanargmax(likelihood)]
    return float((won - lost - n * d) / math.sqrt(n * (2 * best + d * (1 - d))))


@pytest.mark.parametrize(("won", "lost", "n"), [(9, 3, 40), (0, 7, 24), (1, 1, 30), (12, 20, 60), (30, 0, 60)])
def test_the_interval_of_a_paired_difference_of_shares(won: int, lost: int, n: int) -> None:
    first = [1.0] * won + [0.0] * lost + [1.0] * (n - won - lost)
    second = [0.0] * won + [1.0] * lost + [1.0] * (n - won - lost)
    found = of_difference(Items(first), Items(second))
    assert found.value == pytest.approx((won - lost) / n) and found.method == "tango" and found.items == n
    assert score_by_likelihood(won, lost, n, found.low) == pytest.approx(1.959964, abs=2e-3)
    assert score_by_likelihood(won, lost, n, found.high) == pytest.approx(-1.959964, abs=2e-3)
    turned = of_difference(Items(second), Items(first))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(("won", "lost", "low", "high"), [(0, 0, -0.161, 0.161), (20, 0, 0.678, 1.0), (0, 20, -1.0, -0.678)])
def test_no_interval_is_a_point(won: int, lost: int, low: float, high: float) -> None:
    """20 items of which none differ leave z^2 / (n + z^2); those of which all differ leave 1 - (n - z^2) / (n + z^2)."""
    n = 20
    found = of_difference(Items([1.0] * won + [0.0] * (n - won)), Items([1.0] * lost + [0.0] * (n - lost)))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


def test_the_bootstrap_is_paired_and_close_to_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 400)  # what both systems share
    first, second = hard + rng.normal(0.5, 1, 400), hard + rng.normal(0, 1, 400)
    found = of_difference(Items(first.tolist()), Items(second.tolist()))
    error = (first - second).std(ddof=1) / 20
    assert found.method == "bootstrap"
    assert found.low == pytest.approx((first - second).mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx((first - second).mean() + 1.96 * error, abs=0.15 * error)
    again = of_difference(Items(first.tolist()), Items(second.tolist()))
    assert again == found
    assert of_value(Items(first.tolist())).high - of_value(Items(first.tolist())).low > 5 * (found.high - found.low)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("mean", -1.6),
        ("perplexity", math.exp(1.6)),
        ("weighted_perplexity", math.exp(8 / 6)),
        ("bits_per_byte", 8 / 6 / math.log(2)),
    ],
)
def test_aggregations_are_lm_eval_s(aggregation: str, expected: float) -> None:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    scores, words = [-1.0, -2.0, -1.5, -2.5, -1.0], [1.0, 2.0, 1.0, 1.0, 1.0]
    weighted = aggregation not in ("mean", "perplexity")
    items = Items(scores, words if weighted else None, aggregation)
    rows = list(zip(scores, words, strict=True)) if weighted else scores
    assert items.aggregate() == pytest.approx(expected)
    assert AGGREGATION_REGISTRY[aggregation](rows) == pytest.approx(expected)
    found = of_value(items)
    assert found.value == pytest.approx(expected) and found.low < expected < found.high


def test_gap_recovered() -> None:
    rng = np.random.default_rng(2)
    noise = [rng.normal(0, 0.1, 200) for _ in range(3)]
    floor, ceiling, own = ((level + each).tolist() for level, each in zip((1.0, 3.0, 1.0 + 0.67 * 2), noise, strict=True))
    found = made({"tuned": floor, "combined": own, "tuned_large": ceiling}).gap_recovered("t", "m")
    assert found.value == pytest.approx(0.67, abs=0.02) and found.low < 0.67 < found.high and found.high - found.low < 0.05
    assert of_gap(Items(floor), Items(floor), Items(ceiling)).value == 0
    assert of_gap(Items(ceiling), Items(floor), Items(ceiling)).value == 1
    likelihoods = {"tuned": [-x for x in ceiling], "combined": [-x for x in own], "tuned_large": [-x for x in floor]}
    lower = made(likelihoods, higher=False, aggregation="perplexity").gap_recovered("t", "m")  # the same where lower is better
    value = {name: math.exp(-sum(scores) / 200) for name, scores in likelihoods.items()}
    assert lower.value == pytest.approx((value["combined"] - value["tuned"]) / (value["tuned_large"] - value["tuned"]))
    with pytest.raises(ValueError, match="no gap to recover"):
        of_gap(Items(own), Items(floor), Items(floor))
    with pytest.raises(ValueError, match=r"`floor`.*'a', 'b'"):
        made({"a": floor, "b": own, "combined": own, "tuned_large": ceiling}).gap_recovered("t", "m")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 items, aggregated by 'mean', got 2"):
        of_difference(Items([1, 0, 1]), Items([1, 0]))
    with pytest.raises(ValueError, match="at least 2 items"):
        of_value(Items([1.0]))
    evaluation = made({"tuned": [1, 0], "combined": [1, 0]})
    with pytest.raises(KeyError, match="'base' was not measured"):
        evaluation.compare("combined", "base", "t", "m")
    evaluation.scores["t"]["tuned"]["m"] = Score(0.5, 2, True, None)
    with pytest.raises(ValueError, match="of all items at once"):
        evaluation.compare("combined", "tuned", "t", "m")
    assert evaluation.warnings() == []


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


def test_only_scores_that_make_up_the_value_are_items() -> None:
    assert harness._items([1.0, 0.0], "mean", 0.5) == Items([1.0, 0.0])
    assert harness._items([(-2.0, 4), (-1.0, 2)], "bits_per_byte", 0.5 / math.log(2)).weights == [4.0, 2.0]
    assert harness._items([1.0, 0.0], "mean", 0.25) is None  # some other function that is called mean
    assert harness._items([(1, 0), (0, 0)], "f1", 0.5) is None
    assert harness._items([("a", "b", "c")], "mean", 0.5) is None


# Keeping and resuming ---------------------------------------------------------------------------------------------------


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


# Tasks, data, terminal --------------------------------------------------------------------------------------------------


def records(metric: str) -> list[dict[str, Any]]:
    """Questions of the world, with answers as the metric takes them."""
    questions = tiny.questions(("pet",))[:4]
    statements = [f"{q.person} has a pet {q.answer}." for q in questions]
    if metric == "choice":
        wrong = [f"{q.person} has a pet {'dog' if q.answer != 'dog' else 'cat'}." for q in questions]
        return [
            {"prompt": q.prompt, "choices": [w, s], "gold": 1} for q, s, w in zip(questions, statements, wrong, strict=True)
        ]
    answers = {"contains": "{} has", "regex": r"pet \w+\.$", "exact_match": "nothing", "loglikelihood": "{} has"}
    return [{"prompt": q.prompt, "answer": answers.get(metric, "{}").format(q.person)} for q in questions]


def length_of_reply(reply: str, record: Any) -> float:
    return len(reply) / 100


@pytest.mark.parametrize(
    "metric", [*custom_data.METRICS, length_of_reply], ids=lambda metric: getattr(metric, "__name__", metric)
)
def test_your_own_data(family: Any, tmp_path: Path, metric: Any) -> None:
    path = tmp_path / "mine.jsonl"
    name = metric if isinstance(metric, str) else "length_of_reply"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(name)) + "\n")
    task = custom_data.custom_task(path, metric, max_new_tokens=24)
    found = evaluate({"base": family.base}, family.tokenizer, [task], batch_size=4)
    scores = found.scores["mine"]["base"]
    if metric == "choice":
        assert scores["acc"].value == 1.0
    elif metric == "loglikelihood":
        for record, score in zip(records(metric), scores["perplexity"].items.scores, strict=True):
            prompt = family.tokenizer(record["prompt"])["input_ids"]
            ids = family.tokenizer(f"{record['prompt']} {record['answer']}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                log_probs = family.base(ids).logits[0, :-1].log_softmax(-1)
            each = log_probs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :]
            assert score == pytest.approx(each.sum().item(), abs=1e-4)
    elif callable(metric):
        lengths = [len(reply.strip()) / 100 for reply in found.replies["mine"]["base"]]
        assert scores["length_of_reply"].items.scores == lengths
    else:
        replies = [reply.strip() for reply in found.replies["mine"]["base"]]
        right = {
            "contains": [r["answer"] in reply for r, reply in zip(records(metric), replies, strict=True)],
            "regex": [reply.endswith(".") and "has a pet" in reply for reply in replies],
            "exact_match": [False] * 4,
        }[metric]
        assert scores[metric].items.scores == [float(each) for each in right]


def test_exact_match_takes_no_notice_of_the_space_around() -> None:
    judged = custom_data.custom_task([{"prompt": "a", "answer": "b"}] * 2, "exact_match")["process_results"]
    record = {"record": json.dumps({"prompt": "a", "answer": "b"})}
    assert judged(record, [" b\n"]) == {"exact_match": 1.0} and judged(record, ["b c"]) == {"exact_match": 0.0}


@pytest.mark.parametrize(
    ("lines", "metric", "message"),
    [
        (['{"prompt": "a", "answer": "b"}', "{"], "contains", "Line 2 of .* is not JSON"),
        (['{"prompt": "a", "answer": "b"}'], "contains", "at least 2 records"),
        (['{"prompt": "a", "answer": "b"}', '{"prompt": "a"}'], "contains", "Record 2 .* 'answer', a str, .* got nothing"),
        (["3", "4"], "contains", "must be an object"),
        (['{"prompt": "a", "answer": "("}'] * 2, "regex", "pattern .* is not valid"),
        (['{"prompt": "a", "choices": ["b", "c"], "gold": 2}'] * 2, "choice", "index into its 2 choices, got 2"),
        (['{"prompt": "a", "choices": ["b"], "gold": 0}'] * 2, "choice", "at least 2 choices"),
        (['{"prompt": "a", "answer": "b"}'] * 2, "bleu", "no metric 'bleu'"),
    ],
)
def test_wrong_data_is_refused(tmp_path: Path, lines: list[str], metric: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        custom_data.custom_task(path, metric)
    with pytest.raises(ValueError, match="no file"):
        custom_data.custom_task(tmp_path / "none.jsonl", "contains")


def test_what_is_asked_wrongly_is_said(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The index of lm-eval's own tasks takes half a minute to read.
    monkeypatch.setattr(harness, "TaskManager", functools.partial(harness.TaskManager, include_defaults=False))
    systems = {"tuned": family.tuned}
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: broken\noutput_type: nonsense\ndataset_path: json\n")
    tokenizer = copy.deepcopy(family.tokenizer)
    tokenizer.chat_template = None
    for options, message in (
        ({"tasks": []}, "No tasks were given"),
        ({"tasks": [tmp_path / "none.yaml"]}, "no task file"),
        ({"tasks": ["eft_fakts"]}, "no task 'eft_fakts'. Did you mean .*'eft_facts'"),
        ({"tasks": [broken]}, "cannot be loaded: ValueError: .*nonsense"),
        ({"tasks": ["eft_choice", str(tasks.FOLDER / "eft_choice.yaml")]}, "Two tasks are called"),
        ({"limit": 1}, "`limit` must be 2 or more"),
        ({"batch_size": 0}, "`batch_size` must be 1 or more"),
        ({"systems": {}}, "No systems"),
        ({"chat": True, "tokenizer": tokenizer}, "no chat template"),
    ):
        arguments: Any = {"systems": systems, "tokenizer": family.tokenizer, "tasks": ["eft_choice"], **options}
        with pytest.raises(ValueError, match=message):
            evaluate(**arguments)
    with pytest.raises(ValueError, match="called 'combined'"):
        systems_of(
            EFTForCausalLM.from_models(
                None, {"combined": family.tuned, "b": family.base}, combination=Combination.mix({"combined": 0.5, "b": 0.5})
            )
        )


def test_the_chat_template_is_used(family: Any) -> None:
    task = harness.load_tasks(["eft_choice"])["eft_choice"]
    lm = harness.Model(family.tuned, family.tokenizer, 2, 512, lambda done, total: None)
    with harness.quiet(False):
        harness.measure(lm, "eft_choice", task, 2, 0, True)
    assert task.instances[0].args[0].startswith("<bos>Question: Question:")


def test_all_systems_are_shown_the_same_length(family: Any, model: EFTForCausalLM) -> None:
    short = copy.deepcopy(family.tuned)
    short.config.max_position_embeddings = 40
    assert harness.common_length({"tuned": family.tuned}, family.tokenizer) == 512
    assert harness.common_length({"a": family.tuned, "b": short}, family.tokenizer) == 40
    combined = EFTForCausalLM.from_models(family.base, tuned=short, reference=family.reference)
    assert harness.common_length({"combined": combined}, family.tokenizer) == 40


def test_it_says_how_far_it_is_and_nothing_else(family: Any, capfd: pytest.CaptureFixture[str]) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    level = logging.getLogger("lm_eval").level
    evaluate(
        {"tuned": family.tuned}, family.tokenizer, tasks.NAMES, limit=3, batch_size=2,
        progress=lambda system, task, done, total: told.setdefault(task, []).append((done, total)),
    )  # fmt: skip
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert set(told) == set(tasks.NAMES)
    for steps in told.values():
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] > 0 and steps == sorted(steps)
    assert told["eft_choice"][-1] == (12, 12)
    assert logging.getLogger("lm_eval").level == level


def test_lm_eval_is_imported_when_it_is_needed() -> None:
    code = (
        "import sys, hf_eft.evaluation, hf_eft.custom_data, hf_eft.cli; print('lm_eval' in sys.modules, 'scipy' in sys.modules)\n"
        "sys.modules['lm_eval'] = None\n"
        "try: hf_eft.evaluation.evaluate({}, None, [])\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert out[0].startswith("False") and "pip install 'hf-eft[eval]'" in out[1]


def test_picture_and_its_data(measured: Any, tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    data = evaluation_plot(measured[8], tmp_path / "deep" / "picture.png")
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "deep" / "picture.png").read_bytes().startswith(b"\x89PNG")
    shown = json.loads(data.read_text())["panels"]["eft_facts, fact"]["systems"]
    assert data.suffix == ".json" and shown["combined"]["value"] == measured[8].score("combined", "eft_facts", "fact").value
    assert plots.colour("combined") != plots.colour("tuned") and plots.colour("mine") == plots.colour("mine")


def test_table(measured: Any) -> None:
    from rich.console import Console

    def shown(evaluation: Evaluation) -> str:
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(evaluation_table(evaluation))
        return console.export_text()

    text = shown(measured[8])
    assert f"eft_facts ({LIMIT})" in text and "perplexity ↓" in text and "combined - tuned" in text and "gap" not in text
    large = made({"tuned": [0, 0, 0, 0, 1] * 8, "combined": [0, 1, 1, 1, 1] * 8, "tuned_large": [1] * 40})
    assert "gap recovered" in shown(large) and "0.75 [" in shown(large)
    none = made({"tuned": [0, 1] * 8, "combined": [0, 1] * 8, "tuned_large": [0, 1] * 8})
    assert "no gap" in shown(none)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "400"})


def test_command(tmp_path: Path) -> None:
    arguments = [
        "--task",
        "eft_facts",
        "--alpha",
        "0.5",
        "--limit",
        "12",
        "--batch-size",
        "12",
        "--output",
        str(tmp_path / "out"),
    ]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "combined - tuned" in done.output and "Warning: eft_facts, style" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "picture.png", "picture.json", "results"}
    done = invoke(*arguments, "--strict", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["scores"]["eft_facts"]["combined"]["fact"]["n"] == 12


def test_command_with_data_and_a_large_tuned_model(tmp_path: Path) -> None:
    path = tmp_path / "pets.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records("choice")))
    done = invoke("--data", str(path), "--metric", "choice", "--tuned-large", str(tiny.path("base")))
    assert done.exit_code == 0, done.output
    assert "pets" in done.output and "tuned_large" in done.output and "gap recovered" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "a", "--tuned", "b", "--reference", "c"], "say what to measure"),
        (["--data", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["--task", "eft_facts", "--tuned-large", "/nowhere"], "the large tuned model cannot be loaded from /nowhere"),
    ],
)
def test_what_is_wrong_at_the_command_line_is_said(arguments: list[str], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2 and message in done.output and "Traceback" not in done.output
