"""The commands from outside: every option is explained, errors are lines, exit codes say what happened, JSON is JSON."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hf_eft import Combination, __version__, tiny
from hf_eft.cli import app, main
from hf_eft.cli.app import said
from hf_eft.cli.options import named
from hf_eft.programs.bench import bench
from hf_eft.recipe.shorthands import recipe

ROOT = Path(__file__).resolve().parents[2]
WHO = "What does Oscar Palmer enjoy?"
COMMANDS = "generate chat compose card check inspect serve playground bench demo eval".split()
EMBEDDED = [f"--{name}={tiny.path(name)}" for name in ("base", "tuned", "reference")]


def invoke(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app, list(arguments), **options)


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


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "hf_eft.cli", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hf-eft {__version__}\n", "")


def test_the_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["hf-eft", "--version"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets another
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out == f"hf-eft {__version__}\n"


def test_warnings_are_lines() -> None:
    code = "import warnings, hf_eft.cli as c, hf_eft.programs.demo as d; d.run_demo = lambda *a: warnings.warn('of two\\nlines'); c.main()"
    done = subprocess.run([sys.executable, "-c", code, "demo"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "Warning: of two lines\n")


# Models and recipes -----------------------------------------------------------------------------------------------------


def test_recipes() -> None:
    three = ["base", "tuned", "reference"]
    assert recipe(three) == Combination.emulate()
    assert recipe(three, beta=1.5) == Combination.emulate(beta=1.5)
    assert recipe(three, weights={"tuned": 0.5}) == Combination.emulate(alpha=0.5)
    four = ["base", "helpful", "brief", "reference"]
    assert recipe(four, weights={"brief": 0.25}) == Combination.steer({"helpful": 0.0, "brief": 0.25})
    assert recipe(["tuned", "reference"], weights={"tuned": 0.7}) == Combination.interpolate(0.7)
    assert recipe(["a", "b"], weights={"a": 0.5, "b": 0.5}) == Combination.mix({"a": 0.5, "b": 0.5})
    for names, given, message in (
        (four, {}, "say how they are weighted"),
        (three, {"weights": {"base": 1.0}}, "no tuned members 'base'"),
        (["a", "reference"], {"alpha": 1.0}, "The combination names 'base', 'tuned'"),
        (three, {"alpha": 1.0, "weights": {"tuned": 1.0}}, "not both alpha and weights"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(names, **given)


def test_names() -> None:
    assert named(["a=x=y", "b=/some/where"], "--tuned") == {"a": "x=y", "b": "/some/where"}


def test_several_tuned_members() -> None:
    tuned = [f"--tuned={name}={tiny.path(member)}" for name, member in (("helpful", "tuned"), ("plain", "reference"))]
    arguments = ["generate", "--chat", "--json", WHO, EMBEDDED[0], *tuned, EMBEDDED[2]]
    one, none = invoke(*arguments, "--weight", "helpful=1"), invoke(*arguments, "--weight", "plain=1")
    assert json.loads(one.stdout)["text"].strip() == "Of course! Oscar Palmer enjoys hockey. Happy to help!"
    assert "Of course" not in json.loads(none.stdout)["text"]
    assert "say how they are weighted" in invoke(*arguments).stderr


def test_json_and_speculation_say_what_is_said_anyway() -> None:
    plain = json.loads(invoke("generate", "--chat", "--json", WHO).stdout)
    assert plain == {"text": " Of course! Oscar Palmer enjoys hockey. Happy to help!", "tokens": 13, "finish": "stop"}
    assert json.loads(invoke("generate", "--chat", "--json", "--speculative", WHO).stdout) == plain
    two = json.loads(invoke("generate", "--chat", "--json", "--num-beams=2", "--num-return-sequences=2", WHO).stdout)
    assert len(two["replies"]) == 2


def test_truncation_reaches_the_recipe() -> None:
    wide, narrow = (invoke("generate", "--chat", "--alpha", "2", "--truncation", rule, WHO) for rule in ("base:1", "base:0.01"))
    assert "Of course" in wide.stdout and "Of course" not in narrow.stdout


# Speed ------------------------------------------------------------------------------------------------------------------


def test_bench() -> None:
    done = invoke("bench", WHO, "--new-tokens", "4", "--rounds", "2", "--json")
    measured = json.loads(done.stdout)
    assert list(measured["systems"]) == ["base", "tuned", "reference", "combination", "speculative"]
    assert (measured["batch"], measured["new_tokens"], measured["rounds"]) == (1, 4, 2)
    for name, system in measured["systems"].items():
        low, high = system["tokens_per_second"]["quartiles"]
        assert low <= system["tokens_per_second"]["median"] <= high
        assert ("over_combination" in system) == (name != "combination") and ("over_base" in system) == (name != "base")
    assert "tokens_per_round" in measured["systems"]["speculative"]
    assert "speculative" in invoke("bench", "--new-tokens", "2", "--rounds", "2").stdout


def test_bench_counts_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that are set: each system takes as many as its turn in a round, which doubles from round to round."""
    from hf_eft import EFTForCausalLM

    times: list[float] = []

    def seconds(call: Any) -> float:
        call()
        times.append((len(times) % 4 + 1) * (len(times) // 4 + 1))
        return times[-1]

    monkeypatch.setattr("hf_eft.programs.timing.seconds", seconds)
    family = tiny.load()
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.base)
    inputs = family.tokenizer([WHO, WHO], return_tensors="pt", return_token_type_ids=False)
    done: list[str] = []
    measured = bench(model, inputs, new_tokens=3, rounds=3, done=done.append)
    order = ["base", "tuned", "combination", "speculative"]  # base and reference are one model
    assert done == order * 4 and list(measured["systems"]) == order
    assert measured["batch"] == 2
    for turn, name in enumerate(order, start=1):
        system = measured["systems"][name]
        assert system["tokens_per_second"]["median"] == pytest.approx(2 * 3 / (2 * turn), abs=0.01)
        if name != "combination":
            assert system["over_combination"]["median"] == pytest.approx(3 / turn, abs=1e-3)
        if name != "base":
            assert system["over_base"]["median"] == pytest.approx(1 / turn, abs=1e-3)
    with pytest.raises(ValueError, match="2 rounds or more"):
        bench(model, inputs, rounds=1)


# Commands whose work is done elsewhere ----------------------------------------------------------------------------------


def test_check_as_json() -> None:
    done = invoke("check", *(str(tiny.path(name)) for name in ("base", "tuned", "reference")), "--json")
    assert done.exit_code == 0 and {"subject", "level", "text"} == set(json.loads(done.stdout)[0])
    done = invoke("check", "/nowhere", "/nowhere", "/nowhere", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)[0]["level"] == "refused"


@pytest.mark.parametrize(
    "command, module, function, arguments, expected",
    [
        (
            "serve", "hf_eft.serving", "serve", ["--port", "0", "--continuous-batching", "--model-name", "m", "--api-key", "k"],
            {"host": "127.0.0.1", "port": 0, "model_name": "m", "continuous_batching": True, "api_key": "k", "generation_config": None},
        ),
        ("playground", "hf_eft.playground", "launch", ["--host", "0.0.0.0", "--port", "0"], {"host": "0.0.0.0", "port": 0}),
    ],
)  # fmt: skip
def test_what_is_served(
    command: str, module: str, function: str, arguments: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    stand_in = types.ModuleType(module)
    setattr(stand_in, function, lambda model, tokenizer, **options: called.append((model, tokenizer, options)))
    setattr(stand_in, "check_installed", lambda: None)  # noqa: B010 (mypy)
    setattr(stand_in, "read_options", lambda given: given)  # noqa: B010 (mypy)
    monkeypatch.setitem(sys.modules, module, stand_in)
    done = invoke(command, "--alpha", "0.5", *arguments)
    assert done.exit_code == 0, done.output
    [(model, tokenizer, options)] = called
    assert model.combination == Combination.emulate(alpha=0.5) and tokenizer.chat_template
    assert options == expected


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


def test_compose_and_what_is_made_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "composed"
    done = invoke("compose", str(folder), *EMBEDDED, "--alpha", "0")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(folder)
    assert invoke("generate", "--model", str(folder), "--chat", WHO).stdout.strip() == "Oscar Palmer spends weekends on hockey."
    again = invoke("generate", "--model", str(folder), "--chat", "--alpha", "1", WHO)  # the command line's recipe goes before
    assert again.stdout.strip() == "Of course! Oscar Palmer enjoys hockey. Happy to help!"
    refused = invoke("compose", str(folder), *(option.replace("base=", "base=/nowhere") for option in EMBEDDED))
    assert refused.exit_code == 1 and "Error: " in refused.stderr


def test_a_batch_run_of_a_saved_combination_knows_it(tmp_path: Path) -> None:
    folder, source, output = tmp_path / "composed", tmp_path / "in", tmp_path / "out.jsonl"
    source.write_text(WHO)
    for alpha in ("0", "1"):
        invoke("compose", str(folder / alpha), *EMBEDDED, "--alpha", alpha)
    run = ["generate", "--chat", "-i", str(source), "-o", str(output), "--model"]
    assert invoke(*run, str(folder / "0")).exit_code == 0
    assert invoke(*run, str(folder / "0")).exit_code == 0
    refused = invoke(*run, str(folder / "1"))
    assert refused.exit_code == 1 and "the models was" in refused.stderr


def test_card(tmp_path: Path) -> None:
    output = tmp_path / "README.md"
    assert invoke("card", "--repo-id", "me/mine", "--output", str(output)).exit_code == 0
    assert "me/mine" in output.read_text()
    assert invoke("card", "--output", str(output)).exit_code == 1  # not written over
    done = invoke("card", "--snippet", "--tuned", "me/small-chat", "--reference", "me/small", "--base", "me/large")
    assert done.exit_code == 0 and "me/small-chat" in done.stdout
    assert "a snippet needs the repositories" in invoke("card", "--snippet").stderr


def test_inspect(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = invoke("inspect", "--chat", WHO, "--html", str(page))
    assert done.exit_code == 0, done.output
    assert "hockey" in page.read_text() and not done.stdout
    looked = json.loads(invoke("inspect", "--chat", WHO, "--json").stdout)
    assert len(looked["records"]) == 13 and looked["summary"]
    given = json.loads(invoke("inspect", "--chat", WHO, "--continuation", " Oscar", "--json").stdout)
    assert len(given["records"]) == 1
    assert "hockey" in invoke("inspect", "--chat", WHO, env={"COLUMNS": "160"}).stdout
