"""Progress of a rank: its status, for the process that watches it, and a timer of the parts of a step, for `bench`.

The status lies in memory that the rank shares with its parent process; without one it is the rank's own. It has the
group of the collective that the rank waits in: where no rank makes progress, one that waits in none is to blame.

gloo's collectives return when they are done. NCCL's return when they are queued on the GPU, and the host goes on until
it reads from the GPU, or until the queue is full:

    gloo    compute   all_reduce ·········   compute   read         · the host waits, in this group
    NCCL    queue     queue   queue   queue            read ·····   · the host waits for all that is queued

So a collective of NCCL is noted as queued, with its number in its group, and the read waits in the last one that was
queued. Of ranks that have queued and do not wait, the one that is behind in a group is to blame.
"""

import ctypes
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

Phase = Literal["starting", "reading its image", "meeting the other ranks", "warming up", "prefill", "verify", "draft",
                "commit", "waiting"]  # fmt: skip
PHASES: tuple[Phase, ...] = ("starting", "reading its image", "meeting the other ranks", "warming up", "prefill",
                             "verify", "draft", "commit", "waiting")  # fmt: skip
"""Phases in the order in which they come; ``waiting``: for a request."""

MOST_GROUP_NAME = 32
"""Bytes of a group's name in the status, with the final zero."""


class Status(ctypes.Structure):
    """Status of a rank, as a C structure that processes share."""

    _fields_ = (
        ("phase", ctypes.c_int),
        ("ticks", ctypes.c_longlong),
        ("group", ctypes.c_char * MOST_GROUP_NAME),
        ("queued", ctypes.c_char * MOST_GROUP_NAME),
        ("number", ctypes.c_longlong),
    )
    phase: int
    ticks: int
    """Progress counter: grows with every layer, collective and phase."""
    group: bytes
    """Name of the group of the collective that the rank waits in; empty outside."""
    queued: bytes
    """Group of the last collective that was queued on the device since the host read from it; empty: none."""
    number: int
    """Number of that collective in its group."""


Span = tuple[int, int]
"""Begin and end in ns, by the clock that all processes of a machine have."""


class Timings:
    """Timer of steps and of their parts, in ns, since ``clear``."""

    def __init__(self, device: torch.device) -> None:
        self.parts: defaultdict[str, list[Span]] = defaultdict(list)
        """Begin and end of each part of every step, with the all-reduces inside the part. It begins where the one
        before ended, or where a message between parts was sent or arrived: until then another rank works."""
        self.steps: list[int] = []
        """From one commit to the next."""
        self.groups: defaultdict[str, int] = defaultdict(int)
        """Time by group inside its collectives, waiting included."""
        self._device = device
        self._last = self._committed = time.perf_counter_ns()

    def clear(self) -> None:
        """Forget all times, and start from now."""
        self.parts.clear()
        self.groups.clear()
        self.steps.clear()
        self._last = self._committed = self.now()

    def lap(self, part: str) -> None:
        """Add the span since the last lap or message to those of ``part``."""
        now = self.now()
        self.parts[part].append((self._last, now))
        self._last = now
        if part == "commit":
            self.steps.append(now - self._committed)
            self._committed = now

    def collective(self, group: str, ns: int, *, inside: bool) -> None:
        """Add ``ns``, up to now, to a group's time.

        ``inside``: it counts in the part that is running, too; else it is a message, behind which a part begins.
        """
        self.groups[group] += ns
        if not inside:
            self._last = self.now()

    def now(self) -> int:
        """Return the time at which all that the device was given is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter_ns()


class Progress:
    """Progress of one rank, which it reports itself."""

    def __init__(self, status: Status | None = None) -> None:
        self.status = Status() if status is None else status
        self.timings: Timings | None = None
        """Timer; None unless the request is timed."""
        self._queued: Counter[str] = Counter()
        """Collectives that were queued, by group."""
        self._warming_up = False
        self._captured: list[str] | None = None
        """Groups of the collectives that are captured, while a step is."""

    def begin(self, phase: Phase) -> None:
        """Enter a phase; within ``warming_up`` that only counts as progress."""
        if not self._warming_up:
            self.status.phase = PHASES.index(phase)
        self.status.ticks += 1

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Enter the phase of first uses, and stay in it whatever step is run meanwhile."""
        self.begin("warming up")
        self._warming_up = True
        yield
        self._warming_up = False

    def tick(self) -> None:
        """Count one piece of progress."""
        self.status.ticks += 1

    def lap(self, part: str) -> None:
        """End a part of the step: ``embed``, ``stages[s]``, ``head``, ``draft`` or ``commit``."""
        self.status.ticks += 1
        if self.timings is not None:
            self.timings.lap(part)

    @contextmanager
    def collective(self, group: str, *, inside: bool, queued: bool) -> Iterator[None]:
        """Report a collective of ``group``; ``inside``: it belongs to the part of the step that is running.

        ``queued``: it is put into the queue of the device (NCCL). A timer waits for the device before and after it.
        """
        timings = self.timings
        started = 0 if timings is None else timings.now()
        if queued:
            self.queue([group])
        else:
            self.status.group = _name(group)
        yield
        if timings is not None:
            with self.reading():
                timings.collective(group, timings.now() - started, inside=inside)
        self.status.group = b""
        self.status.ticks += 1

    def summing(self, group: str, work: Callable[[], None]) -> Callable[[], None]:
        """Return ``work``, a collective of ``group`` inside a part, in which the host waits, with its report: what
        ``collective`` does, for many calls.
        """
        name, status = _name(group), self.status

        def run() -> None:
            timings = self.timings
            started = 0 if timings is None else time.perf_counter_ns()
            status.group = name
            work()
            if timings is not None:
                timings.groups[group] += time.perf_counter_ns() - started
            status.group = b""
            status.ticks += 1

        return run

    def queue(self, groups: Sequence[str]) -> None:
        """Report that a collective of each of these groups is put into the queue of the device, in this order."""
        if self._captured is not None:
            self._captured += groups
            return
        self._queued.update(groups)
        if groups:
            self.status.queued, self.status.number = _name(groups[-1]), self._queued[groups[-1]]
        self.status.ticks += 1

    @contextmanager
    def capturing(self) -> Iterator[list[str]]:
        """Yield a list that is filled with the groups of the collectives within this context: they are not queued."""
        groups: list[str] = []
        self._captured = groups
        try:
            yield groups
        finally:
            self._captured = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Report that the host waits for all that was queued on the device: it reads from there."""
        self.status.group = self.status.queued
        yield
        self.status.group = self.status.queued = b""


def _name(group: str) -> bytes:
    """Return a group's name as the status has it."""
    return group.encode()[: MOST_GROUP_NAME - 1]
