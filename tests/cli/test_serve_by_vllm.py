"""`hf-eft serve --engine vllm` with a stand-in for the Python that has vLLM: what it is told, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from commands import EMBEDDED, invoke
from stand_in import StandIn

from hf_eft import Combination, EFTConfig, EFTForCausalLM, hub, tiny
from hf_eft.serving.vllm import Served, check_folder, check_python, read_config

pytestmark = pytest.mark.skipif(os.name != "posix", reason="vLLM is for Linux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded family as one folder, at a strength of 0.5."""
    members = {name: tiny.path(name) for name in ("base", "tuned", "reference")}
    return hub.compose(members, tmp_path_factory.mktemp("vllm") / "family", combination=Combination.emulate(0.5))


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the server says that it serves, this process is told to end."""
    monkeypatch.setattr("hf_eft.cli.serve.typer.echo", lambda text: (print(text), os.kill(os.getpid(), signal.SIGTERM)))


def serve(stand_in: StandIn, *arguments: str, **options: Any) -> Any:
    return invoke("serve", "--engine", "vllm", "--python", stand_in.path, "--port", "0", *arguments, **options)


def test_it_is_told_the_same_as_our_own_server(folder: Path, tmp_path: Path, ended: None) -> None:
    stand_in = StandIn(tmp_path)
    how = ["--model-name", "m", "--alpha", "2", "--generation-config", '{"top_p": 0.9, "repetition_penalty": 1.1}']
    done = serve(
        stand_in, "--model", str(folder), *how, "--", "--tensor-parallel-size", "2", env={"HF_EFT_API_KEY": "a secret"}
    )
    told = stand_in.told()
    options = stand_in.arguments()
    assert (done.exit_code, told["signal"]) == (7, "SIGTERM"), done.output
    assert done.stdout.strip() == f"Serving 'm' at http://127.0.0.1:{options['--port']}/v1"
    assert "vLLM 0.32.0, vllm-eft 0.1.0" in " ".join(done.stderr.split())
    assert told["arguments"][:3] == ["-m", "vllm_eft.serve", "run"]
    read = {name: json.loads(options.pop(name)) for name in ("--hf-overrides", "--override-generation-config")}
    assert Combination.from_dict(read["--hf-overrides"]["combination"]) == Combination.emulate(2.0)
    assert read["--override-generation-config"] == {
        "temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.1,
    }  # fmt: skip
    assert json.loads(options.pop("--structured-outputs-config"))["disable_any_whitespace"]
    del options["--port"]
    assert options == {
        "--model": str(folder), "--served-model-name": "m", "--host": "127.0.0.1", "--generation-config": "auto",
        "--middleware": "vllm_eft.http.Key", "--disable-uvicorn-access-log": "--dtype", "--dtype": "float32", "--max-model-len": "512",
        "--tensor-parallel-size": "2",
    }  # fmt: skip
    assert "a secret" not in " ".join(told["arguments"])
    assert told["environment"]["VLLM_API_KEY"] == "a secret" and "HF_EFT_API_KEY" not in told["environment"]
    assert "VLLM_EFT_TEMPERATURE" not in told["environment"]  # requests that say nothing are sampled


def test_greedy_is_greedy_there_and_the_folders_recipe_holds(folder: Path, tmp_path: Path, ended: None) -> None:
    stand_in = StandIn(tmp_path)
    assert serve(stand_in, "--model", str(folder), "--", "--max-model-len=64").exit_code == 7
    options, environment = stand_in.arguments(), stand_in.told()["environment"]
    assert json.loads(options["--override-generation-config"])["temperature"] == 0
    assert environment["VLLM_EFT_TEMPERATURE"] == "1.0" and "VLLM_API_KEY" not in environment
    assert "--hf-overrides" not in options and "--max-model-len" not in options and options["--max-model-len=64"] == ""


@pytest.mark.parametrize("given", [[], [*EMBEDDED, "--alpha", "0.25"]])
def test_members_are_one_folder_that_is_removed(given: list[str], tmp_path: Path, ended: None) -> None:
    stand_in = StandIn(tmp_path)
    done = serve(stand_in, *given)
    assert done.exit_code == 7, done.output
    where = Path(stand_in.arguments()["--model"])
    assert f"written to {where}, which is removed at the end" in " ".join(done.stderr.split())
    assert {"config.json", "members", "tokenizer.json"} <= set(stand_in.told()["files"])
    assert not where.parent.exists()
    assert "--hf-overrides" not in stand_in.arguments()  # the recipe is in the folder


def test_a_recipe_that_names_repositories_is_followed_when_that_is_allowed(
    folder: Path, tmp_path: Path, ended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe"
    reference = {"repo_id": "me/model", "revision": "0" * 40}
    EFTConfig(
        member_names=["base", "tuned", "reference"],
        references=dict.fromkeys(("base", "tuned", "reference"), reference),
        combination=Combination.emulate(1.0).to_dict(),
    ).save_pretrained(recipe)
    stand_in = StandIn(tmp_path)
    assert "allow_references" in serve(stand_in, "--model", str(recipe)).stderr
    assert not stand_in.notes.exists()
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    given: list[Any] = []

    def load(where: str, **options: Any) -> Any:
        given.append((where, options["allow_references"]))
        return model, dict.fromkeys(("base", "tuned", "reference"), tokenizer)

    monkeypatch.setattr("hf_eft.hub.load", load)
    assert serve(stand_in, "--model", str(recipe), "--allow-references").exit_code == 7
    assert given == [(str(recipe), True)] and "members" in stand_in.told()["files"]


REFUSED = [
    (["--api-key", ""], "--api-key: vLLM takes an empty key for none"),
    (["--speculative"], "--speculative: drafts are for requests that transformers serves one by one"),
    (["--device", "cuda:0"], "--device: vLLM takes the devices that it sees"),
    (["--trust-remote-code"], "--trust-remote-code: vLLM's plugin runs vLLM's own models"),
    (["--python", "/nowhere/python"], "`--python` '/nowhere/python' is no program"),
    (["--generation-config", '{"num_beams": 4}'], "`num_beams` is not heeded by vLLM"),
    (["--generation-config", '{"max_new_tokens": 4}'], "`max_new_tokens` would be a limit for all requests there"),
    (["--", "--host", "x"], "--host is not for vLLM itself: --host is said by --host here"),
    (["--", "--served_model_name=x"], "--served-model-name is said by --model-name here"),
    (["--", "--api-k", "x"], "--api-key is said by HF_EFT_API_KEY here"),
    (["--", "--hf-overrides", "{}"], "--hf-overrides is said by --alpha"),
    (["folder"], "What follows `--` are options of vLLM, got 'folder'"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_what_vllm_cannot_heed_is_refused_by_name(arguments: list[str], reason: str, folder: Path, tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    done = serve(stand_in, "--model", str(folder), *arguments)
    assert done.exit_code == 2 and reason in " ".join(done.stderr.split()), done.output
    assert not stand_in.notes.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--python", "python"], "another environment is for --engine vllm"),
        (["--", "--tensor-parallel-size", "2"], "options of another server are for --engine vllm"),
    ],
)
def test_our_own_server_takes_nothing_for_the_other(arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_eft.cli.models.load_members", lambda *_, **__: pytest.fail("models were loaded"))
    done = invoke("serve", *arguments)
    assert done.exit_code == 2 and reason in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"missing": 2}, "There is no vllm-eft in the environment of"),
        ({"missing": 3}, "There is no vLLM in the environment of"),
        ({"refused": "its members are clocks"}, "vLLM cannot serve this combination: its members are clocks"),
    ],
)
def test_what_the_plugin_refuses_is_told_before_vllm_starts(how: Any, reason: str, folder: Path, tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, **how)
    done = serve(stand_in, "--model", str(folder))
    assert done.exit_code == 2 and reason in " ".join(done.stderr.split())
    assert not stand_in.notes.exists()


def test_a_taken_port_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_eft.hub.compose", lambda *_, **__: pytest.fail("members were written"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve(StandIn(tmp_path), "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1 and "Address already in use" in done.stderr


@pytest.mark.parametrize(("ends", "code"), [(0, 1), (5, 5)])
def test_a_server_that_ends_by_itself_has_failed(ends: int, code: int, folder: Path, tmp_path: Path) -> None:
    done = serve(StandIn(tmp_path, ends=ends), "--model", str(folder))
    assert done.exit_code == code
    assert f"vLLM ended with status {code}" in " ".join(done.stderr.split())


def test_another_host_without_a_key_warns(folder: Path, tmp_path: Path, ended: None) -> None:
    with pytest.warns(UserWarning, match="without an `api_key`"):
        assert serve(StandIn(tmp_path), "--model", str(folder), "--host", "0.0.0.0").exit_code == 7


# The folder -----------------------------------------------------------------------------------------------------------


def changed(folder: Path, new: Path, name: str, **more: Any) -> Path:
    """A folder with a file changed, and nothing else in it."""
    new.mkdir()
    for file in ("config.json", "generation_config.json"):
        found = json.loads((folder / file).read_text())
        for key, value in more.items() if file == name else ():
            part, _, key = key.rpartition("__")
            (found[part] if part else found)[key] = value
        (new / file).write_text(json.dumps(found))
    return new


@pytest.mark.parametrize(
    ("key", "value"), [("no_repeat_ngram_size", 3), ("stop_strings", ["."]), ("suppress_tokens", [4]), ("num_beams", 2)]
)
def test_a_default_that_vllm_would_leave_out_is_refused(key: str, value: Any, folder: Path, tmp_path: Path) -> None:
    where = changed(folder, tmp_path / "new", "generation_config.json", **{key: value})
    with pytest.raises(ValueError, match=f"`{key}` = .*vLLM does not heed"):
        Served(where, read_config(where))


def test_defaults_of_the_folder_hold(folder: Path, tmp_path: Path) -> None:
    own = {"do_sample": True, "temperature": 0.6, "top_k": 20, "no_repeat_ngram_size": 0, "max_new_tokens": 9}
    where = changed(folder, tmp_path / "new", "generation_config.json", **own)
    served = Served(where, read_config(where))
    found = json.loads(served.options[served.options.index("--override-generation-config") + 1])
    assert found == {"temperature": 0.6, "top_k": 20, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    greedy = Served(where, read_config(where), generation_config={"temperature": 0})
    assert greedy.temperature == 0.6
    assert json.loads(greedy.options[greedy.options.index("--override-generation-config") + 1])["temperature"] == 0


def test_one_dtype_for_all_and_the_shortest_context(folder: Path, tmp_path: Path) -> None:
    more = {"tuned_config__dtype": "bfloat16", "tuned_config__max_position_embeddings": 100}
    where = changed(folder, tmp_path / "new", "config.json", **more)
    with pytest.raises(ValueError, match=r"float32 \(reference\), bfloat16 \(tuned\)|one dtype for all"):
        Served(where, read_config(where))
    options = Served(where, read_config(where), dtype="float16").options
    assert options[options.index("--dtype") + 1] == "float16"
    assert options[options.index("--max-model-len") + 1] == "100"


def test_a_python_that_says_something_else(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no >&2\n")
    program.chmod(0o755)
    assert check_python(str(program)) == str(program)
    with pytest.raises(ValueError, match=r"cannot look at .*: no"):
        check_folder(str(program), folder)
