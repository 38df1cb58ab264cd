"""Code of a rank process: opens its rank, tells the parent, and serves what comes until the parent ends it.

parent ── packets of commands ──► rank r      pipe
       ◄── Started, pieces (rank 0 only), completions, or a Failure
"""

import ctypes
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from plans.schema import Plan
from runtime.comm.meeting import Rendezvous
from runtime.comm.progress import Progress, Status
from runtime.errors import MachineError, PeerError, RuntimeRefusal
from runtime.image.dtypes import DTYPES
from runtime.model.kernels.processor import instructions
from runtime.processes.inbox import Delivery, Inbox
from runtime.processes.machine import check_machine, device_errors, device_name, read_memory, show_device, torch_device
from runtime.processes.rank import Rank
from runtime.request import Completion, MemoryReading

PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl(2): the signal that a process gets when the thread that started it ends."""
SYSTEM_LIMITS = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of a call that needs more files, memory or processes than the system lets this one have."""

Starter = Literal["server", "main thread", "thread"]
"""Parent of a rank process for the system: a fork server, or a thread of the parent, which may end before others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A rank that is ready."""

    load_s: float
    device: str
    """Name of the physical device; of a CPU also the vector instructions of its products."""
    before: MemoryReading
    """Memory before the image is read."""
    loaded: MemoryReading
    """Memory with weights, caches and buffers."""


Event = Started | tuple[Delivery, ...]
"""Output of a rank, in order: Started; then what each turn adds to the outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Reason for the end of a rank: the refusal that it raised, or the traceback of a bug."""

    refusal: RuntimeRefusal | None
    crash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankArguments:
    """Arguments of a rank process."""

    plan: Plan
    directory: Path
    rank: int
    rendezvous: Rendezvous
    verify: bool
    """True: compare the image with its digest."""
    starter: Starter
    pipe: Connection
    """Requests in, events out."""
    status: Status
    """Progress of the rank, in memory that the parent shares."""
    stopped: Any
    """Shared integer: not 0 asks the ranks to end the output with the current step."""


def open_rank(
    plan: Plan, directory: Path, rank: int, rendezvous: Rendezvous | None, progress: Progress, *, verify: bool = True
) -> tuple[Rank, Started]:
    """Open a rank in this process; return it with its load time and memory.

    Raises RequestError, MachineError, ImageError or PeerError.
    """
    device = plan.devices[rank]
    show_device(device, os.environ, initialised=torch.cuda.is_initialized())
    begin = time.perf_counter()
    with device_errors(device):
        check_machine(plan, device)
        before = read_memory(torch_device(device))
        opened = Rank.open(plan, directory, rank=rank, rendezvous=rendezvous, progress=progress, verify=verify)
        loaded, load_s = read_memory(torch_device(device)), time.perf_counter() - begin
        name = device_name(device)
        if device.kind == "cpu":
            name += f", products by {instructions(DTYPES[plan.options.dtype])}"
        return opened, Started(load_s=load_s, device=name, before=before, loaded=loaded)


def completions(event: Event) -> tuple[Delivery, ...]:
    """Return the deliveries of an event that end a job."""
    return tuple(one for one in event if isinstance(one[1], Completion)) if isinstance(event, tuple) else ()


def receive(pipe: Connection) -> Any:
    """Return the next message of a pipe; None when no more will come."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def run_rank(arguments: RankArguments) -> None:
    """Entry point of a rank process: leaves SIGINT to the parent, and exits when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if arguments.starter != "thread" and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # reaches a process that is stopped, too
    server = os.getppid() if arguments.starter == "server" else None
    if server is not None:
        # the server ends with the last process that has this pipe: it must not stay for ranks that are all stopped
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    threading.Thread(target=_follow_parent, args=(server,), daemon=True).start()
    if arguments.rendezvous.file is not None:
        # one host: the ranks meet on loopback, whatever the host's name resolves to
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        _serve(arguments)
    except RuntimeRefusal as refusal:
        arguments.pipe.send(Failure(refusal=refusal, crash=""))
        raise SystemExit(refusal.exit_code) from refusal
    except Exception as error:  # whatever it is, the parent must learn of it; the process ends here
        limit = _limit_of_the_system(arguments, error)
        arguments.pipe.send(Failure(refusal=limit, crash="" if limit else traceback.format_exc()))
        raise SystemExit(limit.exit_code if limit else 1) from None


def _limit_of_the_system(arguments: RankArguments, error: Exception) -> MachineError | None:
    """Return the refusal of an error that says that a limit of files, memory or processes is reached, else None."""
    if not isinstance(error, OSError) or error.errno not in SYSTEM_LIMITS:
        return None
    device = arguments.plan.devices[arguments.rank].id
    return MachineError(f"device {device} (rank {arguments.rank}): {os.strerror(error.errno)}: see `ulimit -a`")


def _serve(arguments: RankArguments) -> None:
    """Serve what comes until the pipe ends; only rank 0 sends pieces."""
    pipe, stopped = arguments.pipe, arguments.stopped
    rank, started = open_rank(
        arguments.plan, arguments.directory, arguments.rank, arguments.rendezvous, Progress(arguments.status),
        verify=arguments.verify,
    )  # fmt: skip
    with rank:
        pipe.send(started)
        inbox = Inbox()
        # a thread of its own, so that the parent, which sends to one rank after the other, waits for none of them
        threading.Thread(target=_read, args=(pipe, inbox), name="inbox", daemon=True).start()
        for deliveries in rank.serve(inbox, lambda: bool(stopped.value)):
            event = deliveries if arguments.rank == 0 else completions(deliveries)
            if event:
                pipe.send(event)


def _read(pipe: Connection, inbox: Inbox) -> None:
    """Put what comes through a pipe into the inbox, until the pipe ends."""
    packet = receive(pipe)
    while packet is not None:
        inbox.put(packet)
        packet = receive(pipe)
    inbox.put(None)


def _follow_parent(server: int | None) -> None:
    """Exit when the parent dies.

    Its fork server goes first: it would stay for a rank that is stopped, and takes such a rank along.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    if server is not None and os.getppid() == server:
        os.kill(server, signal.SIGKILL)
    os._exit(PeerError.exit_code)
