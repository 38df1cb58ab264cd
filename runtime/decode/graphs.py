"""Steps that a GPU replays: one CUDA graph for each shape of a step, captured when the shape comes for the second time.

    first time     run: what an operation loads, compiles or plans when it is first used is there afterwards
    second time    captured, then replayed
    later          replayed: one launch for the whole step

A graph has the addresses and shapes of the step that was captured, and no number of the host. So what differs between
two steps of a shape lies on the device: trees and lengths, which the step itself writes; samplings, ends and notices,
which are written between two steps. Warm-up runs every shape often enough (``processes.rank``).

Shapes are few: numbers of places, powers of two up to the batch, with the tree that the plan has for them, drafted or
plain, greedy or sampled. A step that is no repetition is run: one in which a sequence joins or the kind of tree
changes, one that is timed part by part, and one whose candidates are kept. Prefill is run, too.

Whether a plan's steps are captured is said by ``plans.graphs.uncaptured``; then all ranks capture, and replay in lock
step, with the collectives of NCCL inside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from plans.schema import Tree
from runtime.comm.progress import Progress

Replay = Callable[[], object]


class Capture(Protocol):
    """The capture of a GPU's work: CUDA's, or a test's."""

    def __call__(self, work: Callable[[], None]) -> Replay:
        """Capture what ``work`` gives the device, without doing it; return what does it."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Captured:
    """A captured step, and the groups of the collectives in it, in their order."""

    replay: Replay
    groups: tuple[str, ...]


class CudaCapture:
    """Captures as CUDA graphs, whose temporaries are in one pool: they are replayed one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # other threads, NCCL's among them, may ask the driver something meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def pool_bytes(self) -> int:
        """Return the memory of the pool, which it keeps."""
        return sum(segment["total_size"] for segment in torch.cuda.memory_snapshot(self._pool))


class Graphs:
    """The captured steps of one rank."""

    def __init__(self, capture: Capture | None, progress: Progress) -> None:
        """``capture``: None where steps are run and nothing is captured."""
        self._capture, self._progress = capture, progress
        self._captured: dict[Shape, Captured] = {}
        self._run: set[Shape] = set()

    @property
    def captures(self) -> bool:
        """True where repeated steps are captured."""
        return self._capture is not None

    @property
    def count(self) -> int:
        """Number of captured steps."""
        return len(self._captured)

    def step(self, shape: Shape | None, work: Callable[[], None]) -> None:
        """Do a step's work: replay it where it was captured. ``shape``: None of a step that is no repetition."""
        if shape is None:
            work()
            return
        assert self._capture is not None, "only what may be captured has a shape"
        captured = self._captured.get(shape)
        if captured is None and shape not in self._run:
            self._run.add(shape)
            work()
            return
        if captured is None:
            with self._progress.capturing() as groups:
                replay = self._capture(work)
            captured = self._captured[shape] = Captured(replay=replay, groups=tuple(groups))
        self._progress.begin("verify")  # and no later phase: the step is one launch
        self._progress.queue(captured.groups)
        captured.replay()
