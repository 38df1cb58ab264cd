"""Draft trees by number of running sequences: prices against solved placements, the choice against all of the grid."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.api.checking import check as check_again
from planner.api.planning import PlanResult, plan
from planner.costs.acceptance import expected_ppm
from planner.enough_hosts import solve_on_enough
from planner.errors import InputError
from planner.problem.placed import step_ns
from planner.report.speculation import speculation_data, speculation_lines
from planner.solver.minimise import Settings
from planner.solver.solve import solve
from planner.speculation.grid import trees_of
from planner.speculation.profiles import SHIPPED
from planner.speculation.schedule import with_schedule
from plans.acceptance import PPM, Context, Level, Profile, dump_profile, load_profile
from plans.check import check
from plans.diff import diff
from plans.places import places
from plans.schema import Plan, Tree
from plans.step import step_options, tree_for
from tests.planner.instances import cpu, formulation, gpu, host

EAGLE3 = load_profile(SHIPPED / "eagle3.yaml", inside=False)
BATCH = 6
MACHINES: dict[str, dict[str, Any]] = {
    "a CPU": {"hosts": [host("a", cpu("a0", 512, bandwidth=2))]},
    "two GPUs": {"hosts": [host("a", gpu("g0", 40_000, bandwidth="9 GB/s"), gpu("g1", 40_000, bandwidth="9 GB/s"))]},
}


def built(tmp_path: Path, machine: dict[str, Any], **options: Any) -> PlanResult:
    """Build the embedded demo model's plan."""
    file = tmp_path / "inventory.yaml"
    file.write_text(yaml.safe_dump(machine))
    return plan(inventory=file, **{"batch": BATCH, "context": 128, **options})


def best_speed(planned: Plan, profile: Profile, sequences: int) -> float:
    """Return the most expected tokens per ns of any tree of the grid, or without one, for a number of sequences."""
    assert planned.draft is not None
    count = places(planned, sequences)
    trees: list[Tree | None] = [None, planned.options.tree, *trees_of(planned.draft, count)]
    return max(expected_ppm(profile, tree) / step_ns(planned, step_options(planned.options, count, tree)) / PPM
               for tree in trees)  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_every_number_of_sequences_has_the_best_of_the_grid(name: str, tmp_path: Path) -> None:
    result = built(tmp_path, MACHINES[name])
    planned = result.plan
    assert not check(planned)
    assert planned.options.schedule is not None
    assert planned.speculation is not None
    assert planned.options.schedule[-1].tree == planned.options.tree, "the placement is for the tree of a full batch"
    for sequences in range(1, BATCH):
        tree, count = tree_for(planned.options, sequences), places(planned, sequences)
        ns = step_ns(planned, step_options(planned.options, count, tree))
        speed = expected_ppm(EAGLE3, tree) / ns / PPM
        assert speed == pytest.approx(best_speed(planned, EAGLE3, sequences), rel=1e-12)
    for entry, step in zip(planned.options.schedule, planned.speculation.schedule or (), strict=True):
        count = places(planned, entry.sequences)
        assert step.predicted_ns == step_ns(planned, step_options(planned.options, count, entry.tree))
        assert step.acceptance_ppm == expected_ppm(EAGLE3, entry.tree)
    single = built(tmp_path, MACHINES[name], schedule="off").plan
    assert single.options.schedule is None
    assert (single.stages, single.proof.least_ns) == (planned.stages, planned.proof.least_ns)
    assert with_schedule(single, EAGLE3, keep_draft=False) == planned
    out = result.write(tmp_path / "plan")
    assert check_again(out).clean
    assert {difference.path.partition(".")[0] for difference in diff(single, planned)} >= {"options", "speculation"}
    ranges = speculation_data(planned, planned.speculation)["schedule"]
    assert [entry["sequences"] for entry in ranges] == [entry.sequences for entry in planned.options.schedule]
    assert sum(line.startswith("from ") for line in speculation_lines(planned, planned.speculation)) == len(ranges)


