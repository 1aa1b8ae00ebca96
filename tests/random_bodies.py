"""Random requests: bodies of which each part is one that is heeded, bodies changed beyond that, and anything else that can be sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from random_json import changed, scalars, values, written

from hf_eft.programs.options import option_names
from hf_eft.serving.bodies import IGNORED, ChatBody, CompletionBody, ResponseBody

CHATS, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
KINDS: dict[str, type] = {CHATS: ChatBody, COMPLETIONS: CompletionBody, RESPONSES: ResponseBody}
LONGEST = 6  # new tokens: most of what can go wrong does so at once


@dataclass(frozen=True)
class Request:
    """What is sent, and whether `generate` says what must come back."""

    path: str
    data: bytes
    method: str = "POST"
    body: Any = None
    plain: bool = False


texts = st.one_of(
    st.sampled_from(["Question: Who?\nAnswer:", "Hello", " ", "JSON: {", "é漢🙂", "a" * 60, "</s> <s>"]),
    st.text(min_size=1, max_size=12),
)
_parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "output_text"]), "text": texts})
_contents = st.one_of(texts, st.lists(_parts, max_size=2), st.none())
_json = st.sampled_from(["{}", '{"days": 1}', "", "[1]", '{"a": NaN}', '{"a": {"b": []}}'])
_calls = st.fixed_dictionaries(
    {"type": st.just("function"), "id": st.just("call_1")},
    optional={"function": st.fixed_dictionaries({"name": st.sampled_from(["weather", "f"])}, optional={"arguments": _json})},
)
_roles = st.sampled_from(["user", "user", "user", "system", "assistant", "developer", "tool"])
messages = st.fixed_dictionaries(
    {"role": _roles, "content": _contents},
    optional={"name": st.just("Ada"), "tool_calls": st.lists(_calls, max_size=2), "tool_call_id": st.just("call_1")},
)
_schemas = st.sampled_from(
    [
        {"type": "object"}, {"type": "object", "properties": {"days": {"type": "integer", "minimum": 1}}, "required": ["days"]}, {},
        {"type": "string", "pattern": "[a-c]+"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"enum": [1, "b", None]}, {"anyOf": []}, {"type": "object", "patternProperties": {"^a": {}}}, {"not": {}}, {"type": "magic"},
        {"type": "array", "minItems": 3, "maxItems": 1}, {"const": "\u2028"}, {"type": "string", "format": "date-time"},
    ]
)  # fmt: skip
_functions = st.fixed_dictionaries(
    {"name": st.sampled_from(["weather", "f"])},
    optional={"parameters": _schemas, "description": texts, "strict": st.booleans()},
)
_tools = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("function"), "function": _functions}),
        _functions.map(lambda function: {"type": "function", **function}),
    ),
    max_size=3,
)
_tokens = st.integers(0, 943)  # ids of the embedded family's tokenizer
_few = st.lists(_tokens, min_size=1, max_size=3)

# A value that may be heeded, for every option of `generate` that a request may give.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "assistant_confidence_threshold": st.floats(0, 1),
    "assistant_early_exit": st.integers(1, 2),
    "bad_words_ids": st.lists(_few, min_size=1, max_size=2),
    "begin_suppress_tokens": _few,
    "cache_implementation": st.sampled_from(["static", "dynamic", "offloaded", "quantized"]),
    "disable_compile": st.booleans(),
    "do_sample": st.booleans(),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "encoder_no_repeat_ngram_size": st.integers(1, 3),
    "encoder_repetition_penalty": st.floats(0.5, 2),
    "eos_token_id": st.one_of(_tokens, _few),
    "epsilon_cutoff": st.floats(0, 0.5),
    "eta_cutoff": st.floats(0, 0.5),
    "exponential_decay_length_penalty": st.just([2, 1.5]),
    "forced_eos_token_id": st.one_of(_tokens, _few),
    "length_penalty": st.floats(-1, 2),
    "max_cache_len": st.integers(1, 80),
    "max_matching_ngram_size": st.integers(1, 3),
    "max_new_tokens": st.integers(1, LONGEST),
    "max_time": st.floats(0.001, 5),
    "min_length": st.integers(0, 20),
    "min_new_tokens": st.integers(0, LONGEST),
    "min_p": st.floats(0, 1),
    "no_repeat_ngram_size": st.integers(1, 3),
    "num_assistant_tokens": st.integers(1, 4),
    "num_assistant_tokens_schedule": st.sampled_from(["constant", "heuristic", "heuristic_transient"]),
    "num_beams": st.integers(1, 4),
    "num_return_sequences": st.integers(1, 4),
    "pad_token_id": _tokens,
    "prefill_chunk_size": st.integers(1, 8),
    "prompt_lookup_num_tokens": st.integers(1, 4),
    "remove_invalid_values": st.booleans(),
    "renormalize_logits": st.booleans(),
    "repetition_penalty": st.floats(0.5, 2),
    "sequence_bias": st.one_of(
        st.lists(st.tuples(_few, st.floats(-5, 5)).map(list), min_size=1, max_size=2), st.just({"1": 2.0})
    ),
    "stop_strings": st.one_of(texts, st.lists(texts, max_size=2)),
    "suppress_tokens": _few,
    "temperature": st.floats(0, 2),
    "top_h": st.floats(0.1, 1),
    "top_k": st.integers(0, 50),
    "top_p": st.floats(0.01, 1),
    "typical_p": st.floats(0.01, 1),
    "use_cache": st.booleans(),
    "use_mtp": st.booleans(),
}
# Those that change which tokens are chosen and leave each step's choice to the logits, for requests that `generate` is asked as well.
GREEDY = (
    "bad_words_ids", "begin_suppress_tokens", "min_new_tokens", "no_repeat_ngram_size", "num_beams", "repetition_penalty",
    "suppress_tokens",
)  # fmt: skip


def some(fields: dict[str, st.SearchStrategy[Any]], most: int = 4) -> st.SearchStrategy[dict[str, Any]]:
    """A few of some fields."""
    names = st.lists(st.sampled_from(sorted(fields)), max_size=most, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))


configs = some(OPTIONS, 3)
_new = st.integers(1, LONGEST)
_formats = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object"])}),
    _schemas.map(lambda schema: {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}),
)
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["eft", "eft", "eft", "other"]),
    "alpha": st.floats(-2, 3),
    "beta": st.floats(-2, 3),
    "weights": st.fixed_dictionaries({}, optional={"tuned": st.floats(-2, 2), "other": st.just(1.0)}),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "seed": st.integers(-5, 2**63 - 1),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "include_obfuscation": st.booleans()}),
    "generation_config": st.one_of(configs, configs.map(str), scalars),
    "n": st.integers(1, 4),
    "stop": st.one_of(texts, st.lists(texts, max_size=3)),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(_tokens.map(str), st.floats(-100, 100), max_size=3),
    "max_tokens": _new,
    "max_completion_tokens": _new,
    "max_output_tokens": _new,
    "tools": _tools,
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}, {"type": "function"}]),
    "parallel_tool_calls": st.booleans(),
    "chat_template_kwargs": st.sampled_from([{}, {"enable_thinking": False}, {"tokenize": False}, {"tokenizer": 1}, {"messages": []}]),
    "top_logprobs": st.integers(0, 20),
    "response_format": _formats,
    "text": st.fixed_dictionaries(
        {}, optional={"format": st.one_of(_formats, _schemas.map(lambda s: {"type": "json_schema", "schema": s}))}
    ),
    "instructions": texts,
    "messages": st.lists(messages, min_size=1, max_size=3),
    "prompt": st.one_of(
        texts,
        st.lists(_tokens, min_size=1, max_size=8),
        st.lists(texts, min_size=1, max_size=3),
        st.lists(st.lists(_tokens, min_size=1, max_size=8), min_size=1, max_size=3),
    ),
    "input": st.one_of(
        texts,
        st.lists(
            st.one_of(
                messages,
                _parts,
                st.fixed_dictionaries(
                    {"type": st.just("function_call"), "name": st.just("f"), "call_id": st.just("c"), "arguments": _json}
                ),
                st.fixed_dictionaries({"type": st.just("function_call_output"), "call_id": st.just("c"), "output": _contents}),
                st.fixed_dictionaries({"type": st.just("reasoning"), "content": st.lists(_parts, max_size=2)}),
            ),
            min_size=1,
            max_size=3,
        ),
    ),
}  # fmt: skip
_OWN: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    CHATS: {"logprobs": st.booleans()},
    COMPLETIONS: {"logprobs": st.integers(0, 20)},
    RESPONSES: {},
}
_ASKED = {CHATS: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}


def fields(path: str) -> dict[str, st.SearchStrategy[Any]]:
    """A strategy for each field of an endpoint's body."""
    return {name: {**_FIELDS, **_OWN[path]}[name] for name in KINDS[path].model_fields}


