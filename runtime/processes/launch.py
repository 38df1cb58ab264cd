"""One process per device, and a parent that watches them: one that dies or hangs ends the run.

    parent   starts the ranks, gives all of them each request, watches for deaths and for standstill, ends them together
    rank r   serves the requests; rank 0 sends what is decoded, each its completion, and notes on the board what it does

The watch is a thread of the parent, so that it watches while the caller does something else. On one host a parent has
all ranks; of those that torchrun starts each has one, and is told of the others (``runtime.exchange``).
"""

import ctypes
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
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from plans.schema import Plan
from runtime.comm.groups import Rendezvous, transports
from runtime.comm.progress import Progress, Status
from runtime.errors import PeerError, RuntimeRefusal
from runtime.image.buffers import DTYPES
from runtime.model import ops
from runtime.processes.rank import Rank
from runtime.processes.torchrun import Torchrun
from runtime.processes.torchrun_store import Exchange
from runtime.processes.watchdog import LOOK_S, NCCL_S, Sight, Watch, who
from runtime.request import Completion, Piece, Request

GRACE_S = 0.5
"""After the first failure, how long others are heard, so that the one that failed first is named."""
PR_SET_PDEATHSIG = 1
"""Linux' prctl(2): the signal that a process gets when the thread ends that started it."""
STOP_S = 2.0
"""How long a rank has to end when it is asked to, before it is killed."""

StartMethod = Literal["fork", "forkserver", "spawn"]
Starter = Literal["server", "main thread", "thread"]
"""What a rank's parent is to the system: a fork server, or a thread of the parent, which may end before the others."""


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


