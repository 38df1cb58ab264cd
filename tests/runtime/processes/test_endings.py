"""The ends of a run of several devices that its program survives: no rank is left, and nobody waits for ever."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil
import pytest

from runtime import Engine
from runtime.engine import Stream
from runtime.errors import PeerError, RequestError
from tests.runtime.small import compiled_plan

HANG_S = 60
"""Seconds after which a test counts as hung, on a busy machine."""
STALL_S = 2
CLOSED = "the engine was closed before the output ended"
STOPPED = f"made no progress for {STALL_S} s: its process is stopped"


class Hang(BaseException):
    """The test takes too long."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Raise Hang in the main thread after HANG_S."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_plan(tmp_path_factory.mktemp("ends"), ("a", "b"), context=20000, stall_timeout_s=STALL_S)[0]


@pytest.fixture
def opened(plan_dir: Path) -> Iterator[tuple[Engine, Stream]]:
    """Open an engine and begin a long stream; afterwards assert that no rank is left."""
    engine = Engine.open(plan_dir)
    stream = begun(engine)
    every = ranks()
    assert len(every) == 2
    yield engine, stream
    engine.close()
    assert psutil.wait_procs(every, timeout=5)[1] == []
    deadline = time.monotonic() + 5  # the fork server tells how they ended a moment after they did
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


def begun(engine: Engine) -> Stream:
    stream = engine.stream([1, 2, 3], max_new_tokens=19000, ignore_eos=True)
    next(stream)
    return stream


def server() -> psutil.Process:
    """Return the fork server of this process."""
    return next(child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline()))


def ranks() -> list[psutil.Process]:
    """Return the rank processes, in the order of ranks."""
    return [
        psutil.Process(child.pid)
        for child in sorted(multiprocessing.active_children(), key=lambda child: child.name)
        if child.name.startswith("rank ")
    ]


def serves(engine: Engine) -> None:
    assert len(engine.generate([1, 2], max_new_tokens=3).tokens) == 3


def later(call: Callable[[], object], *, by_signal: bool) -> None:
    """Call a function soon, in another thread or in a signal handler of this one."""
    if not by_signal:
        threading.Timer(0.5, call).start()
        return
    signal.signal(signal.SIGUSR1, lambda number, frame: call())
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()


Opened = tuple[Engine, Stream]


def test_a_dropped_stream_leaves_the_engine_usable(opened: Opened) -> None:
    engine, stream = opened
    serves_after_close = threading.Thread(target=stream.close)
    serves_after_close.start()
    serves_after_close.join()
    serves(engine)
    for _ in engine.stream([1, 2, 3], max_new_tokens=19000, ignore_eos=True):
        break
    serves(engine)


def test_a_dropped_engine_is_closed(plan_dir: Path) -> None:
    engine = Engine.open(plan_dir)
    stream = begun(engine)
    every = ranks()
    del engine, stream
    assert psutil.wait_procs(every, timeout=5)[1] == []


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_stream_may_be_closed_while_it_is_read(by_signal: bool, opened: Opened) -> None:
    engine, stream = opened
    later(stream.close, by_signal=by_signal)
    assert sum(len(piece.tokens) for piece in stream) < 18000
    with pytest.raises(RequestError, match="the stream was closed before its end"):
        stream.finished()
    serves(engine)


@pytest.mark.parametrize("by_signal", [False, True])
def test_an_engine_may_be_closed_while_a_stream_is_read(by_signal: bool, opened: Opened) -> None:
    engine, stream = opened
    later(engine.close, by_signal=by_signal)
    with pytest.raises(RequestError, match=CLOSED):
        stream.finished()


def test_an_engine_may_be_closed_while_a_batch_is_decoded(opened: Opened) -> None:
    engine, stream = opened
    stream.close()
    later(engine.close, by_signal=False)
    with pytest.raises(RequestError, match=CLOSED):
        engine.generate_batch([[1, 2, 3]], max_new_tokens=19000, ignore_eos=True)


@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt])
def test_an_error_of_a_signal_handler_leaves_the_engine_usable(error: type[BaseException], opened: Opened) -> None:
    engine, stream = opened

    def fail() -> None:
        raise error

    later(fail, by_signal=True)
    with pytest.raises(error):
        stream.finished()
    serves(engine)


def test_an_engine_is_closed_once_however_often(opened: Opened) -> None:
    engine, stream = opened
    threads = [threading.Thread(target=engine.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    with pytest.raises(RequestError, match=CLOSED):
        stream.finished()


def test_a_stream_is_read_by_one_thread(opened: Opened) -> None:
    _, stream = opened
    later(lambda: next(stream), by_signal=True)
    with pytest.raises(RequestError, match="is being read by another thread"):
        stream.finished()


@pytest.mark.parametrize("victims", [[1], [0, 1]])
def test_stopped_ranks_end_the_run(victims: list[int], opened: Opened) -> None:
    _, stream = opened
    for victim in victims:
        ranks()[victim].suspend()
    with pytest.raises(PeerError, match=STOPPED):
        stream.finished()


def test_an_engine_with_a_stopped_rank_is_closed(opened: Opened) -> None:
    engine, _ = opened
    ranks()[1].suspend()
    engine.close()


def test_an_interruption_does_not_wait_for_a_stopped_rank(plan_dir: Path) -> None:
    """Neither does the close that follows, beyond the time that a rank has to end."""

    def serve() -> None:
        with Engine.open(plan_dir) as engine:
            stream = begun(engine)
            ranks()[1].suspend()
            later(lambda: signal.raise_signal(signal.SIGINT), by_signal=True)
            stream.finished()

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert multiprocessing.active_children() == []


def test_a_killed_fork_server_ends_the_run(opened: Opened, plan_dir: Path) -> None:
    _, stream = opened
    server().kill()
    with pytest.raises(PeerError, match="ended with its fork server, which was killed"):
        stream.finished()
    with Engine.open(plan_dir) as engine:
        serves(engine)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_without_its_fork_server_is_closed(sent: signal.Signals, opened: Opened, plan_dir: Path) -> None:
    engine, _ = opened
    server().send_signal(sent)
    engine.close()
    with Engine.open(plan_dir) as another:
        serves(another)


def test_killed_ranks_end_the_run_where_their_fork_server_is_stopped(opened: Opened) -> None:
    _, stream = opened
    every = ranks()
    server().suspend()
    for rank in every:
        rank.kill()
    with pytest.raises(PeerError, match="ended, its fork server does not say how"):
        stream.finished()


def test_a_thread_that_fails_to_watch_ends_the_run(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, stream = opened
    monkeypatch.setattr(threading, "excepthook", lambda failure: None)
    engine._ranks._supervisor._stall = None  # type: ignore[attr-defined]  # stands for any bug in the thread
    with pytest.raises(PeerError, match="the thread that watches the ranks failed"):
        stream.finished()
