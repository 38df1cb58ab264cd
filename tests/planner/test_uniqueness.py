"""One problem has one plan, byte for byte: whatever the search, the listing order, or the process."""

import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from planner.solve import Settings
from plans import codec
from tests.planner.instances import EQUAL, ROOT, UNLIKE, Head, planned, root_inventory, shuffled

CASES: dict[str, tuple[Any, Head, int | None]] = {
    "demo": (root_inventory(), "eagle3", None),
    "equal": (EQUAL, "eagle3", 256),
    "unlike": (UNLIKE, "eagle1", 256),
}


@cache
def expected(case: str) -> str:
    data, head, context = CASES[case]
    return codec.dumps(planned(data, head, context=context))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("workers", "seed"), [(1, 7), (1, 99), (2, 0), (2, 12345)])
def test_search_does_not_matter(case: str, workers: int, seed: int) -> None:
    data, head, context = CASES[case]
    settings = Settings(workers=workers, seed=seed)
    assert codec.dumps(planned(shuffled(data, seed), head, settings, context=context)) == expected(case)


def test_the_process_does_not_matter() -> None:
    """Other hashes of strings, other addresses."""
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    digests = {case: codec.digest(codec.loads(expected(case))) for case in CASES}
    program = (
        "from plans import codec\n"
        "from planner.solve import Settings\n"
        "from tests.planner.instances import planned, shuffled\n"
        "from tests.planner.test_uniqueness import CASES\n"
        "for data, head, context in CASES.values():\n"
        "    plan = planned(shuffled(data, 5), head, Settings(workers=2, seed=31), context=context)\n"
        "    print(codec.digest(plan))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == list(digests.values())


def test_the_cases_are_worth_it() -> None:
    """Several stages, a group of several devices, and devices that only their names tell apart."""
    plans = {case: codec.loads(expected(case)) for case in CASES}
    assert all(len(plan.stages) > 1 for plan in plans.values())
    assert any(len(stage.devices) > 1 for plan in plans.values() for stage in plan.stages)
    assert len(plans["equal"].devices) < len(plans["equal"].inventory.devices)
    assert all(plan.proof.status == "OPTIMAL" for plan in plans.values())
