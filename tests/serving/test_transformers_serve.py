"""`transformers serve` itself, in this process, with a saved folder: it loads it, and answers as `generate` does."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from quantising import ON_IMPORT
from transformers import ContinuousBatchingConfig

from hf_eft import EFTForCausalLM, hub, tiny

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

CHAT = [{"role": "user", "content": "What does Oscar Palmer enjoy?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.compose({name: tiny.path(name) for name in ("base", "tuned", "reference")}, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def serve() -> Iterator[Any]:
    """Make transformers' server as its command line does; what it started ends with the test."""
    states = []

    def serve(continuous: bool = False, **options: Any) -> tuple[TestClient, ModelManager]:
        few = ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=64) if continuous else None
        manager, state = ModelManager(**options), GenerationState(continuous_batching=continuous, cb_config=few)
        states.append(state)
        handlers = {
            f"{name}_handler": make(manager, state)
            for name, make in {
                "chat": ChatCompletionHandler,
                "completion": CompletionHandler,
                "response": ResponseHandler,
                "transcription": TranscriptionHandler,
                "systemone": SystemOneHandler,
            }.items()
        }
        return TestClient(build_server(manager, generation_state=state, **handlers)), manager

    yield serve
    for state in states:
        state.shutdown()


@pytest.mark.parametrize("continuous", [False, True], ids=["one at a time", "continuous"])
def test_the_answers_are_those_of_generate(continuous: bool, folder: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers, "EFTForCausalLM", raising=False)  # as in a process that has loaded nothing yet
    client, manager = serve(continuous, device="cpu", dtype="float32", trust_remote_code=True, attn_implementation="sdpa")
    told = client.post("/load_model", json={"model": str(folder)}).text  # with a bar class of its own
    events = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line]
    assert events[-1]["status"] == "ready", events[-1]
    [served] = [timed.model for timed in manager.loaded_models.values()]
    assert isinstance(served, EFTForCausalLM)

    model, tokenizers = hub.load(folder)
    tokenizer, prompt = tokenizers["tuned"], tiny.questions()[0].prompt
    for path, asked, ids in (
        ("completions", {"prompt": prompt}, tokenizer(prompt, return_tensors="pt")["input_ids"]),
        (
            "chat/completions",
            {"messages": CHAT},
            tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"],
        ),
    ):
        reply = client.post(f"/v1/{path}", json={"model": str(folder), "max_tokens": 16, "temperature": 0, **asked})
        assert reply.status_code == 200, reply.text
        [choice] = reply.json()["choices"]
        with torch.no_grad():
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        text = tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
        assert text.strip()
        assert (choice["text"] if path == "completions" else choice["message"]["content"]) == text


@pytest.mark.parametrize("options", [{"dtype": "bfloat16", "attn_implementation": "eager"}, {"device": "auto"}])
def test_what_its_command_line_says_reaches_every_member(options: dict[str, Any], folder: Path, serve: Any) -> None:
    _, manager = serve(**options)
    model, _ = manager.load_model_and_processor(manager.process_model_name(str(folder)))
    dtype, attention = (torch.bfloat16, "eager") if "dtype" in options else (torch.float32, "sdpa")
    assert {(m.dtype, m.config._attn_implementation) for m in model.members.values()} == {(dtype, attention)}


@ON_IMPORT
def test_a_quantisation_reaches_every_member_or_is_its_error_where_it_is_not_installed(folder: Path, serve: Any) -> None:
    _, manager = serve(device="cpu", quantization="bnb-8bit")
    if importlib.util.find_spec("bitsandbytes") is not None:
        model, _ = manager.load_model_and_processor(manager.process_model_name(str(folder)))
        assert all(member.is_loaded_in_8bit for member in model.members.values())
        return
    with pytest.raises((ValueError, ImportError), match="bitsandbytes"):
        manager.load_model_and_processor(manager.process_model_name(str(folder)))
