"""Commands to the ranks of a run: which requests to serve, and which to end.

    submit, cancel ──► packet ──► inbox of rank 0 ──┐  the rank that writes the step message says in it how many packets
                             ├──► inbox of rank 1 ──┤  all ranks take before the next step; one that has nothing to do
                             └──► ...               ┘  takes the next packet when it comes

Every rank is sent the same packets in the same order, and takes them at the same step; so all decide alike.
"""

import queue
from dataclasses import dataclass

from runtime.request import Completion, Piece, Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """Serve a request, after those that were submitted before it."""

    job: int
    """Number under which its output is delivered."""
    request: Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """End a job with the current step, wherever it is; one that has ended is no error."""

    job: int


Packet = tuple[Submit | Cancel, ...]
"""Commands that are taken together."""
Delivery = tuple[int, Piece | Completion]
"""A part of the output of a job, the last of which is its completion."""


class Inbox:
    """Packets that a rank has not taken yet; put by any thread, taken by the one that serves."""

    def __init__(self) -> None:
        self._packets: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()

    def put(self, packet: Packet | None) -> None:
        """Add a packet; None: no more will come."""
        self._packets.put(packet)

    @property
    def ready(self) -> int:
        """Packets that can be taken without waiting."""
        return self._packets.qsize()

    def take(self) -> Packet | None:
        """Wait for the next packet; None: no more will come."""
        return self._packets.get()
