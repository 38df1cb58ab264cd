"""A plan's ranks as the engine sees them: one in the caller's process, or one process per device."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Protocol

from plans.quantized import has_codes
from plans.schema import Plan
from runtime.comm.meeting import Rendezvous, shared_by_ranks
from runtime.comm.progress import Progress
from runtime.errors import RequestError
from runtime.image.dtypes import DTYPES
from runtime.model import ops
from runtime.processes.inbox import Delivery, Inbox, Packet, Submit
from runtime.processes.launch import Ranks, StartMethod
from runtime.processes.outbox import Outbox
from runtime.processes.rank import Deliveries
from runtime.processes.rank_process import Started, completions, open_rank
from runtime.processes.requests import Requests
from runtime.processes.supervisor import CLOSED, Received, Supervisor
from runtime.processes.torchrun import Torchrun
from runtime.processes.torchrun_store import Exchange
from runtime.processes.watchdog import NCCL_S, Watch
from runtime.request import Completion, Piece

Report = Callable[[str], object]
"""Called with the name of each phase of loading, as it begins."""

EXIT_PRIORITY = 10
"""Priority with which an engine that nobody closed is closed at the interpreter's exit: before multiprocessing, at 0,
waits for the rank processes, which would be for ever where one is stopped."""


class Session(Protocol):
    """Ranks that serve what they are sent, one session at a time."""

    def send(self, packet: Packet) -> None:
        """Send commands to all ranks; returns at once, and may be called from any thread and from a signal handler."""
        ...

    def next(self) -> tuple[Delivery, ...]:
        """Wait for what is added to the outputs next; raise the refusal that ended the run."""
        ...

    def wake(self) -> None:
        """Let whoever waits for the next deliveries have none; may be called from any thread."""
        ...


class Serving(Protocol):
    """The ranks behind an engine."""

    started: list[Started]
    """Start of every rank of this process or its children, in the order of ranks."""
    completions: list[Completion]
    """Completions of the last request, one of each such rank."""

    def session(self) -> AbstractContextManager[Session]:
        """Return a session; what is still being served when it is left ends with the current step."""
        ...

    def stop(self) -> None:
        """End what is being served with the current step."""
        ...

    def close(self) -> None:
        """End the ranks."""
        ...


class InProcess:
    """The only rank of a plan, in the caller's process."""

    def __init__(self, plan: Plan, directory: Path, *, verify: bool, report: Report) -> None:
        if plan.devices[0].kind == "cpu":
            report(ops.KERNELS)
            ops.prepare(
                DTYPES[plan.options.dtype], codes=has_codes(plan.model), kv_dtype=plan.options.kv_dtype, report=report
            )
        report("loading the image")
        self._stopped = self._closed = False
        self._inbox = Inbox()
        self.completions: list[Completion] = []
        self._rank, started = open_rank(plan, directory, 0, None, Progress(), verify=verify)
        self.started = [started]

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Serve within the thread that asks for the next deliveries."""
        self._stopped, self._inbox = False, Inbox()
        with closing(self._rank.serve(self._inbox, lambda: self._stopped)) as turns:
            yield _Direct(self, self._inbox, turns)

    def check_open(self) -> None:
        """Raise RequestError where the engine was closed, maybe by another thread."""
        if self._closed:
            raise RequestError(CLOSED)

    def stop(self) -> None:
        """End the output with the current step."""
        self._stopped = True

    def close(self) -> None:
        """Drop the rank, and with it the mapping of its image, which may be replaced from now on.

        What another thread is being served ends with the current step.
        """
        self._closed = self._stopped = True
        self._inbox.put(())
        self._rank.close()
        del self._rank


class _Direct:
    """Session of a rank in this process: each call for the next deliveries makes a step."""

    def __init__(self, serving: InProcess, inbox: Inbox, turns: Deliveries) -> None:
        self._serving, self._inbox, self._turns = serving, inbox, turns

    def send(self, packet: Packet) -> None:
        self._inbox.put(packet)

    def next(self) -> tuple[Delivery, ...]:
        self._serving.check_open()
        deliveries = next(self._turns)
        self._serving.check_open()
        for _, output in deliveries:
            if isinstance(output, Completion):
                self._serving.completions = [output]
        return deliveries

    def wake(self) -> None:
        self._inbox.put(())


class InProcesses:
    """Rank processes of a plan whose devices are all of this host, or under torchrun the one of this process.

    The caller's thread reads events; the supervisor's thread receives them, and the outbox's sends what any thread puts
    there. They share `Requests`.
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
            report(ops.KERNELS)
            ops.prepare(  # here, once for all ranks
                DTYPES[plan.options.dtype], codes=has_codes(plan.model), kv_dtype=plan.options.kv_dtype, report=report
            )
        if "shm" in plan.transports:
            ops.prepare_exchange(DTYPES[plan.options.dtype])
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
                files, memory = unnamed_file(), shared_by_ranks(plan)
                rendezvous = Rendezvous(file=resources.enter_context(files), memory=resources.enter_context(memory))
            else:
                rendezvous = Rendezvous(address=(torchrun.host, torchrun.port))
            self._ranks = resources.enter_context(Ranks(plan, directory, own, rendezvous, method=method, verify=verify))
            exchange = None if torchrun is None else Exchange(torchrun, stall_s)
            if exchange is not None:
                resources.callback(exchange.end)
            watch = Watch(self._ranks.names, stall_s, NCCL_S if "nccl" in plan.transports else 0)
            self._supervisor = resources.enter_context(Supervisor(self._ranks, self._requests, watch, exchange))
            self.started = self._wait_for_all(len(own))
            self._outbox = resources.enter_context(Outbox(self._ranks))
        except BaseException:
            self.close()
            raise

    def _wait_for_all(self, count: int) -> list[Started]:
        ready: dict[int, Started] = {}
        while len(ready) < count:
            received = self.next()
            assert isinstance(received.event, Started), "ranks start before they serve"
            ready[received.rank] = received.event
        return [ready[rank] for rank in sorted(ready)]

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Serve on the ranks.

        Whoever leaves it does not wait for the ranks, which end their current step; the next session does. A process
        that was forked meanwhile leaves its copy and ends nothing.
        """
        process = os.getpid()
        self._drain()
        self._ranks.stop_output(stop=False)
        try:
            yield _Remote(self)
        finally:
            if process == os.getpid() and self._requests.open:
                self.stop()

    def send(self, packet: Packet) -> None:
        """Send commands to all ranks."""
        self._requests.ask(sum(isinstance(command, Submit) for command in packet))
        self._outbox.put(packet)

    def wake(self) -> None:
        """Let whoever waits for the next event have one without content."""
        self._supervisor.wake()

    def _drain(self) -> None:
        """Wait for the end of what was served before, where somebody left it."""
        while self._requests.open:
            self.next()

    def next(self) -> Received:
        """Wait for the next event of a rank; raises PeerError."""
        received = self._supervisor.next()
        for _ in completions(received.event):
            self._requests.read(received.rank)
        return received

    def stop(self) -> None:
        """End the output with the current step."""
        self._ranks.stop_output(stop=True)


class _Remote:
    """Session of rank processes: what the first of them sends, and the end of a job once all of them have ended it."""

    def __init__(self, serving: InProcesses) -> None:
        self._serving = serving
        self.send, self.wake = serving.send, serving.wake
        self._ended: dict[int, dict[int, Completion]] = {}
        """Completions by rank, of jobs that some ranks have ended."""

    def next(self) -> tuple[Delivery, ...]:
        received = self._serving.next()
        if isinstance(received.event, Started):
            return ()
        deliveries: list[Delivery] = []
        for job, output in received.event:
            if isinstance(output, Piece):
                deliveries.append((job, output))
                continue
            ended = self._ended.setdefault(job, {})
            ended[received.rank] = output
            if len(ended) == len(self._serving.started):
                del self._ended[job]
                self._serving.completions = [ended[rank] for rank in sorted(ended)]
                deliveries.append((job, self._serving.completions[0]))
        return tuple(deliveries)


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
