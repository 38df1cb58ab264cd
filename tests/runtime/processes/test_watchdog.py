"""The rank to blame where none makes progress."""

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
    """The time, as whoever watches sees it."""
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


def looked(clock: list[float], seconds: float, *sights: Sight | None) -> str:
    """The complaint after so many seconds of the same sights."""
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
def test_the_one_that_the_others_wait_for_is_named(clock: list[float], sights: tuple[Sight, ...], blamed: str) -> None:
    assert looked(clock, STALL_S - LOOK_S, *sights) == ""
    assert looked(clock, STALL_S, *sights).startswith(blamed)


def test_to_use_the_processor_is_to_get_on_while_an_image_is_read_and_not_while_others_are_waited_for() -> None:
    process = multiprocessing.get_context("fork").Process()
    process._popen = SimpleNamespace(pid=os.getpid())  # type: ignore[attr-defined]  # that is this one
    for phase, used in (("starting", True), ("reading its image", True), ("meeting the other ranks", False)):
        assert bool(Sight.of(Status(phase=PHASES.index(phase), ticks=3), process, 0, 0).used_s) == used


def test_ranks_without_a_request_and_ranks_that_nobody_knows_yet_stand_still_for_ever(clock: list[float]) -> None:
    idle = replace(BUSY, phase="waiting", served=1)
    assert looked(clock, 100, idle, idle, idle) == ""
    assert looked(clock, 100, BUSY, None, BUSY) == ""


def test_ranks_that_have_not_begun_what_they_were_asked_or_not_told_its_end_are_waited_for(clock: list[float]) -> None:
    asked = replace(BUSY, phase="waiting")
    agreeing, stopped = replace(asked, group="world"), replace(asked, stopped=True)
    complaint = "device b (rank 1), while in 'waiting', made no progress for 2 s: its process is stopped"
    assert looked(clock, STALL_S, agreeing, stopped, agreeing).startswith(complaint)
    assert looked(clock, STALL_S, replace(asked, served=1), stopped, replace(asked, served=1)).startswith(complaint)
    assert looked(clock, STALL_S, asked, asked, asked)
    assert looked(clock, 100, asked, replace(asked, asked=0), agreeing) == "", "another host may ask later"


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


def test_any_progress_of_anybody_counts_and_so_does_not_the_time_in_which_nobody_watched(clock: list[float]) -> None:
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
    assert seen.complaint([WAITS, BUSY, WAITS]) == "", "whoever watches was stopped too"