def test_steps_of_fewer_sequences_are_priced_as_they_are_solved(tmp_path: Path) -> None:
    """On one device there is one placement, so a plan for so many sequences has the same step."""
    machine = MACHINES["a CPU"]
    planned = built(tmp_path, machine, schedule="off").plan
    asked = dataclasses.replace(formulation(machine, "eagle3"), inventory=planned.inventory)
    for sequences, tree in ((1, Tree(kind="dynamic", total_token=16, depth=3, top_k=6, paths=None)), (3, None)):
        options = step_options(planned.options, sequences, tree)
        draft = planned.draft if tree else None
        part = dataclasses.replace(asked, model=planned.model, draft=draft, options=options)
        _, solved = solve_on_enough(part, lambda own, known_ns: solve(own.problem, Settings(known_ns=known_ns)))
        assert solved is not None
        own = dataclasses.replace(planned, draft=draft, draft_placement=planned.draft_placement if tree else None)
        assert step_ns(own, options) == solved.least_ns


def test_trees_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    roomy = built(tmp_path, MACHINES["a CPU"]).plan
    single = built(tmp_path, MACHINES["a CPU"], schedule="off").plan
    need, more = (planned.memory[0].planned_bytes for planned in (single, roomy))
    assert need < more, "larger trees have larger buffers"
    for capacity in (need, (need + more) // 2):
        devices = tuple(
            dataclasses.replace(device, memory_bytes=capacity + device.reserve_bytes)
            for device in single.inventory.devices
        )
        tight = dataclasses.replace(single, inventory=dataclasses.replace(single.inventory, devices=devices))
        tight = with_schedule(tight, EAGLE3, keep_draft=False)
        assert need <= tight.memory[0].planned_bytes <= capacity
        assert tight.proof.min_free_bytes == capacity - tight.memory[0].planned_bytes
        assert tight.options.schedule != roomy.options.schedule


def test_a_draft_is_kept_for_few_sequences_alone(tmp_path: Path) -> None:
    """Where plain decoding is faster for a full batch: without the draft, or with it and plain steps."""
    level = Level(nodes=1000, chosen=(520, 60), low_ppm=None, high_ppm=None)
    rare = Profile(
        profile="1.0", drafter="eagle3", origin="published", source="test",
        contexts=(Context(steps=1000, tokens=1500, levels=(level, level)),),
    )  # fmt: skip
    (tmp_path / "rare.yaml").write_text(dump_profile(rare))
    options = {"profile": tmp_path / "rare.yaml", "batch": 16}
    machine = {"hosts": [host("a", cpu("a0", 512, bandwidth=20))]}
    assert built(tmp_path, machine, **options).plan.draft is None
    result = built(tmp_path, machine, **options, schedule="keep")
    planned = result.plan
    assert not check(planned)
    assert planned.options.schedule is not None
    assert planned.options.schedule[0].tree is not None
    assert planned.options.schedule[-1].tree is None
    assert check_again(result.write(tmp_path / "plan")).clean
    assert any(line.startswith("the draft is kept") for line in speculation_lines(planned, planned.speculation))


def test_what_cannot_be_scheduled_is_said(tmp_path: Path) -> None:
    machine = MACHINES["a CPU"]
    assert built(tmp_path, machine, batch=1).plan.options.schedule is None
    with pytest.raises(InputError, match="--schedule keep: there is one sequence"):
        built(tmp_path, machine, batch=1, schedule="keep")
    with pytest.raises(InputError, match="--schedule keep: a tree is asked for"):
        built(tmp_path, machine, tree=Tree(kind="dynamic", total_token=4, depth=1, top_k=2, paths=None),
              schedule="keep")  # fmt: skip
    with pytest.raises(InputError, match="schedule: found 'yes', expected one of on, off, keep"):
        built(tmp_path, machine, schedule="yes")
