"""Equal inputs give one plan, byte for byte, for any workers, seed, listing order and process."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from planner.build import build, replan
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.plan_directory import write
from planner.problem import device_map
from planner.request import Request, Wanted
from planner.solver.minimise import Settings
from plans import codec
from plans.schema import Plan
from tests.planner.instances import ROOT, TINY, TINY_HEAD, cpu, demo, gpu, host, listed, root_inventory, saved, shuffled

FAST = {"class": "nvlink", "latency": "100 ns"}
NETWORK = {"class": "ethernet", "latency": "200 ns", "bandwidth": "400 Gbit/s"}


def slow(name: str, kib: int, megabytes: int = 5000) -> dict[str, Any]:
    """Return a device that is slow compared with its links."""
    return gpu(name, kib, bandwidth=f"{megabytes} MB/s", flops=f"{megabytes // 5} GFLOP/s", overhead="1 us")


def box(*devices: dict[str, Any]) -> dict[str, Any]:
    return {"hosts": [host("box", *devices, links=FAST)]}


def four(kib: int, megabytes: int = 5000) -> dict[str, Any]:
    """Return an inventory of four equal devices."""
    return box(*(slow(f"g{i}", kib, megabytes) for i in range(4)))


def pairs(kib: int, other: int) -> dict[str, Any]:
    """Return an inventory of two equal hosts, each with one device of either size."""
    hosts = [host(name, slow(f"{name}0", kib), slow(f"{name}1", other), links=FAST) for name in ("a", "b")]
    return {"hosts": hosts, "network": NETWORK}


MQA = TINY | {"num_key_value_heads": 1}
MIXTRAL = TINY | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
MIXED = TINY | {"intermediate_size": [192, 128, 64, 128]}
MAP = {"": "g0", "model.layers.2": "g1", "model.layers.3": "g2", "model.norm": "g2", "lm_head": "g2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Inputs of a plan; without ``model``, those of the demo."""

    inventory: Any
    model: dict[str, Any] | None = None
    head: dict[str, Any] | str | None = None
    wanted: Wanted
    device_map: Any = None
    previous: str | None = None
    """Name of the case whose plan is the previous one."""


CASES = {
    "demo": Case(inventory=root_inventory(), head="eagle3", wanted=Wanted(dtype="float32")),
    "context": Case(inventory=four(1300), model=TINY, wanted=Wanted(context=512, batch=4, kv_axis="context")),
    "head_dim": Case(inventory=four(1300, 200), model=MQA, wanted=Wanted(context=256, kv_axis="head_dim")),
    "batch": Case(inventory=four(1300), model=TINY, wanted=Wanted(context=512, batch=4, kv_axis="batch")),
    "repeated": Case(inventory=pairs(1300, 1300), model=MQA, wanted=Wanted(context=256, batch=2, kv_axis="heads")),
    "hosts": Case(inventory=pairs(2500, 1500), model=TINY, head=TINY_HEAD, wanted=Wanted(context=256)),
    "host cpu": Case(
        inventory=box(slow("g0", 900), slow("g1", 700), cpu("cpu", 64, 4)), model=TINY, wanted=Wanted(context=1000)
    ),
    "experts": Case(
        inventory=box(slow("g0", 1700), slow("g1", 1700), slow("g2", 1200)),
        model=MIXTRAL,
        head=TINY_HEAD,
        wanted=Wanted(context=256),
    ),
    "unlike layers": Case(
        inventory=box(slow("g0", 900), slow("g1", 600, 3000)), model=MIXED, wanted=Wanted(context=256)
    ),
    "balanced": Case(inventory=four(2500), model=TINY, head=TINY_HEAD, wanted=Wanted(context=256, strategy="balanced")),
    "low 0": Case(inventory=four(900), model=MIXED, wanted=Wanted(context=256, strategy="balanced_low_0")),
    "sequential": Case(inventory=pairs(600, 450), model=TINY, wanted=Wanted(context=256, strategy="sequential")),
    "custom": Case(
        inventory=four(3000),
        model=TINY,
        head=TINY_HEAD,
        wanted=Wanted(context=256, strategy="custom"),
        device_map=MAP,
    ),
    "max": Case(inventory=four(900), model=TINY, wanted=Wanted(context="max", batch=4)),
    "kept": Case(
        inventory=four(1300),
        model=TINY,
        wanted=Wanted(context=600, batch=4, within_ppm=50_000),
        previous="context",
    ),
}
SEARCHES = [(1, 7), (1, 99), (2, 0), (2, 12345)]


