"""The conversation: what carries on from turn to turn, what commands change, and how it looks from outside."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from hf_eft import Combination, EFTForCausalLM
from hf_eft.cli import app
from hf_eft.cli.chat import talk
from hf_eft.programs.conversation import ChatSession

WHO = "What does Oscar Palmer enjoy?"
WHERE = "Where was Oscar Palmer born?"


@pytest.fixture
def session(family: Any) -> ChatSession:
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)
    return ChatSession(model, family.tokenizer, options={"max_new_tokens": 24})


def anew(session: ChatSession) -> ChatSession:
    """The same conversation by one who has read nothing of it."""
    other = ChatSession(session.model, session.tokenizer, session.system, session.options)
    other.messages, other.who = copy.deepcopy(session.messages), session.who
    return other


def reading(model: EFTForCausalLM) -> list[int]:
    """How many tokens each forward reads, from now on."""
    read: list[int] = []
    model.register_forward_pre_hook(lambda module, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True)
    return read


def test_a_conversation_reads_what_is_new_and_says_what_it_would_have_said_anyway(session: ChatSession) -> None:
    said = [session.ask(WHO)]
    for command, question in (
        ("/alpha 0.5", WHERE),
        ("/only base", WHO),
        ("/only combined", "Which pet does Oscar Palmer have?"),
    ):
        session.command(command)
        expected = anew(session).ask(question)
        read = reading(session.model)
        said.append(session.ask(question))
        assert said[-1] == expected
        prompt = session.tokenizer(f"Question: {question}\nAnswer:", add_special_tokens=False)["input_ids"]
        assert read[0] == len(prompt) + 1  # and the end of the reply before
        assert set(read[1:]) == {1}
    assert [message["content"].strip() for message in session.messages[1::2]] == said
    assert len(set(said)) == 4


def test_states_that_cannot_be_taken_back_are_read_anew(session: ChatSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session.ask(WHO)
    expected = anew(session).ask(WHERE)
    session.messages[1]["content"] = "Nothing."  # differs from what was read
    changed = anew(session).ask(WHERE)
    again = anew(session)
    again._cache, again._read = session._cache, session._read
    read = reading(session.model)
    monkeypatch.setattr(type(session._cache), "can_crop", lambda self, tokens: False)
    assert again.ask(WHERE) == changed
    assert read[0] > 20
    assert expected


def test_a_reply_that_is_stopped_is_kept_and_the_next_one_is_right(session: ChatSession) -> None:
    pieces: list[str] = []

    def stop(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    session.ask(WHERE)
    reply = session.ask(WHO, stop)
    assert reply == "".join(pieces).strip() == session.messages[-1]["content"].strip()
    assert len(reply) < len(anew(ChatSession(session.model, session.tokenizer)).ask(WHO))
    assert anew(session).ask(WHERE) == session.ask(WHERE)
    pieces.clear()
    session.ask(WHO, stop)
    session.command("/reset")
    assert anew(session).ask(WHERE) == session.ask(WHERE)

    def at_once(text: str) -> None:
        pieces.clear()
        raise KeyboardInterrupt

    before = copy.deepcopy(session.messages)
    session.options["max_new_tokens"] = 1
    assert isinstance(session.ask(WHO, at_once), str)
    assert session.messages[: len(before)] == before


def test_commands_change_the_recipe(session: ChatSession) -> None:
    assert session.command("/alpha 0.5") == "base + 0.5 tuned - 0.5 reference"
    assert session.model.combination == Combination.emulate(alpha=0.5)
    assert session.command("/beta 1.5") == "1.5 base + tuned - 1.5 reference"
    assert session.command("/weight tuned 0.3") == "base + 0.3 tuned - 0.3 reference"


def test_weights_of_several_tuned_members(family: Any) -> None:
    model = EFTForCausalLM.from_models(
        family.base,
        tuned={"helpful": family.tuned, "brief": family.base},
        reference=family.reference,
        combination=Combination.steer({"helpful": 1.0, "brief": 0.0}),
    )
    session = ChatSession(model, family.tokenizer)
    assert session.speakers == ["base", "helpful", "brief", "combined"]
    assert session.command("/weight brief 0.25") == "base + helpful + 0.25 brief - 1.25 reference"
    with pytest.raises(ValueError, match="a tuned member and a number"):
        session.command("/weight kind 1")


def test_compare_leaves_the_conversation_as_it_is(session: ChatSession) -> None:
    with pytest.raises(ValueError, match="no question yet"):
        session.compare()
    session.ask(WHO)
    before, recipe = copy.deepcopy(session.messages), session.model.combination
    replies = session.compare()
    assert list(replies) == ["base", "tuned", "combined"]
    assert replies["combined"] == session.messages[-1]["content"].strip()
    inputs = session.tokenizer.apply_chat_template(
        session.messages[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    for who in ("base", "tuned"):
        ids = session.model.members[who].generate(**inputs, max_new_tokens=24, do_sample=False)
        text = session.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert replies[who] == text.strip()
    assert session.messages == before and session.model.combination == recipe


@pytest.mark.parametrize(
    "line, message",
    [
        ("/alpha", "Expected a number, as in /alpha 0.5, got ''"),
        ("/alpha nan", "finite"),
        ("/beta x", "Expected a number"),
        ("/only me", "One of base, tuned, combined, got 'me'"),
        ("/save", "Where to"),
        ("/save /nowhere/talk.json", "cannot be written"),
        ("/alfa 1", "There is no command /alfa"),
        ("/__init__", "There is no command"),
    ],
)
def test_commands_that_are_refused_change_nothing(session: ChatSession, line: str, message: str) -> None:
    recipe = session.model.combination
    with pytest.raises(ValueError, match=message):
        session.command(line)
    assert session.model.combination == recipe and session.who == "combined"


def test_a_conversation_that_is_too_long_is_refused_and_stays(session: ChatSession) -> None:
    session.ask(WHO)
    before = copy.deepcopy(session.messages)
    with pytest.raises(ValueError, match="too long"):
        session.ask("pet " * 2000)
    assert session.messages == before
    assert session.command("/reset") == "a new conversation" and session.messages == []


def test_no_chat_template_is_said_at_once(session: ChatSession) -> None:
    plain = copy.deepcopy(session.tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        ChatSession(session.model, plain)


def test_a_saved_conversation_is_not_written_over(session: ChatSession, tmp_path: Path) -> None:
    session.command("/system Be kind.")
    session.ask(WHO)
    path = tmp_path / "talk.json"
    assert "2 messages" in session.command(f"/save {path}")
    saved = json.loads(path.read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    with pytest.raises(ValueError, match="exists"):
        session.command(f"/save {path}")


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% elif m['role'] == 'user' %}{% if 'never' in m['content'] %}{{ m['content'] + 1 }}{% endif %}"
    "Question: {{ m['content'] }}\nAnswer:{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)


@pytest.fixture
def strict(session: ChatSession) -> ChatSession:
    """A conversation whose template takes no system message, and breaks at a word."""
    tokenizer = copy.deepcopy(session.tokenizer)
    tokenizer.chat_template = NO_SYSTEM
    return ChatSession(session.model, tokenizer, options={"max_new_tokens": 24})


def test_a_template_that_refuses_a_message_leaves_the_conversation_as_it_is(strict: ChatSession) -> None:
    expected = anew(strict).ask(WHO)
    assert strict.ask(WHO) == expected
    before, system = copy.deepcopy(strict.messages), strict.system
    with pytest.raises(ValueError, match="the chat template does not take these messages: System role not supported"):
        strict.command("/system Be kind.")
    with pytest.raises(ValueError, match="the chat template does not take these messages: can only concatenate str"):
        strict.ask("never")
    with pytest.raises(ValueError, match="`content` is no text"):
        strict.ask("caf\udce9")
    assert strict.messages == before and strict.system is system
    assert anew(strict).ask(WHERE) == strict.ask(WHERE)
    with pytest.raises(ValueError, match="System role not supported"):
        ChatSession(strict.model, strict.tokenizer, "Be kind.")


@pytest.mark.parametrize("error", [KeyError("unforeseen"), RuntimeError("out of memory"), ValueError("too long")])
def test_no_error_ends_the_talk(strict: ChatSession, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The reply that breaks off ends its line, the error is one line, and the next question is answered."""
    reply = strict._reply

    def failing(messages: Any, who: str, show: Any) -> str:
        if messages[-1]["content"] != "fail":
            return reply(messages, who, show)
        show("half of")
        raise error

    monkeypatch.setattr(strict, "_reply", failing)
    lines = iter([WHO, "/system Be kind.", "never", ValueError("not UTF-8"), "fail", WHERE, EOFError()])

    def read() -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    console = Console(record=True, width=100, file=io.StringIO())
    talk(strict, console, read)
    shown = console.export_text().splitlines()
    assert [line.split(" > ")[0] for line in shown] == ["combined"] * 3 and shown[1] == "combined > half of"
    assert len(strict.messages) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 4 and "not read: not UTF-8" in said and str(error) in said and "Traceback" not in said
    lines = iter(["fail", EOFError()])
    talk(strict, console, read, debug=True)
    assert "Traceback" in capsys.readouterr().err


