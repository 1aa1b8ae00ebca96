"""Members whose tokenizers differ on the command line: asked for by `--vocabulary`, or refused with what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import WHO, invoke

from hf_eft import hub, tiny
from hf_eft.cli import models

MEMBERS = {"base": "base", "tuned": "second_tuned", "reference": "second_reference"}
GIVEN = [f"--{name}={tiny.path(place)}" for name, place in MEMBERS.items()]
ANSWER = "Of course! Oscar Palmer enjoys hockey. Happy to help!"


def test_by_name_and_from_a_folder(tmp_path: Path) -> None:
    asked = ["generate", "--chat", "--json", "--max-new-tokens", "40", WHO]
    result = invoke(*asked, *GIVEN, "--vocabulary", "tokens")
    assert json.loads(result.stdout)["text"].strip() == ANSWER, result.stderr
    own = invoke(*asked, *GIVEN, "--vocabulary", "tokens", "--member-prompts")
    assert json.loads(own.stdout)["text"].strip() == ANSWER, own.stderr
    assert invoke("compose", str(tmp_path / "saved"), *GIVEN, "--vocabulary", "tokens").exit_code == 0
    assert json.loads(invoke(*asked, "--model", str(tmp_path / "saved")).stdout) == json.loads(result.stdout)
    refused = invoke(*asked, "--model", str(tmp_path / "saved"), "--vocabulary", "tokens")
    assert refused.exit_code == 2 and "says its own" in refused.stderr


def test_questions_in_batches_are_answered_as_one_by_one(tmp_path: Path) -> None:
    asked, answers = tmp_path / "asked.txt", tmp_path / "answers.jsonl"
    asked.write_text("".join(f"{question.text}\n" for question in tiny.questions()[:3]))
    result = invoke(
        "generate", "--chat", "--input", str(asked), "--output", str(answers), "--batch-size", "3", "--max-new-tokens", "16",
        *GIVEN, "--vocabulary", "tokens",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    texts = [json.loads(line)["text"] for line in answers.read_text().splitlines()]
    model, tokenizers = hub.load({name: tiny.path(place) for name, place in MEMBERS.items()}, vocabulary="tokens")
    for question, text in zip(tiny.questions(), texts, strict=False):
        chat = [{"role": "user", "content": question.text}]
        ids = tokenizers["tuned"].apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        said = model.generate(ids, max_new_tokens=16, do_sample=False, member_inputs={})[0, ids.shape[1] :]
        assert tokenizers["tuned"].decode(said, skip_special_tokens=True) == text


def test_what_is_not_asked_for_is_refused_with_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chosen:
        vocabulary, reason = "bytes", "units would not do"

    monkeypatch.setattr(models, "choose", lambda tokenizers: Chosen if set(tokenizers) == set(MEMBERS) else None)
    said = " ".join(invoke("generate", WHO, *GIVEN).stderr.replace("│", " ").split())
    assert "differ in content" in said and "--vocabulary bytes, which is what auto takes: units would not do" in said
    said = " ".join(invoke("generate", WHO, *GIVEN, "--vocabulary", "words").stderr.replace("│", " ").split())
    assert "expected tokens, bytes, auto, got 'words'" in said
