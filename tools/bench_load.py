"""Loading a compiled image on a CPU, against other loaders of the same weights, in pairs of one run.

    python tools/bench_load.py [--gigabytes 2] [--pairs 5] [--directory DIR]

Each load is a separate process. Its time begins after the imports and ends when every weight can be used; its memory
is the growth of private pages (Private_* of /proc/self/smaps_rollup). Files are in the page cache, except in the row
"cold", where both sides read from disk. The last columns are of hashing alone: BLAKE3 on all cores over one buffer that
stays in their caches.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
from blake3 import blake3

from bench_compile import ROOT, drop_caches, make_plan, write_checkpoint
from plans.format import format_bytes

MEASURE = """
import json, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
{imports}

def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

plan, model = Path(sys.argv[1]), Path(sys.argv[2])
before, began = private_bytes(), time.perf_counter()
{load}
seconds = time.perf_counter() - began
print(json.dumps([seconds, private_bytes() - before]))
"""
RUNTIME = """
import torch
from plans import codec
from runtime.image.verify import check_images
from runtime.image.slots import open_image
"""
OPEN = """
frozen = codec.load(plan)
record = check_images(frozen, plan, verify=False)
image = open_image(frozen, plan, "gpu0", torch.device("cpu"), record, verify={verify})
weights = [image[name] for name in image.slots]
"""
LOADERS = {
    "eagleplan, mapped": (RUNTIME, OPEN.format(verify=False)),
    "eagleplan, verified": (RUNTIME, OPEN.format(verify=True)),
    "safetensors load_file": (
        "from safetensors.torch import load_file",
        'weights = load_file(model / "model.safetensors")',
    ),
    "transformers from_pretrained": (
        "import torch\nfrom transformers import AutoModelForCausalLM, LlamaForCausalLM\n"
        "from transformers.utils import logging\nlogging.disable_progress_bar()",
        "weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)",
    ),
}
INVENTORY = """\
hosts:
  - name: box0
    links: {class: pcie}
    devices:
      - {id: gpu0, type: a100-80g}
"""


def measure(name: str, plan: Path, model: Path) -> tuple[float, int]:
    """Return seconds and private bytes of one load in a separate process."""
    imports, load = LOADERS[name]
    program = MEASURE.format(imports=imports, load=load)
    command = [sys.executable, "-c", program, str(plan), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, private = json.loads(done.stdout.splitlines()[-1])
    return seconds, private


def read_file(file: Path) -> float:
    """Read a file; return the seconds."""
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        buffer = bytearray(16 << 20)
        while stream.readinto(buffer):
            pass
    return time.perf_counter() - began


def hash_memory(nbytes: int) -> float:
    """Hash ``nbytes`` from a buffer that stays in the processor's cache; return the seconds."""
    digest, buffer = blake3(max_threads=os.cpu_count() or 1), bytes(4 << 20)
    began = time.perf_counter()
    for _ in range(nbytes // len(buffer)):
        digest.update(buffer)
    return time.perf_counter() - began


def verify_against_reading(plan: Path, model: Path, pairs: int, cold: bool) -> str:
    """Return one row of the table: verifying the image, reading it, and hashing as many bytes."""
    file = plan / "gpu0.safetensors"
    size = file.stat().st_size
    times = []
    for _ in range(pairs):
        if cold:
            drop_caches([file])
        seconds, _private = measure("eagleplan, verified", plan, model)
        if cold:
            drop_caches([file])
        times.append((seconds, read_file(file), hash_memory(size)))
    rates = [f"{size / statistics.median(side) / 1e9:.2f}" for side in zip(*times, strict=True)]
    ratios = [_spread([one[side] / one[0] for one in times]) for side in (1, 2)]
    return f"| {' | '.join(['cold' if cold else 'warm', *rates[:2], ratios[0], rates[2], ratios[1]])} |"


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


@click.command()
@click.option("--gigabytes", type=float, default=2.0, show_default=True, help="Size of the checkpoint.")
@click.option("--pairs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True)
def main(gigabytes: float, pairs: int, directory: Path) -> None:
    """Print two tables; the directory needs room for two checkpoints and is removed at the end."""
    directory = directory.resolve()
    model = directory / "model"
    try:
        if not model.exists():
            write_checkpoint(model, int(gigabytes * 1e9))
        plan = make_plan(directory, model, "one device", INVENTORY)
        command = ["compile", str(plan), "--model", str(model), "--quiet"]
        subprocess.run([sys.executable, "-m", "planner", *command], check=True, cwd=ROOT)
        read_file(model / "model.safetensors")
        read_file(plan / "gpu0.safetensors")
        results: dict[str, list[tuple[float, int]]] = {name: [] for name in LOADERS}
        for _ in range(pairs):
            for name in LOADERS:
                results[name].append(measure(name, plan, model))
        click.echo("| loader | ready ms | private memory |")
        click.echo("| --- | --- | --- |")
        for name, loads in results.items():
            seconds = [one[0] for one in loads]
            span = f"{statistics.median(seconds) * 1e3:.0f} ({min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f})"
            click.echo(f"| {name} | {span} | {format_bytes(max(one[1] for one in loads))} |")
        click.echo("\n| verify | GB/s | reading GB/s | ratio | hashing GB/s | ratio |")
        click.echo("| --- | --- | --- | --- | --- | --- |")
        for cold in (True, False):
            click.echo(verify_against_reading(plan, model, pairs, cold))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
