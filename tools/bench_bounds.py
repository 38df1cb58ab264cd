"""Ablation of the solver's bounds: a table of CPU seconds of one ``solve`` with each part switched off in turn.

    python tools/bench_bounds.py [--only INSTANCE] [--off PART] [--limit CPU_SECONDS]

Instances are those of ``bench_planner.py`` (``speed:``, ``balanced:`` with ``--strategy balanced``, ``rivals:``) and
seeded ``random:`` machines of 4 to 8 unlike GPUs, whose memory the model fills to 94-97 %. Each run is a forked process
with one worker on the formulated problem, killed at the limit. Bounds change the search but not the answer: exit code 1
means that two runs found different objectives.
"""

import argparse
import json
import math
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from instances import LLAMA_3_70B, RIVALRIES, SPEED, Config, Hosts, Rivalry, one
from planner.families import load_base, load_draft
from planner.formulations import Formulations
from planner.hardware.inventory import parse_inventory
from planner.request import Wanted, resolve
from planner.solver import search, solve
from planner.solver.bounds import step
from planner.solver.bounds.chain import PartBounds, Receivers
from planner.solver.bounds.combine import ByLayers, ByPrice
from planner.solver.bounds.excess import Excess
from planner.solver.bounds.hosts import GroupBounds
from planner.solver.bounds.pieces import Floats
from planner.solver.bounds.stage import Line, StageBound
from planner.solver.bounds.stage_cache import StageCache
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from planner.solver.problem_bounds import least_bytes
from rivals import formulation_of

# ---- instances ----

TYPES = (
    *("h100-80g", "a100-80g", "a100-40g", "a6000", "l40s", "rtx-5090", "rtx-4090", "rtx-3090"),
    *("a10", "a5000", "l4", "a4000", "a30", "rtx-4080", "rtx-3060-12g"),
)
SEEDS = range(8)
FULL = (0.94, 0.97)
"""Range of the share of a random machine's memory that the model's least bytes fill."""


def problem_of(model: Config, draft: Config | None, inventory: Hosts, strategy: str = "latency") -> Problem:
    """Formulate a bare config on an inventory, with default options."""
    with tempfile.TemporaryDirectory(prefix="bounds-") as name:
        configs = {"model": model, "draft": draft} if draft else {"model": model}
        for role, config in configs.items():
            (Path(name) / role).mkdir()
            (Path(name) / role / "config.json").write_text(json.dumps(config))
        base = load_base(Path(name) / "model")
        head = load_draft(Path(name) / "draft", base) if draft else None
    options = resolve(Wanted(strategy=strategy), "bfloat16", base, head)  # type: ignore[arg-type]
    devices = parse_inventory(inventory, "inventory.yaml").at("bfloat16")
    return Formulations().of(base, head, devices, options).problem


