"""Measures the limits of the solver: CPU time and answer of a question with each of them as it is, smaller and larger.

    python tools/bench_limits.py [--only LIMIT] [--instance NAME] [--cpu SECONDS]
    python tools/bench_limits.py --bits [--instance NAME]

Each run is a process of its own. A cell has the CPU seconds of the question, in parentheses what it found unless that
is an optimum, ``*`` where something else is found than with the limit as it is, and ``>N`` where it had not ended after
N s. Instances are

    16of3                of ``bench_planner speed``, with their EAGLE-3 head, by name
    16of3:balanced       the same with another strategy
    full:3               seeded machines of 4 to 8 unlike GPUs on one host, which a model without a head fills to
                         98.5 to 99.5 %
    crowded-16of3        the same with ``--batch 16 --context 128k``: refused

``--bits``: how many of the 62 bits that CP-SAT has for a sum the largest ones of a model take: as it is, with its bytes
at the cap on bytes, and with its times at the cap on times.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import bench_bounds

from instances import SPEED
from planner.build import build
from planner.errors import InfeasibleError, NotProvenError
from planner.families import load_base, load_draft
from planner.formulations import Formulations
from planner.hardware.inventory import parse_inventory
from planner.remedies.explain import explain
from planner.request import Request, Wanted, resolve_request
from planner.solver import limits
from planner.solver.bounds.step import lower_bounds
from planner.solver.feasible.shortage import shortage
from planner.solver.minimise import Settings
from planner.solver.model import Model
from planner.solver.problem import Block, Problem, Receive, Split
from planner.solver.problem_bounds import most_bytes, most_ps
from planner.solver.restriction import everything
from planner.solver.solve import fits, solve, solve_nearly
from plans.schema import Strategy

TOOLS = Path(__file__).parent

FULL = (0.985, 0.995)
"""Least bytes of the model of a ``full`` instance, as a part of the machine's memory."""


# ---- instances ----


def request_of(name: str) -> Request:
    """Return the request of an instance that is not ``full``."""
    name, _, strategy = name.partition(":")
    speed = next(speed for speed in SPEED if speed.name == name.removeprefix("crowded-"))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        base_path, head_path = Path(directory) / "base", Path(directory) / "head"
        for path, config in ((base_path, speed.model), (head_path, speed.draft)):
            path.mkdir()
            (path / "config.json").write_text(json.dumps(config))
        base = load_base(base_path)
        head = load_draft(head_path, base)
    wanted = Wanted(strategy=cast("Strategy", strategy or "latency"))
    if name.startswith("crowded-"):
        wanted = replace(wanted, batch=16, context=131072)
    return Request(base=base, draft=head, inventory=parse_inventory(speed.inventory, name), wanted=wanted)


def problem_of(name: str) -> Problem:
    """Return the problem of an instance."""
    if name.startswith("full:"):
        bench_bounds.FULL = FULL
        return bench_bounds.random_machine(int(name.removeprefix("full:")))
    request = request_of(name)
    options, inventory = resolve_request(request)
    return Formulations().of(request.base, request.draft, inventory, options).problem


# ---- questions ----

Ask = Callable[[], str]
"""Answers a question about an instance, and returns what was found."""


def _solve(name: str) -> Ask:
    problem = problem_of(name)

    def ask() -> str:
        try:
            return repr((solved := solve(problem, Settings())) and solved.answer)
        except NotProvenError as error:
            return _gap(error)

    return ask


def _gap(error: NotProvenError) -> str:
    return "nothing found" if error.gap is None else f"gap {error.gap:.2%}"


def _within_gap(name: str) -> Ask:
    """``solve`` with ``--gap 10%``."""
    problem = problem_of(name)

    def ask() -> str:
        solved = solve(problem, Settings(gap_ppm=100_000))
        return "nothing fits" if solved is None else f"{1 - solved.bound_ns / solved.least_ns:.1%} above its bound"

    return ask


def _nearly(name: str) -> Ask:
    """``solve_nearly`` within a budget that is too small for the optimum."""
    problem = problem_of(name)

    def ask() -> str:
        try:
            solved = solve_nearly(problem, Settings(limit=0.05))
        except NotProvenError as error:
            return f"not proven, {_gap(error)}"
        return "nothing fits" if solved is None else f"{solved.gap_ppm / 10**4:g}% accepted"

    return ask


def _fits(name: str) -> Ask:
    problem = problem_of(name)

    def ask() -> str:
        try:
            return "fits" if fits(problem, Settings(limit=limits.CHANGE_LIMIT)) else "does not fit"
        except NotProvenError:
            return "not decided"

    return ask


def _shortage(name: str) -> Ask:
    problem = problem_of(name)

    def ask() -> str:
        short = shortage(problem, limits.SHORTAGE_LIMIT)
        most = "?" if short.missing is None else f"{sum(short.missing) / 1e6:.1f}"
        return f"{short.least_bytes / 1e6:.1f} to {most} MB"

    return ask


