"""Sending of packets to the rank processes, in a thread of its own, so that who sends waits for no rank."""

import queue
import threading

from runtime.processes.inbox import Packet
from runtime.processes.launch import Ranks

SENT_S = 0.5
"""Seconds for which the end of sending is awaited; a rank that takes longer to read what it is sent is stopped."""


class Outbox:
    """Packets on their way to all ranks, in order."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        # a simple queue, because a signal handler may put while the thread that it interrupts does
        self._packets: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, packet: Packet) -> None:
        """Send a packet to all ranks, soon."""
        self._packets.put(packet)

    def __enter__(self) -> "Outbox":
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread; where a rank is stopped and does not read, kill all, which are about to be ended anyway."""
        self._packets.put(None)
        if self._thread is threading.current_thread():  # the garbage collector runs in any thread
            return
        self._thread.join(SENT_S)
        if self._thread.is_alive():
            self._ranks.kill()
            self._thread.join()

    def _run(self) -> None:
        while (packet := self._packets.get()) is not None:
            if not self._ranks.send(packet):
                return  # a rank has gone; the supervisor finds out why
