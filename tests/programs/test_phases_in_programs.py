"""Phases in what stands above decoding: the command line, chats, the server, folders, cards and analysis. And where they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import thinking
import torch
from commands import EMBEDDED, invoke
from families import prompts
from saveable import three
from served import BOTH, connect, family

from hf_eft import Combination, EFTForCausalLM, Phase, tiny
from hf_eft.analysis import analyse
from hf_eft.folders.card_text import blocks_of_members, formula
from hf_eft.playground.dials import dials_of
from hf_eft.programs.answer import Answerer
from hf_eft.programs.batch import read_items
from hf_eft.programs.conversation import ChatSession
from hf_eft.serving import EFTServer, vllm
from hf_eft.training.learner import name_of_learner

PROMPT = "Question: What does Oscar Palmer enjoy?\nAnswer: <think>"
RECIPE = Combination.emulate(alpha={"think": 1.5, "answer": 0.25}, phases=[Phase(budget=4)])


def said(model: EFTForCausalLM, tokenizer: Any, **options: Any) -> str:
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False, **options)
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def with_tokenizer(**recipe: Any) -> tuple[EFTForCausalLM, Any]:
    tokenizer = tiny.load()[-1]
    return family(tokenizers=dict.fromkeys(("base", "tuned", "reference"), tokenizer), **recipe)


def test_the_command_line(tmp_path: Path) -> None:
    expected = said(*with_tokenizer(combination=RECIPE))
    assert "</think>" in expected and expected != said(*with_tokenizer(combination=Combination.emulate(alpha=1.5)))
    strengths = ["--alpha", "think=1.5", "--alpha", "answer=0.25", "--budget", "think=4"]
    options = [*strengths, "--max-new-tokens", "16", "--do-sample", "false"]
    assert json.loads(invoke("generate", "--json", PROMPT, *EMBEDDED, *options).stdout)["text"] == expected
    assert invoke("compose", str(tmp_path / "made"), *EMBEDDED, *strengths).exit_code == 0
    kept = EFTForCausalLM.from_pretrained(tmp_path / "made")
    assert kept.combination == RECIPE and said(kept, tiny.load()[-1]) == expected
    again = invoke("generate", "--json", "--model", str(tmp_path / "made"), PROMPT, "--alpha", "0", "--budget", "think=2")
    assert "</think>" in json.loads(again.stdout)["text"]  # the phases of the folder, with another budget
    for wrong, message in (
        (["--alpha", "think=1"], "in each of the phases"), (["--alpha", "1", "--alpha", "2"], "given twice"),
        (["--budget", "think=4"], "say the strength as well"), (["--alpha", "1", "--budget", "plan=4"], "there is no phase"),
        (["--alpha", "1", "--budget", "think=x"], "expected a number of tokens"), (["--alpha", "think=x"], "expected a number"),
    ):  # fmt: skip
        assert message in " ".join(invoke("generate", PROMPT, *EMBEDDED, *wrong).stderr.replace("│", " ").split()), wrong


def test_lines_of_a_batch_have_strengths_by_phase() -> None:
    phases = [Phase(budget=4)]
    strengths: list[Any] = [{"think": 1.5, "answer": 0.25}, {"think": 0.0, "answer": 1.0}, 0.5, {"think": 1.5, "answer": 1.5}]
    own = [Combination.emulate(alpha=alpha, phases=phases) for alpha in strengths]
    expected = [said(*with_tokenizer(combination=recipe)) for recipe in own]
    assert len(set(expected[:2])) == 2
    model, tokenizer = with_tokenizer(combination=Combination.emulate(phases=phases))
    lines = [{"prompt": PROMPT, "alpha": alpha} for alpha in strengths]
    weights = {"tuned": strengths[0]}
    lines += [
        {"prompt": PROMPT, "weights": weights},
        {"prompt": PROMPT, "alpha": {"think": 1.5}},
        {"prompt": PROMPT, "alpha": {}},
    ]
    items = read_items("\n".join(map(json.dumps, lines)).encode(), True)
    for size in (len(items), 1):
        answerer = Answerer(model, tokenizer, {"max_new_tokens": 16, "do_sample": False})
        found = [answer for i in range(0, len(items), size) for answer in answerer(items[i : i + size])]
        assert [answer["text"] for answer in found[:5]] == [*expected, expected[0]]
        assert "in each of the phases" in found[5]["error"] and "'alpha' must be a number" in found[6]["error"]
    plain, tokenizer = with_tokenizer()
    [answer] = Answerer(plain, tokenizer, {"max_new_tokens": 16, "do_sample": False})(items[:1])
    assert answer["text"] == said(*with_tokenizer(combination=Combination.emulate(alpha=strengths[0], phases=[Phase()])))


def test_a_chat_changes_strengths_by_phase() -> None:
    model, tokenizer = with_tokenizer(combination=RECIPE)
    chat = ChatSession(model, tokenizer, options={"max_new_tokens": 4})
    chat.command("/alpha think=1 answer=0.5")
    assert model.combination == Combination.emulate(alpha={"think": 1.0, "answer": 0.5}, phases=RECIPE.phases)
    with pytest.raises(ValueError, match=r"as in /alpha think=1\.2 answer=0\.6"):
        chat.command("/alpha think=x answer=1")


@BOTH
def test_requests_have_strengths_by_phase(options: dict[str, Any]) -> None:
    model, tokenizer = with_tokenizer(combination=Combination.emulate(phases=[Phase(budget=4)]))
    expected = said(*with_tokenizer(combination=RECIPE))
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        asked: dict[str, Any] = {"model": "eft", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
        answer = client.completions.create(**asked, extra_body={"alpha": {"think": 1.5, "answer": 0.25}})
        assert answer.choices[0].text == expected
        assert client.completions.create(**asked).choices[0].text == said(model, tokenizer)
        with pytest.raises(openai.BadRequestError, match="in each of the phases"):
            client.completions.create(**asked, extra_body={"alpha": {"think": 1.5}})


def test_folders_keep_the_tokens_of_markers_with_their_spelling(tmp_path: Path) -> None:
    model = three(combination=Combination.emulate(alpha={"think": 1, "answer": 0}, phases=[Phase("think", [5], [6])]))
    tokenizer = tiny.load()[-1]
    model.save_pretrained(tmp_path, tokenizers={"tuned": tokenizer})
    kept = EFTForCausalLM.from_pretrained(tmp_path)
    names = tokenizer.convert_ids_to_tokens([5, 6])
    assert kept.combination.phases[0].spelled == ((names[0],), (names[1],))
    options: dict[str, Any] = {**prompts("left"), "max_new_tokens": 6}
    assert kept.generate(**options).tolist() == model.generate(**options).tolist()
    kept.combination = Combination.from_dict(
        json.loads((tmp_path / "config.json").read_text().replace(json.dumps(names[0]), '"x"'))["combination"]
    )
    with pytest.raises(ValueError, match=r"tokens \[5\] of the phase 'think' were \['x'\]"):
        kept.generate(**options)


def test_cards_show_the_whole_formula() -> None:
    assert formula(RECIPE) == (
        "log p = base + (think: 1.5, answer: 0.25) tuned + (think: -1.5, answer: -0.25) reference - log Z, "
        "think: '<think>' to '</think>', 4 tokens at most"
    )
    assert formula(Combination.emulate(alpha=[1.0, 0.5])) == "log p = base + (1, 0.5) tuned + (-1, -0.5) reference - log Z"
    places = {name: (f"owner/{name}", None) for name in ("base", "tuned", "reference")}
    code = next(iter(blocks_of_members(places, RECIPE).values()))
    written = code[code.index("Combination({") :].split(")])")[0] + ")])"
    assert eval(written, {"Combination": Combination, "Phase": Phase}) == RECIPE and "Phase" in code.split("Combination({")[0]


def test_analysis_weighs_every_token_by_its_phase() -> None:
    model, tokenizer = with_tokenizer(combination=RECIPE)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    found = analyse(model, tokenizer, inputs["input_ids"][0], new)
    for record, logits, token in zip(found.records, out.logits, new.tolist(), strict=True):
        assert record.log_prob == pytest.approx(float(logits[0].log_softmax(-1)[token]), abs=1e-3)
    assert found.recipe == str(RECIPE)


def test_who_knows_no_phases_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sliders turn one strength"):
        dials_of(("base", "tuned", "reference"), RECIPE)
    with pytest.raises(ValueError, match="has phases, which a loss is not told"):
        name_of_learner(thinking.member("qwen3", 1), RECIPE, None)
    model = three(combination=Combination.emulate(alpha={"think": 1, "answer": 0}, phases=[Phase("think", [5], [6])]))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vLLM's plugin knows no phases"):
        vllm.Served(tmp_path, model.config)
    assert torch.equal(model.combination.at([0], ("tuned",), "think"), torch.ones(1, 1))
