"""A plan's ranks as the engine sees them: one in the caller's process, or one process per device."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
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
from runtime.processes.supervisor import Received, Supervisor
from runtime.processes.torchrun import Torchrun
from runtime.processes.torchrun_store import Exchange
from runtime.processes.watchdog import NCCL_S, Watch
from runtime.request import Completion, Events, Request

Report = Callable[[str], object]
"""Called with the name of each phase of loading, as it begins."""

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
        self._stopped = False
        self.completions: list[Completion] = []
        self._rank, started = open_rank(plan, directory, 0, None, Progress(), verify=verify)
        self.started = [started]

    def serve(self, requests: tuple[Request, ...]) -> Events:
        """Yield the output of requests."""
        self._stopped = False
        with closing(self._rank.serve_batch(requests, lambda: self._stopped)) as events:
            for event in events:
                self.completions = list(completions(event)[:1])
                yield event

    def stop(self) -> None:
        """End the output with the current step."""
        self._stopped = True

    def close(self) -> None:
        """Drop the rank, and with it the mapping of its image, which may be replaced from now on."""
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
        with ExitStack() as resources:
            if torchrun is None:
                meeting = resources.enter_context(TemporaryDirectory(prefix="ranks-"))
                rendezvous = Rendezvous(file=f"{meeting}/store")
            else:
                rendezvous = Rendezvous(address=(torchrun.host, torchrun.port))
            self._ranks = resources.enter_context(Ranks(plan, directory, own, rendezvous, method=method, verify=verify))
            exchange = None if torchrun is None else Exchange(torchrun, stall_s)
            if exchange is not None:
                resources.callback(exchange.end)
            watch = Watch(self._ranks.names, stall_s, NCCL_S if "nccl" in transports(plan) else 0)
            self._supervisor = resources.enter_context(Supervisor(self._ranks, self._requests, watch, exchange))
            self.started = self._wait_for_all(len(own))
            self._resources = resources.pop_all()

    def _wait_for_all(self, count: int) -> list[Started]:
        ready: dict[int, Started] = {}
        while len(ready) < count:
            received = self._next()
            assert isinstance(received.event, Started), "ranks start before they serve"
            ready[received.rank] = received.event
        return [ready[rank] for rank in sorted(ready)]

    def serve(self, requests: tuple[Request, ...]) -> Events:
        """Yield what rank 0 sends; to close the generator ends the output on all ranks. Raises PeerError."""
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
        except (GeneratorExit, KeyboardInterrupt):
            self._drain()
            raise
        if not outputs:
            raise RequestError("the engine was closed before the output ended")
        self.completions = [outputs[rank][0] for rank in sorted(outputs)]
        yield outputs[min(outputs)]

    def _drain(self) -> None:
        """End what is being served, where somebody left it."""
        if self._requests.open:
            self.stop()
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

    def close(self) -> None:
        """End the supervisor and the ranks; leave no process and no file behind."""
        self._requests.abandon()  # a generator of `serve` that is closed later must not wait for their completions
        self._resources.close()
