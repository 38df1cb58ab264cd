"""Counts of requests: how many the ranks were asked to serve, and how many each has finished."""

import threading
from collections.abc import Iterable


class Requests:
    """Request counts of the ranks of this process; the caller's thread and the supervisor's thread share them.

    Every access takes the lock, so that a count is never seen half-way between the two threads. A signal handler may
    close the engine while the thread that it interrupts holds the lock, hence one that a thread can take again.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        self._lock = threading.RLock()
        self._asked = 0
        self._finished = dict.fromkeys(ranks, 0)
        self._unread = dict.fromkeys(self._finished, 0)

    def ask(self, count: int) -> None:
        """Count more requests to every rank (caller)."""
        with self._lock:
            self._asked += count
            for rank in self._unread:
                self._unread[rank] += count

    def finish(self, rank: int) -> None:
        """Count a completion that arrived from a rank (supervisor)."""
        with self._lock:
            self._finished[rank] += 1

    def read(self, rank: int) -> None:
        """Note that the caller has taken a completion of a rank from the queue (caller)."""
        with self._lock:
            self._unread[rank] = max(0, self._unread[rank] - 1)

    def abandon(self) -> None:
        """Expect no more completions: the ranks are being ended (caller)."""
        with self._lock:
            self._unread = dict.fromkeys(self._unread, 0)

    @property
    def open(self) -> bool:
        """True until the caller has read the completions of every rank."""
        with self._lock:
            return any(self._unread.values())

    def counts(self, rank: int) -> tuple[int, int]:
        """Return how many requests a rank was asked to serve, and how many it has finished."""
        with self._lock:
            return self._asked, self._finished[rank]
