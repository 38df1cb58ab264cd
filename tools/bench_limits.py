"""Measures the limits of the solver: CPU time of ``solve`` with each of them as it is, smaller and larger.

    python tools/bench_limits.py [--only LIMIT] [--instance NAME] [--cpu SECONDS]

Each run is a process of its own. Instances are those of ``bench_planner speed`` with their EAGLE-3 head, by name;
``NAME:STRATEGY`` is one with another strategy. A cell has the CPU seconds of ``solve``, ``*`` where the answer is
another one than with the limit as it is, and ``>N`` where it had not ended after N s.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

from instances import SPEED, Speed
from planner.families import load_base, load_draft
from planner.formulations import Formulations
from planner.hardware.inventory import parse_inventory
from planner.request import Wanted, resolve
from planner.solver import limits
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from planner.solver.solve import solve
from plans.schema import Strategy

TOOLS = Path(__file__).parent

CASES: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "FIRST_LOOK": (((1.1,), (1.001, 1.01, 1.1)), ("16of3", "unlike8", "h100x16", "64of4")),
    "QUICK_LIMIT": ((0.0, 0.3), ("16of3", "unlike8", "3x4", "16of3:balanced")),
    "SETTLE_LIMIT": ((0.01, 1.0), ("16of3", "unlike8", "3x4", "h100x16:balanced")),
    "PACK_BITS": ((16, 62), ("16of3", "unlike8", "3x4", "h100x16:balanced")),
    "CLOSE": ((1.01, 1.3), ("16of3", "unlike8", "h100x16", "64of4")),
    "FAR": ((1.005, 1.2), ("16of3", "h100x16", "64of4", "3x4")),
    "MOST_NEAR": ((20, 2000), ("16of3", "h100x16", "64of4", "3x4")),
    "MOST_STATES": ((50, 50000), ("16of3", "unlike8", "64of4", "3x4")),
    "MOST_GROUPS": ((15, 240), ("16of3", "unlike8", "64of4", "3x4")),
    "MOST_CHOICES": ((50, 800), ("16of3", "unlike8", "64of4", "3x4")),
    "MOST_LINES": ((2, 32), ("16of3", "unlike8", "64of4", "3x4")),
    "MOST_PLACEMENTS": ((0, 1000), ("a100x4:balanced", "16of3:balanced", "h100x16:balanced")),
}
"""Other values of each limit that bears on the time of ``solve``, and instances on which it does."""


CHILD = """
import ast, sys
from planner.solver import limits
name, limit, value = sys.argv[1:]
setattr(limits, limit, ast.literal_eval(value))
import bench_limits
bench_limits.solve_once(name)
"""
"""Sets a limit before anything is imported that reads limits as defaults."""


def problem_of(speed: Speed, strategy: Strategy) -> Problem:
    """Return the problem of an instance under a strategy."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        base_path, head_path = Path(directory) / "base", Path(directory) / "head"
        for path, config in ((base_path, speed.model), (head_path, speed.draft)):
            path.mkdir()
            (path / "config.json").write_text(json.dumps(config))
        base = load_base(base_path)
        head = load_draft(head_path, base)
    options = resolve(Wanted(strategy=strategy), "bfloat16", base, head)
    inventory = parse_inventory(speed.inventory, speed.name).at(options.dtype)
    return Formulations().of(base, head, inventory, options).problem


def solve_once(name: str) -> None:
    """Solve an instance in this process; print CPU seconds and the answer as JSON."""
    short, _, strategy = name.partition(":")
    speed = next(speed for speed in SPEED if speed.name == short)
    problem = problem_of(speed, cast("Strategy", strategy or "latency"))
    start = time.process_time()
    solved = solve(problem, Settings())
    print(json.dumps([time.process_time() - start, repr(solved and solved.answer)]))


def measured(name: str, limit: str, value: object, cpu_s: int) -> tuple[float, str] | None:
    """Solve in a process of its own; None: it did not end in time."""
    arguments = [sys.executable, "-c", CHILD, name, limit, repr(value)]

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))

    run = subprocess.run(arguments, stdout=subprocess.PIPE, cwd=TOOLS, preexec_fn=bound, text=True, check=False)
    if run.returncode < 0:
        return None
    run.check_returncode()
    seconds, answer = json.loads(run.stdout)
    return seconds, answer


def table(limit: str, names: list[str], cpu_s: int) -> None:
    """Print a line for the limit as it is, and for each other value."""
    values, instances = CASES[limit]
    instances = tuple(name for name in instances if not names or name in names)
    known: dict[str, str] = {}
    for value in (getattr(limits, limit), *values):
        cells = []
        for name in instances:
            outcome = measured(name, limit, value, cpu_s)
            if outcome is None:
                cells.append(f"{name} >{cpu_s}")
                continue
            seconds, answer = outcome
            other = "*" if known.setdefault(name, answer) != answer else ""
            cells.append(f"{name} {seconds:.2f}{other}")
        text = repr(value) if not isinstance(value, tuple) or len(value) < 4 else f"{len(value)} factors"
        print(f"{limit:<16} {text:<22} {'   '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="a limit; may be repeated")
    parser.add_argument("--instance", action="append", default=[], help="an instance; may be repeated")
    parser.add_argument("--cpu", type=int, default=60, help="most CPU seconds of a run")
    arguments = parser.parse_args()
    for limit in arguments.only or CASES:
        table(limit, arguments.instance, arguments.cpu)


if __name__ == "__main__":
    main()
