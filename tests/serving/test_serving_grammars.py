"""What the server makes of grammars with drafts, beams and thoughts: the processor is the library's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from served import BOTH, QUESTION, chat, connect, family, ids_of, said
from test_serving_json_and_tools import SCHEMA, qwen
from transformers import AddedToken

from hf_eft import EFTForCausalLM, tiny
from hf_eft.grammar import GrammarLogitsProcessor, Grammars
from hf_eft.serving import EFTServer

WANTED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


def test_drafts_and_beams_keep_to_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = family()
    ids, drafted = ids_of(tokenizer), []
    keeps = GrammarLogitsProcessor(Grammars(tokenizer).json(SCHEMA), ids)
    generate = model.generate

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        drafted.append(kwargs.get("assistant_model") is model.tuned)
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", watched)
    with EFTServer(model, tokenizer, port=0, speculative=True) as server, connect(server) as client:
        for beams in (1, 3):
            options = {"generation_config": {"num_beams": beams}}
            answer = chat(client, max_tokens=60, response_format=WANTED, extra_body=options).choices[0]
            (expected,) = said(model, tokenizer, ids, max_new_tokens=60, logits_processor=[keeps], num_beams=beams)
            assert answer.message.content == expected and set(json.loads(expected)) == {"hobby", "years"}
    assert drafted[0] and not drafted[2]  # the others are the test's own


@BOTH
def test_thoughts_go_before_a_schema(options: dict[str, Any]) -> None:
    tokenizer = tiny.load().tokenizer
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    model = EFTForCausalLM.from_models(
        qwen(1, tokenizer, 64), tuned=qwen(2, tokenizer), reference=qwen(3, tokenizer), tokenizers={"base": tokenizer}
    )
    first, last = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        for bias in ({str(first): -80}, {str(first): 40, str(last): 80}):
            made = chat(client, max_tokens=80, response_format=WANTED, logit_bias=bias, logprobs=True, messages=_messages())
            # The format of Qwen's answers knows its own end tokens only.
            read = json.loads(made.choices[0].message.content.removesuffix("<eos>"))
            assert set(read) == {"hobby", "years"} and made.choices[0].finish_reason == "stop"
            tokens = [entry.token for entry in made.choices[0].logprobs.content]
            assert ("</think>" in tokens) == (len(bias) == 2), tokens


def _messages() -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION.text}]
