"""The parts of gpu_check, each in a process of its own: ``python tools/gpu_parts.py PART [--device cuda|cpu]``.

A part prints a JSON object a line: what it tried, what was predicted, what was measured, and the verdict. Weights are
random and made on the device, so that a plan of 16 GB is ready in seconds; only `tokens` compiles images. On a CPU, the
same code runs on the embedded model, as far as it needs no GPU.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor

import planner
from planner.demo_model import BASE, HEADS
from planner.hardware.catalog import DeviceType, catalog
from plans.buffers import device_buffers
from plans.quantized import has_codes
from plans.schema import Plan
from runtime import Engine
from runtime.comm.groups import Group
from runtime.comm.meeting import connect
from runtime.comm.progress import Progress
from runtime.decode.messages import Channel, Message, Notice
from runtime.decode.step import Mode, Stepper
from runtime.image.buffers import Memory
from runtime.image.dtypes import DTYPES
from runtime.image.slots import CudaCopies
from runtime.image.transfer import Host, hash_file, upload
from runtime.model import layers, ops
from runtime.model.experts import Experts
from runtime.model.layers import Linear
from runtime.model.mask import Mask, splits_of, words_of
from runtime.model.router import Router
from runtime.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
LARGE = ROOT / "plans/llama8b-1gpu"
LARGE_BYTES, LONG_BYTES = 24 << 30, 48 << 30
"""Memory from which the 8B model is planned, below it the embedded one; and from which its context is longer than
MOST_CONTEXT."""
MOST_CONTEXT = 8192
GIGA = 1e9
ALONE = Group(name="check", ranks=(0,), rank=0, staged=False, handle=None)


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

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

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
        total = torch.cuda.get_device_properties(self.device).total_memory if self.gpu else 0
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

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
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

    @classmethod
    def of(cls, bench: Bench, context: int) -> "Decoder":
        plan = bench.plan(context)
        if not bench.gpu:
            ops.prepare(DTYPES[plan.options.dtype], codes=has_codes(plan.model))
        with torch.inference_mode():
            memory = Memory(plan, plan.devices[0].id, bench.device)
            comm = connect(plan, 0, None, Progress(), ops.exchange)
            return cls(plan, memory, Stepper(plan, RandomSlots(bench.device), memory, comm, bench.device))

    def steps(self, length: int, *, draft: bool, sampling: Sampling | None = None) -> Iterator[object]:
        """Yield after a prefill of ``length`` tokens, and after each step; a drafting step accepts three nodes."""
        mode, vocabulary = Mode(draft=draft, accept=3 if draft else None), self.plan.model.vocab_size
        prompt = tuple(1 + i * 7 % (vocabulary - 1) for i in range(length))
        return self.stepper.steps([prompt], [sampling], mode, reuse=False)


@contextmanager
def no_waits(bench: Bench) -> Iterator[None]:
    """Raise where the host waits for the GPU, but for the read of the step message."""
    if not bench.gpu:
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


def machine(bench: Bench) -> None:
    say("torch", "", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    if bench.gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        kind = bench.type
        say("name", "in the catalogue", f"{properties.name}: {kind.name if kind else 'no type'}", kind is not None)
        if kind is not None and kind.memory_bytes is not None:
            total = properties.total_memory
            say("memory", f"at least {kind.memory_bytes}", total, total >= kind.memory_bytes)
            capability = 10 * properties.major + properties.minor
            say("compute capability", kind.compute_capability, capability, capability == kind.compute_capability)
    source = torch.empty(1 << (31 if bench.gpu else 26), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    rate = 2 * source.numel() / bench.ms(lambda: target.copy_(source), 10) / 1e6
    say_rate(bench, "copy: GB/s", rate)


def _attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return attention in float32: [B * n, h * D]."""
    keys, values = (x.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q.float() @ keys.transpose(2, 3) / q.shape[3] ** 0.5 + bias.float()
    out: Tensor = scores.softmax(-1) @ values
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


@dataclass(frozen=True)
class Attended:
    """Attention of 32 query heads to 8 KV heads of 128: a chain of n rows behind half of a cache, or a chunk in it."""

    qkv: Tensor
    cache: Tensor
    mask: Mask
    bias: Tensor
    """[1, 1, n, rows] of the cache, as the mask has it."""

    @classmethod
    def of(cls, bench: Bench, n: int, rows: int, dtype: torch.dtype) -> "Attended":
        device, start, length = bench.device, 64, rows // 2
        tree = n if n <= start else 0
        cache = torch.randn(1, rows, 16, 128, device=device).to(dtype)
        number, column = torch.arange(n, device=device).unsqueeze(1), torch.arange(rows, device=device)
        chain, before = (column >= start - tree) & (column <= start - tree + number), column - start < length
        seen = torch.where(column < start, chain, before if tree else column - start <= length + number)
        mask = Mask(
            positions=(length + number).flatten(), ancestors=words_of(seen[:, start - tree : start]) if tree else None,
            lengths=torch.full((1, 1), length, device=device), appended=0 if tree else n, tree=tree, start=start,
            window=None, part=0, parts=1, splits=splits_of(rows - start, n, 512),
        )  # fmt: skip
        bias = torch.zeros(n, rows, device=device, dtype=bench.dtype).masked_fill_(~seen, float("-inf"))
        qkv = torch.randn(n, 48, 128, device=device).to(bench.dtype)
        return cls(qkv, cache, mask, bias[None, None])

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and the bias."""
        seen = self.cache.transpose(1, 2)
        return self.qkv[:, :32].unsqueeze(0).transpose(1, 2), seen[:, :8], seen[:, 8:], self.bias

    def __call__(self) -> Tensor:
        if self.qkv.is_cuda:
            return layers.attend_by_mask(self.qkv, 32, self.cache, 0, self.mask)
        return layers.attend(*self.operands)


def _peak(bench: Bench, work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return a result, and the bytes that making it took at most, with it."""
    if not bench.gpu:
        return work(), 0
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    result = work()
    return result, torch.cuda.max_memory_allocated(bench.device) - before


def _planned(n: int, splits: int, dtype: torch.dtype) -> int:
    """Return the bytes of the result, and of the splits that are merged."""
    merged = n * 32 * (128 + 1) * 4 * splits if splits > 1 else 0
    return n * 32 * 128 * dtype.itemsize + merged + 4096


def _check_attention(bench: Bench, what: str, attended: Attended, most: float) -> None:
    out, peak = _peak(bench, attended)
    error = (out.float() - _attended(*attended.operands)).abs().max().item()
    say(f"{what}: error against float32", f"< {most}", f"{error:.5f}", error < most)
    if bench.gpu:
        planned = _planned(out.shape[0], attended.mask.splits, bench.dtype)
        say(f"{what}: bytes of temporaries", f"at most {planned}", peak, peak <= planned)
        same = torch.equal(out, attended())
        say(f"{what}: the same bits twice", True, same, same)
    took = bench.ms(attended)
    read = attended.cache.nbytes // 2
    say(f"{what}: ms", "", f"{took:.3f} ({read / took / 1e6:.0f} GB/s of keys and values)")


def attention(bench: Bench) -> None:
    rows = 8192 if bench.gpu else 512
    for n, what in ((1, "plain"), (60, "tree"), (512, "chunk")):
        _check_attention(bench, what, Attended.of(bench, n, rows if n < 512 else 2 * rows, bench.dtype), 0.01)


def float8(bench: Bench) -> None:
    rows = 16384 if bench.gpu else 512
    for n, what in ((1, "plain"), (60, "tree")):
        _check_attention(bench, what, Attended.of(bench, n, rows, torch.float8_e4m3fn), 0.02)


def experts(bench: Bench) -> None:
    hidden, channels, number, picked = (4096, 1792, 8, 2) if bench.gpu else (64, 48, 8, 2)
    gate_up = torch.randn(number, 2 * channels, hidden, device=bench.device).to(bench.dtype).mul_(hidden**-0.5)
    down = torch.randn(number, hidden, channels, device=bench.device).to(bench.dtype).mul_(channels**-0.5)
    router = torch.randn(number, hidden, device=bench.device).to(bench.dtype)
    block = Experts(
        router=Router(product=Linear(weight=router.t(), bias=None), picked=picked, normed=True),
        gate_up=gate_up, down=down, group=ALONE,
    )  # fmt: skip
    for rows in (1, 60):
        x = torch.randn(rows, hidden, device=bench.device).to(bench.dtype)
        weights, chosen = block.router(x)
        expected = torch.zeros(rows, hidden, device=bench.device)
        for expert in range(number):
            gate, up = (x.float() @ gate_up[expert].float().t()).chunk(2, 1)
            result = (functional.silu(gate) * up) @ down[expert].float().t()
            expected += result * (weights * (chosen == expert)).sum(1, keepdim=True)
        zeros = torch.zeros_like(x)
        block(x, zeros)
        with no_waits(bench):
            out = block(x, zeros)
        error = ((out.float() - expected).abs().max() / expected.abs().max()).item()
        say(f"{rows} rows: relative error, without a wait", "< 0.03", f"{error:.4f}", error < 0.03)
        took = bench.ms(lambda x=x, zeros=zeros: block(x, zeros))  # type: ignore[misc]
        read = (gate_up.nbytes + down.nbytes) * len(chosen.unique()) / number
        say(f"{rows} rows: ms", "", f"{took:.3f} ({read / took / 1e6:.0f} GB/s of the experts that are picked)")


def first_use(bench: Bench) -> None:
    decoder = Decoder.of(bench, 8192)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        stream = decoder.steps(64, draft=True)
        next(stream)
        next(stream)
        bench.sync()
        times.append(time.perf_counter() - begin)
    limit = decoder.plan.options.stall_timeout_s
    say("first prefill and step, s", f"less than the stall time-out, {limit}", f"{times[0]:.2f}", times[0] < limit)
    say("second prefill and step, s", "", f"{times[1]:.2f}")


def steps(bench: Bench) -> None:
    decoder = Decoder.of(bench, 8192)
    plan = decoder.plan
    predicted = plan.proof.objective_ns / 1e6
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.9, seed=1)
    for draft, drawn in ((False, None), (True, None), (True, sampling)):
        name = f"{'EAGLE' if draft else 'plain'}{', sampled' if drawn else ''}"
        stream = decoder.steps(plan.options.context // 2, draft=draft, sampling=drawn)
        for _ in range(5):
            next(stream)
        with no_waits(bench):
            next(stream)
        if bench.gpu:
            say(f"{name}: waits of the host beside the read", 0, 0, True)
        else:
            untried(f"{name}: waits of the host beside the read", "a CPU does not wait")
        bench.sync()
        begin, times = time.perf_counter(), 30
        for _ in range(times):
            next(stream)
        bench.sync()
        took = (time.perf_counter() - begin) / times * 1e3
        bound = f"{predicted:.2f}" if draft and drawn is None else ""
        say(f"{name}: ms a step", bound, f"{took:.2f}", took < 1.3 * predicted if bound and bench.gpu else None)


def memory(bench: Bench) -> None:
    decoder = Decoder.of(bench, 65536)
    plan, device = decoder.plan, decoder.plan.devices[0]
    static = torch.cuda.memory_allocated(bench.device) if bench.gpu else 0
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    for draft in (True, False):
        stream = decoder.steps(plan.options.context - 100, draft=draft)
        for _ in range(4):
            next(stream)
    buffers = device_buffers(plan, device.id)
    scratch = sum(buffer.nbytes for buffer in buffers if buffer.scratch)
    allocated, planned = decoder.memory.measured(), sum(buffer.nbytes for buffer in buffers if not buffer.scratch)
    if not bench.gpu:
        say("bytes of buffers", planned, sum(allocated.values()), sum(allocated.values()) == planned)
        untried("bytes of temporaries", "a CPU does not count them")
        return
    peak = torch.cuda.max_memory_allocated(bench.device) - static
    say(f"bytes of temporaries, context {plan.options.context}", f"at most {scratch}", peak, peak <= scratch)
    free, total = torch.cuda.mem_get_info(bench.device)
    outside = total - free - torch.cuda.memory_reserved(bench.device)
    loose = torch.cuda.memory_reserved(bench.device) - torch.cuda.max_memory_allocated(bench.device)
    reserve = device.reserve_bytes
    say("bytes outside torch's allocator", f"at most the reserve, {reserve}", outside, outside <= reserve)
    say("bytes that the allocator holds unused", "", loose)


def graph(bench: Bench) -> None:
    decoder = Decoder.of(bench, 8192)
    options, base = decoder.plan.options, decoder.stepper._parts.base
    assert options.tree is not None
    assert base is not None
    nodes = options.tree.total_token
    tokens = torch.ones(1, nodes, dtype=torch.int64, device=bench.device)
    mask = torch.ones(1, nodes, nodes, dtype=torch.bool, device=bench.device).tril()

    def verify() -> Tensor:
        forward = base.verify(tokens, mask, 0)
        assert forward is not None
        return forward.lm_head.best(forward.normed)

    with torch.inference_mode():
        eager = bench.ms(verify)
        if not bench.gpu:
            say("verify, eager: ms", "", f"{eager:.3f}")
            untried("verify, captured", "a CPU has no graphs")
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            verify()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            verify()
        say("verify, eager and captured: ms", "captured is shorter", f"{eager:.3f}, {bench.ms(captured.replay):.3f}")


def tokens(bench: Bench) -> None:
    texts = {}
    for name in dict.fromkeys(("cpu", bench.device.type)):
        other = Bench(torch.device(name))
        with tempfile.TemporaryDirectory() as directory:
            result = planner.plan(
                BASE, draft=HEADS["eagle3"], inventory=other.inventory(Path(directory)), context=256, dtype="float32"
            )
            target = result.write(Path(directory) / "plan")
            planner.compile(target, model=BASE, draft=HEADS["eagle3"])
            with Engine.open(target) as engine:
                for draft in (False, True):
                    for temperature in (0.0, 0.8):
                        done = engine.generate(
                            "import os\n\nclass Reader:\n    def", max_new_tokens=60, draft=draft, ignore_eos=True,
                            temperature=temperature, seed=5,
                        )  # fmt: skip
                        texts[name, draft, temperature] = done.tokens
    for temperature in (0.0, 0.8):
        where = f"temperature {temperature}"
        plain, drafted = (texts[bench.device.type, draft, temperature] for draft in (False, True))
        say(f"{where}: float32, EAGLE against plain", "the same", _alike(plain, drafted), _agree(plain, drafted))
        cpu = texts["cpu", False, temperature]
        say(f"{where}: float32, this device against the CPU", "the same", _alike(plain, cpu), _agree(plain, cpu))


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return f"the first {same} of {len(one)} tokens"


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one == other


def load(bench: Bench) -> None:
    size = (4 << 30) if bench.gpu else (64 << 20)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "image"
        block = os.urandom(32 << 20)
        with file.open("wb") as out:
            for _ in range(size // len(block)):
                out.write(block)
        descriptor = os.open(file, os.O_RDONLY)
        for hashed in (False, True):
            begin = time.perf_counter()
            if bench.gpu:
                target = torch.empty(size, dtype=torch.uint8, device=bench.device)
                upload(descriptor, (0, size), file, CudaCopies(target), Host(), hashed=hashed)
                bench.sync()
                right = target[-len(block) :].cpu().numpy().tobytes() == block
            else:
                hash_file(descriptor, size, file)
                right = True
            rate = size / (time.perf_counter() - begin) / GIGA
            name = f"from the page cache, {'hashed' if hashed else 'not hashed'}: GB/s"
            say(name, "", f"{rate:.1f}", None if right else False)
        os.close(descriptor)


def products(bench: Bench) -> None:
    shapes = ((28672, 4096), (4096, 14336), (128256, 4096)) if bench.gpu else ((512, 256),)
    for outputs, inputs in shapes:
        count = max(2, int(3e8 / (outputs * inputs * 2)) + 1) if bench.gpu else 2  # more than its caches hold
        weights = [torch.randn(outputs, inputs, device=bench.device).to(bench.dtype) for _ in range(count)]
        for rows in (1, 10, 60):
            x, turn = torch.randn(rows, inputs, device=bench.device).to(bench.dtype), iter(range(10**9))
            work = lambda x=x, turn=turn, weights=weights: ops.product(x, weights[next(turn) % len(weights)].t())  # noqa: E731
            rate = weights[0].nbytes / bench.ms(work, 50) / 1e6
            say_rate(bench, f"{outputs} x {inputs}, {rows} rows: GB/s", rate)


def _member(rank: int, file: str, backend: str, times: "multiprocessing.Queue[float]") -> None:
    """Begin an all-reduce that the other member joins two seconds later; report when the call has returned."""
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=dist.FileStore(file, 2), rank=rank, world_size=2)
    x = torch.ones(1 << 20, device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    dist.all_reduce(x)
    x.sum().item()
    time.sleep(2.0 * rank)
    begin = time.perf_counter()
    dist.all_reduce(x)
    if rank == 0:
        times.put(time.perf_counter() - begin)
    x.sum().item()
    if rank == 0:
        times.put(time.perf_counter() - begin)
    dist.destroy_process_group()


def nccl(bench: Bench) -> None:
    if bench.gpu and torch.cuda.device_count() < 2:
        untried("an all-reduce whose other member comes late", "one GPU")
        return
    backend = "nccl" if bench.gpu else "gloo"
    with tempfile.TemporaryDirectory() as directory:
        context = multiprocessing.get_context("spawn")
        times: multiprocessing.Queue[float] = context.Queue()
        members = [context.Process(target=_member, args=(r, f"{directory}/store", backend, times)) for r in range(2)]
        for member in members:
            member.start()
        returned, done = times.get(timeout=25), times.get(timeout=25)
        for member in members:
            member.join(10)
    expected, at_once = "at once" if bench.gpu else "2", returned < 1
    say(f"{backend}: the call returns after s", expected, f"{returned:.2f}", at_once == bench.gpu)
    say(f"{backend}: its result is there after s", "2", f"{done:.2f}", done > 1)


def devices(bench: Bench) -> None:
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    listed = ", ".join(f"{index}: {entry.name} {getattr(entry, 'uuid', '')}" for index, entry in enumerate(names))
    say("devices that torch sees", "", listed or "none")
    detect = [sys.executable, "-m", "planner", "inventory", "--detect", "-"]
    detected = subprocess.run(detect, cwd=ROOT, capture_output=True, text=True)
    first = next((line for line in detected.stderr.splitlines() if line), "")[:60]
    right = detected.returncode == 0 if bench.gpu else detected.returncode in (0, 5)
    say("inventory --detect", "an inventory" if bench.gpu else "no GPU", f"exit {detected.returncode}: {first}", right)
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    seen = subprocess.run(program, env=hidden, capture_output=True, text=True).stdout.strip()
    say("devices with CUDA_VISIBLE_DEVICES empty", 0, seen, seen == "0")
    if not bench.gpu:
        untried("MIG slices", "a CPU has none")
        return
    report = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    slices = [line for line in report.splitlines() if "MIG" in line]
    if slices:
        say("MIG slices", "one a process", f"{len(slices)}; torch sees {torch.cuda.device_count()}")
    else:
        untried("MIG slices", "this GPU is not divided")


PARTS = {part.__name__: part for part in (
    machine, attention, float8, experts, first_use, steps, memory, graph, tokens, load, products, nccl, devices,
)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 5
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    PARTS[options.part](Bench(torch.device("cuda:0" if options.device == "cuda" else "cpu")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
