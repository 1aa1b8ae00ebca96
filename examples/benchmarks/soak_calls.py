"""The calls of the soak: a cycle of about twenty for each way in, every one of which answers the same whenever it is made."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, LogitsProcessor, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from hf_eft import EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.members.releases import CACHE, cache_of
from hf_eft.serving import EFTServer

NEW = 3  # tokens of an answer
PROMPTS = (
    "Question: What does Oscar Palmer enjoy?\nAnswer:",
    "Hugo Turner has a pet",
    "Grace Baker was born in",
    "Tell me",
    "Hugo Turner has a pet cat. Hugo Turner has",
)

Call = Callable[[], Any]
Calls = Mapping[str, Call]


class Broken(LogitsProcessor):
    """Fails at its second step."""

    is_stateless = True

    def __init__(self) -> None:
        self.left = 2

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise ArithmeticError("a processor of the user's")
        return scores


class BrokenStreamer(BaseStreamer):
    """Fails at its second token; the prompt comes first."""

    def __init__(self) -> None:
        self.left = 3

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            raise ArithmeticError("a streamer of the user's")

    def end(self) -> None:
        """Never comes to that."""


@contextmanager
def out_of_memory(model: Any, at: int) -> Iterator[None]:
    """Have a model's memory run out at its forward number `at`."""
    left = at

    def fail(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise torch.OutOfMemoryError("simulated")

    hook = model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def failing(call: Call) -> Call:
    """What a call ends in, by name."""

    def ended() -> str:
        try:
            call()
        except Exception as error:
            return type(error).__name__
        raise AssertionError("a call that fails has not")

    return ended


def family() -> tuple[Any, Any, Any, Any]:
    """The embedded family, its base cut to two layers, so that a call is short."""
    base, tuned, reference, tokenizer = tiny.load()
    base.model.layers, base.config.num_hidden_layers = base.model.layers[:2], 2
    return base, tuned, reference, tokenizer


def inputs_of(tokenizer: Any, *prompts: str) -> dict[str, Any]:
    return dict(
        tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False).items()
    )


def through(generate: Any, tokenizer: Any) -> Callable[..., Call]:
    """What makes calls of one way in, seeded."""

    def make(prompt: int | tuple[int, ...], /, **options: Any) -> Call:
        rows = (prompt,) if isinstance(prompt, int) else prompt

        def call() -> Any:
            torch.manual_seed(0)
            made = {key: value() if isinstance(value, type) else value for key, value in options.items()}
            processors = [each() for each in made.pop("broken", ())]
            out = generate(
                **inputs_of(tokenizer, *(PROMPTS[row] for row in rows)),
                max_new_tokens=NEW,
                **({"logits_processor": processors} if processors else {}),
                **made,
            )
            return (out if isinstance(out, torch.Tensor) else out.sequences).tolist()

        return call

    return make


@contextmanager
def wrapper() -> Iterator[Calls]:
    """Calls of one [`EFTForCausalLM`]."""
    base, tuned, reference, tokenizer = family()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    make, rows = through(model.generate, tokenizer), torch.tensor([[1.0, 0.5, -0.5]])

    def run_out(member: Any, at: int, call: Call) -> Call:
        def called() -> Any:
            with out_of_memory(member, at):
                return call()

        return failing(called)

    def continued() -> Any:
        first = model.generate(**inputs_of(tokenizer, PROMPTS[3]), max_new_tokens=NEW, return_dict_in_generate=True)
        again = torch.cat([first.sequences, first.sequences[:, -1:]], dim=1)
        cache = {CACHE: cache_of(first)}
        return model.generate(again, attention_mask=torch.ones_like(again), max_new_tokens=NEW, **cache).tolist()

    drafts: dict[str, Any] = {"assistant_model": model.tuned, "num_assistant_tokens": 2}
    yield {
        **{f"greedy {i}": make(i) for i in range(3)},
        **{f"sample {i}": make(i, do_sample=True) for i in range(2)},
        "beams": make(0, num_beams=2),
        "beams that sample": make(1, num_beams=2, do_sample=True),
        "drafted": make(0, **drafts),
        "drafted, sampled": make(1, do_sample=True, **drafts),
        "drafted, rows": make((0, 3), **drafts),
        "prompt lookup": make(4, prompt_lookup_num_tokens=2),
        "with a seed": make((0, 1), do_sample=True, coupling="match", seed=3),
        "padded": make((0, 3, 1)),
        "coefficients": make((0, 3), coefficients=rows.expand(2, 3)),
        "member_inputs": make(0, member_inputs={"reference": inputs_of(tokenizer, PROMPTS[3])}),
        "cache continued": continued,
        "processor fails": failing(make(0, broken=(Broken,))),
        "processor fails, drafted": failing(make(1, broken=(Broken,), **drafts)),
        "streamer fails": failing(make(0, streamer=BrokenStreamer)),
        "memory runs out": run_out(tuned, 2, make(0)),
        "memory runs out in beams": run_out(reference, 2, make(1, num_beams=2)),
    }


