"""Compiling against `cp` of the same bytes, with cold caches, in pairs of one run; and peak memory.

    python tools/bench_compile.py [--gigabytes 2] [--pairs 5] [--directory DIR]

The checkpoint has random weights; both sides begin with the page cache dropped (as root; else only the pages of the
checkpoint). `cp` leaves its last writes to the kernel while a compile has synced them to disk, so `cp` is also timed
with a sync of its copy. The time of a compile includes hashing and excludes the start of the interpreter.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).parent.parent
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 2048, 8192, 32, 8, 32000
LAYER_BYTES = 2 * (HIDDEN * (2 * HIDDEN + 2 * HIDDEN * KV_HEADS // HEADS + 3 * INTERMEDIATE) + 2 * HIDDEN)

INVENTORY = """\
hosts:
  - name: box0
    links: {class: nvlink}
    devices:
      - {id: gpu0, type: a100-80g}
      - {id: gpu1, type: a100-80g}
"""
KINDS = {
    "plain placement": ["--strategy", "balanced"],
    "tensor parallel": [],
    "tensor parallel, cast to float32": ["--dtype", "float32"],
}

TIMED = """
import json, sys, time
from pathlib import Path
from planner.images.compile import compile_plan

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

before, began = peak_bytes(), time.perf_counter()
report = compile_plan(Path(sys.argv[1]), Path(sys.argv[2]), None)
seconds = time.perf_counter() - began
print(json.dumps([seconds, report.read_bytes, report.written_bytes, peak_bytes() - before]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """One compile: seconds, bytes, and peak memory beyond that of the interpreter after its imports."""

    seconds: float
    read_bytes: int
    written_bytes: int
    peak_bytes: int


def write_checkpoint(directory: Path, nbytes: int) -> None:
    """Write a Llama in bfloat16 of random bits, in one file of about ``nbytes``."""
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": max(2, round((nbytes - 4 * VOCABULARY * HIDDEN) / LAYER_BYTES)),
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    implied = subprocess.run(
        [sys.executable, "-m", "planner", "scan", str(directory / "config.json"), "--json"],
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    header, offset = {}, 0
    for tensor in json.loads(implied.stdout)["tensors"]:
        shape = tensor["shape"]
        size = 2 * int(np.prod(shape))
        header[tensor["name"]] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, 64 << 20):
            file.write(generator.bytes(min(64 << 20, offset - start)))


def drop_caches(files: list[Path]) -> None:
    """Write everything to disk, and drop it from the page cache."""
    os.sync()
    switch = Path("/proc/sys/vm/drop_caches")
    if os.access(switch, os.W_OK):
        switch.write_text("3")
        return
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_cold(source: Path, target: Path, synced: bool) -> float:
    """Return the seconds of `cp`, with a `sync` of the copy if ``synced``."""
    drop_caches([source])
    began = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    if synced:
        subprocess.run(["sync", str(target)], check=True)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def compile_cold(plan: Path, model: Path) -> Compiled:
    """Compile all images of a plan from scratch, with cold caches."""
    for file in [*plan.glob("*.safetensors"), plan / "images.yaml", plan / ".compiled"]:
        file.unlink(missing_ok=True)
    drop_caches([model / "model.safetensors"])
    command = [sys.executable, "-c", TIMED, str(plan), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, read, written, peak = json.loads(done.stdout)
    return Compiled(seconds=seconds, read_bytes=read, written_bytes=written, peak_bytes=peak)


def make_plan(directory: Path, model: Path, kind: str, devices: str = INVENTORY) -> Path:
    """Build a plan of a checkpoint, in a directory named after its kind of placement."""
    inventory = directory / "inventory.yaml"
    inventory.write_text(devices)
    plan = directory / kind.replace(" ", "-").replace(",", "")
    shutil.rmtree(plan, ignore_errors=True)
    command = [*("build", "--gpus", str(inventory), "--model", str(model), "--plan-only", "--out", str(plan))]
    subprocess.run(
        [sys.executable, "-m", "planner", *command, "--context", "1024", *KINDS.get(kind, [])],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    return plan


def measure(kind: str, directory: Path, model: Path, pairs: int) -> str:
    """Return one row of the table, with medians over the pairs."""
    source, target = model / "model.safetensors", directory / "copy"
    plan = make_plan(directory, model, kind)
    compiled, plain, synced = [], [], []
    for number in range(pairs):
        sides: list[Callable[[], None]] = [
            lambda: compiled.append(compile_cold(plan, model)),
            lambda: plain.append(copy_cold(source, target, synced=False)),
            lambda: synced.append(copy_cold(source, target, synced=True)),
        ]
        for side in sides[number % 3 :] + sides[: number % 3]:
            side()
    shutil.rmtree(plan)
    size = source.stat().st_size
    rates = [one.written_bytes / one.seconds for one in compiled]
    ratios = [rate * seconds / size for rate, seconds in zip(rates, plain, strict=True)]
    against_synced = [rate * seconds / size for rate, seconds in zip(rates, synced, strict=True)]
    cells = [
        kind,
        f"{compiled[0].read_bytes / 1e9:.2f}",
        f"{compiled[0].written_bytes / 1e9:.2f}",
        f"{statistics.median(rates) / 1e9:.2f}",
        f"{statistics.median(size / seconds for seconds in plain) / 1e9:.2f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{statistics.median(against_synced):.2f}",
        f"{max(one.peak_bytes for one in compiled) / 2**20:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--gigabytes", type=float, default=2.0, show_default=True, help="Size of the checkpoint.")
@click.option("--pairs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True)
@click.option("--only", type=click.Choice(list(KINDS)), multiple=True, help="Rows of the table; default: all.")
def main(gigabytes: float, pairs: int, directory: Path, only: tuple[str, ...]) -> None:
    """Print one row per kind of placement; the directory needs room for three checkpoints and is removed at the end."""
    directory = directory.resolve()
    model = directory / "model"
    try:
        if not model.exists():
            write_checkpoint(model, int(gigabytes * 1e9))
        click.echo("| images | read GB | written GB | GB/s | cp GB/s | ratio | to cp, synced | peak MiB |")
        click.echo("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for kind in only or KINDS:
            click.echo(measure(kind, directory, model, pairs))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
