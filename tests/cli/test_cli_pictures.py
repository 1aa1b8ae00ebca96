"""Commands that serve members which see: each with the processor that lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from lookers import processor
from seeing import seeing


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("members")
    for seed, name in enumerate(("base", "tuned", "reference"), start=1):
        seeing("llava", seed).save_pretrained(root / name)
        processor("llava").save_pretrained(root / name)
    return {name: root / name for name in ("base", "tuned", "reference")}


@pytest.mark.parametrize(
    "command, module, function", [("serve", "hf_eft.serving", "serve"), ("playground", "hf_eft.playground", "launch")]
)
def test_processors_beside_members_are_handed_on(
    command: str, module: str, function: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(f"{module}.{function}", lambda model, tokenizer, **options: called.append((model, options)))
    monkeypatch.setattr(f"{module}.check_installed", lambda: None)
    done = invoke(command, "--port", "0", *(part for name, folder in folders.items() for part in (f"--{name}", str(folder))))
    assert done.exit_code == 0, done.output
    [(model, options)] = called
    assert list(options["processors"]) == list(model.members) == list(folders)
    assert all(type(each).__name__ == "LlavaProcessor" for each in options["processors"].values())


def test_a_member_without_a_processor_is_told(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = tmp_path / "reference"
    seeing("llava", 3).save_pretrained(blind)
    processor("llava").tokenizer.save_pretrained(blind)
    called: list[Any] = []
    monkeypatch.setattr("hf_eft.serving.serve", lambda model, tokenizer, **options: called.append(options))
    given = {**folders, "reference": blind}
    done = invoke("serve", "--port", "0", *(part for name, folder in given.items() for part in (f"--{name}", str(folder))))
    assert done.exit_code == 0, done.output
    assert "'reference' has no processor, so that pictures are refused" in " ".join(done.stderr.split())
    assert "processors" not in called[0]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--image-host", "http://a.example/"], "are names of hosts"),
        (["--max-image-pixels", "0"], "must be 1 or more"),
        (["--max-image-bytes", "-1"], "must be 1 or more"),
        (["--engine", "vllm", "--image-host", "a.example"], "serves text alone"),
    ],
)
def test_limits_of_pictures_are_looked_at_before_models_are_loaded(options: list[str], expected: str) -> None:
    done = invoke("serve", *options)
    assert done.exit_code == 2 and expected in " ".join(done.stderr.replace("\u2502", " ").split())
