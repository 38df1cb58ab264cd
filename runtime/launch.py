"""One process per device of this host, and a parent that watches them: one that dies or hangs ends the run.

    parent   starts the ranks, gives all of them each request, watches for deaths and for standstill, ends them together
    rank r   serves the requests; rank 0 sends what is decoded, each its completion, and notes on the board what it does

The watch is a thread of the parent, so that it watches while the caller does something else. Under torchrun, which has
a parent of its own, a rank joins by itself.
"""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import psutil

from plans.schema import Plan
from runtime.comm import Rendezvous
from runtime.engine import Rank
from runtime.errors import PeerError, RuntimeRefusal
from runtime.progress import PHASES, Phase, Progress, Status
from runtime.request import Completion, Piece, Request

GRACE_S = 0.5
"""After the first failure, how long others are heard, so that the one that failed first is named."""
STOP_S = 2.0
"""How long a rank has to end when it is asked to, before it is killed."""
LOOK_S = 0.25
"""How often the board is looked at."""
LOADING: tuple[Phase, ...] = ("starting", "reading its image", "meeting the other ranks")
"""What may take any time, without a layer to count: to get on is to have used the processor."""

StartMethod = Literal["fork", "forkserver", "spawn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """All ranks are ready."""

    load_s: float


Event = Started | tuple[Piece, ...] | tuple[Completion, ...]
"""In this order: Started, then of requests that are served together the pieces of each step and the completions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a rank ended: the refusal it raised, or the traceback of what should not have happened."""

    refusal: RuntimeRefusal | None
    crash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What rank ``rank`` sent."""

    rank: int
    event: Event


def open_rank(
    directory: Path, rank: int, rendezvous: Rendezvous | None, progress: Progress, *, verify: bool = True
) -> tuple[Rank, Started]:
    """A rank in this process, and how long it took to open."""
    # a plan counts a host's GPUs as nvidia-smi lists them; CUDA, not yet initialised, would put the fastest first
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    started = time.perf_counter()
    opened = Rank.open(directory, rank=rank, rendezvous=rendezvous, progress=progress, verify=verify)
    return opened, Started(load_s=time.perf_counter() - started)


def run(
    plan: Plan,
    directory: Path,
    requests: Sequence[Request],
    emit: Callable[[Started | Piece | Completion], None],
    method: StartMethod = "fork",
) -> None:
    """Serve requests, one after the other, with all devices of a plan, whose host is this one.

    Raises what ``Rank`` raises, and PeerError naming the device that died or hung.
    """
    if len(plan.devices) == 1:
        alone, started = open_rank(directory, 0, None, Progress())
        emit(started)
        for request in requests:
            for event in alone.serve(request):
                emit(event)
        return
    with Family(plan, directory, method) as family:
        emit(family.started)
        for request in requests:
            for (event,) in family.serve((request,)):
                emit(event)


class Family:
    """The rank processes of a plan whose devices are all of this host."""

    def __init__(self, plan: Plan, directory: Path, method: StartMethod, *, verify: bool = True) -> None:
        """Start the ranks and wait until they are ready.

        ``method``: fork is fast, and right where the caller has used no torch threads and no GPU (a command); programs
        that have take forkserver. Raises what ``Rank.open`` raises, and PeerError.
        """
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["runtime.launch"])
        self._names = [device.id for device in plan.devices]
        self._stall_s = plan.options.stall_timeout_s
        self._board: Any = context.RawArray(Status, len(self._names))
        self._stopped: Any = context.RawValue("i", 0)
        self._children: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._told: queue.Queue[Told | RuntimeRefusal] = queue.Queue()
        self._wake, self._woken = context.Pipe(duplex=False)
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.timings: list[Completion] = []
        """Of the last request, one of each rank."""
        self._meeting = tempfile.TemporaryDirectory(prefix="ranks-")
        try:
            self._start(context, directory, Rendezvous(file=f"{self._meeting.name}/store"), verify)
            self._watcher.start()
            self.started = self._wait_for_all()
        except BaseException:
            self.close()
            raise

    def _start(self, context: Any, directory: Path, rendezvous: Rendezvous, verify: bool) -> None:
        for rank, name in enumerate(self._names):
            mine, theirs = context.Pipe(duplex=True)
            child = context.Process(
                target=_child,
                args=(directory, rank, rendezvous, verify, theirs, self._board, self._stopped),
                name=f"rank {rank} ({name})",
                daemon=True,
            )
            with _without_main():
                child.start()
            theirs.close()
            self._children.append(child)
            self._pipes.append(mine)

    def _wait_for_all(self) -> Started:
        ready: dict[int, Started] = {}
        while len(ready) < len(self._names):
            told = self._next()
            assert isinstance(told.event, Started), "ranks start before they serve"
            ready[told.rank] = told.event
        return ready[0]

    def serve(self, requests: tuple[Request, ...]) -> Generator[tuple[Piece, ...] | tuple[Completion, ...], None, None]:
        """What rank 0 tells of requests; to leave before the end stops the output on all ranks."""
        self._stopped.value = 0
        for pipe in self._pipes:
            pipe.send(requests)
        done: dict[int, tuple[Completion, ...]] = {}
        try:
            while len(done) < len(self._names):
                told = self._next()
                if completions := _completions(told.event):
                    done[told.rank] = completions
                elif isinstance(told.event, tuple):
                    yield told.event
        except (GeneratorExit, KeyboardInterrupt):
            self.stop()
            while len(done) < len(self._names):
                told = self._next()
                if completions := _completions(told.event):
                    done[told.rank] = completions
            raise
        self.timings = [done[rank][0] for rank in sorted(done)]
        yield done[0]

    def stop(self) -> None:
        """End the output of the request that is being served with the step that is being done."""
        self._stopped.value = 1

    def _next(self) -> Told:
        told = self._told.get()
        if isinstance(told, RuntimeRefusal):
            self._told.put(told)  # whoever asks next learns of it too
            raise told
        return told

    def __enter__(self) -> "Family":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave no process behind."""
        if self._watcher.is_alive():
            self._woken.send(None)  # not closed: ranks that were forked have it too
            self._watcher.join()  # before anybody else waits for the children
        for child in self._children:
            if child.is_alive():
                child.terminate()
        deadline = time.monotonic() + STOP_S
        for child in self._children:
            child.join(max(0.0, deadline - time.monotonic()))
        self._kill()
        for pipe in (*self._pipes, self._wake, self._woken):
            pipe.close()
        self._meeting.cleanup()

    def _kill(self) -> None:
        for child in self._children:
            if child.is_alive():
                child.kill()
        for child in self._children:
            child.join()

    # ---- the watch ----

    def _watch(self) -> None:
        """Pass on what ranks send; at the first failure end all of them and pass on why."""
        failure = self._first_failure()
        if failure is not None:
            self._kill()
            self._told.put(failure)

    def _first_failure(self) -> RuntimeRefusal | None:
        """Pass on what ranks send until one fails; None when the run is being ended."""
        standstill = _Standstill(self._board, self._children)
        while True:
            ready = multiprocessing.connection.wait([*self._pipes, self._wake], LOOK_S)
            if self._wake in ready:
                return None
            for rank in [rank for rank, pipe in enumerate(self._pipes) if pipe in ready]:
                message = _receive(self._pipes[rank])
                if message is None or isinstance(message, Failure):
                    return self._blame({rank: message})
                self._told.put(Told(rank=rank, event=message))
            if standstill.seconds() >= self._stall_s and (hung := self._hung()) is not None:
                return PeerError(self._indictment(hung))

    def _hung(self) -> int | None:
        """The rank that all others wait for, where none has got on."""
        if all(PHASES[status.phase] == "waiting" for status in self._board):
            return None
        states = [_state(child) for child in self._children]
        if psutil.STATUS_STOPPED in states:
            return states.index(psutil.STATUS_STOPPED)
        meeting = PHASES.index("meeting the other ranks")
        alone = [rank for rank, status in enumerate(self._board) if not status.group and status.phase != meeting]
        return alone[0] if alone else 0

    def _indictment(self, rank: int) -> str:
        state = "its process is stopped" if _state(self._children[rank]) == psutil.STATUS_STOPPED else "it hangs"
        others = "; ".join(
            f"{name} in group {status.group.decode()}"
            for other, (name, status) in enumerate(zip(self._names, self._board, strict=True))
            if other != rank and status.group
        )
        waiting = f"; others wait: {others}" if others else ""
        return f"{self._who(rank)}, made no progress for {self._stall_s} s: {state}{waiting}"

    def _blame(self, failures: dict[int, Failure | None]) -> RuntimeRefusal:
        """The refusal to raise: of the rank that failed by itself, not of one that lost its peer."""
        deadline = time.monotonic() + GRACE_S
        waiting = {rank: pipe for rank, pipe in enumerate(self._pipes) if rank not in failures}
        while waiting and (left := deadline - time.monotonic()) > 0:
            ready = multiprocessing.connection.wait(list(waiting.values()), left)
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                message = _receive(waiting[rank])
                if message is None or isinstance(message, Failure):
                    failures[rank] = message
                    del waiting[rank]
        for rank, failure in failures.items():
            if failure is not None and failure.refusal is not None and not isinstance(failure.refusal, PeerError):
                return failure.refusal
            if failure is None or failure.refusal is None:
                return PeerError(self._obituary(rank, failure))
        rank, failure = next(iter(failures.items()))
        return PeerError(f"{self._who(rank)}: {failure.refusal if failure else ''}")

    def _who(self, rank: int) -> str:
        return f"device {self._names[rank]} (rank {rank}), while in {PHASES[self._board[rank].phase]!r}"

    def _obituary(self, rank: int, failure: Failure | None) -> str:
        if failure is not None:
            return f"{self._who(rank)}, failed:\n{failure.crash}"
        child = self._children[rank]
        child.join(STOP_S)
        code = child.exitcode
        if code is not None and code < 0:
            truncated = ": its image was truncated while it was mapped" if -code == signal.SIGBUS else ""
            return f"{self._who(rank)}, was killed by {signal.Signals(-code).name}{truncated}"
        return f"{self._who(rank)}, ended with exit code {code}"


class _Standstill:
    """For how long no rank of a board has got on, by the clock of a process that may have been stopped itself."""

    def __init__(self, board: Any, children: Sequence[BaseProcess]) -> None:
        self._board, self._children = board, children
        self._seen: list[tuple[int, float]] = []
        self._looked = time.monotonic()
        self._still = 0.0

    def seconds(self) -> float:
        """To be asked every LOOK_S or oftener; what is longer between two looks was not watched, and does not count."""
        now = time.monotonic()
        seen = [
            (status.ticks, _used_s(child) if PHASES[status.phase] in LOADING else 0.0)
            for status, child in zip(self._board, self._children, strict=True)
        ]
        self._still = self._still + min(now - self._looked, 2 * LOOK_S) if seen == self._seen else 0.0
        self._looked, self._seen = now, seen
        return self._still


def _completions(event: Event) -> tuple[Completion, ...]:
    """Those of the event that ends what was served; of others none."""
    return tuple(each for each in event if isinstance(each, Completion)) if isinstance(event, tuple) else ()


def _state(child: BaseProcess) -> str:
    try:
        return str(psutil.Process(child.pid).status())
    except psutil.NoSuchProcess:
        return "dead"


def _used_s(child: BaseProcess) -> float:
    """Processor time of a process."""
    try:
        used = psutil.Process(child.pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system)


def _receive(pipe: Connection) -> Any:
    """The next message of a rank; None when it will send no more."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


