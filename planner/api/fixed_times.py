"""Fixed times of CPUs: those by which steps of the demo model take what was measured.

The embedded demo model, whose weights take next to no time, is planned on one tensor-parallel group of some devices,
compiled and timed by ``bench``. What the parts of its steps took beyond what rates and messages explain is fixed time
of a layer, of a drafter's pass, and of embedding and lm_head with all that is in no part
(:mod:`planner.costs.fixed_work`). A stage of its first layers alone tells the time of a layer from that of a stage. Of
several runs, spread over the time, the one with the shortest steps counts, as other programs make one longer and none
shorter; all its parts do, since the shortest times of different steps are less than any step takes.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path

from planner.api.compiling import compile as compile_images
from planner.api.planning import plan as plan_model
from planner.api.samples import output
from planner.costs.topology import together
from planner.costs.working_set import step_bytes
from planner.demo_model import write_shorter
from planner.hardware.inventory import parse_inventory
from planner.hardware.measured import Computing, Figure, MeasuredLink, device_data, link_data
from planner.problem.placed import draft_ns, messages_ns, parts_ns
from plans.schema import Device, Plan, Tree
from plans.strict_yaml import dump_yaml

TREE = Tree(kind="dynamic", total_token=16, depth=3, top_k=4, paths=None)
CONTEXT = 240
"""Positions that with the tree are a whole number of blocks, as whose rows attention is counted."""
BENCH = ("--json", "--quiet", "--repeats", "6", "--prompt-tokens", "216", "--max-new-tokens", "24")
"""Positions near the context, whose attention is what is predicted. Of 24 tokens there are some five steps with a tree,
of whose fastest tenth of all repeats ``bench`` takes the mean."""
FEW_LAYERS = 2
"""Layers of a second model, by whose time that of a layer and that of a stage are told apart."""
BENCHES = 3
LEAST_BENCHES = 2
BENCHES_S = 20
"""Time after which no further runs are begun, but for the least: all is to take a minute."""
UNIT_NS = 1_000_000
Change = Callable[[Device], Device]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Times of a plan's steps in ns, as ``runtime bench`` takes them: of each mode's fastest steps."""

    plain: int
    """A whole step of plain decoding."""
    message: int
    """Its step message, to members of a group that have all just chosen the token."""
    tree_message: int
    """That of a step with a tree."""
    layers: int
    """Its layers."""
    eagle: int
    """A whole step with a tree."""
    tree_layers: int
    drafter: int
    few_layers: int
    """Layers of a plain step of the model's first FEW_LAYERS."""

    @property
    def tables(self) -> int:
        """All of a plain step but its layers: embedding, lm_head, commit, and what is in no part."""
        return max(0, self.plain - self.layers)

    @property
    def tree_tables(self) -> int:
        """All of a step with a tree but its layers and the drafter."""
        return max(0, self.eagle - self.tree_layers - self.drafter)


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Plans of the demo model on some devices, with the times of some runs of both."""

    whole: Plan
    few: Plan
    """Of its first FEW_LAYERS, without a drafter."""
    runs: list[Timed]


def demo_steps(at_once: Iterable[int], threads: int) -> dict[int, Steps]:
    """Return the plans of the demo model on each such number of devices, with the times of some runs, taken in turns.

    Each device has so many threads, whether it computes alone or beside others.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as name:
        steps = {}
        for count in at_once:
            own = Path(name) / f"{count}"
            own.mkdir()
            steps[count] = Steps(whole=demo_plan(own / "whole", count), few=few_plan(own / "few", count), runs=[])
        ends = time.monotonic() + BENCHES_S
        for number in range(BENCHES):
            if number >= LEAST_BENCHES and time.monotonic() > ends:
                break
            for count, own_steps in steps.items():
                own = Path(name) / f"{count}"
                with _on_cores(count * threads):
                    own_steps.runs.append(timed(own / "whole" / "plan", own / "few" / "plan"))
    return steps