class Family:
    """The rank processes of a plan whose devices are all of this host, or under torchrun the one of this process."""

    def __init__(
        self, plan: Plan, directory: Path, method: StartMethod, *, verify: bool = True, torchrun: Torchrun | None = None
    ) -> None:
        """Start the ranks and wait until they are ready.

        ``method``: fork is fast, and right where the caller has used no torch threads and no GPU (a command); programs
        that have take forkserver. Raises what ``Rank.open`` raises, and PeerError.
        """
        if any(device.kind == "cpu" for device in plan.devices):
            ops.prepare(DTYPES[plan.options.dtype])  # once, for all ranks
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["runtime.processes.launch"])
        self._names = [device.id for device in plan.devices]
        self._ranks = range(len(self._names)) if torchrun is None else range(torchrun.rank, torchrun.rank + 1)
        self._stall_s = plan.options.stall_timeout_s
        self._meeting_s = NCCL_S if "nccl" in transports(plan) else 0
        self._board: dict[int, Any] = {rank: context.RawValue(Status) for rank in self._ranks}
        self._stopped: Any = context.RawValue("i", 0)
        self._children: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection] = {}
        self._told: queue.Queue[Told | RuntimeRefusal] = queue.Queue()
        self._wake, self._woken = context.Pipe(duplex=False)
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._exchange: Exchange | None = None
        self._owing: set[int] = set()
        """Ranks that have not completed what is being served, as far as whoever asked has read."""
        self._asked = 0
        """Outputs, of every rank."""
        self._served = dict.fromkeys(self._ranks, 0)
        """Outputs that each has told to the end, read or not."""
        self.timings: list[Completion] = []
        """Of the last request, one of each rank that is watched here."""
        self._meeting = tempfile.TemporaryDirectory(prefix="ranks-")
        try:
            if torchrun is None:
                self._start(context, directory, Rendezvous(file=f"{self._meeting.name}/store"), verify)
            else:
                self._start(context, directory, Rendezvous(address=(torchrun.host, torchrun.port)), verify)
                self._exchange = Exchange(torchrun, self._stall_s)
            self._watcher.start()
            self.started = self._wait_for_all()
        except BaseException:
            self.close()
            raise

    def _start(self, context: Any, directory: Path, rendezvous: Rendezvous, verify: bool) -> None:
        starter: Starter = "main thread" if threading.current_thread() is threading.main_thread() else "thread"
        if context.get_start_method() == "forkserver":
            starter = "server"
        for rank, status in self._board.items():
            mine, theirs = context.Pipe(duplex=True)
            child = context.Process(
                target=_child,
                args=(directory, rank, rendezvous, verify, theirs, status, self._stopped, starter),
                name=f"rank {rank} ({self._names[rank]})",
                daemon=True,
            )
            with _without_main():
                child.start()
            theirs.close()
            self._children[rank], self._pipes[rank] = child, mine

    def _wait_for_all(self) -> Started:
        ready: dict[int, Started] = {}
        while len(ready) < len(self._ranks):
            told = self._next()
            assert isinstance(told.event, Started), "ranks start before they serve"
            ready[told.rank] = told.event
        return ready[self._ranks[0]]

    def serve(self, requests: tuple[Request, ...]) -> Generator[tuple[Piece, ...] | tuple[Completion, ...], None, None]:
        """What rank 0 tells of requests; to leave before the end stops the output on all ranks."""
        self._drain()
        self._stopped.value = 0
        self._send(requests)
        done: dict[int, tuple[Completion, ...]] = {}
        try:
            while self._owing:
                told = self._next()
                if completions := _completions(told.event):
                    done[told.rank] = completions
                elif isinstance(told.event, tuple):
                    yield told.event
        except (GeneratorExit, KeyboardInterrupt):
            self._drain()
            raise
        self.timings = [done[rank][0] for rank in sorted(done)]
        yield done[self._ranks[0]]

    def _send(self, requests: tuple[Request, ...]) -> None:
        self._asked += 1
        for rank, pipe in self._pipes.items():
            try:
                pipe.send(requests)
            except OSError:  # the rank has gone: why, the watch tells
                while True:
                    self._next()
            self._owing.add(rank)

    def _drain(self) -> None:
        """End what is being served, if somebody left it."""
        if self._owing:
            self.stop()
        while self._owing:
            self._next()

    def stop(self) -> None:
        """End the output of the request that is being served with the step that is being done."""
        self._stopped.value = 1

    def _next(self) -> Told:
        told = self._told.get()
        if isinstance(told, RuntimeRefusal):
            self._told.put(told)  # whoever asks next learns of it too
            raise told
        if _completions(told.event):
            self._owing.discard(told.rank)
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
        if self._exchange is not None:
            self._exchange.end()
        for child in self._children.values():
            if child.is_alive():
                child.terminate()
        deadline = time.monotonic() + STOP_S
        for child in self._children.values():
            child.join(max(0.0, deadline - time.monotonic()))
        self._kill()
        for pipe in (*self._pipes.values(), self._wake, self._woken):
            pipe.close()
        self._meeting.cleanup()

    def _kill(self) -> None:
        for child in self._children.values():
            if child.is_alive():
                child.kill()
        for child in self._children.values():
            child.join()

    # ---- the watch ----

    def _watch(self) -> None:
        """Pass on what ranks send; at the first failure end all of them and pass on why."""
        failure = self._first_failure()
        if failure is not None:
            if self._exchange is not None:
                self._exchange.tell_failure(str(failure))
            self._kill()
            self._told.put(failure)

    def _first_failure(self) -> RuntimeRefusal | None:
        """Pass on what ranks send until one fails; None when the run is being ended."""
        watch, looked = Watch(self._names, self._stall_s, self._meeting_s), 0.0
        while True:
            ready = multiprocessing.connection.wait([*self._pipes.values(), self._wake], LOOK_S)
            if self._wake in ready:
                return None
            for rank in [rank for rank, pipe in self._pipes.items() if pipe in ready]:
                message = _receive(self._pipes[rank])
                if message is None or isinstance(message, Failure):
                    return self._blame({rank: message})
                self._served[rank] += bool(_completions(message))
                self._told.put(Told(rank=rank, event=message))
            if time.monotonic() - looked >= LOOK_S / 2:
                looked = time.monotonic()
                if complaint := self._failure_elsewhere() or watch.complaint(self._sights()):
                    return PeerError(complaint)

    def _sights(self) -> list[Sight | None]:
        """Of every rank of the plan, as it is seen here or told."""
        own = {rank: self._sight(rank) for rank in self._ranks}
        if self._exchange is None:
            return list(own.values())
        (self._exchange.own,) = own.values()
        known = self._exchange.others | own
        return [known.get(rank) for rank in range(len(self._names))]

    def _sight(self, rank: int) -> Sight:
        return Sight.of(self._board[rank], self._children[rank], self._asked, self._served[rank])

    def _failure_elsewhere(self) -> str:
        return "" if self._exchange is None else self._exchange.failure

    def _blame(self, failures: dict[int, Failure | None]) -> RuntimeRefusal:
        """The refusal to raise: of the rank that failed by itself, not of one that lost its peer."""
        deadline = time.monotonic() + GRACE_S
        while (cause := self._cause(failures)) is None and (left := deadline - time.monotonic()) > 0:
            waiting = {rank: pipe for rank, pipe in self._pipes.items() if rank not in failures}
            ready = multiprocessing.connection.wait([*waiting.values(), self._wake], min(left, LOOK_S))
            if self._wake in ready:
                break
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                message = _receive(waiting[rank])
                if message is None or isinstance(message, Failure):
                    failures[rank] = message
        if cause is not None:
            return cause
        rank, failure = next(iter(failures.items()))
        return PeerError(f"{self._who(rank)}: {failure.refusal if failure else ''}")

    def _cause(self, failures: dict[int, Failure | None]) -> RuntimeRefusal | None:
        """What was not the failure of another rank; None while that is not known."""
        for rank, failure in failures.items():
            if failure is not None and failure.refusal is not None and not isinstance(failure.refusal, PeerError):
                return failure.refusal
            if failure is None or failure.refusal is None:
                return PeerError(self._obituary(rank, failure))
        elsewhere = self._failure_elsewhere()
        return PeerError(elsewhere) if elsewhere else None

    def _who(self, rank: int) -> str:
        return who(self._names, rank, self._sight(rank).phase)

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


def _completions(event: Event) -> tuple[Completion, ...]:
    """Those of the event that ends what was served; of others none."""
    return tuple(each for each in event if isinstance(each, Completion)) if isinstance(event, tuple) else ()


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
    directory: Path,
    rank: int,
    rendezvous: Rendezvous,
    verify: bool,
    pipe: Connection,
    status: Status,
    stopped: Any,
    starter: Starter,
) -> None:
    """The life of a rank process: Ctrl-C is the parent's matter, and without a parent there is no life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if starter != "thread" and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also where this process is stopped
    server = os.getppid() if starter == "server" else None
    threading.Thread(target=_follow_parent, args=(server,), daemon=True).start()
    if rendezvous.file is not None:
        # one host: the ranks meet on loopback, whatever the host's name resolves to
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"

    def emit(event: Event) -> None:
        if rank == 0 or isinstance(event, Started) or _completions(event):
            pipe.send(event)

    try:
        served, started = open_rank(directory, rank, rendezvous, Progress(status), verify=verify)
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


def _follow_parent(server: int | None) -> None:
    """End with the parent; first its fork server, which would stay for a rank that is stopped, and takes that along."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    if server is not None and os.getppid() == server:
        os.kill(server, signal.SIGKILL)
    os._exit(PeerError.exit_code)