@contextmanager
def _without_main() -> Iterator[None]:
    """Start a process that does not run the caller's script again, as multiprocessing would have it import that.

    Ranks need nothing of it, and a script need not guard what it does at its top.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---- in a rank's process ----


def _child(
    directory: Path, rank: int, rendezvous: Rendezvous, verify: bool, pipe: Connection, board: Any, stopped: Any
) -> None:
    """The life of a rank process: Ctrl-C is the parent's matter, and without a parent there is no life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    # one host: the ranks meet on loopback, whatever the host's name resolves to
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"

    def emit(event: Event) -> None:
        if rank == 0 or isinstance(event, Started) or _completions(event):
            pipe.send(event)

    try:
        served, started = open_rank(directory, rank, rendezvous, Progress(board[rank]), verify=verify)
        with served:
            emit(started)
            while (requests := _receive(pipe)) is not None:
                for event in served.serve_batch(requests, lambda: bool(stopped.value)):
                    emit(event)
    except RuntimeRefusal as refusal:
        pipe.send(Failure(refusal=refusal, crash=""))
        raise SystemExit(refusal.exit_code) from refusal
    except Exception:  # whatever it is, the parent must learn of it; the process ends here
        pipe.send(Failure(refusal=None, crash=traceback.format_exc()))
        raise SystemExit(1) from None


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(PeerError.exit_code)
