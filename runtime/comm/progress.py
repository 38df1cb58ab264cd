"""What a rank is doing, for whoever watches it, and how long each part of it took, for whoever measures.

The status lies in memory that the watching process shares; without one it is the rank's own. A collective notes the
group that it waits in, so that of ranks that stand still the one is known that does not wait for another.
"""

import ctypes
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Phase = Literal["starting", "reading its image", "meeting the other ranks", "prefill", "verify", "draft", "commit",
                "waiting"]  # fmt: skip
PHASES: tuple[Phase, ...] = ("starting", "reading its image", "meeting the other ranks", "prefill", "verify", "draft",
                             "commit", "waiting")  # fmt: skip
"""In the order in which they come; ``waiting``: for a request."""

MOST_GROUP_NAME = 32


class Status(ctypes.Structure):
    """One rank, as others see it."""

    _fields_ = (
        ("phase", ctypes.c_int),
        ("ticks", ctypes.c_longlong),
        ("group", ctypes.c_char * MOST_GROUP_NAME),
    )
    phase: int
    ticks: int
    """Grows with every layer, collective and phase."""
    group: bytes
    """The group of the collective that the rank is in; empty outside."""


class Timings:
    """Nanoseconds by name, of what was done since ``clear``."""

    def __init__(self, device: torch.device) -> None:
        self.parts: defaultdict[str, int] = defaultdict(int)
        """Time of each part of a step without hops and messages, but with the all-reduces inside it."""
        self.groups: defaultdict[str, int] = defaultdict(int)
        """Time inside the collectives of each group, waiting included."""
        self._device = device
        self._last = time.perf_counter_ns()
        self._elsewhere = 0

    def clear(self) -> None:
        self.parts.clear()
        self.groups.clear()
        self._last, self._elsewhere = self._now(), 0

    def lap(self, part: str) -> None:
        """What was done since the last lap was ``part``."""
        now = self._now()
        self.parts[part] += now - self._last - self._elsewhere
        self._last, self._elsewhere = now, 0

    def collective(self, group: str, ns: int, *, inside: bool) -> None:
        """A collective took ``ns``; ``inside``: it is a piece of the part that is being timed."""
        self.groups[group] += ns
        self._elsewhere += 0 if inside else ns

    def _now(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter_ns()


class Progress:
    """What one rank tells about itself."""

    def __init__(self, status: Status | None = None) -> None:
        self.status = Status() if status is None else status
        self.timings: Timings | None = None
        """Set while the rank is measured."""

    def begin(self, phase: Phase) -> None:
        """The rank goes on to ``phase``."""
        self.status.phase = PHASES.index(phase)
        self.status.ticks += 1

    def tick(self) -> None:
        """The rank got on."""
        self.status.ticks += 1

    def lap(self, part: str) -> None:
        """The rank did ``part``: ``embed``, ``stages[s]``, ``head``, ``draft``, ``commit``."""
        self.status.ticks += 1
        if self.timings is not None:
            self.timings.lap(part)

    @contextmanager
    def collective(self, group: str, *, inside: bool) -> Iterator[None]:
        """Be in a collective of ``group``; ``inside``: an all-reduce or gather that belongs to the part being done."""
        self.status.group = group.encode()[: MOST_GROUP_NAME - 1]
        started = time.perf_counter_ns()
        yield
        if self.timings is not None:
            self.timings.collective(group, time.perf_counter_ns() - started, inside=inside)
        self.status.group = b""
        self.status.ticks += 1
