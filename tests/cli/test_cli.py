"""The commands from outside: options are explained, errors are lines, exit codes say what happened, what cannot be is said at once."""

from __future__ import annotations

import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import invoke

from hf_eft import __version__
from hf_eft.cli import app, main
from hf_eft.cli.app import said

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = "generate chat compose card check inspect serve playground bench demo eval tune plan".split()


def commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_commands_are_there() -> None:
    assert sorted(commands()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name: str) -> None:
    command = commands()[name]
    done = invoke(name, "--help", env={"COLUMNS": "250", "TERMINAL_WIDTH": "250"})
    assert done.exit_code == 0
    shown = " ".join(done.output.split())
    assert command.help and " ".join(command.help.split("\n\n")[0].split()) in shown
    for parameter in command.params:
        if parameter.name == "help":
            continue
        help = " ".join((parameter.help or "").split())
        assert len(help) > 8 and help[-1] in ".?", f"{name} {parameter.name}: {help!r}"
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert option in shown, f"{name} {option}"


def test_version_and_no_command() -> None:
    assert invoke("--version").output == f"hf-eft {__version__}\n"
    done = invoke()
    assert done.exit_code == 2 and "Usage" in done.output and "Error" not in done.output


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "hf_eft.cli", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hf-eft {__version__}\n", "")


