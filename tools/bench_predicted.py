"""Predicted beside measured times of steps on this machine's CPU: two models, one, two and four devices, several trees.

    python tools/bench_predicted.py [--model DIR] [--rounds 2] [--write] [--twice]

For each number of devices the machine is measured as `planner inventory --measure` does it, with as many processes,
which share the cores. Each device is given the least memory with which a plan is found, so that all are in use. Plans
are compiled and timed by `runtime bench`; the fastest tenth of its steps counts, with their parts, of the round in
which they were shortest: other programs make one longer and none shorter. No further round is begun after `--seconds`;
what ends it earlier leaves the rows that are finished.
`--twice`: measure twice for each number of devices, and say how far the predicted steps are apart, of plans with the
same memory. `--model`: SmolLM2-135M-Instruct, by default that of `tools/demo`; `--write`: put the table into
RESULTS.md.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import planner
from demo import HEAD, say
from demo_model import cache_directory, ensure_model
from planner.api import measuring, samples
from planner.api.options import BuildOptions
from planner.api.planning import PlanResult, request_of, solved
from planner.demo_model import DEFAULT_HEAD
from planner.errors import InfeasibleError
from planner.problem.placed import messages_ns, parts_ns, plain_step_ns
from planner.solver.minimise import Settings
from plans.format import format_bytes
from plans.schema import Options, Plan, Tree
from plans.strict_yaml import dump_yaml

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADING = "## Predicted and measured steps on a CPU"
DEVICES = (1, 2, 4)
PHASES = ("draft", "verify, commit", "collectives", "step")
TOLERANCE = 0.15
"""Of a predicted time, relative to the measured one."""
KV_ROWS = 256
"""Positions of the context and nodes of the tree: a whole number of blocks, as whose rows attention is counted."""
NEW_TOKENS = 24
REPEATS = ("--repeats", "12")
"""Of some five steps with a tree each, so that the fastest tenth is several steps."""
MEMORY_STEPS = 24
"""Memory of a device is raised by a tenth at most so often until a plan is found."""
LONGEST_S = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model with its EAGLE head and the trees that it is timed with."""

    name: str
    model: Path | None
    """None: the embedded model."""
    draft: Path
    dtype: Any
    trees: tuple[tuple[int, int, int], ...]
    """total_token, depth, top_k."""
    nbytes: int
    """Memory of all devices together that is tried first."""


@dataclass(kw_only=True, slots=True)
class Timed:
    """A plan, and the phases of its modes' steps, of the round in which they were shortest."""

    title: str
    directory: Path
    plan: Plan
    modes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By mode, rows of ``runtime bench`` by phase."""

    def bench(self) -> None:
        """Time the plan once more."""
        # positions near the context, whose attention is what is predicted
        tokens = {"--prompt-tokens": self.plan.options.context - NEW_TOKENS, "--max-new-tokens": NEW_TOKENS}
        lengths = [str(word) for option in tokens.items() for word in option]
        command = [
            sys.executable,
            "-m",
            "runtime",
            "bench",
            str(self.directory),
            "--json",
            "--quiet",
            *REPEATS,
            *lengths,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
        if done.returncode:
            sys.exit(f"{self.title}: {done.stderr.strip()}")
        for mode in json.loads(done.stdout)["modes"]:
            phases = {row["name"]: row for row in mode["phases"]}
            known = self.modes.setdefault(mode["name"], phases)
            if phases["step"]["best_ns"] < known["step"]["best_ns"]:
                self.modes[mode["name"]] = phases


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Times of the phases of a mode's steps."""

    title: str
    mode: str
    phases: dict[str, dict[str, Any]]
    """By PHASES, with ``best_ns`` and ``predicted_ns``."""

    @property
    def cells(self) -> tuple[str, ...]:
        return self.title, self.mode, *map(cell, self.phases.values())


def measured_inventory(count: int) -> Any:
    """Return the inventory of so many CPU devices with measured figures; say what was measured."""
    devices = [{"id": f"cpu{n}", "type": "cpu", "memory": "1 GiB", "bandwidth": "20 GB/s"} for n in range(count)]
    data, lines = measuring.measure({"hosts": [{"name": "box0", "devices": devices}]}, "measured")
    for line in lines:
        say(line)
    return data


def planned(subject: Subject, data: Any, tree: Tree, directory: Path) -> Plan:
    """Plan on all devices of an inventory, with the least memory that is found to be enough, and compile."""
    result, _ = with_least_memory(subject, data, tree, directory.with_suffix(".yaml"))
    result.write(directory)
    planner.compile(directory, model=subject.model, draft=subject.draft)
    return result.plan