def _explain(name: str) -> Ask:
    """The refusal of a request, with the changes that would help."""
    request = request_of(name)

    def ask() -> str:
        try:
            build(request, Settings())
        except InfeasibleError as refused:
            explained = explain(request, refused, Settings(), lambda _: None)
            changes = explained.changes or ()
            near = sum(change.bound_ns is not None for change in changes)
            undecided = len(explained.undecided) + len(explained.untimed)
            return f"{len(changes)} changes, {near} with a gap, {undecided} kinds not decided"
        return "fits"

    return ask


def _bound(name: str) -> Ask:
    """The bound before any search, relative to the optimum."""
    problem = problem_of(name)

    def ask() -> str:
        bounds, solved = lower_bounds(problem), solve(problem, Settings())
        assert bounds is not None, name
        assert solved is not None, name
        return f"optimum {bounds.least / solved.least_ns - 1:+.1e}"

    return ask


# ---- limits ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Other values of a limit, and what is asked about which instances with each of them."""

    values: tuple[object, ...]
    instances: tuple[str, ...]
    question: Callable[[str], Ask] = _solve


CASES = {
    "DETERMINISTIC_LIMIT": Case(values=(1.0,), instances=("64of4:balanced",)),
    "FIRST_LOOK": Case(values=((1.1,), (1.001, 1.01, 1.1)), instances=("16of3", "unlike8", "h100x16", "64of4")),
    "UNPRICED_LIMIT": Case(values=(0.0, 0.01), instances=("unlike8", "3x4", "64of4", "full:0")),
    "PACKED_LIMIT": Case(values=(0.02, 5.0), instances=("16of3", "unlike8", "64of4"), question=_within_gap),
    "SETTLE_LIMIT": Case(values=(0.01, 1.0), instances=("16of3", "unlike8", "3x4", "h100x16:balanced")),
    "QUICK_LIMIT": Case(values=(0.0, 0.3), instances=("16of3", "unlike8", "3x4", "16of3:balanced")),
    "PACK_BITS": Case(values=(16, 62), instances=("16of3", "unlike8", "3x4", "h100x16:balanced")),
    "GAPS_PPM": Case(values=((500_000,),), instances=("unlike8", "h100x16", "h100x16:balanced"), question=_nearly),
    "GAP_FACTOR": Case(values=(1.0, 2.0), instances=("unlike8", "h100x16", "h100x16:balanced"), question=_nearly),
    "MARGIN": Case(values=(0.0, 1e-6), instances=("16of3", "unlike8", "3x4", "64of4"), question=_bound),
    "MOST_STATES": Case(values=(50, 50000), instances=("16of3", "unlike8", "64of4", "3x4")),
    "CLOSE": Case(values=(1.01, 1.3), instances=("16of3", "unlike8", "h100x16", "64of4")),
    "FAR": Case(values=(1.005, 1.2), instances=("16of3", "h100x16", "64of4", "3x4")),
    "MOST_NEAR": Case(values=(20, 2000), instances=("16of3", "h100x16", "64of4", "3x4")),
    "MOST_GROUPS": Case(values=(15, 240), instances=("16of3", "unlike8", "64of4", "3x4")),
    "MOST_CHOICES": Case(values=(50, 800), instances=("16of3", "unlike8", "64of4", "3x4")),
    "MOST_LINES": Case(values=(2, 32), instances=("16of3", "unlike8", "64of4", "3x4")),
    "MOST_PLACEMENTS": Case(values=(0, 1000), instances=("a100x4:balanced", "16of3:balanced", "h100x16:balanced")),
    "MOST_COLUMNS": Case(values=(0, 50000), instances=("crowded-h100x16", "crowded-unlike8"), question=_shortage),
    "COUNT_LIMIT": Case(values=(0.1,), instances=("crowded-16of3", "crowded-h100x16"), question=_shortage),
    "ROOM_LIMIT": Case(values=(0.02, 2.0), instances=("16of3", "64of4", "full:0", "full:1"), question=_fits),
    "SHORTAGE_LIMIT": Case(values=(0.1,), instances=("crowded-16of3", "crowded-unlike8"), question=_shortage),
    "CHANGE_LIMIT": Case(values=(0.5, 8.0), instances=("crowded-3x4",), question=_explain),
    "LEAST_CHANGE_LIMIT": Case(values=(0.05,), instances=("crowded-3x4",), question=_explain),
    "BRIEF_LIMIT": Case(values=(0.05,), instances=("crowded-3x4",), question=_explain),
    "FEW_DEVICES": Case(values=(0,), instances=("crowded-3x4",), question=_explain),
}
"""Limits that are measured; the others are derived, where they are."""


CHILD = """
import ast, sys
from planner.solver import limits
limit, value, name = sys.argv[1:]
setattr(limits, limit, ast.literal_eval(value))
import bench_limits
bench_limits.ask_once(limit, name)
"""
"""Sets a limit before anything is imported that reads limits as defaults."""


def ask_once(limit: str, name: str) -> None:
    """Ask about an instance in this process; print the CPU seconds and what was found as JSON."""
    ask = CASES[limit].question(name)
    start = time.process_time()
    answer = ask()
    print(json.dumps([time.process_time() - start, answer]))