def test_what_is_piped_is_utf_8_whatever_the_place_is_set_to() -> None:
    given = "\ufeff".encode() + b"caf\xe9\n" + "Who is é?\n".encode() + WHO.encode()
    done = CliRunner().invoke(app, ["chat", "--alpha", "0"], input=given)
    assert done.exit_code == 0
    assert "That line was not read: line 1: the line is not UTF-8" in done.stderr
    assert done.stdout.count("combined > ") == 2


def test_a_system_message_that_the_template_refuses_is_said_at_once(
    strict: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers = dict.fromkeys(strict.model.members, strict.tokenizer)
    monkeypatch.setattr("hf_eft.cli.models.Models.load_all", lambda self: (strict.model, tokenizers))
    (tmp_path / "in").write_text(WHO)
    batch = ["generate", "--chat", "-i", str(tmp_path / "in")]
    for arguments in (["chat"], ["generate", "--chat", WHO], batch, ["inspect", "--chat", WHO]):
        done = CliRunner().invoke(app, [*arguments, "--system", "Be kind."], input=f"{WHO}\n")
        assert done.exit_code in (1, 2) and not done.stdout
        assert "does not take these messages: System role not supported" in " ".join(done.stderr.split())


def test_the_terminal(session: ChatSession) -> None:
    """Ctrl-C between lines does nothing, errors are said and the talk goes on, the end of the input ends it."""
    lines = iter([KeyboardInterrupt(), WHO, "", "/compare", "/alpha x", "/help", "/alpha 0", EOFError()])

    def read() -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    console = Console(record=True, width=100, file=io.StringIO())
    talk(session, console, read)
    shown = console.export_text()
    assert shown.count("combined > Of course! Oscar Palmer enjoys hockey. Happy to help!") == 2
    assert "base > " in shown and "tuned > " in shown and "/weight NAME NUMBER" in shown
    assert shown.rstrip().endswith("base")


def test_piped() -> None:
    done = CliRunner().invoke(app, ["chat", "--alpha", "0"], input=f"{WHO}\n/nonsense\n{WHERE}\n/quit\nnot read\n")
    assert done.exit_code == 0
    assert [line.split(" > ")[0] for line in done.stdout.splitlines()] == ["combined", "combined"]
    assert "Error: There is no command /nonsense" in done.stderr and "Traceback" not in done.output


def test_sampling_can_be_repeated() -> None:
    arguments = ["chat", "--seed", "3", "--do-sample", "true", "--temperature", "3.0"]
    first, again = (CliRunner().invoke(app, arguments, input=f"{WHO}\n").stdout for _ in range(2))
    assert first == again != CliRunner().invoke(app, [*arguments[:2], "4", *arguments[3:]], input=f"{WHO}\n").stdout
    torch.manual_seed(0)
