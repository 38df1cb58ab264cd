"""The watchdog: the rank to blame if no rank makes progress."""

import json
import math
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.comm.progress import PHASES, Progress, Status
from runtime.processes import watchdog
from runtime.processes.watchdog import LOOK_S, STOPPED_S, Sight, Watch, hung

NAMES = ("a", "b", "c")
BUSY = Sight(
    phase="verify", ticks=7, group="", queued="", number=0, used_s=0.0, stopped=False, asked=1, served=0
)  # fmt: skip
WAITS = replace(BUSY, group="stages[0]")
MEETS = replace(BUSY, phase="meeting the other ranks")
STALL_S = 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock of the watchdog; return its current time in a list."""
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


def complaint_after(clock: list[float], seconds: float, *sights: Sight | None) -> str:
    """Return the complaint after ``seconds`` of unchanged sights; empty: there is none."""
    seen, complaint = Watch(NAMES, STALL_S, 0), None
    for _ in range(round(seconds / LOOK_S) + 1):
        complaint = seen.complaint(sights)
        clock[0] += LOOK_S
    return str(complaint or "")


@pytest.mark.parametrize(
    ("sights", "blamed"),
    [
        ((WAITS, BUSY, WAITS), "device b (rank 1), while in 'verify', made no progress for 2 s: it hangs; "
                               "others wait: a in group stages[0]; c in group stages[0]"),
        ((WAITS, WAITS, WAITS), "no device made progress for 2 s, and each waits for another: a in group stages[0]; b "
                                "in group stages[0]; c in group stages[0]: a message between them was lost, another p"),
        ((MEETS, MEETS, replace(BUSY, phase="waiting", asked=0)), "a, b: not connected to the others after 2 s: a f"),
        # queued on a GPU: c is behind a, and b waits for what it has queued in a read, or has queued nothing
        ((replace(BUSY, queued="draft", number=9), WAITS, replace(BUSY, queued="draft", number=8)),
         "device c (rank 2), while in 'verify', made no progress for 2 s: it hangs; others wait: b in group stages[0]"),
        ((replace(BUSY, queued="draft", number=9), BUSY, replace(BUSY, queued="draft", number=8)), "device b (rank 1)"),
        ((WAITS, WAITS, replace(WAITS, stopped=True)), "device c (rank 2), while in 'verify', made no progress for 2 "
                                                       "s: its process is stopped"),
        ((replace(BUSY, phase="meeting the other ranks"), replace(BUSY, phase="reading its image"), WAITS),
         "device b (rank 1), while in 'reading its image', made no progress for 2 s: it hangs"),
    ],
)  # fmt: skip
def test_the_rank_that_the_others_wait_for_is_named(clock: list[float], sights: tuple[Sight, ...], blamed: str) -> None:
    assert not complaint_after(clock, STALL_S - LOOK_S, *sights)
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
        complaints.append(seen.complaint([meets, meets, WAITS]))
        clock[0] += LOOK_S
    assert not any(complaints[:-1])
    assert str(complaints[-1]).startswith("a, b: not connected to the others after 10 s: a firewall")


def test_progress_of_any_rank_counts_and_time_without_watching_does_not(clock: list[float]) -> None:
    seen = Watch(NAMES, STALL_S, 0)
    for tick in range(40):
        assert seen.complaint([WAITS, replace(BUSY, ticks=tick // 5), WAITS]) is None
        clock[0] += LOOK_S
    reading = replace(BUSY, phase="reading its image")
    for tick in range(40):
        assert seen.complaint([WAITS, replace(reading, used_s=1 + tick // 5), WAITS]) is None
        clock[0] += LOOK_S
    seen = Watch(NAMES, STALL_S, 0)
    assert seen.complaint([WAITS, BUSY, WAITS]) is None
    clock[0] += 1000
    assert seen.complaint([WAITS, BUSY, WAITS]) is None, "the watching process was stopped too"


def test_a_stopped_process_holds_up_a_run_for_a_short_time_even_where_computing_may_take_long(
    clock: list[float],
) -> None:
    seen, stopped = Watch(NAMES, 600, 0), replace(BUSY, stopped=True)
    for _ in range(round(STOPPED_S / LOOK_S)):
        assert seen.complaint([WAITS, stopped, WAITS]) is None
        clock[0] += LOOK_S
    assert "its process is stopped" in str(seen.complaint([WAITS, stopped, WAITS]))


def test_a_state_is_parsed_strictly() -> None:
    fields = asdict(BUSY)
    assert Sight.loads(BUSY.dumps().encode()) == BUSY
    wrong: list[Any] = [{}, [], 7, None, fields | {"more": 1}, {name: fields[name] for name in list(fields)[1:]}]
    wrong += [fields | {"phase": "sleep"}, fields | {"ticks": "7"}, fields | {"ticks": True}, fields | {"stopped": 0}]
    wrong += [fields | {"group": "\x1b[2J"}, fields | {"group": "g" * 99}, fields | {"used_s": math.nan}]
    for value in wrong:
        assert Sight.loads(json.dumps(value).encode()) is None
    for text in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, BUSY.dumps().encode("utf-16")[1:]):
        assert Sight.loads(text) is None


class Gpu:
    """A device with a queue: what it is given is done in order, in another thread, as CUDA does; its queue has room for
    ``room`` operations, and then whoever gives it more waits."""

    def __init__(self, room: int) -> None:
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue(room)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._queue.get()()
            self._queue.task_done()

    def queue(self, operation: Callable[[], object]) -> None:
        self._queue.put(operation)

    def read(self) -> None:
        self._queue.join()


@pytest.mark.parametrize("room", [0, 3], ids=["the others wait in the read", "the others wait for room in the queue"])
@pytest.mark.parametrize("hangs", [0, 1, 2])
def test_the_rank_that_hangs_is_named_where_collectives_are_queued(hangs: int, room: int) -> None:
    """Three ranks, each a thread with a device, run steps of collectives that return at once, as those of NCCL do."""
    progress = [Progress() for _ in NAMES]
    barriers = {number: threading.Barrier(len(NAMES)) for number in range(40)}
    ended = threading.Event()

    def run(rank: int) -> None:
        device, number = Gpu(room), 0
        for _ in range(2):
            progress[rank].begin("verify")
            for _ in range(20):
                if rank == hangs and number == 25:
                    ended.wait()
                    return
                with progress[rank].collective("stages[0]", inside=True, queued=True):
                    device.queue(barriers[number].wait)
                number += 1
            with progress[rank].reading():
                device.read()

    for rank in range(len(NAMES)):
        threading.Thread(target=run, args=(rank,), daemon=True).start()

    def sights() -> list[Sight]:
        return [
            replace(BUSY, ticks=one.status.ticks, group=one.status.group.decode(), queued=one.status.queued.decode(),
                    number=one.status.number)
            for one in progress
        ]  # fmt: skip

    deadline = time.monotonic() + 30
    while sum(one.status.number > 25 for one in progress) < 2 or sights() != (time.sleep(0.2), sights())[1]:
        assert time.monotonic() < deadline
    assert hung(sights()) == hangs
    ended.set()
