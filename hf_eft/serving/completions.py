"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ..programs.pictures import Seen
from .answers import Piece
from .asked import Job, Wanted
from .bodies import CompletionBody
from .endpoint import DONE, Endpoint, Run, event


class Completions(Endpoint[CompletionBody]):
    """Texts that are continued."""

    kind = CompletionBody

    def read(self, body: CompletionBody, prompt: Sequence[int], seen: Seen | None) -> list[Job]:
        wanted = Wanted(
            new_tokens=body.max_tokens,
            count=body.n,
            stops=body.stops,
            top=body.logprobs,
            bias=body.logit_bias,
            presence=body.presence_penalty,
            frequency=body.frequency_penalty,
        )
        return [self.reader.job(body, self._ids(each), wanted) for each in body.prompts]

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            prompt.encode()  # half of a surrogate pair has no bytes
            return list(self.reader.tokenizer(prompt)["input_ids"])
        known = len(self.reader.tokenizer)
        if prompt and (min(prompt) < 0 or max(prompt) >= known):
            raise ValueError(f"The ids of a `prompt` must be from 0 to {known - 1}, got {min(prompt)} to {max(prompt)}.")
        return prompt

    def whole(self, run: Run[CompletionBody]) -> dict[str, Any]:
        choices = [
            self._choice(run, index, run.text(index), run.pieces[index], 0, answer.finish)
            for index, answer in enumerate(run.answers)
        ]
        return {**self._head(run), "choices": choices, "usage": run.usage}

    async def stream(self, run: Run[CompletionBody]) -> AsyncGenerator[str, None]:
        head = self._head(run)
        usage = run.body.stream_options is not None and bool(run.body.stream_options.include_usage)
        if usage:
            head["usage"] = None
        offsets = [0] * len(run.answers)
        async for index, pieces, finish in run.told():
            for piece in pieces:
                choice = self._choice(run, index, piece.text, [piece], offsets[index], None)
                offsets[index] += sum(len(self.reader.spelling.text(entry.token)) for entry in piece.entries)
                yield event({**head, "choices": [choice]})
            if finish is not None:
                yield event({**head, "choices": [self._choice(run, index, "", [], offsets[index], finish)]})
        if usage:
            yield event({**head, "choices": [], "usage": run.usage})
        yield DONE

    def _choice(
        self, run: Run[CompletionBody], index: int, text: str, pieces: list[Piece], offset: int, finish: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if run.body.logprobs is not None:
            logprobs = self.reader.spelling.in_completion([entry for piece in pieces for entry in piece.entries], offset)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _head(self, run: Run[CompletionBody]) -> dict[str, Any]:
        return {"id": f"cmpl-{run.id}", "object": "text_completion", "created": run.created, "model": run.model}
