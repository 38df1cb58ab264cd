"""Decoding on a GPU: times of steps, launches, memory, graphs, tokens."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch

import planner
from gpu_measures.bench import Bench, Decoder, no_waits, say, untried
from planner.demo_model import BASE, HEADS
from plans.buffers import device_buffers
from plans.graphs import POOL, RESERVED_BYTES
from plans.schema import DType
from runtime import Engine
from runtime.comm.host_work import HostWork
from runtime.comm.progress import Progress
from runtime.decode.graphs import Graphs
from runtime.processes.watchdog import WARM_UP_S
from runtime.sampling import Sampling


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
    for name, allowed, took in zip(("first", "second"), (limit + WARM_UP_S, limit), times, strict=True):
        say(f"{name} prefill and step, s", f"less than is allowed, {allowed}", f"{took:.2f}", took < allowed)


def steps(bench: Bench) -> None:
    decoder = Decoder.of(bench, 8192, captured=True)
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
        floor = decoder.floor_ms(bench, draft=draft)
        say(f"{name}: ms to read the weights of a step", "", "" if floor is None else f"{floor:.2f}")
        say(f"{name}: ms a step", bound, f"{took:.2f}", took < 1.3 * predicted if bound and bench.gpu else None)


def launches(bench: Bench) -> None:
    if not bench.gpu:
        untried("launches of a step", "a CPU launches nothing")
        return
    decoder = Decoder.of(bench, 8192)
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.9, seed=1)
    for draft, drawn in ((False, None), (True, None), (True, sampling)):
        name = f"{'EAGLE' if draft else 'plain'}{', sampled' if drawn else ''}"
        stream = decoder.steps(100, draft=draft, sampling=drawn)
        for _ in range(4):
            next(stream)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            next(stream)
            bench.sync()
        kernels = [event for event in profile.events() if event.device_type.name == "CUDA"]
        took = sum(event.device_time for event in kernels) / 1e3
        say(f"{name}: launches of a step, and ms in them", "", f"{len(kernels)}, {took:.2f}")


def memory(bench: Bench) -> None:
    decoder = Decoder.of(bench, 65536)
    plan, device = decoder.plan, decoder.plan.devices[0]
    static = torch.cuda.memory_allocated(bench.device) if bench.gpu else 0
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    for draft in (True, False):
        with closing(decoder.steps(plan.options.context - 100, draft=draft, reuse=not draft)) as stream:
            for _ in range(4):
                next(stream)
    buffers = device_buffers(plan, device.id)
    scratch = sum(buffer.nbytes for buffer in buffers if buffer.scratch and buffer.name != POOL)
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
    """Replay steps as CUDA graphs, and run them: the same tokens, less time, no more memory than planned."""
    decoder = Decoder.of(bench, 8192, captured=True)
    captured, launched = decoder.stepper.graphs, Graphs(None, Progress(), HostWork())
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.9, seed=1)
    for draft, drawn in ((False, None), (True, None), (True, sampling)):
        name = f"{'EAGLE' if draft else 'plain'}{', sampled' if drawn else ''}"
        found = []
        for graphs in (captured, launched):
            decoder.stepper.graphs = graphs
            with closing(decoder.steps(decoder.plan.options.context // 2, draft=draft, sampling=drawn)) as stream:
                texts = [next(stream) for _ in range(6)]
                bench.sync()
                begin, times = time.perf_counter(), 20
                texts += [next(stream) for _ in range(times)]
                bench.sync()
                took = (time.perf_counter() - begin) / times * 1e3
            found.append(([taken.tokens for (taken,) in texts if taken is not None], took))
        (replayed, graph_ms), (expected, ms) = found
        equal = replayed == expected
        say(f"{name}: tokens", "those of steps that are run", "equal" if equal else "other", equal)
        if bench.gpu:
            say(f"{name}: ms in a graph, and launched", "less in a graph", f"{graph_ms:.3f}, {ms:.3f}", graph_ms < ms)
        else:
            untried(f"{name}: a step in a graph", "a CPU has no graphs")
    if decoder.capture is not None:
        planned, taken = decoder.memory.planned_bytes(POOL) + RESERVED_BYTES, decoder.capture.pool_bytes()
        say(f"bytes of the pool of {captured.count} graphs", f"at most {planned}", taken, taken <= planned)


PROMPTS = ("import os\n\nclass Reader:\n    def", "def main(", "    for name in", "# The first")


def _texts(
    bench: Bench, dtype: DType, prompts: Sequence[str]
) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Yield temperature, and tokens of the embedded model, plain and drafted, of each prompt."""
    with tempfile.TemporaryDirectory() as directory:
        result = planner.plan(
            BASE, draft=HEADS["eagle3"], inventory=bench.inventory(Path(directory)), context=256, dtype=dtype
        )
        target = result.write(Path(directory) / "plan")
        planner.compile(target, model=BASE, draft=HEADS["eagle3"])
        with Engine.open(target) as engine:
            for prompt in prompts:
                for temperature in (0.0, 0.8):
                    plain, drafted = (
                        engine.generate(
                            prompt, max_new_tokens=60, draft=draft, ignore_eos=True, temperature=temperature, seed=5
                        ).tokens
                        for draft in (False, True)
                    )
                    yield temperature, plain, drafted


def tokens(bench: Bench) -> None:
    texts = {
        (name, temperature): both
        for name in dict.fromkeys(("cpu", bench.device.type))
        for temperature, *both in _texts(Bench(torch.device(name)), "float32", PROMPTS[:1])
    }
    for temperature in (0.0, 0.8):
        where, (plain, drafted) = f"temperature {temperature}", texts[bench.device.type, temperature]
        say(f"{where}: float32, EAGLE against plain", "the same", _alike(plain, drafted), plain == drafted)
        cpu, _ = texts["cpu", temperature]
        say(f"{where}: float32, this device against the CPU", "the same", _alike(plain, cpu), plain == cpu)


def agreement(bench: Bench) -> None:
    """Compare texts in 16 bits with and without the drafter: a CPU has the same, a GPU other products of few rows."""
    texts = list(_texts(bench, "bfloat16", PROMPTS))
    for temperature in (0.0, 0.8):
        pairs = [(plain, drafted) for own, plain, drafted in texts if own == temperature]
        same = sum(_common(*pair) for pair in pairs)
        count, right = sum(len(plain) for plain, _ in pairs), None if bench.gpu else all(a == b for a, b in pairs)
        expected = "" if bench.gpu else f"{count} of {count}"
        what = f"temperature {temperature}: bfloat16, tokens up to the first that differs, EAGLE against plain"
        say(what, expected, f"{same} of {count}", right)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return the number of tokens before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    return f"the first {_common(one, other)} of {len(one)} tokens"
