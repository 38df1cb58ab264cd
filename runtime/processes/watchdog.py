"""Stall detection: whether the ranks of a run make progress, and which rank is to blame where none does.

A rank notes in shared memory what it does (``runtime.comm.progress``). Its parent reads that, and what the operating
system says of its process; of ranks on other hosts it has what their parents report (``torchrun_store``).
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from typing import Self

import psutil

from runtime.comm.meeting import UNCONNECTED
from runtime.comm.progress import MOST_GROUP_NAME, PHASES, Phase, Status
from runtime.errors import MeetingError, PeerError

LOOK_S = 0.25
"""Seconds between two looks at the ranks."""
MOST_UNSEEN_S = 1.0
"""Longest time between two looks that counts as standstill, in s; more means that the watcher itself was stopped."""
STOPPED_S = 4
"""Longest time that a stopped process holds up a run, in s; a longer stall time-out is for long computations."""
NCCL_S = 60
"""Time-out of ranks that are connecting over NCCL, in s; NCCL probes its network without any sign of progress."""
WARM_UP_S = 60
"""Time for the libraries, kernels and plans of a first use, in s, beside the stall time-out for what is computed: some
2 GB of libraries from a disk of 100 MB/s, and 40 s of compiling or planning on a busy machine. They give no sign of
progress."""
MEETING: Phase = "meeting the other ranks"
LOADING: tuple[Phase, ...] = ("starting", "reading its image")
"""Phases without layers to count, which may take any time: there, processor time is progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """State of one rank as its watcher sees it."""

    phase: Phase
    ticks: int
    """Progress counter of the rank."""
    group: str
    """Group of the collective that the rank waits in; empty outside."""
    queued: str
    """Group of the last collective that is queued on the device; empty: none."""
    number: int
    """Number of that collective in its group."""
    used_s: float
    """Processor time of its process while it loads, in s; afterwards 0."""
    stopped: bool
    """True where the process is stopped, by a signal or a debugger."""
    asked: int
    """Requests that it was sent."""
    served: int
    """Requests that it has finished."""

    @classmethod
    def of(cls, status: Status, process: BaseProcess, asked: int, served: int) -> Self:
        """Return the state of a rank whose process is a child of this one."""
        phase, used_s, stopped = PHASES[status.phase], 0.0, False
        try:
            child = psutil.Process(process.pid)
            stopped = child.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
            used_s = sum(child.cpu_times()[:2]) if phase in LOADING else 0.0
        except psutil.NoSuchProcess:
            pass  # its pipe reports that it died
        return cls(
            phase=phase, ticks=status.ticks, group=status.group.decode(), queued=status.queued.decode(),
            number=status.number, used_s=used_s, stopped=stopped, asked=asked, served=served,
        )  # fmt: skip

    def dumps(self) -> str:
        """Return the state as JSON, for the watcher of another host."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: bytes) -> Self | None:
        """Return the state of its JSON; None for a text that ``dumps`` does not give."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(fields, dict) or fields.keys() != cls.__annotations__.keys():
            return None
        kinds = {"phase": str, "group": str, "queued": str, "used_s": float, "stopped": bool}
        if any(type(value) is not kinds.get(name, int) for name, value in fields.items()):
            return None
        sight = cls(**fields)
        named = all(len(name) < MOST_GROUP_NAME and name.isprintable() for name in (sight.group, sight.queued))
        return sight if sight.phase in PHASES and named and math.isfinite(sight.used_s) else None

    @property
    def idle(self) -> bool:
        """True where the rank has nothing to do."""
        return self.phase == "waiting" and not self.group and self.served >= self.asked

    @property
    def done(self) -> tuple[int, float]:
        """Value that differs between two looks exactly where the rank made progress."""
        return self.ticks, self.used_s


