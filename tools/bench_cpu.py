"""The CPU kernels beside torch and transformers: products, prefill, and where the time of a step goes.

    python tools/bench_cpu.py [--model DIR] [--dtype bfloat16] [--rounds 5]

The model is a checkpoint, by default the random Llama of 134 M parameters of ``bench_decode``, with its random EAGLE-3
head. All contenders take turns in one process, with the same threads, and ratios are medians of pairs. With one thread
(`taskset -c 0`) times are processor times, which other programs disturb less. Tables:

    products   x [rows, inputs] @ weight [outputs, inputs].T, ours and torch.mm, over more weights than caches hold
    prefill    a prompt of 1000 tokens, ours and transformers' `generate` of one token
    step       plain and EAGLE decoding, where every step accepts three tokens: by kernel; the rest is the host's
    weights    plain decoding with weights in the plan's dtype, 8 and 4 bits (with ``--weights``, instead of the others)
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench_decode import built, random_head, random_llama
from runtime.engine import Engine
from runtime.image.dtypes import DTYPES
from runtime.model import ops
from runtime.request import Request

ROWS = (1, 4, 8, 12, 16, 60, 256)
INPUTS, OUTPUTS = 768, 2304
WEIGHT_BYTES = 96 << 20
"""Bytes of all weights of a product's turns: more than the caches hold."""
WEIGHTS: tuple[str | None, ...] = (None, "int8", "int4-g32")
PROMPT, SHORT, TOKENS, CONTEXT = 1000, 32, 128, 2048


def clock() -> float:
    """Return the processor time of this thread where torch has one thread, else the time of day, in s."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def taken(run: Callable[[], object]) -> float:
    """Return the time that a call takes, in s."""
    started = clock()
    run()
    return clock() - started


def products(dtype: torch.dtype, rounds: int) -> None:
    """Print the times of products of some rows, ours and torch's."""
    count = max(2, WEIGHT_BYTES // (INPUTS * OUTPUTS * dtype.itemsize))
    weights = [(torch.randn(OUTPUTS, INPUTS) / INPUTS**0.5).to(dtype).t() for _ in range(count)]
    print(f"product {INPUTS} x {OUTPUTS}, {dtype}, us\n\n| rows | ours | torch | torch / ours | ours / one row |")
    print("|---|---|---|---|---|")
    single = 0.0
    for rows in ROWS:
        x = torch.randn(rows, INPUTS).to(dtype)
        ours, torchs = [], []
        for number in range(10 * rounds * count // 4 if rows < 60 else 2 * rounds):
            one, other = weights[number % count], weights[(number + count // 2) % count]
            ours.append(taken(lambda one=one, x=x: ops.product(x, one)))  # type: ignore[misc]
            torchs.append(taken(lambda other=other, x=x: torch.mm(x, other)))  # type: ignore[misc]
        mine, theirs = statistics.median(ours), statistics.median(torchs)
        single = single or mine
        pairs = statistics.median(b / a for a, b in zip(ours, torchs, strict=True))
        print(f"| {rows} | {mine * 1e6:.0f} | {theirs * 1e6:.0f} | {pairs:.2f} | {mine / single:.2f} |")


def prefill(engine: Engine, base: Path, dtype: torch.dtype, rounds: int) -> None:
    """Print the time of a prefill, ours and transformers'."""
    model, prompt = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval(), ids(PROMPT)
    threads, ours, theirs = torch.get_num_threads(), [], []

    def reference() -> None:
        with torch.inference_mode():
            model.generate(torch.tensor([prompt]), max_new_tokens=1, do_sample=False, pad_token_id=0)

    for number in range(rounds + 1):
        torch.set_num_threads(threads)
        pair = taken(lambda: serve(engine, prompt, 1, draft=False)), taken(reference)
        if number:  # the first round warms up
            ours.append(pair[0])
            theirs.append(pair[1])
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(f"\nprefill of {PROMPT} tokens: {statistics.median(ours) * 1e3:.0f} ms, transformers "
          f"{statistics.median(theirs) * 1e3:.0f} ms, {ratio:.2f} x")  # fmt: skip


def steps(engine: Engine, rounds: int) -> None:
    """Print the time of a step of plain and of EAGLE decoding, and of each kernel in it."""
    block = torch.ones(1 << 27)
    reading = block.nbytes / min(taken(lambda: block.sum()) for _ in range(5))
    print(
        f"\nreading memory: {reading / 1e9:.1f} GB/s, {torch.get_num_threads()} threads\n\n"
        "| ms per step | time | calls |\n|---|---|---|"
    )
    per_token: dict[bool, float] = {}
    for draft in (False, True) if engine.plan.draft else (False,):
        results = [decoded(engine, draft) for _ in range(rounds)]
        number = len(results[0][2])
        step = statistics.median(time_s for time_s, *_ in results)
        per_token[draft] = step * number / (TOKENS - 1)
        print(f"| **{'EAGLE' if draft else 'plain'}** | {step * 1e3:.2f} | |")
        names = results[0][1]
        host = step
        for name in sorted(names, key=lambda name: -names[name][0]):
            own = statistics.median(result[1][name][0] for result in results)
            host -= own
            print(f"| {name} | {own * 1e3:.3f} | {names[name][1]:.1f} |")
        print(f"| host and torch | {host * 1e3:.3f} | |")
    if True in per_token:
        print(f"\nEAGLE {per_token[False] / per_token[True]:.2f} x plain")


def weights(base: Path, directory: Path, dtype: str, rounds: int) -> None:
    """Print the speed of plain decoding with weights of 16, 8 and 4 bits, and what the bytes of a step allow."""
    block = torch.ones(1 << 27)
    reading = block.nbytes / min(taken(lambda: block.sum()) for _ in range(5))
    print(f"reading memory: {reading / 1e9:.1f} GB/s, {torch.get_num_threads()} threads\n")
    options = {name: ("--weights", name) if name else () for name in WEIGHTS}
    plans = {
        name: built(directory / (name or "plain"), base, None, dtype, "", CONTEXT, *more)
        for name, more in options.items()
    }
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Engine.open(plan)) for name, plan in plans.items()}
        times: dict[str | None, list[float]] = {name: [] for name in WEIGHTS}
        for number in range(rounds + 1):
            for name, engine in engines.items():
                whole = taken(lambda engine=engine: serve(engine, ids(SHORT), TOKENS, draft=False))  # type: ignore[misc]
                first = taken(lambda engine=engine: serve(engine, ids(SHORT), 1, draft=False))  # type: ignore[misc]
                if number:  # the first round warms up
                    times[name].append((whole - first) / (TOKENS - 1))
        sizes = {name: read_bytes(engine, plans[name]) for name, engine in engines.items()}
    print(
        "| weights | MB read per token | tokens/s | x plain | by bytes alone | of the memory's bandwidth |\n"
        + "|---" * 6
        + "|"
    )
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[None], own, strict=True))
        step = statistics.median(own)
        print(f"| {name or dtype} | {sizes[name] / 1e6:.0f} | {1 / step:.1f} | {ratio:.2f} | "
              f"{sizes[None] / sizes[name]:.2f} | {sizes[name] / step / reading:.0%} |")  # fmt: skip


