"""Your own data, what is refused, the terminal, the picture and the command of the evaluation."""

from __future__ import annotations

import copy
import functools
import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluations import made, records
from typer.testing import CliRunner

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.cli import app
from hf_eft.cli.app import console
from hf_eft.cli.options import by_phase
from hf_eft.evaluation import Evaluation, custom_data, evaluate, harness, plots, systems_of, tasks
from hf_eft.evaluation.advice import RULE, advice
from hf_eft.evaluation.report import evaluation_plot, evaluation_table


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
        (
            ['{"prompt": "a", "answer": "b"}', "{"],
            "contains",
            "Line 2 of .*mine.jsonl cannot be read: the line is no JSON: Expecting",
        ),
        (['{"prompt": "a", "answer": "b"}'], "contains", "at least 2 records"),
        (['{"prompt": "a", "answer": "b"}', '{"prompt": "a"}'], "contains", "Record 2 .* 'answer', a str, .* got nothing"),
        (["3", "4"], "contains", "must be an object"),
        (['{"prompt": "a", "answer": "("}'] * 2, "regex", "pattern .* is not valid"),
        (['{"prompt": "a", "choices": ["b", "c"], "gold": 2}'] * 2, "choice", "index into its 2 choices, got 2"),
        (['{"prompt": "a", "choices": ["b"], "gold": 0}'] * 2, "choice", "at least 2 choices"),
        (['{"prompt": "a", "answer": "b"}'] * 2, "bleu", "no metric 'bleu'"),
        (['{"prompt": "a", "answer": null}'] * 2, "contains", "'answer', a str, .* got nothing"),
        (['{"prompt": "a", "answer": " "}'] * 2, "contains", "Record 1 .*: 'answer' is empty"),
        (['{"prompt": "a", "answer": ""}'] * 2, "regex", "'answer' is empty"),
        (['{"prompt": "a", "answer": ""}'] * 2, "loglikelihood", "'answer' is empty"),
        (['{"prompt": " ", "answer": "b"}'] * 2, "exact_match", "'prompt' is empty"),
        (['{"prompt": "a", "answer": NaN}'] * 2, "contains", "Line 1 .* NaN is no JSON"),
        (['{"prompt": "a", "prompt": "b", "answer": "c"}'] * 2, "contains", '"prompt" is there twice'),
        (['{"prompt": "a\\ud800", "answer": "b"}'] * 2, "contains", "Record 1 .*: 'prompt' is no text"),
        (['{"prompt": "a", "messages": [], "answer": "b"}'] * 2, "contains", "either `prompt` or `messages`, got both"),
        (['{"messages": [{"role": "user"}], "answer": "b"}'] * 2, "contains", r"Record 1 .*: messages\[0\]: `content` must be"),
        (['{"messages": [{"role": "system", "content": "a"}], "answer": "b"}'] * 2, "contains", "must be one, of the role"),
        (['[{"prompt": "a", "answer": "b"},', "]"], "contains", "begins as a JSON array and is none"),
    ],
)
def test_wrong_data_is_refused(tmp_path: Path, lines: list[str], metric: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        custom_data.custom_task(path, metric)
    with pytest.raises(ValueError, match="no file"):
        custom_data.custom_task(tmp_path / "none.jsonl", "contains")


def test_files_are_read_as_batch_runs_read_them(tmp_path: Path) -> None:
    """In any encoding that says what it is, with separators of lines within texts, blank lines, messages and null."""
    path = tmp_path / "mine.jsonl"
    given = [
        {"prompt": "é\u2028\u0085", "answer": "b", "messages": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "c"}]}], "answer": "d", "prompt": None},
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in given]
    for data in (
        "\n\n".join(lines).encode(),
        "\ufeff".encode() + "\r\n".join(lines).encode(),
        "\r".join(lines).encode("utf-16"),
        f"[{lines[0]},\n{lines[1]}]".encode(),
    ):
        path.write_bytes(data)
        task = custom_data.custom_task(path, "contains")
        docs = list(task["custom_dataset"]()["test"])
        assert [task["doc_to_text"](doc) for doc in docs] == ["é\u2028\u0085", "c"]
        assert [task["doc_to_target"](doc) for doc in docs] == ["b", "d"]
    path.write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "ca\xe9", "answer": "b"}')
    with pytest.raises(ValueError, match=r"Line 2 of .*mine.jsonl cannot be read: the line is not UTF-8"):
        custom_data.custom_task(path, "contains")


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
        "import sys, hf_eft.cli, hf_eft.evaluation.custom_data\n"
        "print('lm_eval' in sys.modules)\n"
        "sys.modules['lm_eval'] = None\n"
        "try: hf_eft.evaluation.evaluate({}, None, [])\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert out[0] == "False" and "pip install 'hf-eft[eval]'" in out[1]


def test_picture_and_its_data(tmp_path: Path) -> None:
    import matplotlib

    evaluation = made({"tuned": [0, 0, 0, 0, 1], "combined": [0, 1, 1, 1, 1]})
    before = dict(matplotlib.rcParams)
    data = evaluation_plot(evaluation, tmp_path / "deep" / "picture.png")
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "deep" / "picture.png").read_bytes().startswith(b"\x89PNG")
    shown = json.loads(data.read_text())["panels"]["t, m"]["systems"]
    assert data.suffix == ".json" and shown["combined"]["value"] == 0.8
    assert plots.colour("combined") != plots.colour("tuned") and plots.colour("mine") == plots.colour("mine")


def test_table() -> None:
    from rich.console import Console

    def shown(evaluation: Evaluation) -> str:
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(evaluation_table(evaluation))
        return console.export_text()

    text = shown(made({"base": [0, 1], "tuned": [-0.5, -0.2], "combined": [0, 0.5]}, higher=False))
    assert "t (2)" in text and "m ↓" in text and "combined - tuned" in text and "gap" not in text
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
    [said] = [line for line in done.output.splitlines() if line.startswith("Measure it with a rule")]
    assert by_phase([said.split("--beta ")[1].split(", which")[0]], "--beta") == RULE
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "picture.png", "picture.json", "results"}
    done = invoke(*arguments, "--strict", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["scores"]["eft_facts"]["combined"]["fact"]["n"] == 12


def test_advice_is_for_recipes_that_it_stands_for() -> None:
    assert all(
        str(Combination.emulate(beta=RULE)) in str(advice(each)) for each in (Combination.emulate(), Combination.proxy(0.5))
    )
    others = (
        Combination.emulate(beta=RULE),
        Combination.mix({"a": 1.0}),
        Combination.contrast(),
        Combination.steer({"a": 1.0}),
    )
    assert [advice(each) for each in others] == [None] * len(others)
    sure, unsure = torch.tensor([[[0.98, 0.01, 0.01]]]).log(), torch.tensor([[[0.4, 0.3, 0.3]]]).log()
    # The base's say is large where it is sure and the tuned model is not.
    assert RULE({"base": sure, "tuned": unsure}) > 0.8 and RULE({"base": unsure, "tuned": sure}) < 0.2


def test_command_with_data_and_a_large_tuned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 400)
    path = tmp_path / "pets.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records("choice")))
    done = invoke("--data", str(path), "--metric", "choice", "--tuned-large", str(tiny.path("base")))
    assert done.exit_code == 0, done.output
    assert "pets" in done.output and "tuned large" in done.output and "gap recovered" in done.output


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
