"""Try on a GPU what could not be tried without one, part by part, and print one table.

    tools/gpu_check                      # all parts, at most ten minutes
    tools/gpu_check --only attention,steps
    tools/gpu_check --list
    tools/gpu_check --cpu                # the parts as far as they run without a GPU, on the embedded model

Each part is a process of its own with its own time-out, so that a lost CUDA context or a hang ends that part alone.
Exit codes: 0 all as predicted, 1 something was not, 2 bad usage, 5 there is no CUDA device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

PROGRAM = Path(__file__).with_name("gpu_parts.py")
CPU_FACTOR = 5
"""Multiple of its time-out that a part may take on a CPU, which other work may share."""
MOST_S = 600
"""Time of all parts together on a GPU; one whose time-out does not fit any more is not begun."""
ENDS_S = 3
"""Time that a part has to end after a signal."""
NO_DEVICE = 5
"""Exit code of a part that finds no CUDA device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of the check."""

    name: str
    seconds: int
    """Time-out."""
    tries: str


PARTS = (
    Part(name="machine", seconds=30, tries="name, memory, compute capability and bandwidth against the catalogue"),
    Part(
        name="attention",
        seconds=40,
        tries="the attention kernel: right, in planned scratch, the same bits twice",
    ),
    Part(name="float8", seconds=25, tries="attention to a cache in float8 and in int8, widened in registers"),
    Part(name="experts", seconds=30, tries="a mixture of experts, without a wait of the host"),
    Part(name="first_use", seconds=50, tries="time until the first step, against the stall time-out"),
    Part(name="steps", seconds=45, tries="times of steps against the plan; no wait of the host but the read of a step"),
    Part(name="launches", seconds=30, tries="launches of a step, counted by torch's profiler"),
    Part(
        name="memory",
        seconds=45,
        tries="memory at a long context against the plan, outside torch against the reserve",
    ),
    Part(
        name="graph",
        seconds=45,
        tries="steps in CUDA graphs: tokens, times and memory beside steps that are run",
    ),
    Part(name="tokens", seconds=55, tries="tokens of the embedded model against those of the CPU"),
    Part(name="agreement", seconds=40, tries="texts in 16 bits with the drafter against those without it"),
    Part(name="load", seconds=30, tries="loading through pinned memory, hashed and not"),
    Part(name="products", seconds=30, tries="bandwidth of products as narrow as a tree, in 16 and in 4 bits"),
    Part(name="nccl", seconds=35, tries="return of a collective before its members have met, on two GPUs"),
    Part(name="devices", seconds=20, tries="order and UUIDs of devices, MIG slices and CUDA_VISIBLE_DEVICES"),
    Part(name="sanitizer", seconds=50, tries="accesses of kernels outside their tensors, by compute-sanitizer"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison; a verdict of ``ok``, ``WRONG``, ``-`` (a figure without a bound) or the reason of none."""

    part: str
    what: str
    predicted: str
    measured: str
    verdict: str


def run(part: Part, device: str) -> tuple[list[Row], int]:
    """Run a part; return its rows and its exit code, 124 where it took too long."""
    command = [sys.executable, str(PROGRAM), part.name, "--device", device]
    # the modules of the tree that this file is in, whatever is installed
    path = os.pathsep.join([str(PROGRAM.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTHONPATH": path}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment,
        start_new_session=True,
    )  # fmt: skip
    seconds = part.seconds * (CPU_FACTOR if device == "cpu" else 1)
    try:
        out, error = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        out, error = _killed(process)
        code = 124
    rows = [row for line in out.splitlines() if (row := _row(part, line)) is not None]
    last = next((line for line in reversed(error.splitlines()) if line.strip()), "no message")
    if code == NO_DEVICE:
        rows.append(Row(part=part.name, what=part.tries, predicted="", measured="no CUDA device", verdict="not tried"))
    elif code:
        reason = f"longer than {seconds} s" if code == 124 else f"exit code {code}: {last}"
        rows.append(Row(part=part.name, what=part.tries, predicted="an end", measured=reason, verdict="WRONG"))
    return rows, code


def _killed(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """End a part, which ends what it has started, or all of its group; return its outputs, none if it stays."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=ENDS_S)
    return "", ""  # in a driver that does not return


def _row(part: Part, line: str) -> Row | None:
    """Return the row that a part printed; None: a library's own line, or one that the end of the part cut off."""
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        return None
    own = {field.name for field in fields(Row)} - {"part"}
    return Row(part=part.name, **said) if isinstance(said, dict) and said.keys() == own else None


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, one column for each field."""
    heads = {"part": "part", "what": "what", "predicted": "predicted", "measured": "measured", "verdict": "verdict"}
    lines = [heads, *map(asdict, rows)]
    widths = {name: max(len(line[name]) for line in lines) for name in heads}
    return "\n".join("  ".join(line[name].ljust(widths[name]) for name in heads).rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="what runs without a GPU")
    parser.add_argument("--only", metavar="PART,...", help="run these parts alone")
    parser.add_argument("--list", action="store_true", help="print the parts and what each tries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to a file too")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{part.name:10} {part.seconds:3} s  {part.tries}" for part in PARTS))
        return 0
    names = options.only.split(",") if options.only else [part.name for part in PARTS]
    unknown = [name for name in names if name not in {part.name for part in PARTS}]
    if unknown:
        parser.error(f"--only: unknown part {', '.join(unknown)}, expected some of {', '.join(p.name for p in PARTS)}")
    rows, codes, began = list[Row](), list[int](), time.monotonic()
    for part in (part for part in PARTS if part.name in names):
        if not options.cpu and time.monotonic() - began + part.seconds + 2 * ENDS_S > MOST_S:
            reason = f"{MOST_S} s are over: run it with --only"
            rows.append(Row(part=part.name, what=part.tries, predicted="", measured=reason, verdict="not tried"))
        else:
            print(f"{part.name}: {part.tries}", file=sys.stderr, flush=True)
            more, code = run(part, "cpu" if options.cpu else "cuda")
            rows += more
            codes.append(code)
        if options.json:  # after each part: what is known stays, however the check ends
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(table(rows))
    if any(row.verdict == "WRONG" for row in rows):
        return 1
    return NO_DEVICE if NO_DEVICE in codes else 0


if __name__ == "__main__":
    sys.exit(main())