def measured(limit: str, value: object, name: str, cpu_s: int) -> tuple[float, str] | None:
    """Ask in a process of its own; None: it did not end in time."""
    arguments = [sys.executable, "-c", CHILD, limit, repr(value), name]

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
    case = CASES[limit]
    usual: dict[str, str] = {}
    for value in (getattr(limits, limit), *case.values):
        cells = []
        for name in case.instances:
            if names and name not in names:
                continue
            outcome = measured(limit, value, name, cpu_s)
            if outcome is None:
                cells.append(f"{name} >{cpu_s}")
                continue
            seconds, answer = outcome
            other = "*" if usual.setdefault(name, answer) != answer else ""
            words = "" if answer.startswith("Answer") else f" ({answer})"
            cells.append(f"{name} {seconds:.2f}{words}{other}")
        text = repr(value) if not isinstance(value, tuple) or len(value) < 4 else f"{len(value)} values"
        print(f"{limit:<19} {text:<19} {'   '.join(cells)}", flush=True)


# ---- bits of the model's sums ----


def bits(name: str) -> str:
    """Return the bits of the largest sum of an instance's model, and of the same at the cap on bytes and on times."""
    unscaled = problem_of(name)
    heavy = scaled(unscaled, nbytes=limits.MOST_BYTES // max(most_bytes(unscaled), *unscaled.capacity_bytes))
    slow = scaled(unscaled, ns=limits.MOST_PS // most_ps(unscaled))
    models = [Model(problem, everything(problem)) for problem in (unscaled, heavy, slow)]
    sums = [f"{math.log2(_largest_sum(model)):.1f}" for model in models]
    return f"{name:<10} {' '.join(sums)}"


def _largest_sum(model: Model) -> int:
    """Return the largest value of any linear constraint or of the objective, by the domains of its variables alone."""
    model.model.minimize(model.step_ns)
    proto = model.model.proto
    terms = [(row.linear.vars, row.linear.coeffs) for row in proto.constraints if row.has_linear()]
    terms.append((proto.objective.vars, proto.objective.coeffs))
    domains = [max(variable.domain) for variable in proto.variables]
    largest = 1
    for variables, coefficients in terms:
        parts = [c * (domains[v] if v >= 0 else domains[-v - 1]) for v, c in zip(variables, coefficients, strict=True)]
        largest = max(largest, sum(part for part in parts if part > 0), -sum(part for part in parts if part < 0))
    return largest


def scaled(problem: Problem, *, nbytes: int = 1, ns: int = 1) -> Problem:
    """Return a problem with all bytes and all times multiplied."""

    def receive(times: Receive) -> Receive:
        return Receive(
            same_ns=ns * times.same_ns,
            inside_ns=ns * times.inside_ns,
            near_ns=ns * times.near_ns,
            far_ns=ns * times.far_ns,
        )

    def splits(unscaled: tuple[Split, ...]) -> tuple[Split, ...]:
        return tuple(replace(s, ns=ns * s.ns, bytes=tuple(nbytes * n for n in s.bytes)) for s in unscaled)

    def block(unscaled: Block) -> Block:
        return Block(
            options=tuple(replace(o, splits=splits(o.splits), receive=receive(o.receive)) for o in unscaled.options),
            axes=tuple(
                replace(
                    a,
                    each_bytes=nbytes * a.each_bytes,
                    read_bytes=tuple(nbytes * n for n in a.read_bytes),
                    each_ps=tuple(ns * ps for ps in a.each_ps),
                )
                for a in unscaled.axes
            ),
        )

    return replace(
        problem,
        capacity_bytes=tuple(nbytes * n for n in problem.capacity_bytes),
        kinds=tuple(
            replace(kind, unit_bytes=nbytes * kind.unit_bytes, unit_ps=tuple(ns * ps for ps in kind.unit_ps))
            for kind in problem.kinds
        ),
        groups=tuple(
            replace(
                group,
                splits=tuple(map(splits, group.splits)),
                hop_ns=ns * group.hop_ns,
                network_hop_ns=ns * group.network_hop_ns,
                first=receive(group.first),
                stage_bytes=tuple(nbytes * n for n in group.stage_bytes),
            )
            for group in problem.groups
        ),
        first=block(problem.first),
        last=block(problem.last),
        tail=block(problem.tail) if problem.tail else None,
        message_ns=tuple(ns * time_ns for time_ns in problem.message_ns),
        awake_ns=tuple(None if own is None else ns * own for own in problem.awake_ns),
        waits_ns=tuple(tuple(ns * own for own in waits_ns) for waits_ns in problem.waits_ns),
        network_message_ns=ns * problem.network_message_ns,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="a limit; may be repeated")
    parser.add_argument("--instance", action="append", default=[], help="an instance; may be repeated")
    parser.add_argument("--cpu", type=int, default=60, help="most CPU seconds of a run")
    parser.add_argument("--bits", action="store_true", help="count the bits of sums instead")
    arguments = parser.parse_args()
    if arguments.bits:
        for name in arguments.instance or [speed.name for speed in SPEED]:
            print(bits(name), flush=True)
        return
    for limit in arguments.only or CASES:
        table(limit, arguments.instance, arguments.cpu)


if __name__ == "__main__":
    main()
