"""Exchange of state between the processes that torchrun started, through the run's key-value store.

    torchrun ── process r ── rank r      on every host, rank by rank
                    │
                  store, on the first host: rank/r = state of rank r; failure = why the run ends

So a rank that hangs on one host is named on all hosts, and no host waits for one that has refused. Whoever reaches the
store may read and write it: what it has is parsed strictly, and a value of another form ends the run with that reason.
"""

import contextlib
import json
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore

from runtime.processes.torchrun import Torchrun
from runtime.processes.watchdog import LOOK_S, Sight

CONNECT = timedelta(seconds=60)
"""Time-out for the store to appear."""
LAST_WORD = timedelta(seconds=2)
"""Time-out of a process that ends and reports why."""
MOST_REPORT_BYTES = 1 << 20
"""Longest value of the store that a process of a run writes, and more than that: a message with a traceback."""
MOST_SHOWN_BYTES = 40
FAILURE, DONE = "failure", "done"


def tell_failure(torchrun: Torchrun, message: str) -> None:
    """Report to all other processes why this one ends; do nothing where another was first or the store has gone.

    A thread of its own does it, since a client waits for ever for a store that is stopped or cut off.
    """

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # nobody is left to read it
            store = TCPStore(torchrun.host, torchrun.port, timeout=LAST_WORD, wait_for_workers=False)
            store.compare_set(FAILURE, "", json.dumps([torchrun.rank, message]))  # unless another process was first

    teller = threading.Thread(target=tell, name="teller", daemon=True)
    teller.start()
    teller.join(LAST_WORD.total_seconds())


class Exchange:
    """Exchange of states with the other processes of a run, in a thread of its own, since the store may be slow.

    ``own`` is written by the supervisor and read by this thread; ``others`` and ``failure`` the other way round. Each
    is one reference, replaced as a whole.
    """

    def __init__(self, torchrun: Torchrun, stall_s: int) -> None:
        """Start the thread; ``stall_s``: how long the store, or another process, may be silent, in s."""
        self._torchrun, self._stall_s = torchrun, stall_s
        self.own: Sight | None = None
        """State of this process's rank, to be reported."""
        self.others: dict[int, Sight] = {}
        """States of the other ranks, without those that have not begun or are done."""
        self.failure = ""
        """Message: another process ended, or it or the store is silent; empty: none of these."""
        self._heard: dict[int, bytes] = {}
        self._silent = [0] * torchrun.world
        """Number of looks in a row at which each process had reported nothing new."""
        self._connected = False
        self._ended = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
        self._thread.start()

    def tell_failure(self, message: str) -> None:
        """Report to the others why the run ends, unless one of them was first; over a connection of its own."""
        if self._connected and not self.failure:
            self._told = True
            tell_failure(self._torchrun, message)

    def end(self) -> None:
        """Stop reporting; the others see that this process is done.

        The process with the store waits until they have read why it ends, for LAST_WORD at most.
        """
        self._ended.set()
        if self._told and self._torchrun.serves:
            self._thread.join(LAST_WORD.total_seconds())

    def _run(self) -> None:
        run = self._torchrun
        try:
            store = TCPStore(run.host, run.port, is_master=run.serves, timeout=CONNECT, wait_for_workers=False)
            store.set_timeout(timedelta(seconds=self._stall_s))
            self._connected, number = True, 0
            while not self._ended.wait(LOOK_S):
                number += 1
                if self.own is not None:
                    store.set(_key(run.rank), f"{number} {self.own.dumps()}")
                for rank in range(run.world):
                    if rank != run.rank and store.check([_key(rank)]):
                        self._hear(rank, store.get(_key(rank)))
                if store.check([FAILURE]):
                    rank, message = _failure_of(store.get(FAILURE), run.world)
                    self.failure = "" if rank == run.rank else f"rank {rank} ended the run: {message}"
            store.set(_key(run.rank), DONE)
            if self._told and run.serves:
                self._wait_for_others(store)
        except _MalformedError as error:
            self.failure = (
                f"the store of the run, at {run.host}:{run.port}, has a malformed value: {error}: another program "
                'writes to it: keep strangers from the port (runtime/README.md, "Network")'
            )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            self.failure = f"the store of the run, at {run.host}:{run.port}, does not answer: {reason}"
        finally:
            if not self._ended.is_set() and not self.failure:
                self.failure = "the thread that exchanges states with the other processes failed: this is a bug"

    def _wait_for_others(self, store: TCPStore) -> None:
        """Wait until the other processes are done, for LAST_WORD at most: the store ends with this one."""
        others = [_key(rank) for rank in range(self._torchrun.world) if rank != self._torchrun.rank]
        for _ in range(round(LAST_WORD.total_seconds() / LOOK_S)):
            if all(store.check([key]) and store.get(key) == DONE.encode() for key in others):
                return
            time.sleep(LOOK_S)

    def _hear(self, rank: int, report: bytes) -> None:
        """Take a report of another process: a number that grows, so that silence shows, and the state of its rank."""
        if report == DONE.encode():
            self.others = {other: sight for other, sight in self.others.items() if other != rank}
        elif report != self._heard.get(rank):
            self.others, self._silent[rank] = self.others | {rank: _sight_of(_key(rank), report)}, 0
        else:
            self._silent[rank] += 1
            if self._silent[rank] * LOOK_S >= self._stall_s and not self.failure:
                self.failure = f"rank {rank}: nothing was heard of its process for {self._stall_s} s"
        self._heard[rank] = report


class _MalformedError(Exception):
    """A value of the store that no process of the run writes."""


def _key(rank: int) -> str:
    return f"rank/{rank}"


def _sight_of(key: str, report: bytes) -> Sight:
    """Return the state of a rank that is reported under a key; raise _MalformedError for anything else."""
    number, _, state = report.partition(b" ")
    sight = Sight.loads(state) if number.isdigit() and len(report) <= MOST_REPORT_BYTES else None
    if sight is None:
        raise _MalformedError(f"{key}: found {_beginning(report)}, expected a number and the state of a rank")
    return sight


def _failure_of(report: bytes, world: int) -> tuple[int, str]:
    """Return the rank that ended the run and its message; raise _MalformedError for anything else."""
    if len(report) <= MOST_REPORT_BYTES:
        with contextlib.suppress(ValueError, RecursionError):
            match json.loads(report):
                case [int() as rank, str() as message] if 0 <= rank < world:
                    return rank, "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)
    raise _MalformedError(f"{FAILURE}: found {_beginning(report)}, expected a rank and a message")


def _beginning(report: bytes) -> str:
    return f"{report[:MOST_SHOWN_BYTES]!r}"
