"""Captured steps on meta tensors: whatever the host knows, they have the same operations on the same memory."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plans.buffers import device_buffers
from plans.graphs import POOL, most_shapes, steps_line
from plans.graphs import captures as captures_steps
from plans.schema import Device, KvAxis, Plan, Run, ScheduledTree, Tree
from runtime.comm.groups import groups
from runtime.comm.host_work import HostWork
from runtime.comm.progress import Progress
from runtime.decode.graphs import Graphs, Replay, Shape
from runtime.decode.step import Stepper
from runtime.decode.work import Mode
from runtime.image.buffers import Memory
from runtime.model.triton_kernels import launch
from runtime.sampling import Sampling
from tests.plan_factory import TREE, Group, even, group, make_device, make_draft, make_model, make_plan, shared_draft
from tests.runtime.meta import CUDA, AsCuda, Watch
from tests.runtime.meta_steps import MetaSlots, SilentMaker, silent_messages

MODEL = make_model(num_layers=7, num_heads=8, num_kv_heads=4, head_dim=64, hidden_size=256)
SMALL = Tree(kind="static", total_token=4, depth=1, top_k=2, paths=((0,), (1,), (0, 1)))


class Signature(TorchDispatchMode):
    """Records every operation with its arguments: tensors by their memory and layout, numbers by their values."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []
        self._own: dict[int, tuple[int, Tensor]] = {}
        """Number and tensor of each storage that was made meanwhile; kept, so that no other takes its address."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._seen(args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        inputs = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _address(leaf) not in inputs:
                self._own.setdefault(_address(leaf), (len(self._own), leaf))
        self.operations.append((str(func), before, self._seen(out)))
        return out

    def start(self, kernel: Any, grid: tuple[int, ...], *operands: Any, **sizes: Any) -> None:
        """Record the launch of a Triton kernel, in place of ``launch.start``."""
        self.operations.append((kernel.__name__, grid, self._seen(operands), tuple(sizes.items())))

    def _seen(self, *values: Any) -> tuple[Any, ...]:
        return tuple(self._named(leaf) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(values))

    def _named(self, tensor: Tensor) -> tuple[Any, ...]:
        own = self._own.get(_address(tensor))
        memory = ("elsewhere", _address(tensor)) if own is None else ("own", own[0])
        return (*memory, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Captures:
    """A capture that records signatures, and whose replays do nothing: on meta tensors there is nothing to do."""

    def __init__(self) -> None:
        self.signatures: list[list[Any]] = []
        self.faults: list[str] = []
        self.watch = Watch()
        """Watches everything, since it has to know which memory is pinned."""

    @contextmanager
    def __call__(self) -> Iterator[Replay]:
        signature, watch = Signature(), self.watch

        def start(*operands: Any, **sizes: Any) -> None:
            watch.start(*operands, **sizes)
            signature.start(*operands, **sizes)

        watch.forget()
        with signature, mock.patch.object(launch, "start", start):
            yield lambda: None
        self.faults += [*watch.trace.mixed, *watch.trace.waits]
        self.signatures.append(signature.operations)


def gpus(*names: str) -> list[Device]:
    devices = [make_device(name, memory_bytes=1 << 36) for name in names]
    return [
        dataclasses.replace(device, type="gpu", kind="cuda", ordinal=number) for number, device in enumerate(devices)
    ]


def one_gpu(kind: str | None = "eagle3", schedule: tuple[ScheduledTree, ...] | None = None) -> Plan:
    draft = make_draft(MODEL, kind=kind) if kind else None
    return make_plan(
        MODEL, [group(MODEL, ["a"], MODEL.num_layers)], draft=draft, devices=gpus("a"), context=4000, dtype="bfloat16",
        prefill_chunk=128, batch=4, schedule=schedule,
    )  # fmt: skip


def two_gpus(
    axis: KvAxis = "context", *, others: tuple[str, ...] = (), divided_draft: bool = False, context: int = 4000,
    schedule: tuple[ScheduledTree, ...] | None = None,
) -> Plan:  # fmt: skip
    """Return a plan of two GPUs that divide a stage, and perhaps a drafter; ``others``: GPUs of a stage behind it."""
    units, kv_heads = MODEL.layers[0].mlp.units, MODEL.layers[0].attention.num_kv_heads
    draft = make_draft(MODEL, kind="eagle")
    run = Run(num_layers=MODEL.num_layers - bool(others), kv_heads=(kv_heads,) * 2, mlp_units=even(units, 2))
    return make_plan(
        MODEL,
        [Group(devices=("a", "b"), runs=(run,), axis=axis, subgroups=(2,)), *[group(MODEL, others, 1)][: len(others)]],
        draft=draft,
        placement=shared_draft(MODEL, draft, ("a", "b"), axis, (2,), (draft.attention.num_kv_heads,))
        if divided_draft else None,
        devices=gpus("a", "b", *others), context=context, dtype="bfloat16", prefill_chunk=128, batch=4,
        tree=schedule[0].tree if schedule else TREE, schedule=schedule,
    )  # fmt: skip


@contextmanager
def stepper_of(plan: Plan, rank: int, captures: Captures) -> Iterator[Stepper]:
    watch = captures.watch
    with silent_messages(2), torch.inference_mode(), AsCuda(watch), watch, mock.patch.object(launch, "start"):
        memory = Memory(plan, plan.devices[rank].id, CUDA)
        comm = groups(plan, SilentMaker(rank=rank, progress=Progress()))
        yield Stepper(plan, MetaSlots(), memory, comm, CUDA, captures)


def begun(stepper: Stepper, prompt: int, sampling: Sampling | None, free: list[int]) -> int:
    place, _ = stepper.begin(tuple(range(prompt)), sampling, free, reuse=False)
    while not stepper.prefill(place):
        pass
    return place


def captured_now(stepper: Stepper, captures: Captures) -> list[Any]:
    """Return the signature of the next step, captured anew."""
    stepper.graphs._captured.clear()
    stepper.step()
    return captures.signatures[-1]


@pytest.mark.parametrize(
    ("plan", "rank", "draws"),
    [(one_gpu(), 0, False), (one_gpu(), 0, True), (one_gpu(None), 0, True), (two_gpus(), 1, False)],
    ids=["greedy", "sampled", "plain", "two devices"],
)
def test_a_captured_step_depends_on_nothing_that_the_host_knows(plan: Plan, rank: int, *, draws: bool) -> None:
    """Two sequences; then one of them is another, of another length and sampling, in an exchanged place."""
    captures, one = Captures(), Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=1)
    first, second = (one, dataclasses.replace(one, seed=2, temperature=1.3, top_k=None)) if draws else (None, None)
    with stepper_of(plan, rank, captures) as stepper:
        stepper.enter(Mode(draft=stepper.drafts, accept=None))
        places = [begun(stepper, 40, first, [0, 1, 2, 3])]
        places.append(begun(stepper, 20, second, [place for place in range(4) if place not in places]))
        for _ in range(3):
            stepper.step()
        expected = captured_now(stepper, captures)
        assert len(expected) > 50
        stepper.step()  # replayed
        assert captured_now(stepper, captures) == expected, "one step later"
        stepper.end(places[0])
        begun(stepper, 1500, second, [place for place in range(4) if place != places[1]])
        for _ in range(2):
            stepper.step()
        assert captured_now(stepper, captures) == expected, "other sequences"
    assert captures.faults == []


def test_ranks_that_nccl_connects_capture_the_same_steps() -> None:
    """One of them drafts: both capture, and replay, at the same time."""
    plan = two_gpus("context", context=1000)
    assert steps_line(plan) == "in CUDA graphs, 12 shapes at most"
    done = [states(plan, rank, 12) for rank in range(2)]
    assert done[0] == done[1]
    assert done[0] == [*["run"] * 3, "capture", *["replay"] * 8]


@pytest.mark.parametrize("plan", [two_gpus("head_dim", others=("c",)), two_gpus("head_dim", divided_draft=True)])
def test_where_gpus_divide_head_dim_nothing_is_captured(plan: Plan) -> None:
    """On none of them: collectives of NCCL would not meet. The memory table has no pool then."""
    assert not captures_steps(plan)
    assert steps_line(plan) == "run and not captured: GPUs divide head_dim"
    for rank, device in enumerate(plan.devices):
        assert set(states(plan, rank, 6)) == {"run"}
        assert POOL not in {buffer.name for buffer in device_buffers(plan, device.id)}


def test_steps_that_are_looked_at_are_run() -> None:
    """Those that are timed part by part, and those whose candidates are kept: a replay has no parts, and keeps none.

    Steps that accept a number of nodes whatever they are, for timing, are captured, apart from others.
    """
    with stepper_of(one_gpu(), 0, Captures()) as stepper:
        stepper.enter(Mode(draft=True, accept=None))
        begun(stepper, 40, None, [0, 1, 2, 3])
        for _ in range(3):
            stepper.step()
        shape = stepper._shape(stepper._work())
        assert shape is not None
        with mock.patch.object(stepper, "_mode", Mode(draft=True, accept=2)):
            forced = stepper._shape(stepper._work())
        assert forced == dataclasses.replace(shape, accept=2)
        with mock.patch.object(stepper._progress, "timings", object()):
            assert stepper._shape(stepper._work()) is None
        with mock.patch.object(stepper, "_mode", Mode(draft=True, accept=None, recorded=True)):
            assert stepper._shape(stepper._work()) is None


def states(plan: Plan, rank: int, steps: int) -> list[str]:
    """Return what a rank does in each of so many steps of a sequence, which has 3 positions more after each."""
    captures, done = Captures(), []
    with stepper_of(plan, rank, captures) as stepper:
        stepper.enter(Mode(draft=True, accept=None))
        begun(stepper, 40, None, [0, 1, 2, 3])
        run = stepper._compute

        def counted(*args: Any) -> None:
            done[-1] = "run"
            run(*args)

        with mock.patch.object(stepper, "_compute", counted):
            for _ in range(steps):
                done.append("replay")
                count = stepper.graphs.count
                stepper.step()
                if stepper.graphs.count > count:
                    done[-1] = "capture"
    return done


def test_every_shape_of_a_plan_is_captured_once() -> None:
    trees = {1: TREE, 2: SMALL, 3: None}
    schedule = tuple(ScheduledTree(sequences=sequences, tree=tree) for sequences, tree in trees.items())
    plan, captures = one_gpu(schedule=schedule), Captures()
    with stepper_of(plan, 0, captures) as stepper:
        for draft in (True, False):
            for running in stepper.counts:
                steps = stepper.steps([(0,)] * running, [None] * running, Mode(draft=draft, accept=None), reuse=False)
                for _ in range(5):
                    next(steps)
                steps.close()
        shapes = list(stepper.graphs._captured)
    assert 2 * len(shapes) == most_shapes(plan), "and as many where a sequence samples"
    assert {(shape.places, shape.tree) for shape in shapes if shape.drafted} == {(1, TREE), (2, SMALL), (4, None)}
    assert sorted(shape.places for shape in shapes if not shape.drafted) == [1, 2, 4]


def test_collectives_of_a_replay_are_reported_when_it_is_launched() -> None:
    """A watcher blames the rank that is behind in a group: a captured collective counts with each replay."""
    progress, shape = Progress(), Shape(drafted=False, accept=None, places=1, tree=None, sampled=False)

    def work() -> None:
        for group_name in ("stages[0]", "world"):
            with progress.collective(group_name, inside=False, queued=True):
                pass

    @contextmanager
    def capture() -> Iterator[Replay]:
        yield lambda: None

    graphs = Graphs(capture, progress, HostWork())
    for number in (1, 2, 3, 4):
        graphs.step(shape, work)
        assert (progress.status.queued, progress.status.number) == (b"world", number)
    assert graphs.count == 1
    with progress.reading():
        assert progress.status.group == b"world"
