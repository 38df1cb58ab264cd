"""Continuous batching: requests are taken from any thread at any time, and served as places become free.

    with engine.continuous(queue=64) as batching:
        job = batching.submit(engine.request("def f(", reuse=True), deliver)
        ...
        batching.drain()

``deliver`` is called in the thread that drives the ranks, and must return at once: with each `Piece`, and at last
exactly once with a `Generation`, or with the RuntimeRefusal that ended the request. What it raises goes to
``threading.excepthook`` and ends its own request alone, of which it hears no more.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from typing import Self

from runtime.errors import Draining, QueueFull, RequestError, RuntimeRefusal
from runtime.generation import Generation
from runtime.processes.inbox import Cancel, Submit
from runtime.processes.serving import Session
from runtime.request import Completion, Piece, Request

Event = Piece | Generation | RuntimeRefusal
"""Delivery of a request; anything but a piece is the last."""
Deliver = Callable[[Event], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Load of the ranks at one moment."""

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

    def __init__(self, number: int, request: Request, deliver: Deliver, cancel: Callable[[int], object]) -> None:
        self.number, self.request, self.deliver = number, request, deliver
        self._cancel = cancel
        self._hears = True
        """False: ``deliver`` has raised."""
        self.rows = len(request.prompt_ids)
        """Positions of its sequence."""

    def cancel(self) -> None:
        """End the output with the current step; do nothing where it has ended. May be called from any thread."""
        self._cancel(self.number)

    def tell(self, event: Event) -> None:
        """Deliver an event; what that raises ends this request, and none of the others."""
        if not self._hears:
            return
        try:
            self.deliver(event)
        except Exception as error:  # it is the caller's code, and so may raise anything
            self._hears = False
            thread = threading.current_thread()
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))
            if isinstance(event, Piece):
                self.cancel()


class Batching:
    """Requests that are served as they come, by a thread of its own."""

    def __init__(
        self,
        session: Session,
        resources: ExitStack,
        *,
        finished: Callable[[Completion], Generation],
        check: Callable[[Request], object],
        places: int,
        context: int,
        queue: int,
    ) -> None:
        """Start the thread, which closes ``resources``, and with them the session, when it ends.

        ``finished``: gives a completion the facts of the engine. ``check``: raises RequestError for a request that
        cannot be served.
        """
        self._session, self._resources = session, resources
        self._finished, self._check = finished, check
        self._places, self._context, self._most_waiting = places, context, queue
        self._lock = threading.RLock()
        """Held while any of the following is read or written."""
        self._jobs: dict[int, Job] = {}
        """Jobs that have not ended, by number and so in the order in which they came."""
        self._submitted = 0
        self._draining = False
        self._failure: RuntimeRefusal | None = None
        self._thread = threading.Thread(target=self._run, name="batching", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what runs and waits, and end the thread."""
        with self._lock:
            self._draining = True
            for number in self._jobs:
                self._cancel(number)
        self.drain()

    def submit(self, request: Request, deliver: Deliver) -> Job:
        """Take a request that the engine made, and return at once; raises RequestError where it cannot be served.

        Raises QueueFull where as many wait as may, Draining after ``drain``, and after a failure that failure.
        """
        self._check(request)
        with self._lock:
            if self._failure is not None:
                raise copy(self._failure)  # what is raised keeps the frames of each caller
            if self._draining:
                raise Draining
            waiting = max(0, len(self._jobs) - self._places)
            if len(self._jobs) >= self._places + self._most_waiting:
                raise QueueFull(waiting)
            job = Job(self._submitted, request, deliver, self._cancel)
            self._submitted += 1
            self._jobs[job.number] = job
            self._session.send((Submit(job=job.number, request=request),))
        return job

    def state(self) -> State:
        """Return how much is being served now."""
        with self._lock:
            running = list(self._jobs.values())[: self._places]  # jobs enter in the order in which they came
            return State(
                running=len(running),
                waiting=len(self._jobs) - len(running),
                places=self._places,
                kv_rows_used=sum(job.rows for job in running),
                kv_rows=self._places * self._context,
                draining=self._draining,
                failure=None if self._failure is None else str(self._failure),
            )

    def drain(self) -> None:
        """Take no more requests; return when all that run and wait have ended."""
        with self._lock:
            self._draining = True
        self._session.wake()
        self._thread.join()

    def _cancel(self, number: int) -> None:
        self._session.send((Cancel(job=number),))

    # ---- in the thread ----

    def _run(self) -> None:
        failure: RuntimeRefusal | None = RequestError("the thread that serves requests failed: this is a bug")
        try:
            with self._resources:
                while self._serves():
                    for number, output in self._session.next():
                        self._deliver(number, output)
            failure = None
        except RuntimeRefusal as refusal:
            failure = refusal
        finally:  # nobody must wait for ever, whatever went wrong here
            if failure is not None:
                self._fail(failure)

    def _serves(self) -> bool:
        with self._lock:
            return bool(self._jobs) or not self._draining

    def _deliver(self, number: int, output: Piece | Completion) -> None:
        event: Event = output if isinstance(output, Piece) else self._finished(output)
        with self._lock:
            job = self._jobs[number]
            if isinstance(output, Piece):
                job.rows += len(output.tokens)
            else:
                del self._jobs[number]
        job.tell(event)

    def _fail(self, failure: RuntimeRefusal) -> None:
        """End all jobs with a failure, and take no more."""
        with self._lock:
            self._failure = failure
            jobs = list(self._jobs.values())
            self._jobs.clear()
        for job in jobs:
            job.tell(failure)
