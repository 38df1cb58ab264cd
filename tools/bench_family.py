"""Trials of what the planner's candidates leave out: the best candidate placement beside the best of a wider family.

    python tools/bench_family.py [--trials N] [--first SEED] [--devices N] [--json]

``OPTIMAL`` is about candidate placements (planner/README.md). A trial draws a machine of 2 to N unlike or equal devices
on one to three hosts, with links of its own, and a small model with or without an EAGLE head that fills 50 to 95 % of
its memory. It solves twice: with the candidates of the planner, and with a wider family, in which

* every set of devices may hold a stage, the embedding, the lm_head or the EAGLE head, whatever hosts they are on;
* members are in every order in which those of a host adjoin, so each may lead, and any may share KV heads;
* KV heads are dealt out over the members in every way, over several hosts too.

So the wider family has all placements that the runtime executes, but for subgroups of unequal sizes that share KV
heads, and for hosts whose stages do not follow one another. The table has one row per kind of machine: trials, those
where the wider family has a faster placement, by how much at most and in the mean over all trials, those that fit with
the wider family alone, and those with a least step that was not proven within the limit, which are in no other figure.
Exit code 1: a candidate placement was faster than the best of the wider family, which cannot be.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise, permutations, product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from planner.errors import NotProvenError
from planner.families import load_base, load_draft
from planner.hardware.inventory import parse_inventory
from planner.problem.device_sets import Candidates, DeviceSet
from planner.problem.draft_block import DraftBlock, Splits
from planner.problem.formulate import Formulation
from planner.problem.kv_splits import Variant
from planner.problem.stage_groups import StageGroups
from planner.request import Wanted, resolve
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from planner.solver.problem_bounds import least_bytes
from planner.solver.solve import solve

MACHINES = ("one host, equal links", "one host, pairs of links", "several hosts")

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
HEAD = BASE | {"num_hidden_layers": 1, "draft_vocab_size": 4096}
LINKS = ("nvlink", "pcie", "pcie3", "ethernet")


# ---- the wider family ----


class EverySet(Candidates):
    """Every set of devices, in every order in which the members of a host adjoin."""

    @cached_property
    def sets(self) -> tuple[DeviceSet, ...]:
        """All sets, small ones first."""
        count = len(self.inventory.devices)
        orders = (order for size in range(1, count + 1) for order in permutations(range(count), size))
        return tuple(filter(None, map(self._device_set, orders)))

    def _device_set(self, order: tuple[int, ...]) -> DeviceSet | None:
        """Return the set, or None where the members of a host do not adjoin."""
        hosts = tuple(host for host, _ in groupby(order, key=self.fabric.host_of.__getitem__))
        return DeviceSet(devices=order, hosts=hosts) if len(set(hosts)) == len(hosts) else None


def as_one_host(device_set: DeviceSet) -> DeviceSet:
    """Return the set as one whose KV heads are dealt out as within a host: in every way."""
    return replace(device_set, hosts=device_set.hosts[:1])


class EveryGroup(StageGroups):
    """Groups whose KV heads are dealt out in every way, over several hosts too."""

    def _new_variants(self, device_set: DeviceSet) -> tuple[Variant, ...]:
        return super()._new_variants(as_one_host(device_set))


class EveryDraft(DraftBlock):
    """EAGLE heads whose KV heads are dealt out in every way, over several hosts too."""

    def _new_splits(self, device_set: DeviceSet) -> Splits:
        return super()._new_splits(as_one_host(device_set))


class Wide(Formulation):
    """The problem over the wider family."""

    stage_groups_type = EveryGroup
    draft_block_type = EveryDraft

    @cached_property
    def candidates(self) -> Candidates:
        return EverySet(machine=self.machine)


# ---- trials ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One machine and model, and the least step of both families; None where nothing of the family fits."""

    seed: int
    machine: str
    devices: int
    has_head: bool
    candidates: int
    """Groups and options of the planner's candidates."""
    wider: int
    candidate_ns: int | None
    wider_ns: int | None
    proven: bool = True
    """Both are; otherwise neither is known."""

    @property
    def missed(self) -> float:
        """Share of the step by which the wider family is faster; 0 where either has no placement."""
        if self.candidate_ns is None or self.wider_ns is None:
            return 0.0
        return 1 - self.wider_ns / self.candidate_ns

    @property
    def misses_all(self) -> bool:
        """Only the wider family has a placement that fits."""
        return self.candidate_ns is None and self.wider_ns is not None

    @property
    def impossible(self) -> bool:
        """The best candidate is faster than the best of the wider family, in which it is."""
        if self.candidate_ns is None:
            return False
        return self.wider_ns is None or self.wider_ns > self.candidate_ns


def run_trial(seed: int, most_devices: int) -> Trial:
    """Draw a machine and a model, and solve both families."""
    rng = random.Random(seed)
    machine = rng.choice(MACHINES)
    count = rng.randint(3 if machine == MACHINES[1] else 2, most_devices)
    has_head = rng.random() < 0.6
    roomy = parsed(random.Random(seed + 1), machine, [1 << 40] * count, has_head)
    need = least_bytes(roomy.problem)
    parts = [rng.choice((1, 1, 2, 3)) * rng.uniform(0.8, 1.2) for _ in range(count)]
    if rng.random() < 0.5:
        parts = [rng.choice((1.0, 2.0)) for _ in range(count)]  # of two types
    total = need / rng.uniform(0.5, 0.95)
    memory = [max(1 << 20, int(total * part / sum(parts))) for part in parts]
    narrow = parsed(random.Random(seed + 1), machine, memory, has_head)
    wide = Wide(model=narrow.model, draft=narrow.draft, options=narrow.options, inventory=narrow.inventory)
    try:
        candidate_ns, wider_ns, proven = least_step_ns(narrow.problem), least_step_ns(wide.problem), True
    except NotProvenError:
        candidate_ns, wider_ns, proven = None, None, False
    return Trial(
        seed=seed,
        machine=machine,
        devices=count,
        has_head=has_head,
        candidates=size_of(narrow.problem),
        wider=size_of(wide.problem),
        candidate_ns=candidate_ns,
        wider_ns=wider_ns,
        proven=proven,
    )


