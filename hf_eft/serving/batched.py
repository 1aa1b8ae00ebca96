"""Requests batched continuously. What a request does with its logits is done to its own row, with its own history."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import (
    ContinuousBatchingConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens

from ..decoding.continuous import BatchEnded
from ..decoding.continuous.options import Whole
from .asked import Job
from .dispatch import Told
from .errors import Unavailable
from .logprobs import entry
from .penalties import SomeLeft

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

_POLL = 1.0  # seconds after which a silent batch is asked whether it lives

# Options of `generate` that a request of a batch may give; the others need `generate`'s own loop or cache.
_HEEDED = frozenset(
    """bad_words_ids begin_suppress_tokens do_sample eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty
forced_eos_token_id max_new_tokens min_length min_new_tokens min_p no_repeat_ngram_size num_return_sequences
pad_token_id remove_invalid_values renormalize_logits repetition_penalty sequence_bias suppress_tokens temperature top_h top_k top_p
typical_p""".split()
)


_OF_BATCHES = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)


class Row:
    r"""
    What a request does with its logits, step by step.

    Args:
        job ([`Job`]): The request.
        model ([`EFTForCausalLM`]): The model.
    """

    def __init__(self, job: Job, model: EFTForCausalLM) -> None:
        self._job = job
        self._logits: dict[int, torch.Tensor] = {}  # (vocab,), by the place of the token in the answer
        self.error: Exception | None = None
        config, _ = model._prepare_generation_config(copy.deepcopy(job.config))
        config.max_length = len(job.prompt) + config.max_new_tokens
        if config.min_new_tokens is not None:
            config.min_length = len(job.prompt) + config.min_new_tokens
        model._prepare_special_tokens(config, device=model.device)
        processors = model._get_logits_processor(
            config,
            input_ids_seq_length=len(job.prompt),
            logits_processor=copy.deepcopy(job.processors),
            device=model.device,
            model_kwargs={},
        )
        self._greedy = not config.do_sample
        # The batch's own do the most common ones for all requests at once; all are of one kind, so that their order is `generate`'s.
        self._processors = None if all(type(each) in _OF_BATCHES for each in processors) else processors
        everything = {"temperature": 1.0, "top_k": model.vocab_size, "top_p": 1.0}
        if self._processors is not None:
            self.options = everything
        elif self._greedy:
            self.options = {**everything, "top_k": 1}
        else:
            self.options = {
                "temperature": float(config.temperature or 1.0),
                "top_k": min(config.top_k or model.vocab_size, model.vocab_size),
                "top_p": float(1.0 if config.top_p is None else config.top_p),
            }

    def __deepcopy__(self, memo: Any) -> Row:
        return self  # a request that is moved out of the cache and back is the same

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self._processors is None and self._job.top is None

    def __call__(self, ids: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        r"""
        The scores that a token is drawn by.

        Args:
            ids (`Sequence[int]`): The prompt, and what was generated.
            scores (`torch.FloatTensor` of shape `(vocab,)`): The combination's logits.
        """
        if self._job.top is not None:
            self._logits[len(ids) - len(self._job.prompt)] = scores.clone()
        if self._processors is None or self.error is not None:
            return scores
        try:
            history = torch.tensor([list(ids)], device=scores.device)
            changed = SomeLeft()(history, self._processors(history, scores[None].clone()))[0]
        except Exception as error:  # it is this request's, and must not end the others'
            self.error = error
            return scores
        if self._greedy:  # the batch draws: nothing else may be drawn
            changed = torch.full_like(changed, -torch.inf).index_fill(0, changed.argmax(), 0.0)
        return changed

    def logits(self, place: int) -> torch.Tensor | None:
        """The combination's logits for the token at a place of the answer."""
        return self._logits.pop(place, None)


