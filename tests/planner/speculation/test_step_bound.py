"""The bound of a step without a solver, and the regions of a machine, against candidate sets and solved steps."""

import dataclasses
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.problem.device_sets import Candidates
from planner.problem.machine import canonical_machine
from planner.solver.minimise import Settings
from planner.speculation.compare import least_step_of
from planner.speculation.grid import trees_of
from planner.speculation.step_bound import StepBound, regions_of
from tests.planner.instances import formulation, inventory_of
from tests.planner.machines import NETWORK, SLOW, device, random_machine


def machine_of(hosts: list[list[tuple[int, int]]], network: dict[str, str]) -> dict[str, Any]:
    """Return hosts of devices, each given by KiB and MB/s, whose links are alike."""
    listed = [
        {
            "name": f"h{number}",
            "links": SLOW,
            "devices": [device(f"d{number}-{place}", *look) for place, look in enumerate(own)],
        }
        for number, own in enumerate(hosts)
    ]
    return {"hosts": listed} | ({"network": network} if len(listed) > 1 else {})


LOOKS = ((900, 500), (900, 800), (1800, 500))
HOSTS = st.lists(st.lists(st.sampled_from(LOOKS), min_size=1, max_size=4), min_size=1, max_size=4)


@given(HOSTS)
@settings(max_examples=60, deadline=None)
def test_every_candidate_set_is_inside_a_region(hosts: list[list[tuple[int, int]]]) -> None:
    """Also sets of devices of several looks from hosts that have other devices, too."""
    machine = canonical_machine(inventory_of(machine_of(hosts, NETWORK)))
    wide = [{device.id for device in region.inventory.devices} for region in regions_of(machine)]
    ids = [device.id for device in machine.inventory.devices]
    for candidate in Candidates(machine=machine, listed=()).sets:
        names = {ids[index] for index in candidate.devices}
        assert len(candidate.hosts) == 1 or any(names <= region for region in wide)
    equal = sum(region.equal for region in regions_of(machine) if len(region.inventory.hosts) == 1)
    assert equal == len(machine.inventory.hosts), "each host is a region, equal ones together"


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_no_step_is_shorter(seed: int) -> None:
    rng = random.Random(seed)
    formulated = formulation(random_machine(rng, 3, 3, 40_000), "eagle3")
    assert formulated.draft is not None
    tree = rng.choice([None, *trees_of(formulated.draft, 1)])
    options = dataclasses.replace(formulated.options, tree=tree, batch=rng.choice((1, 1, 4)))
    draft = formulated.draft if tree else None
    formulated = dataclasses.replace(formulated, options=options, draft=draft)
    _, step = least_step_of(Settings(workers=1))(formulated)
    bound = StepBound(model=formulated.model, draft=draft, options=options)
    regions = regions_of(canonical_machine(formulated.usable))
    any_ns = bound.least_ns(formulated.usable)
    assert 0 < any_ns <= bound.least_ns(formulated.usable, None, regions) * 1.0001, "one region has all others inside"
    if step is not None:
        assert bound.least_ns(formulated.usable, None, regions) <= step.least_ns * 1.0001
