"""The watchdog: the rank to blame if no rank makes progress."""

import multiprocessing
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from runtime.comm.progress import PHASES, Status
from runtime.processes import watchdog
from runtime.processes.watchdog import LOOK_S, Sight, Watch

NAMES = ("a", "b", "c")
BUSY = Sight(phase="verify", ticks=7, group="", used_s=0.0, stopped=False, asked=1, served=0)
WAITS = replace(BUSY, group="stages[0]")
STALL_S = 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock of the watchdog; return its current time in a list."""
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


def complaint_after(clock: list[float], seconds: float, *sights: Sight | None) -> str:
    """Return the complaint after ``seconds`` of unchanged sights."""
    seen, complaint = Watch(NAMES, STALL_S, 0), ""
    for _ in range(round(seconds / LOOK_S) + 1):
        complaint = seen.complaint(sights)
        clock[0] += LOOK_S
    return complaint


@pytest.mark.parametrize(
    ("sights", "blamed"),
    [
        ((WAITS, BUSY, WAITS), "device b (rank 1), while in 'verify', made no progress for 2 s: it hangs; "
                               "others wait: a in group stages[0]; c in group stages[0]"),
        ((WAITS, WAITS, WAITS), "device a (rank 0), while in 'verify'"),
        ((WAITS, WAITS, replace(WAITS, stopped=True)), "device c (rank 2), while in 'verify', made no progress for 2 "
                                                       "s: its process is stopped"),
        ((replace(BUSY, phase="meeting the other ranks"), replace(BUSY, phase="reading its image"), WAITS),
         "device b (rank 1), while in 'reading its image', made no progress for 2 s: it hangs"),
    ],
)  # fmt: skip
def test_the_rank_that_the_others_wait_for_is_named(clock: list[float], sights: tuple[Sight, ...], blamed: str) -> None:
    assert complaint_after(clock, STALL_S - LOOK_S, *sights) == ""
    assert complaint_after(clock, STALL_S, *sights).startswith(blamed)


def test_cpu_time_counts_as_progress_while_loading_and_not_while_waiting_for_others() -> None:
    process = multiprocessing.get_context("fork").Process()
    process._popen = SimpleNamespace(pid=os.getpid())  # type: ignore[attr-defined]  # stands for this process
    for phase, used in (("starting", True), ("reading its image", True), ("meeting the other ranks", False)):
        assert bool(Sight.of(Status(phase=PHASES.index(phase), ticks=3), process, 0, 0).used_s) == used


def test_ranks_without_a_request_and_unknown_ranks_are_never_blamed(clock: list[float]) -> None:
    idle = replace(BUSY, phase="waiting", served=1)
    assert complaint_after(clock, 100, idle, idle, idle) == ""
    assert complaint_after(clock, 100, BUSY, None, BUSY) == ""


def test_a_rank_that_has_not_begun_or_not_finished_a_request_is_blamed(clock: list[float]) -> None:
    waiting = replace(BUSY, phase="waiting")
    agreeing, stopped = replace(waiting, group="world"), replace(waiting, stopped=True)
    complaint = "device b (rank 1), while in 'waiting', made no progress for 2 s: its process is stopped"
    assert complaint_after(clock, STALL_S, agreeing, stopped, agreeing).startswith(complaint)
    assert complaint_after(clock, STALL_S, replace(waiting, served=1), stopped, replace(waiting, served=1)).startswith(
        complaint
    )
    assert complaint_after(clock, STALL_S, waiting, waiting, waiting)
    assert complaint_after(clock, 100, waiting, replace(waiting, asked=0), agreeing) == "", (
        "another host may receive the request later"
    )


def test_ranks_that_meet_over_nccl_may_take_longer(clock: list[float]) -> None:
    meets = replace(WAITS, phase="meeting the other ranks")
    seen = Watch(NAMES, STALL_S, 10)
    complaints = []
    for _ in range(round(10 / LOOK_S) + 1):
        complaints.append(seen.complaint([meets, replace(meets, stopped=True), WAITS]))
        clock[0] += LOOK_S
    assert not any(complaints[:-1])
    assert complaints[-1].startswith(
        "device b (rank 1), while in 'meeting the other ranks', made no progress for 10 s: its pr"
    )


def test_progress_of_any_rank_counts_and_time_without_watching_does_not(clock: list[float]) -> None:
    seen = Watch(NAMES, STALL_S, 0)
    for tick in range(40):
        assert seen.complaint([WAITS, replace(BUSY, ticks=tick // 5), WAITS]) == ""
        clock[0] += LOOK_S
    reading = replace(BUSY, phase="reading its image")
    for tick in range(40):
        assert seen.complaint([WAITS, replace(reading, used_s=1 + tick // 5), WAITS]) == ""
        clock[0] += LOOK_S
    seen = Watch(NAMES, STALL_S, 0)
    assert seen.complaint([WAITS, BUSY, WAITS]) == ""
    clock[0] += 1000
    assert seen.complaint([WAITS, BUSY, WAITS]) == "", "the watching process was stopped too"
