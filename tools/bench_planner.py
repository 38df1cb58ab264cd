"""Time the planner, and compare its placements with those of others and its predicted times with published ones.

    python tools/bench_planner.py speed [--only NAME] [--json | --markdown]
    python tools/bench_planner.py rivals [--only NAME] [--json | --markdown]
    python tools/bench_planner.py measured [--only NAME] [--json | --markdown]
    python tools/bench_planner.py trees [--only NAME] [--json | --markdown]

``speed`` runs ``python -m planner build --plan-only`` once for each instance, with the defaults and the EAGLE-3 head,
and reads time and peak memory of that process. ``rivals`` prints the comparison of :mod:`rivals`, ``measured`` that of
:mod:`measured`, ``trees`` that of :mod:`chosen_trees`: tokens/s of EAGLE's default tree, of the chosen one and of plain
decoding, and the CPU time of the choice beside that of one solve. Exit code 1: a run exceeds its limits, a rival's
placement is faster or fits where ours does not, or a prediction is further from its measurement than its kind allows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chosen_trees import TREE_TITLES, TREES, Grown, chosen, tree_data, tree_line
from measured import BOUNDS, Predicted, Row, measured_table, predicted

from instances import RIVALRIES, SPEED, Rivalry, Speed
from planner.families import load_base, load_draft
from planner.formulations import Formulations
from planner.hardware.inventory import parse_inventory
from planner.request import Wanted, resolve
from rivals import Comparison, Priced, compare

ROOT = Path(__file__).parent.parent

MOST_RSS_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One run of ``build``."""

    speed: Speed
    devices: int
    groups: int
    splits: int
    """Splits of the problem, over all groups and blocks."""
    solve_s: float
    wall_s: float
    rss_bytes: int
    """Peak resident memory of the process."""
    status: str
    gap: float
    objective_ns: int

    @property
    def kept(self) -> bool:
        """Return whether the run is proven optimal within its limits of time and memory."""
        speed = self.speed
        solved = speed.most_solve_s is None or self.solve_s <= speed.most_solve_s
        in_all = speed.most_wall_s is None or self.wall_s <= speed.most_wall_s
        return solved and in_all and self.rss_bytes <= MOST_RSS_BYTES and self.status == "OPTIMAL"


# ---- speed ----


def timed(speed: Speed) -> Timed:
    """Run ``build`` to its end; its messages go to stderr, and its failure ends this program."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        model, draft, inventory = directory / "model", directory / "draft", directory / "inventory.yaml"
        for path, config in ((model, speed.model), (draft, speed.draft)):
            path.mkdir()
            (path / "config.json").write_text(json.dumps(config))
        inventory.write_text(json.dumps(speed.inventory))  # JSON is YAML
        arguments = ["--gpus", inventory, "--model", model, "--draft", draft, "--out", directory / "plan"]
        one_solve = ["--plan-only", "--objective", "step"]
        command = [sys.executable, "-m", "planner", "build", "--json", *one_solve, *map(str, arguments)]
        report, wall_s, rss_bytes = _run(command, directory / "seen.json")
        base = load_base(model)
        head = load_draft(draft, base)
        options = resolve(Wanted(), "bfloat16", base, head)
        inventory_at = parse_inventory(speed.inventory, speed.name).at(options.dtype)
        problem = Formulations().of(base, head, inventory_at, options).problem
    listed = [splits for group in problem.groups for splits in group.splits]
    listed += [option.splits for block in problem.blocks for option in block.options]
    return Timed(
        speed=speed,
        devices=len(problem.devices),
        groups=len(problem.groups),
        splits=sum(map(len, listed)),
        solve_s=report["solve_s"],
        wall_s=wall_s,
        rss_bytes=rss_bytes,
        status=report["status"],
        gap=1 - report["bound_ns"] / report["least_ns"],
        objective_ns=report["objective_ns"],
    )


WATCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
wall_s = time.perf_counter() - start
with open(sys.argv[1], "w") as file:
    json.dump({"code": os.waitstatus_to_exitcode(status), "wall_s": wall_s, "maxrss": usage.ru_maxrss}, file)
"""
"""Source of a small process that starts another: peak memory begins at that of the parent, so the parent is small."""


