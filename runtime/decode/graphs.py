"""Steps that a GPU replays: CUDA graphs for each shape of a step, captured when the shape comes for the second time.

    first time     run: what an operation loads, compiles or plans when it is first used is there afterwards
    second time    captured piece by piece, and each piece replayed at once: so it is done, too
    later          replayed, piece by piece

A piece is what a rank gives its GPU between two collectives that its host waits in (``comm.host_work``): over NCCL, or
on one GPU, a step is one piece and one launch. Where messages go through shared memory or gloo, as to a CPU, the host
does them between the pieces, in the step's order. So each rank captures its own steps, whatever the others do; ranks
that are connected by NCCL capture the same steps, as they know the same.

A graph has the addresses and shapes of the step that was captured, and no number of the host. So what differs between
two steps of a shape lies on the device: trees and lengths, which the step itself writes; samplings, ends and notices,
which are written between two steps. Warm-up runs shapes often enough (``processes.rank``).

Shapes are few: numbers of places, powers of two up to the batch, with the tree that the plan has for them, drafted or
plain, greedy or sampled. A step that is no repetition is run: one in which a sequence joins or the kind of tree
changes, one that is timed part by part, and one whose candidates are kept. So are prefill, and all steps of a plan in
which GPUs divide ``head_dim``: those depend on how many rows of a cache the host knows to be filled.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from plans.graphs import POOL, RESERVED_BYTES
from plans.schema import Tree
from runtime.comm.host_work import HostWork, Work
from runtime.comm.progress import Progress
from runtime.errors import MachineError

Replay = Callable[[], object]


class Capture(Protocol):
    """The capture of a GPU's work: CUDA's, or a test's."""

    def __call__(self) -> AbstractContextManager[Replay]:
        """Capture what the device is given within a context, without doing it; yield what does it afterwards."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """All that the operations of a step depend on, where it is a repetition of the one before."""

    drafted: bool
    accept: int | None
    """As in ``step.Mode``."""
    places: int
    tree: Tree | None
    """Kind of the trees that are verified and drafted; None: their roots."""
    sampled: bool
    """A sequence samples."""


class CudaCapture:
    """Captures as CUDA graphs, whose temporaries are in one pool: they are replayed one at a time."""

    def __init__(self, device: torch.device, device_id: str, planned_bytes: int) -> None:
        """``device_id``: in the plan, which has ``planned_bytes`` for the pool."""
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._device_id, self._planned_bytes = device_id, planned_bytes

    @contextmanager
    def __call__(self) -> Iterator[Replay]:
        """Raise MachineError as ``check`` does."""
        graph = torch.cuda.CUDAGraph()
        # other threads, NCCL's among them, may ask the driver something meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            yield graph.replay
        self.check()

    def pool_bytes(self) -> int:
        """Return the memory of the pool, which it keeps."""
        return sum(segment["total_size"] for segment in torch.cuda.memory_snapshot(self._pool))

    def check(self) -> None:
        """Raise MachineError where the pool takes more memory than the plan has for it.

        After each capture: while an engine is opened, or in a request whose shape did not come then.
        """
        taken = self.pool_bytes()
        if taken > self._planned_bytes + RESERVED_BYTES:
            raise MachineError(
                f"device {self._device_id}: captured steps take {taken} bytes of its memory, expected at most "
                f"{self._planned_bytes}, which the plan has for them ({POOL}), and {RESERVED_BYTES} of the reserve: "
                "build a plan with a smaller batch or tree"
            )


class Graphs:
    """The captured steps of one rank."""

    def __init__(self, capture: Capture | None, progress: Progress, host: HostWork) -> None:
        """``capture``: None where steps are run and nothing is captured."""
        self._capture, self._progress, self._host = capture, progress, host
        self._captured: dict[Shape, list[Work]] = {}
        """Pieces of each step, and between them the work of the host."""
        self._run_once: set[Shape] = set()

    @property
    def captures(self) -> bool:
        """True where repeated steps are captured."""
        return self._capture is not None

    @property
    def count(self) -> int:
        """Number of captured steps."""
        return len(self._captured)

    def has(self, shape: Shape | None) -> bool:
        """Return True for a shape whose steps are replayed from now on."""
        return shape in self._captured

    def step(self, shape: Shape | None, work: Work) -> None:
        """Do a step's work: replay it where it was captured. ``shape``: None of a step that is no repetition."""
        if shape is None:
            work()
        elif shape in self._captured:
            self._progress.begin("verify")  # and no later phase: a piece is one launch
            for piece in self._captured[shape]:
                piece()
        elif shape in self._run_once:
            self._captured[shape] = self._captured_and_done(work)
        else:
            self._run_once.add(shape)
            work()

    def _captured_and_done(self, work: Work) -> list[Work]:
        """Capture a step's work and do it, piece by piece; return the pieces, with the work of the host."""
        done: list[Work] = []
        with ExitStack() as piece:
            piece.enter_context(self._piece(done))

            def between(host_work: Work) -> None:
                piece.close()
                host_work()
                done.append(host_work)
                piece.enter_context(self._piece(done))

            with self._host.handed_to(between):
                work()
        return done

    @contextmanager
    def _piece(self, done: list[Work]) -> Iterator[None]:
        """Capture what the device is given within this context; then do it, and add it to what is done."""
        assert self._capture is not None, "only what may be captured has a shape"
        with self._progress.capturing() as groups, self._capture() as replay:
            yield
        replayed = partial(self._replay, replay, tuple(groups))
        replayed()
        done.append(replayed)

    def _replay(self, replay: Replay, groups: tuple[str, ...]) -> None:
        """Replay a piece; ``groups``: of the collectives in it, in their order."""
        self._progress.queue(groups)
        replay()