def with_fixed_times(
    computing: Sequence[Computing], link: MeasuredLink | None, steps: Mapping[int, Steps]
) -> list[Computing]:
    """Return the figures with overheads and passes, of steps of the demo model on as many devices."""
    explained = []
    for own in computing:
        steps_of = steps[own.devices]
        whole, few = (priced(plan, computing, link) for plan in (steps_of.whole, steps_of.few))
        explained.append(_fixed_times(own, whole, few, steps_of.runs))
    return explained


def with_awake(link: MeasuredLink | None, steps: Mapping[int, Steps]) -> MeasuredLink | None:
    """Return a link with the latency to processes that are awake: the median of the step messages of the smallest
    group, of plain steps and of those with a tree, and no more than to one that sleeps.
    """
    several = min((count for count in steps if count > 1), default=None)
    if link is None or several is None:
        return link
    messages = [message for run in steps[several].runs for message in (run.message, run.tree_message)]
    ns = min(link.latency.value, round(statistics.median(messages)))
    return replace(link, awake=Figure(value=ns, spread=_spread(messages)))


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Let this thread, and what it starts, run on so many of its cores alone."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def demo_plan(directory: Path, devices: int) -> Plan:
    """Plan and compile the demo model into ``directory``/plan, on one group of so many CPUs; return the plan."""
    return _planned(directory, devices, None, TREE)


def few_plan(directory: Path, devices: int) -> Plan:
    """Do the same with the model's first FEW_LAYERS and no drafter."""
    model = directory / "model"
    model.mkdir(parents=True)
    write_shorter(model, FEW_LAYERS)
    return _planned(directory, devices, model, None)


def _planned(directory: Path, devices: int, model: Path | None, tree: Tree | None) -> Plan:
    directory.mkdir(exist_ok=True)
    # Dividing is the best plan on devices that are as slow as this.
    slow = {"type": "cpu", "memory": "1 GiB", "bandwidth": "10 MB/s", "flops": "10 MFLOP/s"}
    inventory = directory / "inventory.yaml"
    host = {"name": "box0", "devices": [{"id": f"cpu{number}"} | slow for number in range(devices)]}
    inventory.write_text(dump_yaml({"hosts": [host]}))
    result = plan_model(model, inventory=inventory, tree=tree, context=CONTEXT)
    result.write(directory / "plan")
    compile_images(directory / "plan", model=model)
    return result.plan


def timed(whole: Path, few: Path) -> Timed:
    """Return the times of the plans of the whole model and of a few of its layers, each with one stage."""
    plain, eagle = _best_ns(whole)
    (short,) = _best_ns(few)
    return Timed(
        plain=plain["step"],
        message=plain["collectives"],
        tree_message=eagle["collectives"],
        layers=plain["stages[0]"],
        eagle=eagle["step"],
        tree_layers=eagle["stages[0]"],
        drafter=eagle["draft"],
        few_layers=short["stages[0]"],
    )


def _best_ns(directory: Path) -> list[dict[str, int]]:
    """Return the times of a plan's phases and parts in each mode."""
    modes = output("bench", str(directory), *BENCH)["modes"]
    return [{row["name"]: row["best_ns"] for row in (*mode["phases"], *mode["parts"])} for mode in modes]


def priced(plan: Plan, computing: Sequence[Computing], link: MeasuredLink | None) -> Plan:
    """Return a plan on one group with figures that were measured while all its devices compute."""
    links = {"links": {"measured": link_data(link)}} if link else {}
    device = {"type": "cpu", "memory": "1 GiB", "bandwidth": "1 MB/s", "measured": device_data(computing)}
    devices = [{"id": own.id} | device for own in plan.inventory.devices]
    inventory = parse_inventory({"hosts": [{"name": "box0", "devices": devices} | links]}, "measured")
    listed = inventory.at(plan.options.dtype, step_bytes(plan.model, plan.draft, plan.options))
    at_work = tuple(together(own, len(devices)) for own in listed.devices)
    return replace(plan, inventory=replace(listed, devices=tuple(replace(own, together=None) for own in at_work)))


