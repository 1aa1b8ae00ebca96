"""Who generates what requests ask for: one after the other, or batched continuously. Every request is answered, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from .answers import Piece
from .asked import Job
from .errors import Unavailable
from .logprobs import entry
from .penalties import SomeLeft

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM


class Told(NamedTuple):
    """Which answer goes on, with what, and why it ends with that, if it does: when this is heard, it may have gone on since."""

    place: int
    pieces: list[Piece]
    finish: str | None


class Generator(Protocol):
    """What the endpoints ask for answers."""

    room: int | None

    def run(self, job: Job) -> AsyncGenerator[Told, None]:
        """Generate the answers of a job, and tell each as it comes. What is wrong is raised. Who stops listening cancels the job."""

    def is_alive(self) -> bool:
        """Whether requests can be answered."""

    def stop(self) -> None:
        """Answer the requests that came before, and end. May be called twice."""


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


class OneByOne:
    """Requests in the order in which they come, each by `generate`, on one thread."""

    room: int | None = None

    def __init__(self, model: EFTForCausalLM, draft: bool = False) -> None:
        self._model, self._draft = model, draft
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="eft-generate")

    async def run(self, job: Job) -> AsyncGenerator[Told, None]:
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Told | Exception | None] = asyncio.Queue()

        def tell(what: Told | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(told.put_nowait, what)

        try:
            self._thread.submit(_generate, self._model, job, tell, self._draft)
        except RuntimeError as error:  # the thread has ended
            raise Unavailable("The server is being stopped.") from error
        try:
            while (what := await told.get()) is not None:
                if isinstance(what, Exception):
                    raise what
                yield what
        finally:
            job.cancelled = True
            what = None  # an error would hold this frame, and with it all that `generate` held, until somebody collects garbage

    def is_alive(self) -> bool:
        return True

    def stop(self) -> None:
        self._thread.shutdown()


def _generate(model: EFTForCausalLM, job: Job, tell: Any, draft: bool) -> None:
    """On the thread: generate, and tell. The end is always told."""
    try:
        if not job.cancelled:
            _generate_all(model, job, tell, draft)
    except Exception as error:
        tell(error)
    except BaseException as error:  # a processor that ends its thread: half an answer is not a whole one
        tell(RuntimeError(f"The generation was ended by {type(error).__name__}: {error}"))
    finally:
        tell(None)


def may_draft(job: Job) -> bool:
    """Whether drafts leave a request as it is: greedy, one row, nothing that looks at single steps or keeps a state between them."""
    config = job.config
    steps = config.do_sample or (config.num_beams or 1) > 1 or job.top is not None or config.use_cache is False
    own = any(
        value is not None for value in (config.prompt_lookup_num_tokens, config.cache_implementation, config.guidance_scale)
    )
    return not (steps or own) and all(getattr(each, "is_stateless", False) for each in job.processors)


def _generate_all(model: EFTForCausalLM, job: Job, tell: Any, draft: bool) -> None:
    ids = torch.tensor([job.prompt], device=model.device)
    options: dict[str, Any] = {}
    config = job.config
    # Without a block size: whether this member drafts, or the small combination, or nobody, is measured on the way.
    if draft and may_draft(job):
        options["assistant_model"] = model.members[model.combination.tuned_names[0]]
    if job.coefficients is not None:
        given = job.coefficients  # by phase they are moved where they are looked up
        options["coefficients"] = given if isinstance(given, dict) else given.to(model.device)
    if job.seen is not None:
        options |= {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in job.seen.pictures.items()
        }
    steps = Steps(job, tell)
    if steps.possible:
        options["stopping_criteria"] = StoppingCriteriaList([steps])
    elif job.stops:
        config = copy.deepcopy(config)
        config.stop_strings, options["tokenizer"] = job.stops, job.tokenizer
    with seeded(job.seed, model), steps.watching(model):
        sequences = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([*job.processors, SomeLeft(judges=not job.constrained)]),
            **options,
        )
    steps.finish(sequences.tolist())


class Steps(StoppingCriteria):
    r"""
    Sees each token of `generate` as it is chosen, those of an accepted draft together, tells it, and says which rows have ended.

    Args:
        job ([`Job`]): What is generated.
        tell (`Callable`): Takes what is to be told.
    """

    def __init__(self, job: Job, tell: Any) -> None:
        self._job, self._tell = job, tell
        self._read = len(job.prompt)
        self._logits: torch.Tensor | None = None  # (rows, vocab), of the last step

    @property
    def possible(self) -> bool:
        """Whether there are steps: beams are turned around until the end, and drafts are accepted block by block."""
        return (self._job.config.num_beams or 1) == 1 and self._job.config.prompt_lookup_num_tokens is None

    @contextlib.contextmanager
    def watching(self, model: EFTForCausalLM) -> Iterator[None]:
        """Keep the logits of each step, if log-probabilities are wanted."""
        if self._job.top is None:
            yield
            return

        def keep(module: Any, inputs: Any, outputs: Any) -> None:
            self._logits = outputs.logits[:, -1]

        hook = model.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        rows = input_ids[:, self._read :].tolist()
        self._read = input_ids.shape[1]
        ended = [self._feed(row, tokens) or self._job.cancelled for row, tokens in enumerate(rows)]
        return torch.tensor(ended, device=input_ids.device)

    def finish(self, rows: list[list[int]]) -> None:
        """Tell what is left of the rows that `generate` returned."""
        for row, ids in enumerate(rows):
            answer = self._job.answers[row * self._job.copies]
            self._feed(row, ids[len(self._job.prompt) + len(answer.tokens) :])
            if answer.finish is None:
                self._told(row, lambda answer: answer.cut())

    def _feed(self, row: int, tokens: list[int]) -> bool:
        """Whether the row has ended."""
        answer = self._job.answers[row * self._job.copies]
        for token in tokens:
            if answer.finish is not None:
                break
            logits = None if self._logits is None or self._job.top is None else self._logits[row]
            noted = None if logits is None else entry(logits, token, self._job.top or 0)
            self._told(row, lambda answer, token=token, noted=noted: answer.feed(token, noted))
        return answer.finish is not None

    def _told(self, row: int, what: Any) -> None:
        """Do it to each answer that a row stands for, and tell what comes of it."""
        for index in range(row * self._job.copies, (row + 1) * self._job.copies):
            answer = self._job.answers[index]
            if (pieces := what(answer)) or answer.finish is not None:
                self._tell(Told(index, pieces, answer.finish))
