"""Runs over several hosts: torchrun starts a process for each device there, and each of these watches one rank.

    torchrun ── process r ── rank r      on every host, rank by rank
                    │
                a store, at the first host: what each process sees of its rank, and why it ends

So a rank that hangs on one host is named on all of them, and no host waits for one that has refused.
"""

import contextlib
import json
import threading
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from runtime.processes.torchrun import Torchrun
from runtime.processes.watchdog import LOOK_S, Sight

MEETING = timedelta(seconds=60)
"""How long the store may take to be there."""
LAST_WORD = timedelta(seconds=2)
"""How long a process that ends tries to tell why."""
FAILURE, DONE = "failure", "done"


def tell_failure(torchrun: Torchrun, message: str) -> None:
    """Tell all other processes why this one ends, unless one of them was first or the store has gone."""
    with contextlib.suppress(RuntimeError):  # where nobody is there to be told
        _told(TCPStore(torchrun.host, torchrun.port, timeout=LAST_WORD, wait_for_workers=False), torchrun.rank, message)


class Exchange:
    """What the processes of a run tell each other, by a thread of its own, since the store may be slow to answer."""

    def __init__(self, torchrun: Torchrun, stall_s: int) -> None:
        """``stall_s``: how long the store, or one of the others, may be silent."""
        self._torchrun, self._stall_s = torchrun, stall_s
        self.own: Sight | None = None
        """What others are told; set by the watcher."""
        self.others: dict[int, Sight] = {}
        """What they tell; without those that have not begun, or are done."""
        self.failure = ""
        """Why another process ended, or that one is silent, or the store."""
        self._told: dict[int, str] = {}
        self._silent = [0] * torchrun.world
        """For how many looks in a row each told the same."""
        self._store: TCPStore | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="exchange", daemon=True).start()

    def tell_failure(self, message: str) -> None:
        """Tell the others why the run ends, unless one of them was first."""
        if self._store is not None and not self.failure:
            _told(self._store, self._torchrun.rank, message)

    def end(self) -> None:
        """Nothing more is to be told."""
        self._ended.set()

    def _run(self) -> None:
        place = self._torchrun
        try:
            store = TCPStore(place.host, place.port, is_master=place.serves, timeout=MEETING, wait_for_workers=False)
            store.set_timeout(timedelta(seconds=self._stall_s))
            self._store, number = store, 0
            while not self._ended.wait(LOOK_S):
                number += 1
                if self.own is not None:
                    store.set(_key(place.rank), f"{number} {self.own.dumps()}")
                for rank in range(place.world):
                    if rank != place.rank and store.check([_key(rank)]):
                        self._hear(rank, store.get(_key(rank)).decode())
                if store.check([FAILURE]):
                    rank, message = json.loads(store.get(FAILURE))
                    self.failure = "" if rank == place.rank else f"rank {rank} ended the run: {message}"
            store.set(_key(place.rank), DONE)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            self.failure = f"the store of the run, at {place.host}:{place.port}, does not answer: {reason}"

    def _hear(self, rank: int, told: str) -> None:
        """What another process tells: a number that grows, and what it sees."""
        if told == DONE:
            self.others.pop(rank, None)
        elif told != self._told.get(rank):
            self.others[rank], self._silent[rank] = Sight.loads(told.partition(" ")[2]), 0
        else:
            self._silent[rank] += 1
            if self._silent[rank] * LOOK_S >= self._stall_s and not self.failure:
                self.failure = f"rank {rank}: nothing was heard of its process for {self._stall_s} s"
        self._told[rank] = told


def _key(rank: int) -> str:
    return f"rank/{rank}"


def _told(store: TCPStore, rank: int, message: str) -> None:
    store.compare_set(FAILURE, "", json.dumps([rank, message]))
