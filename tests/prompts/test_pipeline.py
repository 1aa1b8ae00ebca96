"""`pipeline("text-generation")`: what `generate` gives, and not a line in the log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from templates import CHATS, TEXTS, expected, wrapper
from transformers import GenerationConfig, TextIteratorStreamer, pipeline

from hf_eft import EFTForCausalLM, EFTLogitsProcessor, tiny

pytestmark = pytest.mark.usefixtures("log")


@pytest.fixture(params=["wrapper", "folder", "add-on at init", "add-on at call"])
def run(request: pytest.FixtureRequest, family: tiny.Family, folder: str) -> Any:
    """A pipeline of each kind, called as a function."""
    tok, add_on = family.tokenizer, EFTLogitsProcessor(family.tuned, family.reference)
    if request.param == "wrapper":
        return pipeline("text-generation", model=wrapper(family), tokenizer=tok)
    if request.param == "folder":
        return pipeline("text-generation", model=folder)
    if request.param == "add-on at init":
        return pipeline(model=family.base, tokenizer=tok, task="text-generation", logits_processor=[add_on])
    pipe = pipeline("text-generation", model=family.base, tokenizer=tok)
    return lambda *args, **kwargs: pipe(*args, logits_processor=[add_on], **kwargs)


def test_strings(run: Any, family: tiny.Family) -> None:
    whole = [text + expected(family, text)[0] for text in TEXTS]
    assert run(TEXTS[0], max_new_tokens=12, do_sample=False) == [{"generated_text": whole[0]}]
    for batch_size in (1, 2, 5):
        got = run(TEXTS, max_new_tokens=12, do_sample=False, batch_size=batch_size)
        assert got == [[{"generated_text": text}] for text in whole]
    got = run(TEXTS, max_new_tokens=12, do_sample=False, batch_size=3, return_full_text=False)
    assert got == [[{"generated_text": text.removeprefix(prompt)}] for text, prompt in zip(whole, TEXTS, strict=True)]


def test_chats(run: Any, family: tiny.Family) -> None:
    replies = [expected(family, text)[0] for text in TEXTS]  # the template makes the same of a chat
    answered = [
        [{"generated_text": [*chat, {"role": "assistant", "content": reply}]}]
        for chat, reply in zip(CHATS, replies, strict=True)
    ]
    assert run(CHATS[0], max_new_tokens=12, do_sample=False) == answered[0]
    for batch_size in (1, 2, 5):
        assert run(CHATS, max_new_tokens=12, do_sample=False, batch_size=batch_size) == answered


def test_options_of_generate(run: Any, family: tiny.Family) -> None:
    beams = {"num_beams": 4, "num_return_sequences": 3, "do_sample": False}
    got = run(TEXTS[:2], return_full_text=False, max_new_tokens=9, **beams, batch_size=2)
    assert [[r["generated_text"] for r in row] for row in got] == [
        expected(family, text, max_new_tokens=9, **beams) for text in TEXTS[:2]
    ]
    config = GenerationConfig(max_new_tokens=5, num_beams=2, do_sample=False, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    got = run(TEXTS[0], return_full_text=False, generation_config=config)
    assert [r["generated_text"] for r in got] == expected(family, TEXTS[0], max_new_tokens=5, num_beams=2)
    torch.manual_seed(3)
    got = run(TEXTS[0], return_full_text=False, num_return_sequences=3, max_new_tokens=8)  # the pipeline samples, at 0.7
    torch.manual_seed(3)
    sampled = {"do_sample": True, "temperature": 0.7, "num_return_sequences": 3, "max_new_tokens": 8}
    assert [r["generated_text"] for r in got] == expected(family, TEXTS[0], **sampled)
    assert len({r["generated_text"] for r in got}) > 1, "the seed gives no variety to compare"


def test_streaming(run: Any, family: tiny.Family) -> None:
    streamer = TextIteratorStreamer(family.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    run(CHATS[1], max_new_tokens=12, do_sample=False, streamer=streamer)
    assert "".join(streamer) == expected(family, TEXTS[1])[0]


def test_speculation_and_coefficients(family: tiny.Family) -> None:
    model = wrapper(family)
    pipe = pipeline("text-generation", model=model, tokenizer=family.tokenizer)
    got = pipe(TEXTS, max_new_tokens=12, do_sample=False, return_full_text=False, batch_size=5, assistant_model=model.tuned)
    assert [row[0]["generated_text"] for row in got] == [expected(family, text)[0] for text in TEXTS]
    assert model.speculation is not None and model.speculation.tokens_per_round > 1
    alone = torch.tensor([[1.0, 0.0, 0.0]])
    got = pipe(TEXTS[0], max_new_tokens=12, do_sample=False, return_full_text=False, coefficients=alone)
    only_base = pipeline("text-generation", model=family.base, tokenizer=family.tokenizer)
    assert got == only_base(TEXTS[0], max_new_tokens=12, do_sample=False, return_full_text=False)


def test_a_saved_folder_in_a_fresh_process(folder: str, family: tiny.Family) -> None:
    """`import hf_eft` is all that a folder needs: the classes are registered when its configuration is read."""
    script = (
        "import sys, hf_eft; from transformers import pipeline\n"
        "assert 'hf_eft.modeling_eft' not in sys.modules\n"
        f"pipe = pipeline('text-generation', model={folder!r})\n"
        f"print(pipe({TEXTS[1]!r}, max_new_tokens=12, do_sample=False, return_full_text=False)[0]['generated_text'])"
    )
    env = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PATH": "",
        "PYTHONWARNINGS": "error",
    }
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected(family, TEXTS[1])[0].strip()
    noise = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
    assert not noise


def test_the_log_is_watched(family: tiny.Family, log: list[str]) -> None:
    """A class that transformers does not know has an error line, which this fixture sees."""

    class Unknown(EFTForCausalLM):
        pass

    model = wrapper(family)
    model.__class__ = Unknown
    pipeline("text-generation", model=model, tokenizer=family.tokenizer)
    assert len(log) == 1 and "'Unknown' is not supported" in log.pop()