def read_bytes(engine: Engine, plan: Path) -> int:
    """Return the bytes of an image that every token reads: all but an embedding table that is no lm_head."""
    model = engine.plan.model
    table = 0 if model.tied_head else model.vocab_size * model.hidden_size * DTYPES[engine.plan.options.dtype].itemsize
    return sum(image.stat().st_size for image in plan.glob("*.safetensors")) - table


def decoded(engine: Engine, draft: bool) -> tuple[float, dict[str, tuple[float, float]], tuple[int, ...]]:
    """Return the time of a step, time and calls of each kernel in it, and a step for each element of the last."""
    whole, kernels, calls = timed(engine, TOKENS, draft)
    first, first_kernels, first_calls = timed(engine, 1, draft)
    number = -(-(TOKENS - 1) // 4) if draft else TOKENS - 1
    names = {
        name: ((kernels[name] - first_kernels[name]) / number, (calls[name] - first_calls[name]) / number)
        for name in kernels
    }
    return (whole - first) / number, names, tuple(range(number))


def timed(engine: Engine, tokens: int, draft: bool) -> tuple[float, Counter[str], Counter[str]]:
    """Return the time of a request, and time and number of calls of each kernel."""
    times, calls, start = Counter[str](), Counter[str](), ops._start

    def counted(kernel: str, dtype: torch.dtype, work: int, words: bytes) -> None:
        times[kernel] += taken(lambda: start(kernel, dtype, work, words))  # type: ignore[assignment]
        calls[kernel] += 1

    ops._start = counted
    try:
        return taken(lambda: serve(engine, ids(SHORT), tokens, draft=draft)), times, calls
    finally:
        ops._start = start


def serve(engine: Engine, prompt: tuple[int, ...], tokens: int, *, draft: bool) -> None:
    """Serve one request; with a draft every step accepts three tokens."""
    accept = 3 if draft else None
    engine.serve(
        Request(prompt_ids=prompt, max_new_tokens=tokens, draft=draft, ignore_eos=True, stop=(), accept=accept)
    ).finished()


def ids(count: int) -> tuple[int, ...]:
    """Return arbitrary token ids."""
    return tuple(1 + number * 7 % 1000 for number in range(count))


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint; default: a random one with a random EAGLE head")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--tree", default="total_token=4,depth=2,top_k=1", help="tree of the random head")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", action="store_true", help="the table of weights in fewer bits alone")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    if arguments.weights:
        with tempfile.TemporaryDirectory(prefix="cpu-") as name:
            base = arguments.model or random_llama(Path(name) / "base")
            weights(base, Path(name), arguments.dtype, arguments.rounds)
        return
    products(dtype, arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="cpu-") as name:
        directory = Path(name)
        base = arguments.model or random_llama(directory / "base")
        head = None if arguments.model else random_head(directory / "head")
        plan = built(directory / "plan", base, head, arguments.dtype, arguments.tree, CONTEXT)
        with Engine.open(plan) as engine:
            prefill(engine, base, dtype, arguments.rounds)
            steps(engine, arguments.rounds)


if __name__ == "__main__":
    main()