def random_machine(seed: int) -> Problem:
    """Formulate 4 to 8 unlike GPUs on one host, with as many layers of Llama-3.3-70B as fill them."""
    rng = random.Random(seed)
    inventory = one("pcie", *rng.sample(TYPES, rng.randint(4, 8)))
    filled = rng.uniform(*FULL)

    def problem(layers: int) -> Problem:
        return problem_of(LLAMA_3_70B | {"num_hidden_layers": layers}, None, inventory)

    few, more = problem(8), problem(16)
    layer_bytes = (least_bytes(more) - least_bytes(few)) // 8
    return problem(8 + int(filled * sum(few.capacity_bytes) - least_bytes(few)) // layer_bytes)


def instances() -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Yield the name of each instance and a function that formulates it."""
    for speed in SPEED:
        yield f"speed:{speed.name}", partial(problem_of, speed.model, speed.draft, speed.inventory)
    for speed in SPEED:
        if speed.name != "64of4":  # takes more than 40 CPU seconds
            yield f"balanced:{speed.name}", partial(problem_of, speed.model, speed.draft, speed.inventory, "balanced")
    for rivalry in RIVALRIES:
        yield f"rivals:{rivalry.name}", partial(_rivals_problem, rivalry)
    for seed in SEEDS:
        yield f"random:{seed}", partial(random_machine, seed)


def _rivals_problem(rivalry: Rivalry) -> Problem:
    return formulation_of(rivalry).problem


# ---- parts ----


def _no_bounds(problem: Problem) -> None:
    """Replace ``lower_bounds``: exclude nothing."""


def _no_stages_ns(stages: StageCache, first_ns: Sequence[float]) -> tuple[list[float], float]:
    return [0.0] * len(stages.problem.groups), 0.0


def _unchained(receivers: Receivers, parts: PartBounds) -> Excess:
    return parts.excess


def _no_prices(problem: Problem, bounds: Excess) -> Floats:
    return np.zeros(len(problem.devices))


def _tight_bounds(problem: Problem) -> step.Bounds | None:
    bounds = step.lower_bounds(problem)
    return bounds and bounds.tightened()


def _one_line(stage: StageBound) -> list[Line]:
    return [stage.line]


def _by_price_alone(stages: StageCache, first_ns: Sequence[float]) -> tuple[list[float], float]:
    slopes = [stage.line.mean for stage in map(stages.bound, stages.problem.groups) if stage.most_layers]
    layers = stages.problem.layers
    bounds = GroupBounds(stages, first_ns, ByPrice(layers, min(slopes)) if slopes else ByLayers(layers))
    return bounds.bounds, bounds.floor


def _by_layers_alone(stages: StageCache, first_ns: Sequence[float]) -> tuple[list[float], float]:
    bounds = GroupBounds(stages, first_ns, ByLayers(stages.problem.layers))
    return bounds.bounds, bounds.floor


def _not_whole(problem: Problem, bound: Callable[[Problem], Excess]) -> None:
    """Replace ``whole_layer_bounds``: return None as if a part were divided."""


Switch = tuple[object, str, object]
"""An object, the name of one of its attributes, and the value to set."""

NO_PRICES: Switch = (step, "memory_prices", _no_prices)
ONE_LINE: Switch = (StageBound, "_envelope", _one_line)
PARTS: dict[str, tuple[Switch, ...]] = {
    "nothing": (),
    "all bounds": ((search, "few_devices_bounds", _no_bounds),),
    "hosts": ((step, "_stages_ns", _no_stages_ns),),
    "chain": ((step, "chained", _unchained),),
    "prices": (NO_PRICES,),
    "laziness": ((search, "few_devices_bounds", _tight_bounds),),
    "stage": (ONE_LINE,),
    "prices, stage": (NO_PRICES, ONE_LINE),
    "by layers": ((step, "_stages_ns", _by_price_alone),),
    "by price": ((step, "_stages_ns", _by_layers_alone),),
    "whole layers": ((step, "whole_layer_bounds", _not_whole),),
}
"""Switches that turn off each part."""


# ---- runs ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One solve that outcome."""

    cpu_s: float
    objective_ns: int | None
    """None if it is proven that nothing fits."""


def _solve(problem: Problem, part: str, limit: int, connection: Connection) -> None:
    for owner, name, value in PARTS[part]:
        setattr(owner, name, value)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start) + limit, math.ceil(start) + limit))
    solved = solve.solve(problem, Settings(workers=1))
    objective_ns = solved.least_ns if solved else None
    connection.send(Run(cpu_s=time.process_time() - start, objective_ns=objective_ns))


def run(problem: Problem, part: str, limit: int) -> Run | None:
    """Solve in a forked process; return None if it was killed at the limit."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_solve, args=(problem, part, limit, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()  # type: ignore[no-any-return]
    except EOFError:
        return None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, _ in instances()]
    parser.add_argument("--only", action="append", choices=names, metavar="INSTANCE", help="may be repeated")
    parser.add_argument("--off", action="append", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=int, default=20, help="CPU seconds after which a run is killed")
    arguments: Any = parser.parse_args()
    parts = arguments.off or list(PARTS)
    print(f"| off | {' | '.join(parts)} |\n|{' --- |' * (len(parts) + 1)}", flush=True)
    differing = []
    for name, make in instances():
        if arguments.only and name not in arguments.only:
            continue
        problem = make()
        runs = [run(problem, part, arguments.limit) for part in parts]
        cells = [f"{outcome.cpu_s:.2f}" if outcome else f">{arguments.limit}" for outcome in runs]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        if len({outcome.objective_ns for outcome in runs if outcome}) > 1:
            differing.append(name)
    if differing:
        print(f"different objectives: {', '.join(differing)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