def parsed(rng: random.Random, machine: str, memory: Sequence[int], has_head: bool) -> Formulation:
    """Return the formulation of a random machine with these capacities and a model of seven to ten layers."""
    config = BASE | {"num_hidden_layers": rng.randint(7, 10)}
    with tempfile.TemporaryDirectory(prefix="family-") as name:
        for role, values in (("model", config), ("draft", HEAD)):
            (Path(name) / role).mkdir()
            (Path(name) / role / "config.json").write_text(json.dumps(values))
        base = load_base(Path(name) / "model")
        draft = load_draft(Path(name) / "draft", base) if has_head else None
    wanted = Wanted(context=rng.choice((512, 4096)), batch=rng.choice((1, 1, 4)), simplify_ppm=0)
    options = resolve(wanted, "bfloat16", base, draft)
    inventory = parse_inventory(random_inventory(rng, machine, memory), "inventory.yaml").at("bfloat16")
    return Formulation(model=base.model, draft=draft.draft if draft else None, options=options, inventory=inventory)


def random_inventory(rng: random.Random, machine: str, memory: Sequence[int]) -> dict[str, Any]:
    """Return an inventory of devices with these capacities, of up to three speeds."""
    speeds = [rng.choice((300, 900, 2000)) for _ in memory] if rng.random() < 0.6 else [900] * len(memory)
    devices = [
        {
            "id": f"gpu{index}",
            "type": f"gpu-{speed}",
            "memory": nbytes,
            "reserve": 0,
            "bandwidth": f"{speed} GB/s",
            "flops": f"{speed // 5} TFLOP/s",
        }
        for index, (nbytes, speed) in enumerate(zip(memory, speeds, strict=True))
    ]
    count = min(len(devices), rng.randint(2, 3)) if machine == "several hosts" else 1
    cuts = [0, *sorted(rng.sample(range(1, len(devices)), count - 1)), len(devices)]
    hosts = [
        {"name": f"host{index}", "links": {"class": rng.choice(LINKS[:3])}, "devices": devices[start:stop]}
        for index, (start, stop) in enumerate(pairwise(cuts))
    ]
    if machine == "one host, pairs of links":
        names = [f"gpu{index}" for index in range(len(devices))]
        pairs = [(a, b) for a, b in product(names, names) if a < b]
        chosen = rng.sample(pairs, rng.randint(1, len(pairs) // 2 + 1))
        listed = [{"between": list(pair), "class": rng.choice(LINKS[:2])} for pair in chosen]
        hosts[0]["links"] = {"class": rng.choice(LINKS[1:3]), "pairs": listed}
    return {"hosts": hosts} | ({"network": {"class": rng.choice(("ethernet", "infiniband"))}} if count > 1 else {})


def size_of(problem: Problem) -> int:
    """Return the number of groups of a problem and of the options of its blocks."""
    return len(problem.groups) + sum(len(block.options) for block in problem.blocks)


def least_step_ns(problem: Problem) -> int | None:
    """Return the least step time, proven; None where nothing fits. Raise NotProvenError past the limit."""
    solved = solve(problem, Settings(workers=1))
    return solved.least_ns if solved else None


# ---- report ----


def rows(trials: Sequence[Trial]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table: by kind of machine, then all."""
    for machine in (*MACHINES, "all"):
        chosen = [trial for trial in trials if machine in (trial.machine, "all")]
        if chosen:
            better = [trial.missed for trial in chosen if trial.missed > 0]
            yield (
                machine,
                str(len(chosen)),
                str(len(better)),
                f"{max(better, default=0.0):.2%}",
                f"{sum(better) / max(1, sum(trial.proven for trial in chosen)):.3%}",
                str(sum(trial.misses_all for trial in chosen)),
                str(sum(not trial.proven for trial in chosen)),
            )


def main() -> int:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=60, help="number of machines (60)")
    parser.add_argument("--first", type=int, default=0, help="first seed (0)")
    parser.add_argument("--devices", type=int, default=4, choices=(3, 4, 5), help="most devices of a machine (4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per trial")
    arguments = parser.parse_args()
    trials = []
    for seed in range(arguments.first, arguments.first + arguments.trials):
        trial = run_trial(seed, arguments.devices)
        trials.append(trial)
        if arguments.json:
            print(json.dumps(asdict(trial)), flush=True)
        elif not trial.proven:
            print(f"seed {seed}: {trial.machine}, {trial.devices} devices: not proven", file=sys.stderr)
        elif trial.missed or trial.misses_all:
            print(f"seed {seed}: {trial.machine}, {trial.devices} devices: {trial.missed:.2%}", file=sys.stderr)
    if not arguments.json:
        table = Table("machines", "trials", "faster", "at most", "mean", "only wider fits", "not proven", box=None)
        for row in rows(trials):
            table.add_row(*row)
        Console().print(table)
    return int(any(trial.impossible for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
