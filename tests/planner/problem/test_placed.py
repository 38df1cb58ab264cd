"""Steps on a plan's placement against the certificate of the plan, over random machines."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from planner.costs.shares import DraftShares
from planner.errors import InfeasibleError, NotProvenError
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.hardware.measured import FIXED
from planner.problem.placed import draft_ns, step_ns
from planner.request import Request, Wanted, resolve_request
from planner.speculation.draft_bound import least_draft_ns
from plans.schema import KvAxis, Plan
from tests.planner.instances import TINY, TINY_HEAD, listed, plan_of, saved
from tests.planner.machines import NETWORK, random_machine

AXES: tuple[KvAxis | None, ...] = (None, None, "context", "head_dim", "batch")
SHARED_MEMORY = NETWORK | {"class": "shm"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseInput, DraftInput]:
    directory = tmp_path_factory.mktemp("placed")
    base = load_base(saved(directory / "base", TINY))
    return base, load_draft(saved(directory / "head", TINY_HEAD), base)


def sharing_cores(rng: random.Random) -> Any:
    """Return a machine of unlike CPUs that are slower together, on one host or two."""
    hosts = []
    for number in range(rng.choice((1, 1, 2))):
        devices = []
        for place in range(rng.choice((2, 3))):
            rate, flops = rng.choice((300, 500, 900)), rng.choice((1, 3, 10))
            rates = {"bandwidth": f"{rate} MB/s", "flops": f"{flops} GFLOP/s", "overhead": "2 us"}
            slower = {"bandwidth": f"{rate // 2} MB/s", "flops": f"{flops * 600} MFLOP/s", "overhead": "5 us"}
            memory = {"memory": f"{rng.choice((700, 2000, 4000))} KiB", "reserve": "0 B"}
            together = [{"devices": rng.choice((2, 3))} | slower]
            devices.append({"id": f"d{number}-{place}", "type": "cpu"} | memory | rates | {"together": together})
        sums = [{"members": 2, "time": "30 us"}] if number else []
        links = {"class": "bus", "latency": "10 us", "bandwidth": "1 GB/s", "sums": sums}
        links |= {} if number else {"awake": "2 us"}
        hosts.append({"name": f"h{number}", "links": links, "devices": devices})
    return {"hosts": hosts} | ({"network": rng.choice((NETWORK, SHARED_MEMORY))} if len(hosts) > 1 else {})


def measured(rng: random.Random) -> Any:
    """Return a machine of unlike CPUs with measured figures, which are slower together."""
    machine = sharing_cores(rng)
    for device in (device for host in machine["hosts"] for device in host["devices"]):
        del device["together"]
        fast = rng.choice((1, 2, 3))
        device["measured"] = computing(rng, fast) | {"together": [{"devices": 2} | computing(rng, fast + 2)]}
    return machine


def computing(rng: random.Random, slower: int) -> Any:
    """Return measured figures, some of which a product of 4 rows makes no convex curve."""

    def figure(value: int, unit: str) -> Any:
        return {"value": f"{value} {unit}", "spread": f"0 {unit}"}

    rates = {1: 300 // slower, 4: rng.choice((500, 700, 1100)) // slower, 16: 1200 // slower}
    products = [{"rows": rows} | figure(rate, "MFLOP/s") for rows, rate in rates.items()]
    fixed = {name: figure(slower * rng.choice((1, 3)), "us") for name in FIXED}
    scores = [{"head_dim": dims} | figure(slower * dims * rng.choice((200, 500)), "ns") for dims in (4, 64)]
    return fixed | {"bfloat16": {"bandwidth": figure(300 // slower, "MB/s"), "rates": products, "scores": scores}}


def any_machine(rng: random.Random) -> Any:
    """Return a machine of CPUs that share cores, or of unlike devices."""
    return sharing_cores(rng) if rng.random() < 0.5 else random_machine(rng, 2, 3, rng.choice((500, 800, 1500)))


def random_plans(
    base: BaseInput,
    head: DraftInput,
    seed: int,
    machine_of: Callable[[random.Random], Any] = any_machine,
    count: int = 12,
) -> Iterator[Plan]:
    """Yield plans of random machines, options and divisions of the KV cache."""
    rng = random.Random(seed)
    for _ in range(count):
        machine = machine_of(rng)
        wanted = Wanted(
            context=64,
            dtype="bfloat16",
            simplify_ppm=0,
            batch=rng.choice((2, 3)),
            prefill_chunk=rng.choice((1, 16)),
            kv_axis=rng.choice(AXES),
        )
        draft = rng.choice((None, head))
        options, inventory = resolve_request(Request(base=base, draft=draft, inventory=listed(machine), wanted=wanted))
        try:
            yield plan_of(base, draft, inventory, options).plan
        except (InfeasibleError, NotProvenError):
            continue


@pytest.mark.parametrize("seed", [0, 7, 9])
def test_a_step_takes_what_its_certificate_says(models: tuple[BaseInput, DraftInput], seed: int) -> None:
    """Among those of seeds 7 and 9 are stages whose layers, each divided in the best way, take longer than shares."""
    plans = list(random_plans(*models, seed))
    assert any(len(stage.devices) > 1 for plan in plans for stage in plan.stages)
    for plan in plans:
        priced_ns = step_ns(plan, plan.options)
        assert priced_ns == plan.proof.objective_ns, [stage.devices for stage in plan.stages]


def test_a_step_on_measured_devices_takes_what_its_certificate_says(models: tuple[BaseInput, DraftInput]) -> None:
    """And the bound of a drafter's passes, which knows no placement, is no higher."""
    plans = list(random_plans(*models, 3, measured, 8))
    assert {len(device.measured.products) for p in plans for device in p.inventory.devices if device.measured} == {2, 3}
    assert any(plan.draft is not None for plan in plans)
    for plan in plans:
        assert step_ns(plan, plan.options) == plan.proof.objective_ns
        assert all(device.together and device.together[0].measured for device in plan.inventory.devices)
        if plan.draft is not None:
            shares = DraftShares(model=plan.model, draft=plan.draft, options=plan.options)
            assert least_draft_ns(shares, plan.inventory) <= draft_ns(plan, plan.options)
