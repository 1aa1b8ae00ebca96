"""What a command hands on: models and recipes in, and what is made of them out, as text, JSON or files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import EMBEDDED, WHO, invoke
from families import build

from hf_eft import Combination, tiny
from hf_eft.cli.options import named
from hf_eft.recipe.shorthands import recipe

# Models and recipes ---------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "command", [["generate", "hello"], ["inspect", "hello"], ["bench"], ["serve"], ["chat"], ["playground"]]
)
def test_members_without_any_tokenizer_are_told_of(command: list[str], tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("tuned", 1), ("reference", 2)):
        build("llama", seed).save_pretrained(tmp_path / name)
    given = [part for name in ("base", "tuned", "reference") for part in (f"--{name}", str(tmp_path / name))]
    result = invoke(*command, *given)
    assert result.exit_code == 2 and "none of the members has a tokenizer" in " ".join(result.stderr.split())
    if command == ["bench"]:
        assert "emulated fine-tuning" in invoke("card", *given).stdout.lower()  # which has no prompt to read


def test_names() -> None:
    assert named(["a=x=y", "b=/some/where"], "--tuned") == {"a": "x=y", "b": "/some/where"}


def test_several_tuned_members() -> None:
    tuned = [f"--tuned={name}={tiny.path(member)}" for name, member in (("helpful", "tuned"), ("plain", "reference"))]
    arguments = ["generate", "--chat", "--json", WHO, EMBEDDED[0], *tuned, EMBEDDED[2]]
    one, none = invoke(*arguments, "--weight", "helpful=1"), invoke(*arguments, "--weight", "plain=1")
    assert json.loads(one.stdout)["text"].strip() == "Of course! Oscar Palmer enjoys hockey. Happy to help!"
    assert "Of course" not in json.loads(none.stdout)["text"]
    assert "say how they are weighted" in invoke(*arguments).stderr


def test_truncation_reaches_the_recipe() -> None:
    wide, narrow = (invoke("generate", "--chat", "--alpha", "2", "--truncation", rule, WHO) for rule in ("base:1", "base:0.01"))
    assert "Of course" in wide.stdout and "Of course" not in narrow.stdout


# Results --------------------------------------------------------------------------------------------------------------


def test_json_and_speculation_say_what_is_said_anyway() -> None:
    plain = json.loads(invoke("generate", "--chat", "--json", WHO).stdout)
    assert plain == {"text": " Of course! Oscar Palmer enjoys hockey. Happy to help!", "tokens": 13, "finish": "stop"}
    assert json.loads(invoke("generate", "--chat", "--json", "--speculative", WHO).stdout) == plain
    two = json.loads(invoke("generate", "--chat", "--json", "--num-beams=2", "--num-return-sequences=2", WHO).stdout)
    assert len(two["replies"]) == 2


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
            {"host": "127.0.0.1", "port": 0, "model_name": "m", "continuous_batching": True, "api_key": "k", "generation_config": {},
             "speculative": False, "image_hosts": [], "max_image_bytes": None, "max_image_pixels": None},
        ),
        (
            "serve", "hf_eft.serving", "serve", ["--port", "0", "--image-host", "a.example", "--image-host", "b.example:81",
             "--max-image-bytes", "7", "--max-image-pixels", "8"],
            {"host": "127.0.0.1", "port": 0, "model_name": "eft", "continuous_batching": False, "api_key": None,
             "generation_config": {}, "speculative": False, "image_hosts": ["a.example", "b.example:81"], "max_image_bytes": 7,
             "max_image_pixels": 8},
        ),
        ("playground", "hf_eft.playground", "launch", ["--host", "0.0.0.0", "--port", "0"], {"host": "0.0.0.0", "port": 0}),
    ],
)  # fmt: skip
def test_what_is_served(
    command: str, module: str, function: str, arguments: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(f"{module}.{function}", lambda model, tokenizer, **options: called.append((model, tokenizer, options)))
    monkeypatch.setattr(f"{module}.check_installed", lambda: None)
    done = invoke(command, "--alpha", "0.5", *arguments)
    assert done.exit_code == 0, done.output
    [(model, tokenizer, options)] = called
    assert model.combination == Combination.emulate(alpha=0.5) and tokenizer.chat_template
    assert options == expected


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