class Rows(ContinuousBatchingLogitsProcessor):
    """The first processor of a batch: hands every request's logits to its [`Row`], before anything else changes them."""

    supported_kwargs: ClassVar[dict[str, type]] = {"row": Row}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._asked: list[tuple[int, Row, list[int]]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        self._asked = []
        for place, request in enumerate(requests_with_new_token):
            row = request.state.logit_processor_kwargs.get("row")
            if row is not None and not row.idle:
                self._asked.append((place, row, [*request.state.initial_tokens, *request.state.generated_tokens]))
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        if not self._asked:
            return scores
        scores = scores.clone()  # (requests, vocab)
        for place, row, ids in self._asked:
            scores[place] = row(ids, scores[place])
        return scores

    def join(self, manager: Any) -> None:
        """Become the first processor of a manager that was not started yet."""
        processors = manager.logit_processor
        processors.logits_processor = LogitsProcessorList([self, *processors.logits_processor])
        processors.tensors_required += 1
        processors.supported_keys |= self.supported_kwargs
        processors.do_processing = True


class Batched:
    r"""
    Requests batched continuously, each with its own coefficients and its own way of choosing tokens.

    Args:
        model ([`EFTForCausalLM`]): The model.
        config (`ContinuousBatchingConfig`): How they are batched.

    Raises:
        `NotImplementedError`: If the model cannot be batched continuously, saying why.
    """

    def __init__(self, model: EFTForCausalLM, config: ContinuousBatchingConfig) -> None:
        self._model = model
        config.per_request_processors = True
        # There is a processor for each option that has a value here; requests bring their own values.
        neutral = Whole(do_sample=True, temperature=0.5, top_k=1, top_p=0.5, use_cache=False, eos_token_id=-1)
        self._manager = model.init_continuous_batching(neutral, config)
        Rows().join(self._manager)
        self._manager.start()
        self._stopped = self._failing = False  # failing: a batch that was begun again has answered nothing yet
        self.room: int | None = infer_max_single_request_tokens(self._manager.batch_processor.cache)

    async def run(self, job: Job) -> AsyncGenerator[Told, None]:
        self._check(job)
        told: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        rows = [Row(job, self._model) for _ in range(job.rows)]
        names = [uuid.uuid4().hex for _ in rows]
        open_rows = set(range(len(rows)))
        await self._begin_again()
        try:
            for place, (name, row) in enumerate(zip(names, rows, strict=True)):
                self._submit(job, name, row, lambda output, place=place: told.put_nowait((place, output)))
            while open_rows:
                place, output = await self._next(told)
                if (error := rows[place].error) is not None:
                    raise error
                if output.error is not None:
                    raise Unavailable(f"The batch failed: {output.error}")
                self._failing = False
                for what in _feed(job, place, output.generated_tokens, rows[place]):
                    yield what
                answer = job.answers[place * job.copies]
                if answer.finish is not None or output.is_finished():
                    open_rows.discard(place)
                    if not output.is_finished():
                        self._give_up(names[place])
        finally:
            for place in open_rows:
                self._give_up(names[place])

    async def _next(self, told: asyncio.Queue[tuple[int, Any]]) -> tuple[int, Any]:
        """What comes next. A batch that has ended without a word is noticed."""
        getting = asyncio.ensure_future(told.get())
        try:
            while True:
                alive = self._runs()  # before the wait: what the batch still delivered comes first
                if (await asyncio.wait({getting}, timeout=_POLL))[0]:
                    return getting.result()
                if not alive:
                    raise Unavailable(f"The batch has ended: {self._reason()}")
        finally:
            getting.cancel()

    def _check(self, job: Job) -> None:
        """Raise if a request asks for what is not done in a batch."""
        lost = sorted(job.given - _HEEDED - ({"num_beams"} if (job.config.num_beams or 1) == 1 else set()))
        if (job.config.num_beams or 1) > 1:
            lost = ["num_beams"]
        elif (job.config.guidance_scale or 1) != 1:
            lost = ["guidance_scale"]
        if lost:
            raise NotImplementedError(
                f"`{lost[0]}` is not heeded where requests are batched continuously: leave it out, or serve them one by one."
            )
        if job.seed is not None and job.config.do_sample:
            raise NotImplementedError("A `seed` has no meaning where requests are batched continuously: leave it out.")

    def _submit(self, job: Job, name: str, row: Row, told: Any) -> None:
        """Hand a request to the batch. If it is refused, nobody waits for its result."""
        options: dict[str, Any] = {"row": row, **row.options}
        if job.coefficients is not None:
            given = job.coefficients
            options["coefficients"] = (
                {phase: row[0].tolist() for phase, row in given.items()} if isinstance(given, dict) else given[0].tolist()
            )
        self._manager.register_result_handler(name, told)
        try:
            self._manager.add_request(
                job.prompt,
                request_id=name,
                max_new_tokens=job.config.max_new_tokens,
                streaming=True,
                eos_token_id=job.config.eos_token_id,
                **options,
            )
        except BatchEnded as error:
            self._manager.answers.detach(name)
            raise Unavailable(str(error)) from error
        except Exception:
            self._manager.answers.detach(name)
            raise

    def _give_up(self, name: str) -> None:
        """A cancelled request has no result that somebody could wait for."""
        self._manager.cancel_request(name)
        self._manager.answers.detach(name)

    def _reason(self) -> str:
        return str(self._manager.background_thread_status.fatal_error or "the server is being stopped")

    def _runs(self) -> bool:
        return self._manager.is_running() and self._manager.background_thread_status.fatal_error is None

    async def _begin_again(self) -> None:
        """Start a new batch where one has failed: memory that ran out may be there now."""
        if self._stopped or self._runs():
            return
        if (thread := self._manager._generation_thread) is not None:  # it has said that it failed, and is about to end
            await asyncio.to_thread(thread.join, _POLL)
            if thread.is_alive():  # two would share the manager's states, and nobody would end the first
                return
        if not self._stopped and not self._manager.is_running():
            self._failing = True
            self._manager.start()

    def is_alive(self) -> bool:
        return not self._stopped and (self._runs() or not self._failing)

    def stop(self) -> None:
        self._stopped = True
        thread = self._manager._generation_thread
        while thread is not None and thread.is_alive():  # a stop that comes to nothing is said again: the process must end
            self._manager.background_thread_status.request_stop(BackgroundThreadStatus.FLUSH_AND_STOP, 0)
            self._manager._wake_up_loop.set()
            thread.join(_POLL)
        if thread is not None:
            self._manager.stop()
        self._manager.destroy()


def _feed(job: Job, place: int, tokens: Sequence[int], row: Row) -> Iterator[Told]:
    """What a row's tokens so far add to the answers that it stands for."""
    answers = job.answers[place * job.copies : (place + 1) * job.copies]
    for at in range(len(answers[0].tokens), len(tokens)):
        if answers[0].finish is not None:
            break
        logits = None if job.top is None else row.logits(at)
        noted = None if logits is None else entry(logits, tokens[at], job.top or 0)
        for copied, answer in enumerate(answers):
            if (pieces := answer.feed(tokens[at], noted)) or answer.finish is not None:
                yield Told(place * job.copies + copied, pieces, answer.finish)
