"""One process per device of this host, and a parent that watches them: one that dies ends the run.

    parent   forks, waits for events and deaths, ends all of them together
    rank r   serves the requests; rank 0 sends what is decoded; each notes on the board what it is doing

A plan of one device runs in this process. Under torchrun, which has its own parent, a rank joins by itself.
"""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from plans.schema import Plan
from runtime.comm import Rendezvous
from runtime.engine import PHASES, Completion, Engine, Piece
from runtime.errors import PeerError, RuntimeRefusal
from runtime.text import Request

GRACE_S = 0.5
"""After the first failure, how long others are heard, so that the one that failed first is named."""
STOP_S = 2.0
"""How long a rank has to end when it is asked to, before it is killed."""

StartMethod = Literal["fork", "forkserver", "spawn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """All ranks are ready."""

    load_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """All requests are served; bytes made on each device, term by term, in the order of the plan's devices."""

    measured_bytes: list[dict[str, int]]


Event = Started | Piece | Completion | Ended
"""In this order: Started, then per request its Pieces and Completion, then Ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a rank ended: the refusal it raised, or the traceback of what should not have happened."""

    refusal: RuntimeRefusal | None
    crash: str


def serve(
    directory: Path,
    rank: int,
    rendezvous: Rendezvous | None,
    requests: Sequence[Request],
    emit: Callable[[Event], None],
    doing: Callable[[str], None] = lambda phase: None,
) -> None:
    """Be one rank: open the engine, serve the requests, and tell ``emit`` (which only rank 0's caller reads)."""
    # a plan counts a host's GPUs as nvidia-smi lists them; CUDA, not yet initialised, would put the fastest first
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    started = time.perf_counter()
    with Engine.open(directory, rank=rank, rendezvous=rendezvous, doing=doing) as engine:
        emit(Started(load_s=time.perf_counter() - started))
        for request in requests:
            emit(engine.generate(request, emit))
        emit(Ended(measured_bytes=engine.measured_bytes()))


def run(
    plan: Plan,
    directory: Path,
    requests: Sequence[Request],
    emit: Callable[[Event], None],
    method: StartMethod = "fork",
) -> None:
    """Serve requests with all devices of a plan, whose host is this one.

    ``method``: fork is fast, and right where the caller has used no torch threads and no GPU (a command); programs
    that have take forkserver. Raises what ``serve`` raises, and PeerError naming the device that died.
    """
    if len(plan.devices) == 1:
        serve(directory, 0, None, requests, emit)
        return
    with tempfile.TemporaryDirectory(prefix="ranks-") as meeting:
        family = _Family(plan, method)
        try:
            family.start(directory, Rendezvous(file=f"{meeting}/store"), requests)
            for event in family.events():
                emit(event)
        finally:
            family.end()


class _Family:
    """The rank processes of one run."""

    def __init__(self, plan: Plan, method: StartMethod) -> None:
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["runtime.launch"])
        self._names = [device.id for device in plan.devices]
        self._board = self._context.RawArray(ctypes.c_int, len(self._names))
        self._children: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def start(self, directory: Path, rendezvous: Rendezvous, requests: Sequence[Request]) -> None:
        for rank, name in enumerate(self._names):
            mine, theirs = self._context.Pipe(duplex=False)
            child = self._context.Process(
                target=_child,
                args=(directory, rank, rendezvous, tuple(requests), theirs, self._board),
                name=f"rank {rank} ({name})",
                daemon=True,
            )
            child.start()
            theirs.close()
            self._children.append(child)
            self._pipes.append(mine)

    def events(self) -> Iterator[Event]:
        """What rank 0 emits, until all ranks have ended; raise at the first failure."""
        open_pipes = dict(enumerate(self._pipes))
        while open_pipes:
            ready = multiprocessing.connection.wait(list(open_pipes.values()))
            for rank in [rank for rank, pipe in open_pipes.items() if pipe in ready]:
                message = _receive(open_pipes[rank])
                if message is None:
                    del open_pipes[rank]
                    self._children[rank].join(STOP_S)
                if isinstance(message, Failure) or (message is None and self._children[rank].exitcode != 0):
                    raise self._blame({rank: message}, open_pipes)
                if message is not None:
                    yield message

    def _blame(self, failures: dict[int, Failure | None], open_pipes: dict[int, Connection]) -> RuntimeRefusal:
        """The refusal to raise: of the rank that failed by itself, not of one that lost its peer."""
        deadline = time.monotonic() + GRACE_S
        waiting = {rank: pipe for rank, pipe in open_pipes.items() if rank not in failures}
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
        return f"device {self._names[rank]} (rank {rank}), while in {PHASES[self._board[rank]]!r}"

    def _obituary(self, rank: int, failure: Failure | None) -> str:
        if failure is not None:
            return f"{self._who(rank)}, failed:\n{failure.crash}"
        child = self._children[rank]
        child.join(STOP_S)
        code = child.exitcode
        if code is not None and code < 0:
            return f"{self._who(rank)}, was killed by {signal.Signals(-code).name}"
        return f"{self._who(rank)}, ended with exit code {code}"

    def end(self) -> None:
        """Leave no process behind."""
        for child in self._children:
            if child.is_alive():
                child.terminate()
        deadline = time.monotonic() + STOP_S
        for child in self._children:
            child.join(max(0.0, deadline - time.monotonic()))
            if child.is_alive():
                child.kill()
                child.join()
        for pipe in self._pipes:
            pipe.close()


def _receive(pipe: Connection) -> Any:
    """The next message of a rank; None when it will send no more."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _child(
    directory: Path, rank: int, rendezvous: Rendezvous, requests: Sequence[Request], pipe: Connection, board: Any
) -> None:
    """The life of a rank process: Ctrl-C is the parent's matter, and without a parent there is no life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    # one host: the ranks meet on loopback, whatever the host's name resolves to
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    phases = {phase: number for number, phase in enumerate(PHASES)}

    def doing(phase: str) -> None:
        board[rank] = phases[phase]

    def emit(event: Event) -> None:
        if rank == 0:
            pipe.send(event)

    try:
        serve(directory, rank, rendezvous, requests, emit, doing)
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
