"""What the endpoints have in common: a request's jobs, run side by side, told as they come or all at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Generic, TypeVar

from starlette.responses import Response, StreamingResponse

from ..programs.pictures import Seen
from .answers import Answer, Piece
from .asked import Job, Reader
from .bodies import Body, read_body
from .dispatch import Generator, Told
from .errors import Json, NotFound, error_body
from .images import first_image, with_images

_B = TypeVar("_B", bound=Body)
DONE = "data: [DONE]\n\n"


class Endpoint(Generic[_B]):
    r"""
    One of the ways in which clients ask for answers.

    Args:
        reader ([`Reader`]): What reads requests.
        generator ([`Generator`]): Who generates.
        name (`str`): What clients call the model.
    """

    kind: type[_B]
    talk: str | None = None  # where the messages of a body are, which may show pictures

    def __init__(self, reader: Reader, generator: Generator, name: str) -> None:
        self.reader, self._generator, self.name = reader, generator, name

    def asks(self, body: _B) -> tuple[Any, list[dict[str, Any]], dict[str, Any]] | None:
        """The messages of a request, its tools and the options of its template; `None` if it is no chat."""
        return None

    def read(self, body: _B, prompt: Sequence[int], seen: Seen | None) -> list[Job]:
        """The jobs of a request; of a chat, whose prompt is read, and what its members see."""
        raise NotImplementedError

    def whole(self, run: Run[_B]) -> dict[str, Any]:
        """The answer, when all is there."""
        raise NotImplementedError

    def stream(self, run: Run[_B]) -> AsyncGenerator[str, None]:
        """The answer as it comes."""
        raise NotImplementedError

    async def __call__(self, given: dict[str, Any]) -> Response:
        """Answer a request."""
        body = read_body(self.kind, given)
        if body.model is not None and body.model != self.name:
            raise NotFound(f"There is no model {body.model!r} here: the model of this server is called {self.name!r}.")
        try:
            return await self._answer(body)
        except (TypeError, OverflowError) as error:
            if body.generation_config is None:
                raise
            raise ValueError(f"`generation_config` has a value of a wrong type, or out of range: {error}") from error

    async def _answer(self, body: _B) -> Response:
        body, shows = await self._opened(body)
        run = Run(body, self.read(body, *await self._talk(body, shows)), self.name, self._generator)
        if not body.stream:
            async for _ in run.told():
                pass
            return Json(self.whole(run), headers={"x-request-id": run.id})
        events = _prefetched(self.stream(run))
        await anext(events)  # what is wrong at once is an answer of its own, with its status
        return StreamingResponse(events, media_type="text/event-stream", headers={"x-request-id": run.id})

    async def _talk(self, body: _B, shows: bool) -> tuple[list[int], Seen | None]:
        """The prompt of a chat and what its members see. What processors make of pictures is made on another thread, of one at a time."""
        if (asked := self.asks(body)) is None:
            return [], None
        if not shows:
            return self.reader.chat(*asked)
        async with self.reader.seeing:
            return await asyncio.to_thread(self.reader.chat, *asked, shows=True)

    async def _opened(self, body: _B) -> tuple[_B, bool]:
        """
        The body with its pictures opened, on another thread: that takes time, and other requests go on. And whether there are any.
        """
        if self.talk is None or (where := first_image(items := getattr(body, self.talk), self.talk)) is None:
            return body, False
        self.reader.check_sight(where)
        opened = await asyncio.to_thread(with_images, items, self.talk, self.reader.limits)
        return body.model_copy(update={self.talk: opened}), True


class Run(Generic[_B]):
    """A request that is being answered."""

    def __init__(self, body: _B, jobs: Sequence[Job], name: str, generator: Generator) -> None:
        self.body, self.jobs, self.model, self._generator = body, jobs, name, generator
        self.id = uuid.uuid4().hex
        self.created = int(time.time())
        self.answers: list[Answer] = [answer for job in jobs for answer in job.answers]
        self.pieces: list[list[Piece]] = [[] for _ in self.answers]

    async def told(self) -> AsyncGenerator[Told, None]:
        """What comes, by answer, of all jobs side by side. Who stops listening cancels them."""
        starts = [sum(len(job.answers) for job in self.jobs[:i]) for i in range(len(self.jobs))]
        queue: asyncio.Queue[Told | Exception | None] = asyncio.Queue()
        tasks = [asyncio.ensure_future(self._run(job, at, queue)) for job, at in zip(self.jobs, starts, strict=True)]
        try:
            for _ in tasks:
                while (what := await queue.get()) is not None:
                    if isinstance(what, Exception):
                        raise what
                    self.pieces[what.place] += what.pieces
                    yield what
        finally:
            what = None  # an error would hold this frame, see `OneByOne.run`
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: Job, start: int, queue: asyncio.Queue[Told | Exception | None]) -> None:
        try:
            async with contextlib.aclosing(self._generator.run(job)) as told:
                async for what in told:
                    queue.put_nowait(what._replace(place=start + what.place))
        except Exception as error:
            queue.put_nowait(error)
        finally:
            queue.put_nowait(None)

    def text(self, index: int) -> str:
        """What an answer says."""
        return "".join(piece.text for piece in self.pieces[index])

    @property
    def usage(self) -> dict[str, int]:
        """How many tokens were read and generated."""
        prompt, answer = sum(len(job.prompt) for job in self.jobs), sum(len(answer.tokens) for answer in self.answers)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(content: dict[str, Any]) -> str:
    """An event of a stream."""
    return f"data: {json.dumps(content, allow_nan=False, separators=(',', ':'))}\n\n"


async def _prefetched(stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """A stream whose first event is there when its first item, which is empty, is. Errors behind that are events."""
    async with contextlib.aclosing(stream) as events:
        first = await anext(events)
        yield ""
        yield first
        try:
            async for each in events:
                yield each
        except Exception as error:
            yield event(error_body(error))
            yield DONE
