"""Rank processes of this host: start them, send them requests, and leave none behind."""

import ctypes
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import psutil

from plans.process import defer_signals
from plans.schema import Plan
from runtime.comm.meeting import Rendezvous
from runtime.comm.progress import Status
from runtime.errors import MachineError
from runtime.processes import fork_server
from runtime.processes.inbox import Packet
from runtime.processes.rank_process import RankArguments, Starter, run_rank

STOP_S = 2.0
"""Seconds that a rank has to end when it is asked to, before it is killed, and that a killed one has to be gone."""
SERVER_DIED = 255
"""Exit code that multiprocessing gives a process whose fork server died, and with it the one who knew the code."""

StartMethod = Literal["fork", "forkserver", "spawn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankProcess:
    """One rank process, as its parent has it."""

    process: BaseProcess
    pipe: Connection
    """Requests out, events in."""
    status: Status
    """Progress of the rank, in shared memory."""


class Ranks:
    """Rank processes of this host, all started together and ended together."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        ranks: Iterable[int],
        rendezvous: Rendezvous,
        *,
        method: StartMethod,
        verify: bool,
    ) -> None:
        """Start the processes of ``ranks``.

        ``method``: fork is fast, and right where the caller has used no torch threads and no GPU (a command); programs
        that have take forkserver. ``verify``: compare the images with their digests. Raises MachineError where the
        system gives no more processes, files or memory.
        """
        context: Any = multiprocessing.get_context(method)
        starter: Starter = "main thread" if threading.current_thread() is threading.main_thread() else "thread"
        if method == "forkserver":
            starter = "server"
        self.names = [device.id for device in plan.devices]
        """Devices of all ranks of the plan."""
        self._stopped: Any = context.RawValue("i", 0)
        self.processes: dict[int, RankProcess] = {}
        _RANKS.add(self)
        try:
            if method == "forkserver":
                fork_server.start()
            for rank in ranks:
                with defer_signals(signal.SIGINT, signal.SIGTERM), main_module_hidden():
                    own, other = context.Pipe(duplex=True)
                    arguments = RankArguments(
                        plan=plan, directory=directory, rank=rank, rendezvous=rendezvous, verify=verify,
                        starter=starter, pipe=other, status=context.RawValue(Status), stopped=self._stopped,
                    )  # fmt: skip
                    process = context.Process(
                        target=run_rank, args=(arguments,), name=f"rank {rank} ({self.names[rank]})", daemon=True
                    )
                    process.start()
                    other.close()
                    self.processes[rank] = RankProcess(process=process, pipe=own, status=arguments.status)
        except OSError as error:
            self.end()
            raise MachineError(
                f"the processes of {len(self.names)} devices cannot be started: {error.strerror}: see `ulimit -a`"
            ) from error
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def send(self, packet: Packet) -> bool:
        """Send a packet to all ranks; return False where one of them has gone."""
        try:
            for rank in self.processes.values():
                rank.pipe.send(packet)
        except OSError:
            return False
        return True

    def stop_output(self, *, stop: bool) -> None:
        """Ask the ranks to end what they are serving with the current step, or no longer ask for it."""
        self._stopped.value = int(stop)

    def exit_reason(self, rank: int) -> str:
        """Return how the process of a rank ended."""
        process = self.processes[rank].process
        process.join(STOP_S)
        code = process.exitcode
        if code is None or code == SERVER_DIED:
            return "ended with its fork server, which was killed" if code else "ended, its fork server does not say how"
        if code < 0:
            truncated = ": its image was truncated while it was mapped" if -code == signal.SIGBUS else ""
            return f"was killed by {signal.Signals(-code).name}{truncated}"
        return f"ended with exit code {code}"

    def kill(self) -> None:
        """Kill the processes that are alive, and wait at most 2 * STOP_S for all."""
        self._send_kill()
        if not self._gone():
            self._kill_servers()
            self._gone()

    def end(self) -> None:
        """End all processes, also where this is interrupted: ask first, kill after STOP_S."""
        try:
            for rank in self.processes.values():
                if rank.process.is_alive():
                    rank.process.terminate()
            self._gone()
        finally:
            self.kill()
            for rank in self.processes.values():
                rank.pipe.close()

    def forget(self) -> None:
        """Have no ranks from now on, in a process that was forked from the one that has them: they serve that one.

        multiprocessing would terminate them when the forked process exits, as if they were its own.
        """
        for rank in self.processes.values():
            multiprocessing.process._children.discard(rank.process)  # type: ignore[attr-defined]
            rank.pipe.close()
        self.processes = {}
        self._stopped = ctypes.c_int(0)

    def _send_kill(self) -> None:
        for rank in self.processes.values():
            if rank.process.is_alive():
                rank.process.kill()

    def _gone(self) -> bool:
        """Wait at most STOP_S for the end of all processes; return True where all have ended."""
        deadline = time.monotonic() + STOP_S
        for rank in self.processes.values():
            rank.process.join(max(0.0, deadline - time.monotonic()))
        return not any(rank.process.is_alive() for rank in self.processes.values())

    def _kill_servers(self) -> None:
        """Kill the fork server that does not report the end of a killed process, which only a stopped one does."""
        for rank in self.processes.values():
            if rank.process.is_alive():
                with suppress(psutil.NoSuchProcess):
                    parent = psutil.Process(rank.process.pid).ppid()
                    if parent not in (os.getpid(), 0, 1):
                        os.kill(parent, signal.SIGKILL)


_RANKS: "weakref.WeakSet[Ranks]" = weakref.WeakSet()
"""Ranks of this process."""


def _forget_ranks() -> None:
    for ranks in list(_RANKS):
        ranks.forget()
    _RANKS.clear()


os.register_at_fork(after_in_child=_forget_ranks)


_MAIN_MODULE = threading.Lock()
"""Held while ``__main__`` is hidden: two threads that open engines at once would restore each other's stand-in."""


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Start a process that does not import the caller's script again, as multiprocessing would have it do.

    Ranks need nothing of the script, and so it need not guard its top level with ``if __name__ == "__main__"``.
    """
    with _MAIN_MODULE:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