def inputs(case: Case) -> tuple[BaseInput, DraftInput | None]:
    if case.model is None:
        assert not isinstance(case.head, dict)
        return demo(case.head)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as directory:
        base = load_base(saved(Path(directory) / "base", case.model))
        head = saved(Path(directory) / "head", case.head) if isinstance(case.head, dict) else None
        return base, load_draft(head, base) if head else None


def planned(name: str, settings: Settings, order: int | None = None) -> Plan:
    """Plan a case; ``order`` is a seed that shuffles the listing order of its inventory."""
    case = CASES[name]
    base, draft = inputs(case)
    inventory = listed(case.inventory if order is None else shuffled(case.inventory, order))
    pins = None
    if case.device_map is not None:
        pins = device_map.read(
            case.device_map, "map.yaml", base.model, draft.draft if draft else None, inventory.devices
        )
    request = Request(
        base=base,
        draft=draft,
        inventory=inventory,
        wanted=dataclasses.replace(case.wanted, custom=pins),
        previous=codec.loads(expected(case.previous)) if case.previous else None,
    )
    return build(request, settings).plan


@cache
def expected(name: str) -> str:
    return codec.dumps(planned(name, Settings()))


@pytest.mark.parametrize("name", CASES)
def test_search_and_listing_order_do_not_matter(name: str) -> None:
    for workers, seed in SEARCHES:
        plan = planned(name, Settings(workers=workers, seed=seed), seed)
        assert codec.dumps(plan) == expected(name), (workers, seed)


def test_another_process_gives_the_same_plan() -> None:
    """Another process has other string hashes and addresses."""
    program = (
        "from plans import codec\n"
        "from planner.solver.minimise import Settings\n"
        "from tests.planner.solver.test_uniqueness import CASES, planned\n"
        "for name in CASES:\n"
        "    print(codec.digest(planned(name, Settings(workers=2, seed=31), 5)))\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [codec.digest(codec.loads(expected(name))) for name in CASES]


@pytest.mark.parametrize("name", CASES)
def test_planning_again_from_the_written_directory_gives_the_same_plan(name: str, tmp_path: Path) -> None:
    """Solve again as ``check`` does."""
    frozen = codec.loads(expected(name))
    base, draft = inputs(CASES[name])
    write(tmp_path / "plan", frozen, base, draft)
    assert codec.dumps(replan(tmp_path / "plan", frozen, Settings())) == expected(name)


def test_the_cases_cover_every_form_of_placement() -> None:
    """Assert that each case has the feature it is named after."""
    plans = {name: codec.loads(expected(name)) for name in CASES}
    assert {name for name, plan in plans.items() if plan.proof.status != "OPTIMAL"} <= {"kept"}
    assert all(len(plans[name].stages) > 1 for name in ("demo", "balanced", "low 0", "sequential", "custom"))
    assert len(plans["low 0"].devices) < len(plans["low 0"].inventory.devices)
    for name in ("context", "head_dim", "batch"):
        assert name in {stage.kv_axis for stage in plans[name].stages}
    assert any(max(stage.kv_subgroups) > 1 for stage in plans["repeated"].stages if stage.kv_axis == "heads")
    assert any(len(hosts) > 1 for hosts in hosts_of_groups(plans["hosts"]))
    assert "cpu" in {device.id for device in plans["host cpu"].devices}
    placement = plans["hosts"].draft_placement
    assert placement is not None
    assert len(placement.devices) > 1
    assert plans["max"].options.context % 256 == 0
    assert plans["max"].options.context < TINY["max_position_embeddings"]


def hosts_of_groups(plan: Plan) -> Iterator[set[str]]:
    host_of = {device.id: device.host for device in plan.inventory.devices}
    return ({host_of[name] for name in stage.devices} for stage in plan.stages)