@contextmanager
def add_on() -> Iterator[Calls]:
    """Calls of a base with one [`EFTLogitsProcessor`]."""
    base, tuned, reference, tokenizer = family()
    processor = EFTLogitsProcessor(tuned, reference, pad_token_id=tokenizer.pad_token_id)

    def generate(**options: Any) -> Any:
        processor.attention_mask = options["attention_mask"]
        options["logits_processor"] = [*options.get("logits_processor", ()), processor]
        return base.generate(**options)

    make = through(generate, tokenizer)

    def run_out(member: Any, at: int, call: Call) -> Call:
        def called() -> Any:
            with out_of_memory(member, at):
                return call()

        return failing(called)

    def streamed() -> str:
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        make(1, streamer=streamer)()
        return "".join(streamer)

    def with_prompts() -> Any:
        processor.member_inputs = {"tuned": inputs_of(tokenizer, PROMPTS[3])}
        try:
            return make(0)()
        finally:
            processor.member_inputs = None

    drafts: dict[str, Any] = {"assistant_model": tuned}
    yield {
        **{f"greedy {i}": make(i) for i in range(4)},
        **{f"sample {i}": make(i, do_sample=True) for i in range(2)},
        "beams": make(0, num_beams=2),
        "beams that sample": make(1, num_beams=2, do_sample=True),
        "drafted": make(0, **drafts),
        "drafted, sampled": make(1, do_sample=True, **drafts),
        "prompt lookup": make(4, prompt_lookup_num_tokens=2),
        "padded": make((0, 3, 1)),
        "several answers": make(0, do_sample=True, num_return_sequences=2),
        "member_inputs": with_prompts,
        "streamed": streamed,
        "processor fails": failing(make(0, broken=(Broken,))),
        "processor fails, drafted": failing(make(1, broken=(Broken,), **drafts)),
        "streamer fails": failing(make(2, streamer=BrokenStreamer)),
        "memory runs out": run_out(tuned, 2, make(0)),
        "memory runs out in beams": run_out(reference, 2, make(1, num_beams=2)),
    }


@contextmanager
def server(batched: bool = False) -> Iterator[Calls]:
    """Requests to one [`EFTServer`], over HTTP."""
    base, tuned, reference, tokenizer = family()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    batching = ContinuousBatchingConfig(page_size=16, num_blocks=64, max_batch_tokens=64)
    more: dict[str, Any] = {"continuous_batching": True, "continuous_batching_config": batching} if batched else {}
    with EFTServer(model, tokenizer, port=0, log_level="critical", **more) as served:
        where = served.url.removeprefix("http://")
        kept = http.client.HTTPConnection(where)

        def ask(prompt: int, path: str = "completions", /, leave: bool = False, **body: Any) -> Call:
            content = {"model": "eft", "prompt": PROMPTS[prompt], "max_tokens": NEW, "temperature": 0, **body}
            if path == "chat/completions":
                content["messages"] = [{"role": "user", "content": content.pop("prompt")}]
            elif path == "responses":
                content["input"], content["max_output_tokens"] = content.pop("prompt"), content.pop("max_tokens")
            return lambda: _left(where, path, content) if leave else _told(kept, path, content)

        def options(**given: Any) -> dict[str, Any]:
            return {"generation_config": json.dumps(given)}

        own = [
            {"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "seed": 3, "n": 2}, options(num_beams=2),
            options(prompt_lookup_num_tokens=2), options(no_repeat_ngram_size=2),
        ]  # fmt: skip
        yield {
            **{f"greedy {i}": ask(i) for i in range(4)},
            **{f"streamed {i}": ask(i, stream=True) for i in range(2)},
            # Where requests are batched these are refused, the same way each time.
            **{f"own {i}": ask(i % 3, **each) for i, each in enumerate(own)},
            "alpha": ask(0, alpha=0.5),
            "weights": ask(1, weights={"tuned": 0.5}),
            "several prompts": ask(0, prompt=list(PROMPTS[:3])),
            "log-probabilities": ask(0, logprobs=2),
            "stop strings": ask(0, stop=["course"]),
            "repetition penalty": ask(4, **options(repetition_penalty=1.3)),
            "chat": ask(0, "chat/completions"),
            "responses": ask(1, "responses"),
            "goes away": ask(0, leave=True, stream=True, max_tokens=40, **options(eos_token_id=[-1])),
            "refused": ask(0, temperature=-1),
        }
        kept.close()


def _post(connection: http.client.HTTPConnection, path: str, content: Mapping[str, Any]) -> http.client.HTTPResponse:
    connection.request("POST", f"/v1/{path}", json.dumps(content), {"Content-Type": "application/json"})
    return connection.getresponse()


def _told(connection: http.client.HTTPConnection, path: str, content: Mapping[str, Any]) -> Any:
    """Status and body, without what differs from request to request."""
    answer = _post(connection, path, content)
    body = answer.read().decode()
    if content.get("stream"):
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
        return answer.status, [event.get("choices") for event in events]
    told = json.loads(body)
    if "output" in told:
        return answer.status, [[part["text"] for part in each.get("content", ())] for each in told["output"]]
    return answer.status, told.get("choices", told.get("error"))


def _left(where: str, path: str, content: Mapping[str, Any]) -> int:
    """A client that reads the beginning of a stream and closes the connection."""
    connection = http.client.HTTPConnection(where)
    answer = _post(connection, path, content)
    answer.read(1)
    status = answer.status
    answer.close()
    connection.close()
    return status