def _fixed_times(own: Computing, whole: Plan, few: Plan, runs: Sequence[Timed]) -> Computing:
    """Return figures with the fixed times by which steps take what was measured: of each mode the fastest run."""
    plain, eagle = (min(runs, key=attrgetter(mode)) for mode in ("plain", "eagle"))
    shortest = min(run.few_layers for run in runs)
    fastest = replace(eagle, plain=plain.plain, layers=plain.layers, few_layers=shortest)
    of_runs = [_explaining(whole, few, run) for run in runs]
    figures = {
        name: Figure(value=ns, spread=_spread([times[name] for times in of_runs]))
        for name, ns in _explaining(whole, few, fastest).items()
    }
    return replace(
        own,
        overhead=figures["overhead"],
        stage=figures["stage"],
        table=figures["table"],
        drafter_pass=figures["pass"],
        tree=figures["tree"],
    )


def _spread(values: Sequence[int]) -> int:
    """Return the interquartile range of the values of some runs."""
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return round(third - first)


def _explaining(whole: Plan, few: Plan, measured: Timed) -> dict[str, int]:
    """Return the fixed times by which a step takes what was measured; a layer has no part of what a stage takes."""

    def of_whole(part_ns: Callable[[Plan], int]) -> Callable[[Change], int]:
        return lambda changed: part_ns(_with(whole, changed))

    def more_ns(changed: Change) -> int:
        return _layers_ns(_with(whole, changed)) - _layers_ns(_with(few, changed))

    overhead = min(
        _explained(more_ns, _with_overhead, measured.layers - measured.few_layers),
        _explained(of_whole(_layers_ns), _with_overhead, measured.layers),
    )
    whole = _with(whole, lambda device: _with_overhead(device, overhead))
    stage = _explained(of_whole(_layers_ns), _with_stage, measured.layers)
    table = _explained(of_whole(_tables_ns), _with_table, measured.tables)
    whole = _with(whole, lambda device: _with_stage(_with_table(device, table), stage))
    drafter = _explained(of_whole(_drafter_ns), _with_pass, measured.drafter)
    tree = max(0, measured.tree_tables - _tree_tables_ns(whole))
    return {"overhead": overhead, "stage": stage, "table": table, "pass": drafter, "tree": tree}


def _with_overhead(device: Device, ns: int) -> Device:
    return replace(device, overhead_ns=ns)


def _with_stage(device: Device, ns: int) -> Device:
    return device if device.measured is None else replace(device, measured=replace(device.measured, stage_ns=ns))


def _with_table(device: Device, ns: int) -> Device:
    return replace(device, table_ns=ns)


def _with_pass(device: Device, ns: int) -> Device:
    return replace(device, pass_ns=ns)


def _layers_ns(plan: Plan) -> int:
    """Return the time of a plain step's layers, as `bench` has it: without the hop to them."""
    plain = replace(plan.options, tree=None)
    return parts_ns(plan, plain)[1] - messages_ns(plan, plain)[0]


def _tables_ns(plan: Plan) -> int:
    embed_ns, _, head_ns = parts_ns(plan, replace(plan.options, tree=None))
    return embed_ns + head_ns


def _tree_tables_ns(plan: Plan) -> int:
    embed_ns, _, head_ns = parts_ns(plan, plan.options)
    return embed_ns + head_ns


def _drafter_ns(plan: Plan) -> int:
    return draft_ns(plan, plan.options)


def _explained(part_ns: Callable[[Change], int], figure: Callable[..., Device], measured_ns: int) -> int:
    """Return the ns of a figure of all devices by which a part, linear in it, takes what was measured; 0 where it has
    no part in it.
    """
    none, some = (part_ns(partial(figure, ns=ns)) for ns in (0, UNIT_NS))
    return max(0, measured_ns - none) * UNIT_NS // (some - none) if some > none else 0


def _with(plan: Plan, changed: Callable[[Device], Device]) -> Plan:
    devices = tuple(map(changed, plan.inventory.devices))
    return replace(plan, inventory=replace(plan.inventory, devices=devices))