@st.composite
def bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A body that may well be answered."""
    known = fields(path)
    asked = _ASKED[path]
    optional = {name: strategy for name, strategy in known.items() if name != asked}
    return {asked: draw(known[asked]), **draw(some(optional)), **draw(some(optional, 1))}


@st.composite
def plain(draw: st.DrawFn) -> Request:
    """A greedy request to a family whose answers are text and nothing else, which `generate` answers as well."""
    path = draw(st.sampled_from([CHATS, COMPLETIONS]))
    prompt = draw(texts)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if path == CHATS else {"prompt": prompt}
    body["max_completion_tokens" if path == CHATS else "max_tokens"] = draw(_new)
    body |= draw(some({name: OPTIONS[name] for name in GREEDY}, 2).map(lambda own: {"generation_config": own} if own else {}))
    body |= draw(some({name: fields(path)[name] for name in ("alpha", "beta", "n", "stop", "stream", "seed")}, 3))
    if "beta" in body:
        body.pop("alpha", None)
    if draw(st.booleans()):
        body["temperature"] = 0
    return Request(path, json.dumps(body).encode(), body=body, plain=True)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Any request."""
    kind = draw(st.integers(0, 19))
    if kind < 6:
        return draw(plain())
    path = draw(st.sampled_from(list(KINDS)))
    body = draw(bodies(path))
    if kind < 10:
        return Request(path, json.dumps(body).encode(), body=body)
    if kind == 10:  # a name that is read elsewhere, or is refused, or nobody knows
        name = draw(
            st.one_of(st.sampled_from(sorted({*IGNORED, *KINDS[path].refused, *option_names(), *_FIELDS})), st.text(max_size=6))
        )
        body[name] = draw(values)
    elif kind == 11:  # an option with any value
        body["generation_config"] = {draw(st.sampled_from(sorted(OPTIONS))): draw(values), **draw(some(OPTIONS, 1))}
    elif kind == 12:
        other = draw(
            st.sampled_from(["/v1/models", "/v1/models/eft", "/v1/models/%ff", "/health", "/", "/v1/embeddings", path + "/"])
        )
        return Request(
            other, json.dumps(body).encode(), draw(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE"])), body
        )
    elif kind == 13:
        return Request(path, draw(st.one_of(st.binary(max_size=20), written(draw(values)))))
    else:
        body = draw(changed(body))
    return Request(path, draw(written(body)), body=body)
