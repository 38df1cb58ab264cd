"""Exchange of state between the processes that torchrun started, through the run's key-value store.

    torchrun ── process r ── rank r      on every host, rank by rank
                    │
                  store, on the first host: rank/r = state of rank r; failure = why the run ends

So a rank that hangs on one host is named on all hosts, and no host waits for one that has refused.
"""

import contextlib
import json
import threading
from datetime import timedelta

from torch.distributed import TCPStore

from runtime.processes.torchrun import Torchrun
from runtime.processes.watchdog import LOOK_S, Sight

CONNECT = timedelta(seconds=60)
"""Time-out for the store to appear."""
LAST_WORD = timedelta(seconds=2)
"""Time-out of a process that ends and reports why."""
FAILURE, DONE = "failure", "done"


def tell_failure(torchrun: Torchrun, message: str) -> None:
    """Report to all other processes why this one ends; do nothing where another was first or the store has gone."""
    with contextlib.suppress(RuntimeError):  # nobody is left to read it
        _set_failure(
            TCPStore(torchrun.host, torchrun.port, timeout=LAST_WORD, wait_for_workers=False), torchrun.rank, message
        )


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
        self._heard: dict[int, str] = {}
        self._silent = [0] * torchrun.world
        """Number of looks in a row at which each process had reported nothing new."""
        self._store: TCPStore | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="exchange", daemon=True).start()

    def tell_failure(self, message: str) -> None:
        """Report to the others why the run ends, unless one of them was first."""
        if self._store is not None and not self.failure:
            _set_failure(self._store, self._torchrun.rank, message)

    def end(self) -> None:
        """Stop reporting; the others see that this process is done."""
        self._ended.set()

    def _run(self) -> None:
        run = self._torchrun
        try:
            store = TCPStore(run.host, run.port, is_master=run.serves, timeout=CONNECT, wait_for_workers=False)
            store.set_timeout(timedelta(seconds=self._stall_s))
            self._store, number = store, 0
            while not self._ended.wait(LOOK_S):
                number += 1
                if self.own is not None:
                    store.set(_key(run.rank), f"{number} {self.own.dumps()}")
                for rank in range(run.world):
                    if rank != run.rank and store.check([_key(rank)]):
                        self._hear(rank, store.get(_key(rank)).decode())
                if store.check([FAILURE]):
                    rank, message = json.loads(store.get(FAILURE))
                    self.failure = "" if rank == run.rank else f"rank {rank} ended the run: {message}"
            store.set(_key(run.rank), DONE)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            self.failure = f"the store of the run, at {run.host}:{run.port}, does not answer: {reason}"

    def _hear(self, rank: int, report: str) -> None:
        """Take a report of another process: a number that grows, so that silence shows, and the state of its rank."""
        if report == DONE:
            self.others = {other: sight for other, sight in self.others.items() if other != rank}
        elif report != self._heard.get(rank):
            self.others, self._silent[rank] = self.others | {rank: Sight.loads(report.partition(" ")[2])}, 0
        else:
            self._silent[rank] += 1
            if self._silent[rank] * LOOK_S >= self._stall_s and not self.failure:
                self.failure = f"rank {rank}: nothing was heard of its process for {self._stall_s} s"
        self._heard[rank] = report


def _key(rank: int) -> str:
    return f"rank/{rank}"


def _set_failure(store: TCPStore, rank: int, message: str) -> None:
    """Write the failure, unless another process has written one."""
    store.compare_set(FAILURE, "", json.dumps([rank, message]))
