"""Supervision of the rank processes: a thread that receives what they send, and ends all of them at the first failure.

It is a thread of the parent, so that it watches while the caller does something else. On one host a parent has all
ranks; of those that torchrun starts each has one, and learns of the others through ``torchrun_store``.
"""

import multiprocessing
import multiprocessing.connection
import queue
import threading
import time
from dataclasses import dataclass

from runtime.comm.progress import PHASES
from runtime.errors import PeerError, RuntimeRefusal
from runtime.processes.launch import Ranks
from runtime.processes.rank_process import Event, Failure, completions, receive
from runtime.processes.requests import Requests
from runtime.processes.torchrun_store import Exchange
from runtime.processes.watchdog import LOOK_S, Sight, Watch, rank_name

GRACE_S = 0.5
"""Seconds for which other ranks are heard after the first failure, so that the one that failed by itself is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """An event and the rank that sent it."""

    rank: int
    event: Event


class Supervisor:
    """Supervisor thread of the rank processes of this parent."""

    def __init__(self, ranks: Ranks, requests: Requests, watch: Watch, exchange: Exchange | None) -> None:
        """Start the thread; ``exchange``: state of the ranks of other parents, None where there are none."""
        self._ranks, self._requests, self._stall, self._exchange = ranks, requests, watch, exchange
        self._events: queue.Queue[Received | RuntimeRefusal] = queue.Queue()
        self._wake, self._waker = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def next(self) -> Received:
        """Wait for the next event of a rank; raise the refusal that ended the run, every time from then on."""
        event = self._events.get()
        if isinstance(event, RuntimeRefusal):
            self._events.put(event)
            raise event
        return event

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread, so that from now on nobody else waits for the processes."""
        if self._thread.is_alive():
            self._waker.send(None)  # closing it would not do: ranks forked by another engine may have it too
            self._thread.join()
        self._wake.close()
        self._waker.close()

    # ---- in the thread ----

    def _run(self) -> None:
        failure = self._first_failure()
        if failure is not None:
            if self._exchange is not None:
                self._exchange.tell_failure(str(failure))
            self._ranks.kill()
            self._events.put(failure)

    def _first_failure(self) -> RuntimeRefusal | None:
        """Pass events on until a rank fails or stalls; return None when the run is being ended."""
        looked = 0.0
        while True:
            ready = self._ready(set(), LOOK_S)
            if ready is None:
                return None
            for rank in ready:
                message = receive(self._ranks.processes[rank].pipe)
                if message is None or isinstance(message, Failure):
                    return self._blame({rank: message})
                if completions(message):
                    self._requests.finish(rank)
                self._events.put(Received(rank=rank, event=message))
            if time.monotonic() - looked >= LOOK_S / 2:
                looked = time.monotonic()
                if complaint := self._failure_elsewhere() or self._stall.complaint(self._sights()):
                    return PeerError(complaint)

    def _ready(self, without: set[int], timeout_s: float) -> list[int] | None:
        """Wait until ranks have sent something, but for some of them; return None when the thread is to end."""
        pipes = {rank: process.pipe for rank, process in self._ranks.processes.items() if rank not in without}
        ready = multiprocessing.connection.wait([*pipes.values(), self._wake], timeout_s)
        return None if self._wake in ready else [rank for rank, pipe in pipes.items() if pipe in ready]

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
            ready = self._ready(set(failures), min(left_s, LOOK_S))
            if ready is None:
                break
            for rank in ready:
                message = receive(self._ranks.processes[rank].pipe)
                if message is None or isinstance(message, Failure):
                    failures[rank] = message
        if cause is not None:
            return cause
        rank, failure = next(iter(failures.items()))
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