def _run(command: Sequence[str], report: Path) -> tuple[dict[str, Any], float, int]:
    """Run a program; return its JSON output, its time in s and its peak memory in bytes."""
    watched = [sys.executable, "-c", WATCH, str(report), *command]
    output = subprocess.run(watched, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout
    seen = json.loads(report.read_text())
    if seen["code"]:
        raise SystemExit(f"{' '.join(command)}: exit code {seen['code']}")
    return json.loads(output), seen["wall_s"], seen["maxrss"] * (1 if sys.platform == "darwin" else 1024)


SPEED_TITLES = ("instance", "groups", "splits", "solve s", "wall s", "peak MiB", "status", "gap")


def speed_line(row: Timed) -> tuple[str, ...]:
    return (
        row.speed.title,
        str(row.groups),
        str(row.splits),
        f"{row.solve_s:.2f}",
        f"{row.wall_s:.1f}",
        f"{row.rss_bytes / 2**20:.0f}",
        row.status,
        f"{row.gap:.2%}",
    )


def speed_data(row: Timed) -> dict[str, Any]:
    return {
        "name": row.speed.name,
        "instance": row.speed.title,
        "devices": row.devices,
        "groups": row.groups,
        "splits": row.splits,
        "solve_s": row.solve_s,
        "wall_s": round(row.wall_s, 3),
        "peak_bytes": row.rss_bytes,
        "status": row.status,
        "gap": row.gap,
        "objective_ns": row.objective_ns,
        "kept": row.kept,
    }


# ---- rivals ----

RIVAL_TITLES = (
    *("instance", "accelerate, balanced", "best equal shares", "eagleplan, layers on devices"),
    *("accelerate / ours", "equal / ours"),
)


def rival_line(row: Comparison) -> tuple[str, ...]:
    spilled = f", {_gb(row.mapped.spilled_bytes)} on the CPU" if row.mapped.spilled_bytes else ""
    return (
        row.rivalry.title,
        _priced(row.mapped.priced) + spilled,
        f"{_priced(row.equal)} ({row.equal.name})",
        _ours(row),
        _ratio(row.mapped.priced, row),
        _ratio(row.equal, row),
    )


def _priced(priced: Priced) -> str:
    return f"does not fit, {_gb(priced.short_bytes)} short" if priced.short_bytes else _ms(priced.step_ns)


def _ours(row: Comparison) -> str:
    """Return our step time, stages and gap as text."""
    if row.ours is None:
        return "proven not to fit"
    gap = 1 - row.ours.bound_ns / row.ours.least_ns
    return f"{_ms(row.ours.objective_ns)} ({row.stages}{f'; gap {gap:.3%}' if gap else ''})"


def beaten(row: Comparison) -> list[str]:
    """Return the rivals that are faster than ours, or fit if ours does not; spilled weights do not count as fitting."""
    others = {"equal shares": row.equal}
    if not row.mapped.spilled_bytes:
        others["accelerate"] = row.mapped.priced
    fitting = {name: priced for name, priced in others.items() if priced.short_bytes == 0}
    if row.ours is None:
        return list(fitting)
    theirs = fitting | {"accelerate": row.mapped.priced} if row.mapped.spilled_bytes else fitting
    return [name for name, priced in theirs.items() if priced.step_ns < row.ours.objective_ns]


def _ratio(priced: Priced, row: Comparison) -> str:
    return "" if priced.short_bytes or row.ours is None else f"{priced.step_ns / row.ours.objective_ns:.2f}"


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.2f} ms"


def rival_data(row: Comparison) -> dict[str, Any]:
    return {
        "name": row.rivalry.name,
        "instance": row.rivalry.title,
        "accelerate": {
            "step_ns": row.mapped.priced.step_ns,
            "short_bytes": row.mapped.priced.short_bytes,
            "spilled_bytes": row.mapped.spilled_bytes,
            "spilled_from": row.mapped.spilled_from,
        },
        "equal": {"name": row.equal.name, "step_ns": row.equal.step_ns, "short_bytes": row.equal.short_bytes},
        "ours": None
        if row.ours is None
        else {
            "step_ns": row.ours.objective_ns,
            "bound_ns": row.ours.bound_ns,
            "solve_s": row.ours.solve_s,
            "stages": row.stages,
        },
        "beaten_by": beaten(row),
    }


# ---- measured ----

MEASURED_TITLES = ("row", "devices", "kind", "measured ms", "predicted ms", "predicted / measured", "fitted")


def measured_line(line: Predicted) -> tuple[str, ...]:
    row = line.row
    numbers = (f"{row.step_ms:.2f}", f"{line.step_ms:.2f}", f"{line.ratio:.2f}")
    return (row.name, row.devices, line.kind, *numbers, "yes" if row.fit else "")


def measured_data(line: Predicted) -> dict[str, Any]:
    row = line.row
    return {
        "name": row.name,
        "model": row.model,
        "devices": row.devices,
        "kind": line.kind,
        "measured_ms": round(row.step_ms, 3),
        "predicted_ms": round(line.step_ms, 3),
        "ratio": round(line.ratio, 3),
        "bound": BOUNDS[line.kind],
        "fit": row.fit,
        "source": row.source,
        "kept": line.kept,
    }


# ---- tables ----


def markdown(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def in_columns(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [titles, *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "rivals", "measured", "trees"))
    parser.add_argument("--only", action="append", help="the name of an instance; may be repeated")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    listed = measured_table()
    instances: dict[str, Sequence[Speed | Rivalry | Row | Grown]] = {
        "speed": SPEED,
        "rivals": RIVALRIES,
        "measured": listed.rows,
        "trees": TREES,
    }
    names = [instance.name for instance in instances[arguments.what]]
    for name in arguments.only or ():
        if name not in names:
            parser.error(f"--only {name}: expected one of {', '.join(names)}")
    chosen_names = arguments.only or names
    titles: tuple[str, ...]
    lines: list[tuple[str, ...]]
    if arguments.what == "speed":
        timings = [timed(instance) for instance in SPEED if instance.name in chosen_names]
        titles, lines = SPEED_TITLES, [speed_line(row) for row in timings]
        data, bad = [speed_data(row) for row in timings], [row.speed.name for row in timings if not row.kept]
    elif arguments.what == "trees":
        choices = [chosen(instance) for instance in TREES if instance.name in chosen_names]
        titles, lines = TREE_TITLES, [tree_line(row) for row in choices]
        data, bad = [tree_data(row) for row in choices], []
    elif arguments.what == "measured":
        prices = [predicted(row, listed) for row in listed.rows if row.name in chosen_names]
        titles, lines = MEASURED_TITLES, [measured_line(line) for line in prices]
        data, bad = [measured_data(line) for line in prices], [line.row.name for line in prices if not line.kept]
    else:
        comparisons = [compare(instance) for instance in RIVALRIES if instance.name in chosen_names]
        titles, lines = RIVAL_TITLES, [rival_line(row) for row in comparisons]
        data, bad = [rival_data(row) for row in comparisons], [row.rivalry.name for row in comparisons if beaten(row)]
    if arguments.json:
        print(json.dumps(data, indent=2))
    else:
        print((markdown if arguments.markdown else in_columns)(titles, lines))
    if bad:
        print(f"not as promised: {', '.join(bad)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
