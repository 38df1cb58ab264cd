"""A plan's ranks as the engine sees them: one in the caller's process, or one process per device."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Protocol

from plans.schema import Plan
from runtime.comm.groups import Rendezvous, transports
from runtime.comm.progress import Progress
from runtime.errors import RequestError
from runtime.image.dtypes import DTYPES
from runtime.model import ops
from runtime.processes.launch import Ranks, StartMethod
from runtime.processes.rank_process import Started, completions, open_rank
from runtime.processes.requests import Requests
from runtime.processes.supervisor import CLOSED, Received, Supervisor
from runtime.processes.torchrun import Torchrun
from runtime.processes.torchrun_store import Exchange
from runtime.processes.watchdog import NCCL_S, Watch
from runtime.request import Completion, Events, Request

Report = Callable[[str], object]
"""Called with the name of each phase of loading, as it begins."""

EXIT_PRIORITY = 10
"""Priority with which an engine that nobody closed is closed at the interpreter's exit: before multiprocessing, at 0,
waits for the rank processes, which would be for ever where one is stopped."""

KERNELS = "preparing the CPU kernels (the first time about 10 s)"
"""Phase in which the kernels of a dtype are compiled for this machine, or loaded from the cache."""


class Serving(Protocol):
    """The ranks behind an engine."""

    started: list[Started]
    """Start of every rank of this process or its children, in the order of ranks."""
    completions: list[Completion]
    """Completions of the last request, one of each such rank."""

    def serve(self, requests: tuple[Request, ...]) -> Events:
        """Yield the output of requests; to close the generator ends the output."""
        ...

    def stop(self) -> None:
        """End the output with the current step."""
        ...

    def close(self) -> None:
        """End the ranks."""
        ...


class InProcess:
    """The only rank of a plan, in the caller's process."""

    def __init__(self, plan: Plan, directory: Path, *, verify: bool, report: Report) -> None:
        if plan.devices[0].kind == "cpu":
            report(KERNELS)
            ops.prepare(DTYPES[plan.options.dtype])
        report("loading the image")
        self._stopped = self._closed = False
        self.completions: list[Completion] = []
        self._rank, started = open_rank(plan, directory, 0, None, Progress(), verify=verify)
        self.started = [started]

    def serve(self, requests: tuple[Request, ...]) -> Events:
        """Yield the output of requests."""
        self._stopped = False
        with closing(self._rank.serve_batch(requests, lambda: self._stopped)) as events:
            for event in events:
                if self._closed:
                    raise RequestError(CLOSED)
                self.completions = list(completions(event)[:1])
                yield event

    def stop(self) -> None:
        """End the output with the current step."""
        self._stopped = True

    def close(self) -> None:
        """Drop the rank, and with it the mapping of its image, which may be replaced from now on.

        What another thread is being served ends with the current step.
        """
        self._closed = self._stopped = True
        self._rank.close()
        del self._rank


class InProcesses:
    """Rank processes of a plan whose devices are all of this host, or under torchrun the one of this process.

    The caller's thread sends requests and reads events; the supervisor's thread receives them. They share `Requests`.
    """

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        *,
        method: StartMethod,
        verify: bool,
        torchrun: Torchrun | None,
        report: Report,
    ) -> None:
        """Start the ranks and wait until they are ready. Raises what ``Rank.open`` raises, and PeerError."""
        if any(device.kind == "cpu" for device in plan.devices):
            report(KERNELS)
            ops.prepare(DTYPES[plan.options.dtype])  # here, once for all ranks
        own = range(len(plan.devices)) if torchrun is None else range(torchrun.rank, torchrun.rank + 1)
        report(f"loading {len(own)} {'image' if len(own) == 1 else 'images'}")
        stall_s = plan.options.stall_timeout_s
        self.completions: list[Completion] = []
        self._requests = Requests(own)
        resources = ExitStack()
        self.close = Finalize(self, _end, (self._requests, resources), exitpriority=EXIT_PRIORITY)
        """End the supervisor and the ranks; leave no process behind. Also called at exit, and for a dropped engine."""
        try:
            if torchrun is None:
                rendezvous = Rendezvous(file=resources.enter_context(unnamed_file()))
            else:
                rendezvous = Rendezvous(address=(torchrun.host, torchrun.port))
            self._ranks = resources.enter_context(Ranks(plan, directory, own, rendezvous, method=method, verify=verify))
            exchange = None if torchrun is None else Exchange(torchrun, stall_s)
            if exchange is not None:
                resources.callback(exchange.end)
            watch = Watch(self._ranks.names, stall_s, NCCL_S if "nccl" in transports(plan) else 0)
            self._supervisor = resources.enter_context(Supervisor(self._ranks, self._requests, watch, exchange))
            self.started = self._wait_for_all(len(own))
        except BaseException:
            self.close()
            raise

    def _wait_for_all(self, count: int) -> list[Started]:
        ready: dict[int, Started] = {}
        while len(ready) < count:
            received = self._next()
            assert isinstance(received.event, Started), "ranks start before they serve"
            ready[received.rank] = received.event
        return [ready[rank] for rank in sorted(ready)]

    def serve(self, requests: tuple[Request, ...]) -> Events:
        """Yield what rank 0 sends; to close the generator ends the output on all ranks. Raises PeerError.

        Whoever leaves it does not wait for the ranks, which end their current step; the next request does.
        """
        self._drain()
        self._requests.ask()
        if not self._ranks.send(requests):
            while True:  # a rank has gone; the supervisor finds out why, and this raises it
                self._next()
        outputs: dict[int, tuple[Completion, ...]] = {}
        try:
            while self._requests.open:
                received = self._next()
                if output := completions(received.event):
                    outputs[received.rank] = output
                elif isinstance(received.event, tuple):
                    yield received.event
        finally:
            if self._requests.open:
                self.stop()
        if not outputs:
            raise RequestError(CLOSED)
        self.completions = [outputs[rank][0] for rank in sorted(outputs)]
        yield outputs[min(outputs)]

    def _drain(self) -> None:
        """Wait for the end of what was served before, where somebody left it."""
        while self._requests.open:
            self._next()

    def _next(self) -> Received:
        received = self._supervisor.next()
        if completions(received.event):
            self._requests.read(received.rank)
        return received

    def stop(self) -> None:
        """End the output with the current step."""
        self._ranks.stop_output()


def _end(requests: Requests, resources: ExitStack) -> None:
    requests.abandon()  # a generator of `serve` that is closed later must not wait for their completions
    resources.close()


@contextmanager
def unnamed_file() -> Iterator[str]:
    """Yield a path by which processes of this user open a file that has no name, and so is never left behind."""
    descriptor = os.memfd_create("ranks")
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
