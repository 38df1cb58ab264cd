"""Time from the start of a process to its first token, by phase and by what is imported.

    python tools/bench_start.py PLAN [--runs 10]

Each run is a process of its own, ``python -m runtime run PLAN -v``, which reports its phases. Own times of imports are
those of one more run with ``python -X importtime``, which makes them longer, by package. Medians; files are in the page
cache and the CPU kernels compiled.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

COMMAND = ("-m", "runtime", "run")
OPTIONS = ("--prompt", "x", "--max-new-tokens", "1", "-q")
PHASES = re.compile(r"^first token ([\d.]+) s after the start: (.*)$", re.MULTILINE)
IMPORT = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", re.MULTILINE)
SHOWN = 12
"""Packages in the table of imports."""


def run(plan: Path, *options: str, interpreter: tuple[str, ...] = ()) -> tuple[str, float, float]:
    """Run the command once; return stderr, and the seconds and processor seconds to its end."""
    command = [sys.executable, *interpreter, *COMMAND, str(plan), *OPTIONS, *options]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"DEBUG": "0"})
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stderr, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    run(arguments.plan)
    first, cpu, phases = [], [], dict[str, list[float]]()
    for _ in range(arguments.runs):
        text, _, processor_s = run(arguments.plan, "-v")
        total, parts = PHASES.findall(text)[0]
        first.append(float(total))
        cpu.append(processor_s)
        for part in parts.split(", "):
            seconds, _, name = part.partition(" ")
            phases.setdefault(name, []).append(float(seconds))
    print(f"first token after {statistics.median(first):.2f} s, {statistics.median(cpu):.2f} s of processor time")
    for name, times in phases.items():
        print(f"  {statistics.median(times):6.2f} s  {name}")
    own: Counter[str] = Counter()
    for microseconds, module in IMPORT.findall(run(arguments.plan, interpreter=("-X", "importtime"))[0]):
        own[module.partition(".")[0]] += int(microseconds)
    print(f"imports: {own.total() / 1e3:.0f} ms with -X importtime")
    for name, time_us in own.most_common(SHOWN):
        print(f"  {time_us / 1e3:6.0f} ms  {name}")


if __name__ == "__main__":
    main()
