"""Supervision of the rank processes: threads that receive what they send, and end all of them at the first failure.

    rank 0 ── pipe ──► receiver 0 ──┐
    rank 1 ── pipe ──► receiver 1 ──┴──► supervisor ──► the caller: events, in the end a refusal

They are threads of the parent, so that they watch while the caller does something else. Each rank has a receiver of its
own, since one that is stopped in the middle of a message blocks who reads it. On one host a parent has all ranks; of
those that torchrun starts each has one, and learns of the others through ``torchrun_store``.
"""

import queue
import threading
import time
from contextlib import suppress
from copy import copy
from dataclasses import dataclass

from runtime.comm.progress import PHASES
from runtime.errors import MeetingError, PeerError, RequestError, RuntimeRefusal
from runtime.processes.launch import Ranks
from runtime.processes.rank_process import Event, Failure, completions, receive
from runtime.processes.requests import Requests
from runtime.processes.torchrun_store import Exchange
from runtime.processes.watchdog import LOOK_S, Sight, Watch, rank_name

CLOSED = "the engine was closed before the output ended"
"""Message of a request that was being served when the engine was closed."""
GRACE_S = 0.5
"""Seconds for which other ranks are heard after the first failure, so that the one that failed by itself is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """An event and the rank that sent it."""

    rank: int
    event: Event


@dataclass(frozen=True, kw_only=True, slots=True)
class _Message:
    """A message of a rank; None where none will follow: its process has ended."""

    rank: int
    message: Event | Failure | None


class Supervisor:
    """Supervisor thread of the rank processes of this parent."""

    def __init__(self, ranks: Ranks, requests: Requests, watch: Watch, exchange: Exchange | None) -> None:
        """Start the threads; ``exchange``: state of the ranks of other parents, None where there are none."""
        self._ranks, self._requests, self._stall, self._exchange = ranks, requests, watch, exchange
        # simple queues, because a signal handler may close the engine while the caller waits for an event
        self._events: queue.SimpleQueue[Received | RuntimeRefusal] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        """Messages of all ranks; None: the supervisor is to end."""
        self._failed = False
        self._any_rank = min(ranks.processes)
        for rank in ranks.processes:
            threading.Thread(target=self._receive, args=(rank,), name=f"receiver {rank}", daemon=True).start()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def next(self) -> Received:
        """Wait for the next event of a rank; raise the refusal that ended the run, every time from then on.

        Where the run is ended by the caller, in whatever thread, that is a RequestError.
        """
        event = self._events.get()
        if isinstance(event, RuntimeRefusal):
            self._events.put(event)
            raise copy(event)  # what is raised keeps the frames of each caller
        return event

    def wake(self) -> None:
        """Let whoever waits for the next event have one without content."""
        self._events.put(Received(rank=self._any_rank, event=()))

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *error: object) -> None:
        """End the supervisor, so that from now on nobody else waits for the processes, and whoever waits for events."""
        self._messages.put(None)
        if self._thread is not threading.current_thread():  # the garbage collector runs in any thread
            self._thread.join()
        if not self._failed:
            self._events.put(RequestError(CLOSED))

    # ---- in the threads ----

    def _receive(self, rank: int) -> None:
        """Pass on what a rank sends, until its process ends."""
        pipe, message = self._ranks.processes[rank].pipe, None
        while (message := receive(pipe)) is not None:
            self._messages.put(_Message(rank=rank, message=message))
        self._messages.put(_Message(rank=rank, message=None))

    def _run(self) -> None:
        """Watch the ranks; at the first failure end all of them, and then the caller's wait for events."""
        failure: RuntimeRefusal | None = PeerError("the thread that watches the ranks failed: this is a bug")
        try:
            failure = self._first_failure()
            if failure is not None and self._exchange is not None:
                self._exchange.tell_failure(str(failure))
        finally:  # a caller that waits must not wait for ever, whatever went wrong here
            if failure is not None:
                self._failed = True
                self._ranks.kill()
                self._events.put(failure)

    def _first_failure(self) -> RuntimeRefusal | None:
        """Pass events on until a rank fails or stalls; return None when the run is being ended."""
        looked = 0.0
        while True:
            with suppress(queue.Empty):
                received = self._messages.get(timeout=LOOK_S)
                if received is None:
                    return None
                rank, message = received.rank, received.message
                if message is None or isinstance(message, Failure):
                    return self._blame({rank: message})
                for _ in completions(message):
                    self._requests.finish(rank)
                self._events.put(Received(rank=rank, event=message))
            if time.monotonic() - looked >= LOOK_S / 2:
                looked = time.monotonic()
                if elsewhere := self._failure_elsewhere():
                    return PeerError(elsewhere)
                if (complaint := self._stall.complaint(self._sights())) is not None:
                    return complaint

    def _sights(self) -> list[Sight | None]:
        """Return the state of every rank of the plan, seen here or reported."""
        own = {rank: self._sight(rank) for rank in self._ranks.processes}
        if self._exchange is None:
            return list(own.values())
        (self._exchange.own,) = own.values()
        known = self._exchange.others | own
        return [known.get(rank) for rank in range(len(self._ranks.names))]

    def _sight(self, rank: int) -> Sight:
        process = self._ranks.processes[rank]
        return Sight.of(process.status, process.process, *self._requests.counts(rank))

    def _failure_elsewhere(self) -> str:
        return "" if self._exchange is None else self._exchange.failure

    # ---- whose failure it is ----

    def _blame(self, failures: dict[int, Failure | None]) -> RuntimeRefusal:
        """Return the refusal to raise: of the rank that failed by itself, not of one that lost its peer.

        ``failures``: by rank; None of a rank whose process ended without a word.
        """
        deadline = time.monotonic() + GRACE_S
        while (cause := self._cause(failures)) is None and (left_s := deadline - time.monotonic()) > 0:
            with suppress(queue.Empty):
                received = self._messages.get(timeout=min(left_s, LOOK_S))
                if received is None:
                    break
                if received.message is None or isinstance(received.message, Failure):
                    failures.setdefault(received.rank, received.message)
        if cause is not None:
            return cause
        rank, failure = next(iter(failures.items()))
        if failure is not None and isinstance(failure.refusal, MeetingError):
            return failure.refusal
        return PeerError(f"{self._name(rank)}: {failure.refusal if failure else ''}")

    def _cause(self, failures: dict[int, Failure | None]) -> RuntimeRefusal | None:
        """Return a failure that another rank did not cause; None while there is none."""
        for rank, failure in failures.items():
            if failure is None:
                return PeerError(f"{self._name(rank)}, {self._ranks.exit_reason(rank)}")
            if failure.refusal is None:
                return PeerError(f"{self._name(rank)}, failed:\n{failure.crash}")
            if not isinstance(failure.refusal, PeerError):
                return failure.refusal
        elsewhere = self._failure_elsewhere()
        return PeerError(elsewhere) if elsewhere else None

    def _name(self, rank: int) -> str:
        return rank_name(self._ranks.names, rank, PHASES[self._ranks.processes[rank].status.phase])