class Watch:
    """Standstill clock: the time for which no rank of a run has made progress, in a process that may be stopped too."""

    def __init__(self, names: Sequence[str], stall_s: int, meeting_s: int) -> None:
        """Watch the devices ``names``, in the order of ranks.

        ``stall_s``: standstill that ends a run, in s. ``meeting_s``: the same while some ranks are still connecting.
        """
        self._names, self._stall_s, self._meeting_s = names, stall_s, max(stall_s, meeting_s)
        self._looked, self._still = time.monotonic(), 0.0
        self._seen: list[Sight] = []

    def complaint(self, sights: Sequence[Sight | None]) -> PeerError | None:
        """Return an error that says who is to blame that no rank has made progress for too long; None while one does.

        ``sights``: of every rank, None where its watcher has not reported yet; the clock runs only when all have. To be
        called every LOOK_S or more often.
        """
        now = time.monotonic()
        known = [sight for sight in sights if sight is not None]
        progress = [sight.done for sight in known] != [sight.done for sight in self._seen]
        if len(known) < len(sights) or _idle(known) or progress:
            self._still = 0.0
        else:
            self._still += min(now - self._looked, MOST_UNSEEN_S)
        self._looked, self._seen = now, known
        meeting = any(sight.phase == MEETING for sight in known)
        limit_s = self._meeting_s if meeting else self._stall_s
        if any(sight.phase == "warming up" for sight in known):
            limit_s = max(limit_s, self._stall_s + WARM_UP_S)
        if any(sight.stopped for sight in known):
            limit_s = min(limit_s, STOPPED_S)
        return self._blame(known, limit_s) if self._still >= limit_s else None

    def _blame(self, sights: list[Sight], still_s: int) -> PeerError:
        rank = hung(sights)
        others = "; ".join(
            f"{name} in group {sight.group}"
            for other, (name, sight) in enumerate(zip(self._names, sights, strict=True))
            if other != rank and sight.group
        )
        if rank is not None:
            reason = "its process is stopped" if sights[rank].stopped else "it hangs"
            waiting = f"; others wait: {others}" if others else ""
            name = rank_name(self._names, rank, sights[rank].phase)
            return PeerError(f"{name}, made no progress for {still_s} s: {reason}{waiting}")
        meeting = [name for name, sight in zip(self._names, sights, strict=True) if sight.phase == MEETING]
        if meeting:
            return MeetingError(f"{', '.join(meeting)}: not connected to the others after {still_s} s: {UNCONNECTED}")
        return PeerError(
            f"no device made progress for {still_s} s, and each waits for another: {others}: a message between them "
            "was lost, another program may have connected to a port of the run, or a GPU does not end what it was given"
        )


def hung(sights: Sequence[Sight]) -> int | None:
    """Return the rank that all others wait for; None where each waits for another.

    It is one that is stopped, or else one that waits in no collective. Of several, that with nothing queued on its
    device waits for nothing; of those that have queued, one that is behind another in a group has not come to what the
    other waits for.
    """
    for rank, sight in enumerate(sights):
        if sight.stopped:
            return rank
    alone = [rank for rank, sight in enumerate(sights) if not sight.group and sight.phase != MEETING and not sight.idle]
    without = [rank for rank in alone if not sights[rank].queued]
    behind = [
        rank
        for rank in alone
        if any(other.queued == sights[rank].queued and other.number > sights[rank].number for other in sights)
    ]
    return next(iter((*without, *behind, *alone)), None)


def _idle(sights: list[Sight]) -> bool:
    """Return True where no rank has work: none was asked, or not all were asked yet, which only other hosts can do."""
    asked = {sight.asked for sight in sights}
    working = len(asked) == 1 and any(sight.served < sight.asked for sight in sights)
    return not working and all(sight.phase == "waiting" for sight in sights)


def rank_name(names: Sequence[str], rank: int, phase: Phase) -> str:
    """Return a rank as every message names it: device, rank, phase."""
    return f"device {names[rank]} (rank {rank}), while in {phase!r}"
