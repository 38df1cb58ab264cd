"""Whether the ranks of a run get on, and which of them is to blame where they do not.

A rank notes on its board what it does (``runtime.progress``). Who watches it reads that, and what the host tells of its
process; of ranks on other hosts it has what their watchers tell (``runtime.exchange``).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from typing import Self

import psutil

from runtime.comm.progress import PHASES, Phase, Status

LOOK_S = 0.25
"""How often ranks are looked at."""
MOST_UNSEEN_S = 1.0
"""More than this between two looks was not watched, and does not count: the watcher itself may have been stopped."""
NCCL_S = 60
"""So long ranks may stand still while they meet over NCCL, which looks for its ways without a sign of life."""
LOADING: tuple[Phase, ...] = ("starting", "reading its image")
"""What may take any time, without a layer to count: to get on is to have used the processor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """One rank, as its watcher sees it."""

    phase: Phase
    ticks: int
    group: str
    """Of the collective that it is in; empty outside."""
    used_s: float
    """Processor time of its process while it loads, afterwards 0."""
    stopped: bool
    """Its process is: by a signal, or a debugger."""
    asked: int
    """For how many outputs it was."""
    served: int
    """How many of them it has told to the end."""

    @classmethod
    def of(cls, status: Status, process: BaseProcess, asked: int, served: int) -> Self:
        """What a rank of this process's own does."""
        phase, used_s, stopped = PHASES[status.phase], 0.0, False
        try:
            found = psutil.Process(process.pid)
            stopped = found.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
            used_s = sum(found.cpu_times()[:2]) if phase in LOADING else 0.0
        except psutil.NoSuchProcess:
            pass  # that it died is told by its pipe
        return cls(
            phase=phase, ticks=status.ticks, group=status.group.decode(), used_s=used_s, stopped=stopped, asked=asked,
            served=served,
        )  # fmt: skip

    def dumps(self) -> str:
        """For another watcher."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def done(self) -> tuple[int, float]:
        """Differs where the rank got on."""
        return self.ticks, self.used_s


class Watch:
    """For how long no rank of a run has got on, by the clock of a process that may have been stopped itself."""

    def __init__(self, names: Sequence[str], stall_s: int, meeting_s: int) -> None:
        """``meeting_s``: the same of ranks of which some are meeting the others."""
        self._names, self._stall_s, self._meeting_s = names, stall_s, max(stall_s, meeting_s)
        self._looked, self._still = time.monotonic(), 0.0
        self._seen: list[Sight] = []

    def complaint(self, sights: Sequence[Sight | None]) -> str:
        """Who is to blame that nobody has got on for too long; empty while somebody has.

        ``sights``: of every rank, None where its watcher tells nothing yet: until then nobody is waited for in vain.
        To be asked every LOOK_S or oftener.
        """
        now = time.monotonic()
        known = [sight for sight in sights if sight is not None]
        if (
            len(known) < len(sights)
            or _idle(known)
            or [sight.done for sight in known] != [sight.done for sight in self._seen]
        ):
            self._still = 0.0
        else:
            self._still += min(now - self._looked, MOST_UNSEEN_S)
        self._looked, self._seen = now, known
        meeting = any(sight.phase == "meeting the other ranks" for sight in known)
        most_s = self._meeting_s if meeting else self._stall_s
        return self._indictment(known, most_s) if self._still >= most_s else ""

    def _indictment(self, sights: list[Sight], still_s: int) -> str:
        rank, reason = self._hung(sights)
        others = "; ".join(
            f"{name} in group {sight.group}"
            for other, (name, sight) in enumerate(zip(self._names, sights, strict=True))
            if other != rank and sight.group
        )
        waiting = f"; others wait: {others}" if others else ""
        return f"{who(self._names, rank, sights[rank].phase)}, made no progress for {still_s} s: {reason}{waiting}"

    def _hung(self, sights: list[Sight]) -> tuple[int, str]:
        """The rank that all others wait for, and what is known of it."""
        for rank, sight in enumerate(sights):
            if sight.stopped:
                return rank, "its process is stopped"
        alone = [
            rank for rank, sight in enumerate(sights) if not sight.group and sight.phase != "meeting the other ranks"
        ]
        return (alone[0] if alone else 0), "it hangs"


def _idle(sights: list[Sight]) -> bool:
    """Whether nobody owes anything: no rank was asked, or not every one was yet, which only other hosts can change."""
    asked = {sight.asked for sight in sights}
    owed = len(asked) == 1 and any(sight.served < sight.asked for sight in sights)
    return not owed and all(sight.phase == "waiting" for sight in sights)


def who(names: Sequence[str], rank: int, phase: Phase) -> str:
    """A rank, as every message names it."""
    return f"device {names[rank]} (rank {rank}), while in {phase!r}"
