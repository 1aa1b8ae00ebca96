"""A `generate` call whose text can be read while it is made, and that can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from ..members.devices import execution_device


class _Stopped(StoppingCriteria):
    """Ends every row once it is told to."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.told.is_set(), device=input_ids.device)


class Answer:
    r"""
    What a model says to a prompt, one piece of text after the other.

    Iterating over it yields the text so far. Whoever leaves the iteration early stops the generation. An error of `generate` is raised
    in the iteration.

    Args:
        model (`PreTrainedModel`): Who answers.
        tokenizer (`PreTrainedTokenizerBase`): What the text is written with.
        prompt (`torch.LongTensor` of shape `(length,)`): The tokens of the prompt.
        seed (`int`): For sampling.
        **options: Passed on to `generate`, tensors on the model's device.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: torch.Tensor, seed: int, **options: Any) -> None:
        self.text = ""
        self.tokens: torch.Tensor | None = None  # of the answer, its end included, once it is there
        self._model, self._prompt, self._seed, self._options = model, prompt, seed, options
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._error: BaseException | None = None
        self._stopped = _Stopped()

    def __iter__(self) -> Generator[str, None, None]:
        thread = threading.Thread(target=self._generate, daemon=True)
        thread.start()
        try:
            for piece in self._streamer:
                self.text += piece
                yield self.text
        finally:
            self._stopped.told.set()
            thread.join()
        error, self._error = self._error, None  # which would hold this object, and all that `generate` held
        try:
            if error is not None:
                raise error
        finally:
            del error

    def _generate(self) -> None:
        try:
            torch.manual_seed(self._seed)
            device = execution_device(self._model)
            ids = self._prompt[None].to(device)
            options = {
                name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in self._options.items()
            }
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=self._streamer,
                stopping_criteria=StoppingCriteriaList([self._stopped]),
                **options,
            )
            self.tokens = out[0, len(self._prompt) :].cpu()
        except BaseException as error:  # raised anew where the text is read: half of it is not the whole
            self._error = error
        finally:
            self._streamer.end()
