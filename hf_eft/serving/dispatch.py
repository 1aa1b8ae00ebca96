"""Who serves the requests that the endpoints read: one after the other, or batched continuously."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig
from transformers.cli.serving.utils import (
    CBGenerateManager,
    CBWorkerDeadError,
    GenerateManager,
    GenerationState,
    InferenceThread,
    _GenerationCancelled,
)

from ..continuous import BatchEnded
from ..continuous.options import check_request, whole

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM


@dataclass
class Asked:
    """What a request asks for beside its generation configuration."""

    coefficients: torch.Tensor | None  # (1, members)
    seed: int | None


class Seeded:
    """The model as the thread that serves it calls it: for one request, with its seed."""

    def __init__(self, model: EFTForCausalLM, seed: int | None, streams: bool) -> None:
        self.model, self.seed, self.streams = model, seed, streams

    def generate(self, **inputs: Any) -> Any:
        """As `generate`, seeded. The messages of a stream's errors are put between quotes as they are: they are escaped here."""
        try:
            with seeded(self.seed, self.model):
                return self.model.generate(**inputs)
        except _GenerationCancelled:
            raise
        except Exception as error:
            if not self.streams:
                raise
            raise RuntimeError(json.dumps(str(error))[1:-1]) from error


@contextlib.contextmanager
def seeded(seed: int | None, model: EFTForCausalLM) -> Iterator[None]:
    """Draw by a seed, if there is one, and go on afterwards as if nobody had: other requests are not foreseeable."""
    if seed is None:
        yield
        return
    devices = {member.device for member in model.members.values() if member.device.type == "cuda"}
    with torch.random.fork_rng(sorted(device.index for device in devices)):
        torch.manual_seed(seed)
        yield


class OneByOne(GenerateManager):
    """Requests in the order in which they come, each by `generate`, on one thread."""

    def __init__(self) -> None:
        self._thread = ServingThread()

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **kwargs: Any) -> Any:
        return super().generate_streaming(*_for_one(model, processor, inputs, gen_config, streams=True), **kwargs)

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **kwargs: Any) -> Any:
        return await super().generate_non_streaming(*_for_one(model, processor, inputs, gen_config, streams=False), **kwargs)

    def stop(self) -> None:
        """Wait for the requests that came before, and end the thread. May be called twice."""
        self.submit(sys.exit)
        self._thread._thread.join()


class ServingThread(InferenceThread):
    """transformers' thread, which can be ended: by a call that raises `SystemExit`."""

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):
            super()._run()


def _for_one(model: Any, processor: Any, inputs: Any, gen_config: Any, streams: bool) -> tuple[Any, Any, dict[str, Any], Any]:
    asked, config = _taken(gen_config)
    # Not the token types, which some tokenizers return: they are for encoders, and GPT-2 would add them to the tokens.
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    if inputs["input_ids"].shape[-1] == 0:
        raise ValueError("The prompt has no tokens: there is nothing to continue.")
    if asked.coefficients is not None:
        inputs["coefficients"] = asked.coefficients.to(model.device)
    return Seeded(model, asked.seed, streams), processor, inputs, config


def _taken(gen_config: Any) -> tuple[Asked, Any]:
    """What a request asks for, and a generation configuration that is nothing else."""
    config = copy.copy(gen_config)
    asked: Asked = config.asked
    del config.asked
    return asked, config


class Batched(CBGenerateManager):
    """Requests batched continuously, each with its own coefficients and its own temperature, `top_k` and `top_p`."""

    def __init__(self, model: EFTForCausalLM, config: ContinuousBatchingConfig) -> None:
        super().__init__()
        config.per_request_processors = True
        # There is a processor for each option that has a value here; requests bring their own values.
        defaults = copy.deepcopy(model.generation_config)
        defaults.update(do_sample=True, temperature=0.5, top_k=1, top_p=0.5, num_return_sequences=1, use_cache=False)
        self._cb = model.init_continuous_batching(defaults, config)
        self._cb.start()

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **kwargs: Any) -> Any:
        one, config = self._for_one(model, gen_config)
        return CBGenerateManager.generate_streaming(one, model, processor, inputs, config, **kwargs)

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **kwargs: Any) -> Any:
        one, config = self._for_one(model, gen_config)
        try:
            return await CBGenerateManager.generate_non_streaming(one, model, processor, inputs, config, **kwargs)
        except CBWorkerDeadError:
            raise
        except RuntimeError as error:  # the batch failed; that its worker is dead is known a moment after its requests are
            raise CBWorkerDeadError(str(error)) from error

    def _for_one(self, model: EFTForCausalLM, gen_config: Any) -> tuple[Batched, Any]:
        """This manager as one request sees it, and the request's generation configuration."""
        asked, config = _taken(gen_config)
        config = whole(model, config, place="of this request")
        check_request(self._cb.generation_config, config)
        if asked.seed is not None and config.do_sample:
            raise NotImplementedError("A `seed` has no meaning where requests are batched continuously: leave it out.")
        options: dict[str, Any] = {"temperature": 1.0, "top_k": 1, "top_p": 1.0}  # greedy
        if config.do_sample:
            options = {
                "temperature": float(config.temperature or 1.0),
                "top_k": min(config.top_k or model.vocab_size, model.vocab_size),
                "top_p": float(1.0 if config.top_p is None else config.top_p),
            }
        if asked.coefficients is not None:
            options["coefficients"] = asked.coefficients[0].tolist()
        one: Any = copy.copy(self)
        one._cb = Submitting(self._cb, options)
        return one, config

    def stop(self) -> None:
        """Wait for the requests that came before, and end the thread. May be called twice."""
        if self._cb.is_running():
            self._cb.stop(block=True)
        self._cb.destroy()


class Submitting:
    """The manager of a batch as one request sees it, with its options."""

    def __init__(self, manager: Any, options: dict[str, Any]) -> None:
        self.manager, self.options = manager, options

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    def add_request(self, input_ids: Any, request_id: str, **kwargs: Any) -> Any:
        """Submit it. If it is refused, nobody waits for its result."""
        try:
            return self.manager.add_request(input_ids, request_id=request_id, **kwargs, **self.options)
        except BatchEnded as error:
            self._forget(request_id)
            raise CBWorkerDeadError(str(error)) from error
        except Exception:
            self._forget(request_id)
            raise

    def cancel_request(self, request_id: str) -> None:
        """Give it up: a cancelled request has no result that somebody could wait for."""
        self.manager.cancel_request(request_id)
        self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        with self.manager.output_router._lock:
            self.manager.output_router.result_handlers.pop(request_id, None)


class Generation(GenerationState):
    """Who serves the requests: one manager, made with the server."""

    def __init__(self, manager: OneByOne | Batched) -> None:
        batched = isinstance(manager, Batched)
        super().__init__(continuous_batching=batched)
        self.manager = manager
        self._cb_manager = manager if batched else None  # whose health `/health` tells

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        return self.manager

    def shutdown(self) -> None:
        self.manager.stop()