def test_the_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["hf-eft", "--version"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets another
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out == f"hf-eft {__version__}\n"


def test_warnings_are_told_except_those_of_libraries_to_programmers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> None:
        warnings.warn("a strength of another base", UserWarning, stacklevel=1)
        warnings.warn("`this` is deprecated, use `that`", FutureWarning, stacklevel=1)

    monkeypatch.setattr("hf_eft.cli.app", said)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        main()
    assert capsys.readouterr().err == "Warning: a strength of another base\n"


# What goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, code, line",
    [
        (["genrate"], 2, "No such command 'genrate'"),
        (["demo", "--asked", "0"], 2, "Invalid value for '--asked'"),
        (["check", "a"], 2, "Missing argument"),
        (["generate", "--tuned", "helpful", "--tuned", "x=y", "hi"], 2, "expected NAME=VALUE, got 'helpful'"),
        (["generate", "--tuned", "x=a", "--tuned", "x=b", "hi"], 2, "'x' is given twice"),
        (["generate", "--weight", "tuned=strong", "hi"], 2, "expected a number, got 'strong'"),
        (["generate", "--weight", "kind=1", "hi"], 2, "no tuned members 'kind'"),
        (["generate", "--truncation", "keep", "hi"], 2, "expected a number"),
        (["generate", "--truncation", "most:0.5", "hi"], 2, "must be one of keep, drop, base, plausible"),
        (["generate", "--model", "x", "--base", "y", "hi"], 2, "not both"),
        (["generate", "--member-prompts", "hi"], 2, "add --chat"),
        (["generate", "--temperature", "0.7", "--do-sample", "false", "hi"], 2, "`do_sample` is false: leave one of them out"),
        (
            ["chat", "--max-length", "9"],
            2,
            "--max-length is no option here: it counts the prompt as well; say `max_new_tokens`",
        ),
        (["inspect", "--continuation", "a", "--num-beams", "2", "hi"], 2, "for a continuation that is generated"),
        (["generate", "--chat", "caf\udce9"], 2, "messages[0]: `content` is no text"),
        (["generate", "caf\udce9"], 2, "the prompt is no text: '\\udce9' at 3"),
        (["generate", "--num-beams", "2", "--speculative", "hi"], 2, "beams are not drafted"),
        (["chat", "hello"], 2, "what is said comes from the terminal or the standard input"),
        (["bench", "--input", "x", "hi"], 2, "not both"),
        (["bench", "--input", "/nowhere"], 1, "No such file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, line: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == code, done.output
    errors = [each for each in done.stderr.splitlines() if each.startswith("Error: ")]
    assert len(errors) == 1 and line in errors[0] and errors[0] == done.stderr.rstrip().splitlines()[-1]
    assert not done.stdout and "Traceback" not in done.output


@pytest.mark.parametrize(
    "error, line",
    [
        (FileNotFoundError(2, "No such file", "/a/b"), "/a/b: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("as it is"), "as it is"),
        (ValueError(""), "ValueError:  (`hf-eft --debug ...` shows where)"),
        (TypeError("unforeseen"), "TypeError: unforeseen (`hf-eft --debug ...` shows where)"),
    ],
)
def test_errors_of_the_system_are_said_without_their_numbers(error: Exception, line: str) -> None:
    assert said(error) == line


@pytest.mark.parametrize("error", [ValueError("of two\n  lines [bold]"), KeyError("unforeseen")])
def test_a_traceback_is_shown_when_it_is_asked_for(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise error

    monkeypatch.setattr("hf_eft.programs.demo.run_demo", fail)
    done = invoke("demo")
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    if isinstance(error, ValueError):
        assert done.stderr == "Error: of two lines [bold]\n"
    else:
        assert done.stderr == "Error: KeyError: 'unforeseen' (`hf-eft --debug ...` shows where)\n"
    assert invoke("--debug", "demo").exception is error
    assert invoke("demo", env={"HF_EFT_DEBUG": "1"}).exception is error


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_eft.programs.demo.run_demo", stop)
    done = invoke("demo")
    assert done.exit_code == 130 and "Traceback" not in done.output


def test_warnings_are_lines() -> None:
    code = "import warnings, hf_eft.cli as c, hf_eft.programs.demo as d; d.run_demo = lambda *a: warnings.warn('of two\\nlines'); c.main()"
    done = subprocess.run([sys.executable, "-c", code, "demo"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "Warning: of two lines\n")


# Before models are loaded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, missing, extra", [("eval", "lm_eval", "eval"), ("playground", "gradio", "playground"), ("serve", None, "serve")]
)
def test_a_missing_extra_is_said_before_models_are_loaded(
    command: str, missing: str | None, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing is None:
        monkeypatch.setattr("hf_eft.serving.is_serve_available", lambda: False)
    else:
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delitem(sys.modules, "hf_eft.evaluation.harness", raising=False)
        monkeypatch.delattr("hf_eft.evaluation.harness", raising=False)
    monkeypatch.setattr("hf_eft.cli.models.load_members", lambda *_, **__: pytest.fail("models were loaded"))
    done = invoke(command)
    assert done.exit_code == 1 and f"pip install 'hf-eft[{extra}]'" in " ".join(done.stderr.split())


UNWRITABLE = [
    (["generate", "-i", "{folder}/in", "-o", "{folder}/none/out.jsonl"], 1, "none/out.jsonl cannot be written: there is no folder"),
    (["generate", "-i", "{folder}/in", "-o", "{folder}"], 1, "{folder} cannot be written: it is a folder"),
    (["generate", "-i", "{folder}/in", "-o", "{folder}/in", "--restart"], 2, "the results would be written over the input"),
    (["generate", "-i", "{folder}/in", "-o", "{folder}/other"], 1, "other.meta.json, which says what run it is of, cannot be read"),
    (["generate", "-i", "{folder}/in", "-o", "{folder}/mine"], 1, "--batch-size was 3 and is 8"),
    (["inspect", "--html", "{folder}/none/page.html", "hi"], 1, "{folder}/none/page.html cannot be written"),
    (["card", "-o", "{folder}/none/card.md"], 1, "{folder}/none/card.md cannot be written"),
    (["card", "-o", "{folder}/in"], 1, "{folder}/in is there already"),
    (["compose", "{folder}/in/new"], 1, "{folder}/in/new cannot be written to: {folder}/in is a file"),
    (["eval", "--output", "{folder}/in/new"], 1, "{folder}/in/new cannot be written to: {folder}/in is a file"),
    (["serve", "--port", "{port}"], 1, "Cannot listen on 127.0.0.1:{port} (Address already in use"),
    (["playground", "--port", "{port}"], 1, "Cannot listen on 127.0.0.1:{port} (Address already in use"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, code, message", UNWRITABLE)
def test_where_results_go_is_checked_before_models_are_loaded(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes, for large ones; and nothing is written."""
    for name, text in {"in": "hi", "other": "a letter", "mine": "{}\n", "mine.meta.json": '{"--batch-size": 3}'}.items():
        (tmp_path / name).write_text(text)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    monkeypatch.setattr("hf_eft.cli.models.load_members", lambda *_, **__: pytest.fail("models were loaded"))
    monkeypatch.setattr("hf_eft.hub.load_members", lambda *_, **__: pytest.fail("models were loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = {"folder": tmp_path, "port": taken.getsockname()[1]}
        done = invoke(*(each.format(**where) for each in arguments))
    said = " ".join(done.stderr.split())
    assert done.exit_code == code, done.output
    assert message.format(**where) in said and "Errno" not in said
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
