"""Continuous batching: requests are taken from any thread at any time, and served as places become free.

    with engine.continuous(queue=64) as batching:
        job = batching.submit(engine.request("def f(", reuse=True), deliver)
        ...
        batching.drain()

``deliver`` is called in the thread that drives the ranks, and must return at once: with each `Piece`, and at last
exactly once with a `Generation`, or with the RuntimeRefusal that ended the request.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Self

from runtime.errors import Draining, PeerError, QueueFull, RuntimeRefusal
from runtime.generation import Generation
from runtime.request import Completion, Events, Piece, Request

Event = Piece | Generation | RuntimeRefusal
"""What is delivered of a request; anything but a piece is the last."""
Deliver = Callable[[Event], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """How much is being served."""

    running: int
    waiting: int
    places: int
    """Sequences that are decoded at a time: the plan's batch."""
    kv_rows_used: int
    """Positions of all running sequences."""
    kv_rows: int
    """Positions that there is room for."""
    draining: bool
    failure: str | None
    """Message of what ended all requests; None: nothing did."""


class Job:
    """One request that was submitted."""

    def __init__(self, batching: "Batching", request: Request, deliver: Deliver) -> None:
        self.request, self.deliver = request, deliver
        self._batching = batching
        self.cancelled = False
        self.rows = len(request.prompt_ids)
        """Positions of its sequence."""

    def cancel(self) -> None:
        """End the output with the current step; do nothing where it has ended. May be called from any thread."""
        self._batching.cancel(self)


class Batching:
    """Requests that are served as they come, by a thread of its own."""

    def __init__(
        self,
        *,
        serve: Callable[[tuple[Request, ...]], Events],
        stop: Callable[[], object],
        finished: Callable[[Completion], Generation],
        check: Callable[[Request], object],
        places: int,
        context: int,
        queue: int,
    ) -> None:
        self._serve, self._stop, self._finished, self._check = serve, stop, finished, check
        self._places, self._context, self._most_waiting = places, context, queue
        self._change = threading.Condition()
        """Held while any of the following is read or written; notified of each change."""
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._draining = False
        self._failure: RuntimeRefusal | None = None
        self._thread = threading.Thread(target=self._run, name="batching", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what runs and waits, and end the thread."""
        with self._change:
            for job in [*self._waiting, *self._running]:
                self.cancel(job)
        self.drain()

    def submit(self, request: Request, deliver: Deliver) -> Job:
        """Take a request that the engine made, and return at once; raises RequestError where it cannot be served.

        Raises QueueFull where as many wait as may, Draining after ``drain``, and after a failure that failure.
        """
        self._check(request)
        job = Job(self, request, deliver)
        with self._change:
            if self._failure is not None:
                raise self._failure
            if self._draining:
                raise Draining
            if len(self._waiting) >= self._most_waiting:
                raise QueueFull(len(self._waiting))
            self._waiting.append(job)
            self._change.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """End the output of a job with the current step."""
        with self._change:
            job.cancelled = True
            if job in self._running:
                self._stop()

    def state(self) -> State:
        """Return how much is being served now."""
        with self._change:
            return State(
                running=len(self._running),
                waiting=len(self._waiting),
                places=self._places,
                kv_rows_used=sum(job.rows for job in self._running),
                kv_rows=self._places * self._context,
                draining=self._draining,
                failure=None if self._failure is None else str(self._failure),
            )

    def drain(self) -> None:
        """Take no more requests; return when all that run and wait have ended."""
        with self._change:
            self._draining = True
            self._change.notify_all()
        self._thread.join()

    # ---- in the thread ----

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._one(job)

    def _next(self) -> Job | None:
        """Wait for a job; None where there will be none."""
        with self._change:
            while not self._waiting and not self._draining:
                self._change.wait()
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            self._running.append(job)
            return job

    def _one(self, job: Job) -> None:
        last: Event
        try:
            with closing(self._serve((job.request,))) as events:
                for (event,) in events:
                    if isinstance(event, Completion):
                        last = self._finished(event)
                        continue
                    job.rows += len(event.tokens)
                    job.deliver(event)
                    if job.cancelled:
                        self._stop()
        except RuntimeRefusal as refusal:
            last = refusal
        ended = [job]
        with self._change:
            self._running.remove(job)
            if isinstance(last, PeerError):
                self._failure, self._draining = last, True
                ended += self._waiting
                self._waiting.clear()
        for one in ended:
            one.deliver(last)
