"""The manager of requests that come and go: what it takes, and that each is answered and every stop is heeded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens

from ...members.combined import Generates
from .answers import Answers, BatchEnded, Intake
from .limits import check_coefficient_rows, check_model, check_options, resolve
from .options import Whole, others_of
from .paged import PagedMembers


class EFTBatchingManager(ContinuousBatchingManager):
    r"""
    transformers' manager of requests that come and go, see [`~transformers.ContinuousBatchingManager`], for members.

    A request may carry coefficients of its own: `add_request(ids, coefficients=(1.0, 0.5, -0.5))`, in the order of `model.members`.

    Contract:

    - **Answers**: every request that is taken is answered, with its tokens or, if the batch fails or ends before, with an error. One that
      is cancelled has no answer.
    - **Threads**: requests may come, be cancelled and be read in any thread. A stop is heeded whenever it comes, during the start too.
    """

    def __init__(
        self, model: Generates, generation_config: Whole, config: ContinuousBatchingConfig | None, hints: Any = None
    ) -> None:
        self.asked = generation_config, config
        resolved = resolve(model, config)  # first: what is refused has no layout
        super().__init__(PagedMembers(model), generation_config, resolved, hints)
        self.logit_processor.tensors_required += 1  # that of `RequestCoefficients`, which transformers counts for its own only
        self.output_router = self.answers = Answers()
        self.input_queue = self.intake = Intake(self.continuous_batching_config.max_queue_size, self.answers)
        self.refusal: Exception | None = None
        self._starting = threading.RLock()  # again by the same thread: a signal's handler may stop what it interrupted
        self._stopped = False  # since the last start began
        self._running: Any = None  # the batch processor of the thread, which goes on with it until it ends

    # Start and stop -----------------------------------------------------------------------------------------------------

    def warmup(self) -> None:
        """As in transformers. The cache is written by other threads as well, which are in no inference mode."""
        with torch.inference_mode(False):
            super().warmup()

    def start(self) -> None:
        """As in transformers; the cache is made here, so that what is wrong with it is raised to who starts."""
        with self._starting:
            self._stopped = False
            if self.batch_processor is None:
                self.warmup()
            if not self.is_running():
                self.refusal = None
                self.intake.drop_answered()
                self.answers.begin()
            try:
                if not self._stopped:
                    super().start()
            except BaseException:  # an interrupt, with the thread running already
                self._stopped = True
                raise
            finally:
                if self._stopped:
                    super().stop()
                    self.answers.end("It was stopped while it started.")

    def stop(
        self, block: bool = True, timeout: float | None = None, keep_for_next_session: bool = False, hard_stop: bool = False
    ) -> None:
        """As in transformers. A stop that comes while the manager starts is heeded when it has."""
        self._stopped = True
        with self._starting:
            super().stop(block, timeout, keep_for_next_session, hard_stop)

    def join(self, stop_trigger_time: float, timeout: float | None = None) -> None:
        """As in transformers. A thread that has not begun is ended by who starts it."""
        if self._generation_thread is not None and self._generation_thread.ident is not None:
            super().join(stop_trigger_time, timeout)

    def destroy(self) -> None:
        """As in transformers, after a start that is under way."""
        self._stopped = True
        with self._starting:
            super().destroy()

    # The thread ---------------------------------------------------------------------------------------------------------

    def _run_generation_loop(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._run_generation_loop(*args, **kwargs)
        finally:
            self._running = None
            self.answers.end(str(self.background_thread_status.fatal_error or "It was stopped."))

    def _create_batch_processor(self) -> Any:
        self._running = super()._create_batch_processor()
        return self._running

    def _generation_step(self) -> None:
        # Not `batch_processor`, which a stop that does not wait takes away before the thread has ended.
        self._running._generation_step(self.model)

    def _handle_critical_error(self, error: Exception, batch_processor: Any) -> None:
        try:
            super()._handle_critical_error(error, batch_processor)
        finally:  # what fails may fail again as it is cleared up: that it has failed is said all the same
            if self.background_thread_status.fatal_error is None:
                self.background_thread_status.record_fatal_error(error)

    # Requests and answers -----------------------------------------------------------------------------------------------

    def add_request(
        self,
        input_ids: Sequence[int],
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        eos_token_id: int | list[int] | None = None,
        *,
        coefficients: Any = None,
        **options: Any,
    ) -> str | None:
        r"""
        As in transformers, with coefficients.

        Args:
            input_ids (`Sequence[int]`): The prompt.
            request_id (`str`, *optional*): What the request is called; no other that is open may be called so.
            max_new_tokens (`int`, *optional*): How many tokens it gets at most.
            streaming (`bool`, *optional*, defaults to `False`): Whether there is an answer for every token.
            record_timestamps (`bool`, *optional*, defaults to `False`): Whether the time of each token is kept.
            eos_token_id (`int` or `list[int]`, *optional*): The tokens that end it.
            coefficients (`Sequence[float]` or `Mapping[str, Sequence[float]]`, *optional*):
                Of this request, in the order of `model.members`; or by phase, where the recipe has phases.
            options (*optional*): `temperature`, `top_k` and `top_p` of this request, where the batch has `per_request_processors`.

        Raises:
            `BatchEnded`: If the batch has ended or is ending: nobody would answer.
            `TypeError`: If an option is not of its type.
            `ValueError`: If the coefficients are not a number for each member, the prompt is empty, has tokens that a member does not
                know, or could grow longer than the cache or a member allows, or an option is none or out of its range.
        """
        coefficients = getattr(input_ids, "coefficients", coefficients)
        known = {name: kind for name, kind in self.logit_processor.supported_keys.items() if name != "coefficients"}
        options = check_options(options, known, self.model.model.vocab_size)
        if coefficients is not None:
            options["coefficients"] = check_coefficient_rows(
                coefficients, self.model.members.names, self.model.model.combination
            )
        new = self._check_length(input_ids, max_new_tokens)
        taken = super().add_request(input_ids, request_id, new, streaming, record_timestamps, eos_token_id, **options)
        if taken is None and self.is_tp_driver:
            raise BatchEnded(
                f"The batch takes no more requests: {self.background_thread_status.fatal_error or 'it is being stopped.'}"
            )
        return taken

    def add_requests(self, *args: Any, **kwargs: Any) -> list[str]:
        """As in transformers. What is wrong with a request is kept, for [`EFTContinuousMixin.generate_batch`] to raise."""
        try:
            return super().add_requests(*args, **kwargs)
        except Exception as error:
            self.refusal = error
            raise

    def cancel_request(self, request_id: str) -> None:
        """As in transformers: it will have no answer."""
        self.answers.forget(request_id)
        super().cancel_request(request_id)

    def register_result_handler(self, request_id: str, callback: Callable[[Any], None]) -> None:
        """As in transformers. Answers that came before are handed over as well."""

        def last_one_leaves(result: Any) -> None:
            callback(result)
            if result.is_finished():
                self.answers.detach(request_id)

        self.answers.attach(request_id, last_one_leaves, asyncio.get_running_loop())

    def __iter__(self) -> Iterator[Any]:
        """As in transformers, to the last answer."""
        yield from super().__iter__()
        while (result := self.get_result(timeout=0)) is not None:  # came as the thread ended
            yield result

    def request_id_iter(self, request_id: str) -> Iterator[Any]:
        """As in transformers, to the last answer."""
        yield from super().request_id_iter(request_id)
        yield from self.answers.take(request_id)  # came as the thread ended

    def check_as_asked(self, generation_config: Whole | None, config: ContinuousBatchingConfig | None) -> None:
        r"""
        Raise if the manager, which was kept, cannot do what a call asks for.

        Raises:
            `NotImplementedError`: If the model has become one that cannot be batched continuously.
            `ValueError`: If the call asks for other options than the manager was made with.
        """
        check_model(self.model.model)
        own, batching = self.asked
        others = {} if generation_config is None else others_of(own, generation_config)
        if config is not None and config != (batching or ContinuousBatchingConfig()):
            others["continuous_batching_config"] = config
        for name, value in others.items():
            raise ValueError(
                f"A manager is kept that was made with another `{name}` than {value!r}. Leave it out, or call "
                "`destroy_cached_continuous_batching_manager()` first."
            )

    def _check_length(self, input_ids: Sequence[int], new_tokens: int | None) -> int:
        """How many tokens a request may get. Raise if there is no room for them."""
        if not input_ids:
            raise ValueError("The prompt has no tokens: there is nothing to continue.")
        known = min(self.model.members.vocabulary.widths.values())
        if min(input_ids) < 0 or max(input_ids) >= known:
            raise ValueError(f"The ids of a prompt must be from 0 to {known - 1}, got {min(input_ids)} to {max(input_ids)}.")
        config = self.generation_config
        if new_tokens is None:
            new_tokens = config.max_new_tokens
        if new_tokens is None and config.max_length is not None:
            new_tokens = config.max_length - len(input_ids)
        if new_tokens is None:
            raise ValueError("Say how long a request may become: give `max_new_tokens`.")
        if new_tokens < 1:
            raise ValueError(
                f"A prompt of {len(input_ids)} tokens may get {new_tokens} more: `max_new_tokens` must be 1 or more, and `max_length` more "
                "than the prompt has."
            )
        limits = {
            f"positions of the member {name!r}": limit
            for name, model in self.model.members.distinct_models.items()
            if (limit := getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)) is not None
        }
        if (processor := self.batch_processor) is not None:
            limits["tokens of the cache"] = infer_max_single_request_tokens(processor.cache)
        for what, limit in limits.items():
            # One request that outgrows them would end all the others.
            if len(input_ids) + new_tokens > limit:
                raise ValueError(
                    f"A prompt of {len(input_ids)} tokens and {new_tokens} new ones are more than the {limit} {what}. Ask for fewer new "
                    "tokens, or give the cache more blocks."
                )
        return new_tokens
