"""A device with plans and random weights for it, and the rows that a part prints."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import planner
from planner.demo_model import BASE, HEADS
from planner.hardware.catalog import DeviceType, catalog
from plans.graphs import POOL
from plans.quantized import has_codes
from plans.schema import Plan
from runtime.comm.groups import Group
from runtime.comm.meeting import connect
from runtime.comm.progress import Progress
from runtime.decode.graphs import CudaCapture
from runtime.decode.messages import Channel, Message, Notice
from runtime.decode.step import Stepper
from runtime.decode.work import Mode, Taken
from runtime.image.buffers import Memory
from runtime.image.dtypes import DTYPES
from runtime.model import ops
from runtime.sampling import Sampling

ROOT = Path(__file__).resolve().parents[2]
LARGE = ROOT / "plans/llama8b-1gpu"
LARGE_BYTES, LONG_BYTES = 24 << 30, 48 << 30
"""Memory from which the 8B model is planned, below it the embedded one; and from which its context is longer than
MOST_CONTEXT."""
MOST_CONTEXT = 8192
GIGA = 1e9
ALONE = Group(name="check", ranks=(0,), rank=0, handle=None)


def say(what: str, predicted: object, measured: object, right: bool | None = None) -> None:
    """Print a row; ``right``: None where the figure has no bound."""
    verdict = "-" if right is None else "ok" if right else "WRONG"
    row = {"what": what, "predicted": str(predicted), "measured": str(measured), "verdict": verdict}
    print(json.dumps(row), flush=True)


def say_rate(bench: "Bench", what: str, rate: float) -> None:
    """Print a bandwidth beside what the planner counts on, of which three quarters are expected."""
    known = bench.gb_per_s
    say(what, f"{known:.0f}" if known else "", f"{rate:.0f}", rate > 0.75 * known if known else None)


def untried(what: str, why: str) -> None:
    """Print a row that says why something was not tried."""
    print(json.dumps({"what": what, "predicted": "", "measured": why, "verdict": "not tried"}), flush=True)


@dataclass(frozen=True)
class Bench:
    """A device, and plans for it."""

    device: torch.device
    small: bool = False
    """The embedded model and small matrices on a GPU, too."""

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def full(self) -> bool:
        """True where sizes are those of an 8B model."""
        return self.gpu and not self.small

    @cached_property
    def type(self) -> DeviceType | None:
        """The device's type in the catalogue; None where it is not there, and for a CPU."""
        if not self.gpu:
            return None
        properties = torch.cuda.get_device_properties(self.device)
        named = [kind for kind in catalog().devices.values() if any(name in properties.name for name in kind.names)]
        fitting = [kind for kind in named if (kind.memory_bytes or 0) <= properties.total_memory]
        return max(fitting, key=lambda kind: (max(map(len, kind.names)), kind.memory_bytes or 0), default=None)

    @cached_property
    def gb_per_s(self) -> float | None:
        """80 % of the datasheet's bandwidth, which the planner counts on; None where there is none."""
        return 0.8 * self.type.bandwidth_bytes_per_s / GIGA if self.type and self.type.bandwidth_bytes_per_s else None

    @cached_property
    def dtype(self) -> torch.dtype:
        """16 bits of the kind that the device has units for; on a CPU float32."""
        if not self.gpu:
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(self.device)[0] >= 8 else torch.float16

    def sync(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def ms(self, work: Callable[[], object], times: int = 20) -> float:
        """Return the mean time of a piece of work, in ms."""
        for _ in range(3):
            work()
        self.sync()
        begin = time.perf_counter()
        for _ in range(times):
            work()
        self.sync()
        return (time.perf_counter() - begin) / times * 1e3

    def inventory(self, directory: Path) -> Path:
        """Write an inventory of this device alone."""
        entry: dict[str, object] = {"id": "d0", "type": "cpu", "memory": "8 GiB", "bandwidth": "20 GB/s"}
        if self.gpu and self.type is not None:
            entry = {"id": "d0", "type": self.type.name}
        elif self.gpu:
            total = torch.cuda.get_device_properties(self.device).total_memory
            entry = {"id": "d0", "type": "this-gpu", "memory": total, "bandwidth": "500 GB/s", "flops": "50 TFLOP/s"}
        file = directory / "inventory.yaml"
        file.write_text(json.dumps({"hosts": [{"name": "here", "devices": [entry]}]}))
        return file

    def plan(self, context: int) -> Plan:
        """Return a plan for this device: of the 8B model where there is room for it, else of the embedded one."""
        total = torch.cuda.get_device_properties(self.device).total_memory if self.full else 0
        large = total >= LARGE_BYTES
        context = min(context, context if total >= LONG_BYTES else MOST_CONTEXT if large else 512)
        model, draft = (LARGE / "config.json", LARGE / "draft/config.json") if large else (BASE, HEADS["eagle3"])
        with tempfile.TemporaryDirectory() as directory:
            return planner.plan(
                model,
                draft=draft,
                inventory=self.inventory(Path(directory)),
                context=context,
                dtype=str(self.dtype).removeprefix("torch."),  # type: ignore[arg-type]
            ).plan


class RandomSlots:
    """Random weights, made where they lie."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes: dict[str, int] = {}
        """Of each matrix that was asked for."""

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if len(shape) > 1:
            self.bytes[name] = math.prod(shape) * dtype.itemsize
        if dtype == torch.int64:
            return torch.zeros(shape, dtype=dtype, device=self._device)
        if len(shape) == 1:  # norms, biases, frequencies
            return torch.ones(shape, dtype=dtype, device=self._device)
        return torch.empty(shape, dtype=dtype, device=self._device).normal_(0.0, shape[-1] ** -0.5)


@dataclass
class Decoder:
    """A stepper of random weights with its memory."""

    plan: Plan
    memory: Memory
    stepper: Stepper
    slots: RandomSlots
    capture: CudaCapture | None

    @classmethod
    def of(cls, bench: Bench, context: int, *, captured: bool = False) -> "Decoder":
        """Return a decoder; ``captured``: on a GPU, of steps in CUDA graphs."""
        plan = bench.plan(context)
        if not bench.gpu:
            ops.prepare(DTYPES[plan.options.dtype], codes=has_codes(plan.model))
        with torch.inference_mode():
            memory = Memory(plan, plan.devices[0].id, bench.device)
            comm = connect(plan, 0, None, Progress(), ops.exchange)
            slots = RandomSlots(bench.device)
            capture = None
            if captured and bench.gpu:
                capture = CudaCapture(bench.device, memory.device_id, memory.planned_bytes(POOL))
            return cls(plan, memory, Stepper(plan, slots, memory, comm, bench.device, capture), slots, capture)

    def floor_ms(self, bench: Bench, *, draft: bool) -> float | None:
        """Return the time in which a device reads what a step needs of the weights, at the bandwidth that the planner
        counts on; None where it is not known.
        """
        if bench.gb_per_s is None:
            return None
        read = {name: nbytes for name, nbytes in self.slots.bytes.items() if "embed" not in name}
        passes = 1 + self.plan.options.tree.depth if draft and self.plan.options.tree is not None else 0
        drafted = sum(nbytes for name, nbytes in read.items() if name.startswith("draft."))
        return (sum(read.values()) + (passes - 1) * drafted) / bench.gb_per_s / 1e6

    def steps(
        self, length: int, *, draft: bool, sampling: Sampling | None = None, reuse: bool = False
    ) -> Generator[list[Taken | None], None, None]:
        """Yield after a prefill of ``length`` tokens, and after each step; a drafting step accepts three nodes.

        ``reuse``: the prompt is not read again where the caches have it.
        """
        mode, vocabulary = Mode(draft=draft, accept=3 if draft else None), self.plan.model.vocab_size
        prompt = tuple(1 + i * 7 % (vocabulary - 1) for i in range(length))
        return self.stepper.steps([prompt], [sampling], mode, reuse=reuse)


@contextmanager
def no_waits(bench: Bench) -> Iterator[None]:
    """Raise where the host waits for the GPU, but for the read of the step message; not at small sizes."""
    if not bench.full:
        yield
        return
    read = Channel.read

    def allowed(channel: Channel) -> tuple[list[Message], Notice]:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return read(channel)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    with mock.patch.object(Channel, "read", allowed):
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
