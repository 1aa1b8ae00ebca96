"""vLLM's server as hf_eft starts it: what is known before an engine is there, and that it ends with whoever started it. Needs no vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_eft.serve import check, main

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "eft", "architectures": ["EFTForCausalLM"], "member_names": ["base", "tuned", "reference"], "text_config": LLAMA,
    "tuned_config": LLAMA, "reference_config": LLAMA, "combination": {"coefficients": {"base": 1.0, "tuned": 1.0, "reference": -1.0}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "tuned", "reference"):
        (tmp_path / "members" / name).mkdir(parents=True)
        (tmp_path / "members" / name / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def change(folder: Path, **more: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))


@pytest.mark.parametrize(
    ("vllm", "spoil", "refused"),
    [
        ("0.32.0", lambda folder: None, None),
        ("0.50.0", lambda folder: None, "runs with vLLM 0.28 to 0.33, not with 0.50.0"),
        ("0.32.0", lambda folder: change(folder, auto_map={"AutoConfig": "code.Config"}), "keys that are not read: 'auto_map'"),
        ("0.32.0", lambda folder: change(folder, combination={"coefficients": {"other": 1.0}}), "names 'other'"),
        ("0.32.0", lambda folder: (folder / "members/tuned/model.safetensors").unlink(), "'tuned' has no safetensors"),
        ("0.32.0", lambda folder: (folder / "config.json").unlink(), "config.json"),
    ],
)
def test_what_is_refused_is_known_without_an_engine(
    vllm: str,
    spoil: Any,
    refused: str | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=vllm))
    spoil(folder)
    found = check(folder)
    assert found["vllm"] == vllm
    assert found["refused"] is None if refused is None else refused in found["refused"]
    main(["check", str(folder)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_server_gets_its_options_and_ends_with_its_standard_input(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(
        "import pathlib, signal, sys\n"
        "assert __name__ == '__main__'\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'ended')!r}).touch(), sys.exit(3)))\n"
        f"pathlib.Path({str(tmp_path / 'told')!r}).write_text(' '.join(sys.argv[1:]))\n"
        "signal.pause()\n"
    )
    code = "from vllm_eft import serve; serve.SERVER = 'server'; serve.main(['run', '--model', 'x'])"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    try:
        while not (tmp_path / "told").exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 3
    finally:
        process.kill()
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "told").read_text() == "--model x"


def test_another_word_is_no_command() -> None:
    with pytest.raises(SystemExit, match="check FOLDER"):
        main(["serve"])
