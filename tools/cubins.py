"""Compile every GPU kernel for every GPU of the catalogue, without one, and print what each takes.

    python tools/cubins.py                              # all capabilities: 3 to 20 minutes
    python tools/cubins.py --capability 80,90 --only attend

Each kernel is specialised as for the launches of a step of an 8B model, by Triton's own rules, and assembled by the
ptxas that comes with Triton. Columns: shared memory of a program in KiB, registers of a thread, and bytes of a thread's
registers that are spilled to memory. Exit code 1 where a kernel does not compile, takes more shared memory than a
program may have, or spills.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from planner.hardware.catalog import catalog
from plans.schema import Tree, WeightFormat
from plans.usable import runs_kernels
from runtime.model.mask import Mask
from runtime.model.triton_kernels import (
    attention,
    caches,
    divided_draws,
    experts,
    heads,
    launch,
    masks,
    products,
    rowwise,
    sampling,
    tables,
    top,
    trees,
)
from runtime.model.weights import Coded

META = torch.device("meta")
SHARED_BYTES = {
    70: 96,
    75: 64,
    80: 163,
    86: 99,
    87: 163,
    89: 99,
    90: 227,
    100: 227,
    103: 227,
    110: 227,
    120: 99,
    121: 99,
}
"""KiB of shared memory that a program may have, by compute capability (CUDA C++ Programming Guide, technical
specifications per compute capability)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A launch of a kernel: what it is specialised by."""

    case: str
    kernel: Any
    operands: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cubin:
    """What an assembled kernel takes."""

    shared: int
    registers: int
    spilled: int


class Target:
    """A device that is not there: Triton asks it for what to compile for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def mask(rows: int, *, tree: int, window: int | None = None, sequences: int = 1, splits: int = 1) -> Mask:
    words = empty(rows, -(-tree // 32), dtype=torch.int32) if tree else None
    return Mask(
        positions=empty(rows, dtype=torch.int64), ancestors=words, lengths=empty(sequences, 1, dtype=torch.int64),
        appended=7, tree=tree, start=64, window=window, part=0, parts=1, splits=splits,
        counters=empty(8 * sequences, dtype=torch.int32),
    )  # fmt: skip


def weight(code: str, scale: str, group: int | None, *, zeros: bool, experts: int = 0, ordered: bool = False) -> Coded:
    form = WeightFormat(code=code, scale=scale, group=group, zeros=zeros)  # type: ignore[arg-type]
    lead, groups = ((experts,) if experts else ()), 1 if group is None else 4096 // group
    width = 4096 // (2 if code in ("int4", "float4_e2m1") else 1)
    kinds = {"float8_e8m0": torch.uint8}
    return Coded(
        codes=empty(*lead, 4096, width, dtype=torch.uint8),
        scales=empty(*lead, 4096, groups, dtype=kinds.get(scale) or getattr(torch, scale)),
        zeros=empty(*lead, 4096, groups, dtype=torch.uint8) if zeros else None, form=form, inputs=4096,
        order=empty(*lead, 4096, dtype=torch.int32) if ordered else None,
        counters=empty(products.COUNTERS, dtype=torch.int32),
    )  # fmt: skip


PLACES: dict[str, Any] = {
    "first": 0, "tree_rows": 64, "cache_rows": 8320, "part": 0, "parts": 1, "wraps": False,
}  # fmt: skip
FORMS = {
    "int4-g128": weight("int4", "bfloat16", 128, zeros=True),
    "int4-g128-ordered": weight("int4", "float16", 128, zeros=True, ordered=True),
    "int4-g32": weight("int4", "float16", 32, zeros=False),
    "int8": weight("int8", "float32", None, zeros=False),
    "fp8": weight("float8_e4m3fn", "float32", 128, zeros=False),
    "mxfp4": weight("float4_e2m1", "float8_e8m0", 32, zeros=False),
}


def cases(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return calls of the kernels with the shapes of an 8B model, by name; ``dtype``: of activations."""
    qkv, cache = empty(60, 48, 128, dtype=dtype), empty(1, 8320, 16, 128, dtype=dtype)
    cache8, x = empty(1, 8320, 16, 132, dtype=torch.float8_e4m3fn), empty(60, 4096, dtype=dtype)
    codes = empty(1, 8320, 16, 132, dtype=torch.int8)
    wide, ring = empty(60, 24, 256, dtype=dtype), empty(1, 4672, 8, 256, dtype=dtype)
    rotary, positions, vector = empty(2, 8300, 128, dtype=dtype), empty(60, dtype=torch.int64), empty(4096, dtype=dtype)
    normed = (empty(128, dtype=dtype), empty(128, dtype=dtype), 1e-6, False)
    plain, order = empty(8, 4096, 4096, dtype=dtype), empty(120, dtype=torch.int64)
    mxfp4 = weight("float4_e2m1", "float8_e8m0", 32, zeros=False, experts=32)
    nodes = empty(1, 60, dtype=torch.int64)
    sinks, ends = empty(32, dtype=dtype), empty(8, dtype=torch.int64)
    return {
        "norm": lambda: rowwise.norm(x, vector, 1e-5),
        "residual, norms": lambda: rowwise.add(x, x, (vector, 1e-5, True), 1.0, (vector, 1e-5, True)),
        "drafter's inputs": lambda: rowwise.join(
            positions[:10], empty(32000, 4096, dtype=dtype), x, positions[:10], ((vector, 1e-5, False),) * 2, keep=True
        ),
        "rows, appended": lambda: caches.append(empty(1, 1, dtype=torch.int64), nodes[:, :1], 9, **PLACES),
        "rows, kept": lambda: caches.keep(
            empty(32, 8320, 16, 128, dtype=dtype), nodes[:, :1], nodes[:, :9], nodes[:, :1], nodes=60, **PLACES
        ),
        "rows, committed": lambda: caches.advance(
            nodes[:, :1], caches.committed(nodes[:, 0], empty(1, dtype=torch.bool), 1 << 32).unsqueeze(1)
        ),
        "look-up, int8": lambda: tables.look_up(
            positions, empty(32000, 4096, dtype=torch.uint8), empty(32000, 1, dtype=torch.bfloat16), dtype
        ),
        "gate": lambda: rowwise.gated(empty(60, 28672, dtype=dtype)),
        "heads": lambda: heads.rotate_and_store(qkv, 32, cache, rotary, positions, slice(4, 64), 0),
        "heads, norms, fp8": lambda: heads.rotate_and_store(
            qkv, 32, cache8, rotary, positions, empty(60, dtype=torch.int64), 0, norms=normed
        ),
        "heads, normed together": lambda: heads.rotate_and_store(
            qkv, 32, cache, rotary, positions, slice(4, 64), 0, norms=(vector, vector[:1024], 1e-6, False)
        ),
        "heads, int8": lambda: heads.rotate_and_store(qkv, 32, codes, rotary, positions, slice(4, 64), 0),
        "attend, plain": lambda: attention.attend(qkv[:1], 32, cache, 0, mask(1, tree=1, splits=16), scale=0.1),
        "attend, tree": lambda: attention.attend(qkv, 32, cache, 0, mask(60, tree=60, splits=8), scale=0.1),
        "attend, tree, fp8": lambda: attention.attend(qkv, 32, cache8, 0, mask(60, tree=60, splits=8), scale=0.1),
        "attend, tree, int8": lambda: attention.attend(qkv, 32, codes, 0, mask(60, tree=60, splits=8), scale=0.1),
        "attend, plain, fp8": lambda: attention.attend(qkv[:1], 32, cache8, 0, mask(1, tree=1, splits=16), scale=0.1),
        "attend, plain, int8": lambda: attention.attend(qkv[:1], 32, codes, 0, mask(1, tree=1, splits=16), scale=0.1),
        "attend, chunk": lambda: attention.attend(
            empty(512, 48, 128, dtype=dtype), 32, cache, 0, mask(512, tree=0), scale=0.1
        ),
        "attend, D 256, window, capped": lambda: attention.attend(
            wide, 16, ring, 0, mask(60, tree=60, window=4096, splits=8), scale=0.1, softcap=50.0
        ),
        "attend, sinks, window": lambda: attention.attend(
            qkv, 32, cache, 0, mask(60, tree=60, window=128), scale=0.1, sinks=sinks
        ),
        "pack": lambda: masks.packed(empty(1, 60, 60, dtype=torch.bool), empty(1, 1, dtype=torch.int64)),
        **{
            f"product, {name}, {rows} rows": lambda form=form, rows=rows: products.product(  # type: ignore[misc]
                empty(rows, 4096, dtype=dtype), form
            )
            for name, form in FORMS.items()
            for rows in (1, 60, 512)
        },
        "gate and up, int4": lambda: products.product(x, FORMS["int4-g128"], None, products.Gate()),
        "gate and up, int8": lambda: products.product(x, FORMS["int8"], None, products.Gate()),
        "experts, gate and up": lambda: products.grouped(x, plain, order, ends, picked=2, gate=products.Gate()),
        "experts, down": lambda: products.grouped(empty(120, 4096, dtype=dtype), plain, order, ends, picked=None),
        "experts, mxfp4": lambda: products.grouped(
            x[:30],
            mxfp4,
            order,
            empty(32, dtype=torch.int64),
            picked=4,
            bias=empty(32, 4096, dtype=dtype),
            gate=products.Gate(clamp=(7.0, 1.7)),
        ),
        "experts, router": lambda: experts.route(
            empty(60, 8, dtype=dtype),
            2,
            sigmoid=False,
            correction=None,
            groups=1,
            picked_groups=1,
            normed=True,
            scale=1.0,
            least=0.0,
            added=0.0,
        ),
        "experts, router, groups": lambda: experts.route(
            empty(60, 256, dtype=torch.float32),
            8,
            sigmoid=True,
            correction=empty(256, dtype=torch.float32),
            groups=8,
            picked_groups=4,
            normed=True,
            scale=2.5,
            least=0.0,
            added=1e-20,
        ),
        "experts, sort": lambda: experts.by_expert(empty(60, 2, dtype=torch.int64), 8),
        "experts, sum": lambda: experts.weighted_sum(
            empty(120, 4096, dtype=dtype), empty(60, 2, dtype=torch.float32), x, x, empty(60, 1, dtype=dtype)
        ),
        "tree, ancestors": lambda: trees.ancestors(nodes, 8),
        "tree, walk": lambda: trees.walk(nodes, nodes, nodes, 9),
        "chain, level": lambda: grown(trees.Pool(1, chain(5), 1, META), 2, 1),
        "chain, last level": lambda: grown(trees.Pool(1, chain(0), 1, META), 1, 1),
        "chain, select": lambda: trees.Pool(1, chain(5), 1, META).select(empty(1, dtype=torch.int64), 7),
        "chain, best": lambda: top.top(empty(1, 4000, dtype=dtype), 1),
        "root, ancestors": lambda: trees.ancestors(nodes[:, :1], 0),
        "root, walk": lambda: trees.walk(nodes[:, :1], nodes[:, :1], nodes[:, :1], 1),
        "root, draw": lambda: sampling.draw(
            empty(1, 128256, dtype=dtype),
            positions[:1],
            temperatures=empty(1, dtype=torch.float32),
            top_ks=None,
            top_ps=None,
            keys=positions[:1],
            positions=positions[:1],
            greedy=None,
        ),
        "one row, draw": lambda: sampling.draw(
            empty(1, 128256, dtype=dtype),
            positions[:1],
            temperatures=empty(1, dtype=torch.float32),
            top_ks=empty(1, dtype=torch.float64),
            top_ps=empty(1, dtype=torch.float64),
            keys=positions[:1],
            positions=positions[:1],
            greedy=None,
        ),
        "one pick, sort": lambda: experts.by_expert(empty(1, 1, dtype=torch.int64), 8),
        "one pick, sum": lambda: experts.weighted_sum(
            empty(1, 4096, dtype=dtype), empty(1, 1, dtype=torch.float32), None, None, None
        ),
        "one pick, down": lambda: products.grouped(x[:1], plain, order[:1], ends, picked=None),
        "one pick, gate and up": lambda: products.grouped(
            x[:1], plain, order[:1], ends, picked=1, gate=products.Gate()
        ),
        "tree, level": lambda: grown(trees.Pool(1, TREE, 3, META), 2, 10),
        "tree, level of blocks": lambda: grown_of_blocks(trees.Pool(1, TREE, 3, META), 32000, 10),
        "tree, level of many blocks": lambda: grown_of_blocks(trees.Pool(1, TREE, 3, META), 128256, 10),
        "tree, select": lambda: trees.Pool(1, TREE, 3, META).select(empty(1, dtype=torch.int64), 60),
        "draw": lambda: sampling.draw(
            empty(60, 128256, dtype=dtype),
            positions,
            temperatures=empty(1, dtype=torch.float32),
            top_ks=empty(1, dtype=torch.float64),
            top_ps=empty(1, dtype=torch.float64),
            keys=positions[:1],
            positions=positions[:1],
            greedy=empty(1, dtype=torch.bool),
        ),
        "draw, divided": lambda: divided(empty(60, 16000, dtype=dtype)),
        "top": lambda: top.top(empty(10, 32000, dtype=dtype), 10),
        "top, divided": lambda: top.of_all(torch.stack([top.words(empty(10, 16000, dtype=dtype), 10, 0)] * 2), 10),
    }


def divided(logits: Tensor) -> None:
    """Draw after the rows of one sequence, whose limits are looked for, on one of two devices."""
    one, limit = empty(1, dtype=torch.float32), empty(1, dtype=torch.float64)
    words, flag = empty(1, dtype=torch.int64), torch.empty(1, dtype=torch.bool, device=META)
    rows = divided_draws.Rows(logits, one)
    rows.gathered(torch.stack([rows.high()] * 2))
    rows.round(limit, 27, counts=True, first=True)
    rows.round(limit, 24, counts=True, first=False)
    rows.mass(limit)
    rows.round(limit, 27, counts=False, first=True)
    rows.round(limit, 24, counts=False, first=False)
    depths = empty(len(logits), dtype=torch.int64)
    own = rows.race(0, depths, top_ps=limit, keys=words, positions=words, greedy=flag)
    divided_draws.winner(torch.stack([own] * 2))
    divided_draws.words(empty(60, dtype=torch.float32), depths, 0)


TREE = Tree(kind="dynamic", total_token=60, depth=7, top_k=10, paths=None)


def chain(depth: int) -> Tree:
    """Return a tree in which every node has one child."""
    return Tree(kind="dynamic", total_token=depth + 2, depth=depth, top_k=1, paths=None)


def grown(pool: trees.Pool, levels: int, top_k: int) -> None:
    for level in range(levels):
        rows = top_k if level else 1
        pool.add(level, (empty(rows, top_k, dtype=torch.int64), empty(rows, top_k, dtype=torch.float32)))


def grown_of_blocks(pool: trees.Pool, width: int, top_k: int) -> None:
    for level in range(2):
        found = top.of_blocks(empty(top_k if level else 1, width), top_k)
        pool.add(level, found, empty(width, dtype=torch.int64))


def launches(dtype: torch.dtype, only: str = "") -> list[Launch]:
    """Return the different launches of these calls."""
    recorded: list[Launch] = []

    def record(
        kernel: Any, grid: tuple[int, ...], *operands: Any, warps: int = 4, stages: int = 2, **sizes: Any
    ) -> None:
        options = {"num_warps": warps, "num_stages": stages, **sizes}
        recorded.append(Launch(case=name, kernel=kernel, operands=operands, options=options))

    with mock.patch.object(launch, "start", record):
        for name, call in cases(dtype).items():
            if only in name:
                call()
    return recorded


def compiled(own: Launch, capability: int) -> Cubin:
    """Compile a launch's kernel for a capability; return what it takes."""
    triton.runtime.driver.set_active(Target(capability))
    kernel = own.kernel.warmup(*own.operands, grid=(1,), **own.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        report = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", report)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return Cubin(shared=kernel.metadata.shared, registers=registers, spilled=max(stack, local))


def supported() -> list[int]:
    """Return the compute capabilities of the catalogue's GPUs that plans may use."""
    named = {kind.compute_capability for kind in catalog().devices.values() if kind.compute_capability is not None}
    return sorted(capability for capability in named if runs_kernels(capability))


def rows(capabilities: Sequence[int], only: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield kernel, case and what it takes by capability, or what is wrong with it."""
    for own in launches(torch.bfloat16, only):
        results = []
        for capability in capabilities:
            begin = time.monotonic()
            cubin = compiled(own, capability)
            wrong = cubin.shared > SHARED_BYTES[capability] * 1024 or cubin.spilled
            results.append(f"{cubin.shared / 1024:.0f}/{cubin.registers}/{cubin.spilled}{' WRONG' if wrong else ''}")
            print(f"{own.case}: sm_{capability} in {time.monotonic() - begin:.1f} s", file=sys.stderr)
        yield own.kernel.__name__, own.case, results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", help="comma-separated; default: all of the catalogue from 8.0 on")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    options = parser.parse_args()
    capabilities = [int(word) for word in options.capability.split(",")] if options.capability else supported()
    print("| kernel | case | " + " | ".join(f"sm_{number}" for number in capabilities) + " |")
    print("| --- " * (2 + len(capabilities)) + "|")
    wrong = False
    for kernel, case, results in rows(capabilities, options.only):
        print(f"| `{kernel}` | {case} | {' | '.join(results)} |", flush=True)
        wrong |= any("WRONG" in result for result in results)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
