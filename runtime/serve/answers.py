"""Answers: the events of the jobs of one request, from the engine's thread, as one object or a stream.

engine's thread ── deliver ──► queue of the event loop ──► Answer ──► JSON, or server-sent events
                                     ▲
client goes away ── http.disconnect ─┘        then its jobs are cancelled
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.continuous import Event, Job
from runtime.errors import RuntimeRefusal
from runtime.generation import Generation
from runtime.request import Piece
from runtime.serve.protocol import Body
from runtime.serve.refusals import ApiError
from runtime.serve.service import Prepared, Service
from runtime.serve.shapes import DONE, Choice, Shape, event, usage

CLIENT_CLOSED = 499
"""Status that is counted where the client went away before its answer began."""

Arrival = tuple[Choice, Event]
"""A choice and what came for it."""


class Gone(Exception):
    """The client has gone away."""


class Answer(Response):
    """Response of a completion. Its status is known when its first event is there: 200, or that of a refusal."""

    def __init__(self, service: Service, body: Body, prepared: Prepared, shape: Shape) -> None:
        self._service, self._body, self._prepared, self._shape = service, body, prepared, shape
        self._arrivals: asyncio.Queue[Arrival | None] = asyncio.Queue()
        """Events that were not yet read; None: the client has gone away."""
        self._choices = [
            Choice(index=index, prompt_tokens=len(request.prompt_ids))
            for index, request in enumerate(prepared.requests)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the requests served and send the answer; cancel them where the client goes away."""
        jobs: list[Job] = []
        watch = asyncio.create_task(self._watch(receive))
        try:
            for choice, request in zip(self._choices, self._prepared.requests, strict=True):
                jobs.append(self._service.submit(request, self._deliver(choice), self._prepared.field))
            await (self._stream(send) if self._body.stream else self._whole(scope, receive, send))
        except Gone:
            self._service.metrics.responses.labels(scope["path"], str(CLIENT_CLOSED)).inc()
        except ApiError as error:
            await error.response()(scope, receive, send)
        finally:
            watch.cancel()
            for job in jobs:
                job.cancel()

    def _deliver(self, choice: Choice) -> Callable[[Event], None]:
        """Return what the engine's thread calls with the events of a choice."""
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(self._arrivals.put_nowait, (choice, event))

        return deliver

    async def _watch(self, receive: Receive) -> None:
        """Wait until the client has gone away."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._arrivals.put_nowait(None)

    async def _events(self) -> AsyncIterator[tuple[Choice, str]]:
        """Yield the choices with their new text, until all have ended; raise Gone, and ApiError for a refusal."""
        running = len(self._choices)
        while running:
            arrival = await self._arrivals.get()
            if arrival is None:
                raise Gone
            choice, arrived = arrival
            if isinstance(arrived, RuntimeRefusal):
                raise self._service.refusal(arrived, self._prepared.field)
            if isinstance(arrived, Piece):
                choice.tokens += len(arrived.tokens)
                choice.accepted += arrived.accepted or 0
                if arrived:
                    yield choice, str(arrived)
            elif isinstance(arrived, Generation):
                choice.finish, choice.reused = arrived.finish, arrived.reused
                choice.tokens, choice.accepted = len(arrived.tokens), sum(arrived.accept_lengths)
                running -= 1
                yield choice, ""

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async for choice, text in self._events():
            choice.pieces.append(text)
        content = json.dumps(self._shape.whole(self._choices), ensure_ascii=False).encode()
        await Response(content, media_type="application/json")(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        begun = False

        async def write(data: bytes, *, more: bool = True) -> None:
            nonlocal begun
            if not begun:
                await send(
                    {
                        "type": "http.response.start",
                        "status": 200,
                        "headers": [
                            (b"content-type", b"text/event-stream; charset=utf-8"),
                            (b"x-accel-buffering", b"no"),
                        ],
                    }
                )
                begun = True
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async for data in self._chunks():
                await write(data)
        except ApiError as error:
            if not begun:
                raise
            await write(event(error.body()), more=False)
            return
        await write(DONE, more=False)

    async def _chunks(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream but its last."""
        named: set[int] = set()
        body = self._body
        async for choice, text in self._events():
            first = self._shape.kind == "chat" and choice.index not in named
            named.add(choice.index)
            chunks = [self._shape.chunk(choice.index, text, finish=choice.finish, first=first)]
            if first:  # clients expect the role alone, and the end alone
                chunks = [self._shape.chunk(choice.index, "", first=True)]
                if text or choice.finish is not None:
                    chunks.append(self._shape.chunk(choice.index, text, finish=choice.finish))
            for chunk in chunks:
                if body.with_running_usage:
                    chunk["usage"] = usage([choice])
                elif body.with_usage:
                    chunk["usage"] = None
                yield event(chunk)
        if body.with_usage:
            yield event(self._shape.last(self._choices))
