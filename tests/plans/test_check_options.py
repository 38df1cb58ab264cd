"""Checks of a plan's options, inputs and proof."""

from typing import Any

import pytest

from plans.check import check
from plans.check_proof import different_runs
from plans.schema import Plan
from tests.plans.violations import violations_of
from tests.sample_plans import edited, two_stage_plan

LEAST_FREE = two_stage_plan().proof.min_free_bytes


def static(paths: list[list[int]], *, depth: int = 1) -> dict[str, object]:
    """Return a static tree in the encoding of a plan."""
    top_k = 1 + max(max(path) for path in paths)
    return {"kind": "static", "total_token": 1 + len(paths), "depth": depth, "top_k": top_k, "paths": paths}


PATHS = "options.tree.paths:"
DIGITS = "64 hexadecimal digits"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "5.0", "schema: found 5.0, expected 4.x"),
        ("inputs.base_config_sha256", "xyz", f"inputs.base_config_sha256: found xyz, expected {DIGITS}"),
        ("inputs.draft_tensors_sha256", None, f"inputs.draft_tensors_sha256: found nothing, expected {DIGITS}"),
        ("options.batch", 0, "options.batch: found 0, expected from 1 to 1024"),
        ("options.prefill_chunk", 513, "options.prefill_chunk: found 513, expected from 1 to the context, 512"),
        ("options.stall_timeout_s", 0, "options.stall_timeout_s: found 0, expected from 1 to 3600"),
        ("options.gap_ppm", 10**6, "options.gap_ppm: found 1000000, expected less than 1000000"),
        ("options.tree.depth", 4 * 10**9, "options.tree.depth: found 4000000000, expected at most 64"),
        (
            "options.tree.total_token",
            712,
            "options.tree.total_token: found 712, "
            "expected at most 711: the root and a pool of 10 + 7 * 10^2 candidates",
        ),
        (
            "options.tree.total_token",
            1,
            "options.tree.total_token: found 1, expected at least 2: the root and a drafted token",
        ),
        (
            "options.tree",
            {"kind": "dynamic", "total_token": 60, "depth": 64, "top_k": 64},
            "options.tree: found masks of 16777216 values, expected at most 4194304: a smaller tree or batch",
        ),
        ("options.tree", None, "options.tree: found nothing, expected one, as there is a draft"),
        ("options.tree.kind", "static", f"{PATHS} found nothing, expected nodes exactly where the kind is static"),
        (
            "options.tree",
            static([[0], [1], [0, 2]], depth=2),
            "options.tree.depth: found 2, expected 1, which follows from the paths",
        ),
        (
            "options.tree",
            static([[0], [0, 1], [1]]),
            f"{PATHS} found 3 nodes, expected the shorter first, then in order",
        ),
        ("options.tree", static([[0], [1, 0]]), f"{PATHS} found 2 nodes, expected 1.0: its parent before it"),
        ("options.tree", static([[0], [0]]), f"{PATHS} found 2 nodes, expected 0: once"),
        ("options.batch", 1025, "options.batch: found 1025, expected from 1 to 1024"),
        ("options.context", 1 << 31, "options.context: found 2147483648, expected from 1 to 2147483647"),
        ("proof.bound_ns", 19_830_001, "proof.bound_ns: found 19830001, expected at most the least step, 19830000"),
        (
            "proof.bound_ns",
            19_000_000,
            "proof.bound_ns: found 19000000, expected the least step, 19830000, as the status is OPTIMAL",
        ),
        (
            "proof.objective_ns",
            19_840_000,
            "proof.objective_ns: found 19840000, expected from the least step, 19830000, to 19831983",
        ),
        ("proof.objective_ns", 1, "proof.objective_ns: found 1, expected from the least step, 19830000, to 19831983"),
        ("options.simplify_ppm", 1_000_001, "options.simplify_ppm: found 1000001, expected from 0 to 1000000"),
        ("options.max_devices", 0, "options.max_devices: found 0, expected at least 1, or null"),
        ("options.max_devices", 2, "memory: found 3 devices in use, expected at most 2"),
        (
            "proof.min_free_bytes",
            1,
            f"proof.min_free_bytes: found 1, expected {LEAST_FREE}, the least that a device in use has free",
        ),
    ],
)
def test_each_violation_of_options_and_proof_is_reported(path: str, value: Any, message: str) -> None:
    assert message in violations_of(edited(two_stage_plan(), path, value))


def test_an_accepted_gap_is_no_violation() -> None:
    plan = edited(edited(two_stage_plan(), "proof.status", "FEASIBLE"), "proof.bound_ns", 19_000_000)
    assert violations_of(plan) == ["proof.bound_ns: found 19000000, expected within 0 ppm of the least step, 19830000"]
    assert check(edited(plan, "options.gap_ppm", 50_000)) == ()


@pytest.mark.parametrize("option", ["simplify_ppm", "within_ppm"])
def test_a_step_that_is_longer_than_the_least_by_what_an_option_allows_is_no_violation(option: str) -> None:
    plan = edited(edited(two_stage_plan(), "proof.least_ns", 19_800_000), "proof.bound_ns", 19_800_000)
    assert [violation.path for violation in check(plan)] == ["proof.objective_ns"]
    assert check(edited(plan, f"options.{option}", 5_000)) == ()


def test_bounds_of_simplicity_exclude_nothing_that_is_as_simple_as_the_plan() -> None:
    plan = edited(two_stage_plan(), "options.simplify_ppm", 5_000)
    used, runs, step_ns = len(plan.memory), different_runs(plan), plan.proof.objective_ns
    assert runs == 3
    sound = {"devices_bound": used, "runs_bound": runs, "step_bound_ns": step_ns}

    def violations(of: Plan, **changed: int | None) -> list[str]:
        bounds = {name: value for name, value in (sound | changed).items() if value is not None}
        return violations_of(edited(of, "proof.simplicity", bounds))

    assert violations(plan) == violations(plan, devices_bound=1, runs_bound=1, step_bound_ns=1) == []
    path = "proof.simplicity"
    for name, most, words in (("devices_bound", used, "in use"), ("runs_bound", runs, "of the plan")):
        for value in (0, most + 1):
            expected = f"{path}.{name}: found {value}, expected from 1 to the {most} {words}"
            assert violations(plan, **{name: value}) == [expected]
    late = f"{path}.step_bound_ns: found {step_ns + 1}, expected at most the plan's step, {step_ns}"
    assert violations(plan, step_bound_ns=step_ns + 1) == [late]
    none = f"{path}.runs_bound: found nothing, expected a number, as there is no earlier plan"
    assert violations(plan, runs_bound=None) == [none]
    kept = edited(plan, "options.within_ppm", 20_000)
    assert violations(kept, runs_bound=None) == []
    assert violations(kept) == [f"{path}.runs_bound: found 3, expected nothing, as weights are kept"]
    exact = edited(plan, "options.simplify_ppm", 0)
    assert violations(exact) == [f"{path}: found bounds, expected nothing, as simplify_ppm is 0"]