def with_least_memory(subject: Subject, data: Any, tree: Tree, inventory: Path) -> tuple[PlanResult, int]:
    """Return a plan on all devices with the least memory that is found to be enough, and its bytes for each."""
    count = len(data["hosts"][0]["devices"])
    nbytes = subject.nbytes // count
    for _ in range(MEMORY_STEPS):
        try:
            return with_memory(subject, data, tree, inventory, nbytes), nbytes
        except InfeasibleError as error:
            nbytes += max(nbytes // 10, sum(error.short_bytes.values()) // count)
    sys.exit(f"{subject.name}: no plan on {count} devices with {format_bytes(nbytes)} each")


def with_memory(subject: Subject, data: Any, tree: Tree, inventory: Path, nbytes: int) -> PlanResult:
    """Return a plan on devices with so much memory each."""
    (host,) = data["hosts"]
    devices = [device | {"memory": f"{nbytes} B"} for device in host["devices"]]
    inventory.write_text(dump_yaml({"hosts": [host | {"devices": devices}]}))
    options = BuildOptions(
        subject.model,
        draft=subject.draft,
        inventory=inventory,
        dtype=subject.dtype,
        context=KV_ROWS - tree.total_token,
        tree=tree,
        simplify=0.0,
    )
    return solved(request_of(options), Settings())


def twice(arguments: argparse.Namespace, directory: Path) -> None:
    """Measure twice, and print how far the steps of plans by the two inventories are apart."""
    for count in arguments.devices or DEVICES:
        one, other = measured_inventory(count), measured_inventory(count)
        for subject in subjects(arguments.model):
            tree = dynamic(subject.trees[-1])
            first, nbytes = with_least_memory(subject, one, tree, directory / "inventory.yaml")
            second = with_memory(subject, other, tree, directory / "inventory.yaml", nbytes)
            steps_ns = [result.plan.proof.objective_ns or 0 for result in (first, second)]
            words = " and ".join(f"{step_ns / 1e6:.2f}" for step_ns in steps_ns)
            apart = max(steps_ns) / min(steps_ns) - 1
            print(f"{title_of(subject, first.plan, tree)}: steps of {words} ms, {apart:.1%} apart")


def dynamic(sizes: tuple[int, int, int]) -> Tree:
    """Return a dynamic tree."""
    total, depth, top_k = sizes
    return Tree(kind="dynamic", total_token=total, depth=depth, top_k=top_k, paths=None)


def rows(timed: Timed) -> Iterator[Row]:
    """Yield a row of the table for each mode."""
    for name, phases in timed.modes.items():
        both_ns = phases["verify"]["best_ns"] + phases["commit"]["best_ns"]  # which is predicted with the lm_head
        verify, whole = phases["verify"] | {"best_ns": both_ns}, phases["step"]
        options = options_of(timed.plan, name)
        if name == "plain":  # which a plan with a tree has no phases of
            whole = whole | {"predicted_ns": plain_step_ns(timed.plan)}
        # a part's time is predicted with what it receives, and measured from when all its devices have that
        hops_ns, features_ns, message_ns = messages_ns(timed.plan, options)
        verify |= {"predicted_ns": sum(parts_ns(timed.plan, options)) - hops_ns - message_ns}
        draft, sent = phases["draft"], phases["collectives"]
        if draft["predicted_ns"]:
            draft = draft | {"predicted_ns": draft["predicted_ns"] - features_ns}
        sent = sent | {"predicted_ns": hops_ns + features_ns + message_ns}
        yield Row(title=timed.title, mode=name, phases=dict(zip(PHASES, (draft, verify, sent, whole), strict=True)))


def options_of(plan: Plan, mode: str) -> Options:
    """Return the options by which the steps of a mode are predicted."""
    return plan.options if mode == "eagle" else replace(plan.options, tree=None)


def within(every: Sequence[Row]) -> str:
    """Return how many of the predicted times are within TOLERANCE of the measured ones, by phase."""
    words = []
    for phase in PHASES:
        ratios = [ratio for ratio in (predicted_over_measured(row.phases[phase]) for row in every) if ratio is not None]
        near = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
        words.append(f"{phase} {near} of {len(ratios)}")
    return f"within {TOLERANCE:.0%}: {'; '.join(words)}"


def predicted_over_measured(phase: dict[str, Any]) -> float | None:
    """Return the ratio of the times of a phase; None where one of them is none."""
    return phase["predicted_ns"] / phase["best_ns"] if phase["best_ns"] and phase["predicted_ns"] else None


def cell(row: dict[str, Any]) -> str:
    """Return measured ms, and where any are predicted, predicted ms and predicted / measured."""
    if not row["best_ns"]:
        return ""
    measured_ns, predicted_ns = row["best_ns"], row["predicted_ns"]
    if not predicted_ns:
        return f"{measured_ns / 1e6:.2f}"
    return f"{measured_ns / 1e6:.2f}, {predicted_ns / 1e6:.2f}: {predicted_ns / measured_ns:.2f}"


def table(every: Sequence[Timed]) -> list[str]:
    """Return the table in Markdown."""
    titles = ("plan", "mode", *PHASES)
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    return lines + [f"| {' | '.join(row.cells)} |" for timed in every for row in rows(timed)]


def title_of(subject: Subject, plan: Plan, tree: Tree) -> str:
    """Return model, devices in use, stages and tree."""
    used = len([line for line in plan.memory if line.weights_bytes + line.draft_weights_bytes])
    stages = " + ".join(str(len(stage.devices)) for stage in plan.stages)
    return f"{subject.name}, {used} of {len(plan.inventory.devices)} devices, stages on {stages}, {tree_words(tree)}"


def tree_words(tree: Tree) -> str:
    """Return a tree as RESULTS.md writes it."""
    return f"{tree.total_token}/{tree.depth}/{tree.top_k}"


def subjects(model: Path | None) -> Iterator[Subject]:
    """Yield both demo models."""
    trees = ((6, 2, 3), (16, 4, 4), (32, 6, 6))
    yield Subject(name="embedded", model=None, draft=DEFAULT_HEAD, dtype=None, trees=trees, nbytes=40 << 20)
    found = model or ensure_model(cache_directory(dict(os.environ)), say, lambda done, total: None)
    yield Subject(name="SmolLM2", model=found, draft=HEAD, dtype="bfloat16", trees=trees[:2], nbytes=320 << 20)


def write(lines: Sequence[str]) -> None:
    """Put the section into RESULTS.md, in place of an earlier one."""
    text = RESULTS.read_text()
    section = "\n".join((HEADING, "", *lines, ""))
    known = re.compile(rf"^{re.escape(HEADING)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    text = known.sub(lambda _: f"{section}\n", text) if known.search(text) else f"{text.rstrip()}\n\n{section}"
    RESULTS.write_text(f"{text.rstrip()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=360, help="after which no further round is begun")
    parser.add_argument("--devices", type=int, action="append", choices=DEVICES)
    parser.add_argument("--embedded", action="store_true", help="the embedded model alone")
    parser.add_argument("--twice", action="store_true", help="measure twice, and compare predicted steps alone")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    # a busy machine makes the figures worse, and does not end the comparison
    samples.LONGEST_S = samples.CALIBRATION_S = LONGEST_S
    every: list[Timed] = []
    ends = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory(prefix="predicted-") as name:
        if arguments.twice:
            twice(arguments, Path(name))
            return
        try:
            for timed in first_round(arguments, Path(name)):
                every.append(timed)
            for _ in range(arguments.rounds - 1):
                for timed in every:
                    if time.monotonic() < ends:
                        timed.bench()
        except KeyboardInterrupt:
            say("interrupted")
    report(every, arguments.write)


def first_round(arguments: argparse.Namespace, directory: Path) -> Iterator[Timed]:
    """Yield every plan once it has been timed; print its rows."""
    for count in arguments.devices or DEVICES:
        data = measured_inventory(count)
        for subject in subjects(arguments.model):
            if arguments.embedded and subject.model is not None:
                continue
            for tree in map(dynamic, subject.trees):
                own = directory / f"{subject.name}-{count}-{tree.total_token}"
                plan = planned(subject, data, tree, own)
                timed = Timed(title=title_of(subject, plan, tree), directory=own, plan=plan)
                timed.bench()
                for row in rows(timed):
                    say(" | ".join(row.cells))
                yield timed


def report(every: Sequence[Timed], write_it: bool) -> None:
    """Print the table, and put it into RESULTS.md where that is asked for."""
    cores = len(os.sched_getaffinity(0))
    today = datetime.datetime.now(tz=datetime.UTC)
    words = (
        f"{today:%-d %B %Y}, `python tools/bench_predicted.py`, {cores} cores: measured ms, predicted ms: predicted / "
        "measured, of the fastest tenth of the steps."
    )
    lines = [words, "", *table(every), "", f"{within([row for timed in every for row in rows(timed)])}."]
    print("\n".join(lines))
    if write_it:
        write(lines)


if __name__ == "__main__":
    main()
