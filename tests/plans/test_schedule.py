"""Schedules of draft trees: bad ones are refused, and their buffers are counted."""

from dataclasses import replace
from typing import Literal

import pytest

from plans.buffers import device_buffers
from plans.check import check
from plans.schema import Plan, ScheduledTree, Tree
from tests.plan_factory import Group, group, make_device, make_draft, make_model, make_plan
from tests.sample_plans import one_device_plan

MODEL = make_model(num_layers=4)
DRAFT = make_draft(MODEL, kind="eagle")


def ranges(*pairs: tuple[int, Tree | None]) -> tuple[ScheduledTree, ...]:
    return tuple(ScheduledTree(sequences=sequences, tree=tree) for sequences, tree in pairs)


def chain(nodes: int, top_k: int = 1) -> Tree:
    return Tree(kind="dynamic", total_token=nodes, depth=nodes - 2, top_k=top_k, paths=None)


def scheduled(schedule: tuple[ScheduledTree, ...], *, kind: Literal["cpu", "cuda"] = "cpu") -> Plan:
    device = make_device("a")
    if kind == "cuda":
        device = replace(device, type="gpu", kind="cuda")
    plan = make_plan(MODEL, [group(MODEL, ["a"], 4)], draft=DRAFT, batch=8, devices=[device])
    return replace(plan, options=replace(plan.options, schedule=schedule))


@pytest.mark.parametrize(
    ("schedule", "kind", "message"),
    [
        (ranges(), "cpu", "options.schedule: found [], expected ascending numbers of sequences from 1 to the batch, 8"),
        (ranges((2, None)), "cpu", "options.schedule: found [2], expected ascending numbers of sequences from 1"),
        (ranges((1, None), (9, chain(2))), "cpu", "options.schedule: found [1, 9], expected ascending numbers"),
        (ranges((1, None), (4, chain(2)), (3, None)), "cpu", "options.schedule: found [1, 4, 3], expected ascending"),
        (ranges((1, chain(2)), (3, chain(2))), "cpu", "options.schedule[1].tree: found the tree before it, expected"),
        (ranges((1, chain(5, 3)), (3, chain(70))), "cpu", "options.schedule[1].tree.depth: found 68"),
        (ranges((1, chain(4, 300))), "cpu", "options.schedule[0].tree.top_k: found 300, expected at most 256"),
        (ranges((1, chain(1024, 64)), (8, None)), "cpu", "options.schedule[0].tree"),
        (
            ranges((1, chain(5)), (4, None)),
            "cuda",
            "options.schedule[1].sequences: found 4, expected one more than a power of two: with a GPU, steps have so",
        ),
    ],
)
def test_bad_schedules_are_refused(
    schedule: tuple[ScheduledTree, ...], kind: Literal["cpu", "cuda"], message: str
) -> None:
    assert any(str(violation).startswith(message) for violation in check(scheduled(schedule, kind=kind)))


def test_a_schedule_needs_a_draft_and_places_that_can_be_left_out() -> None:
    plan = one_device_plan()
    plan = replace(plan, options=replace(plan.options, batch=4, tree=None, schedule=ranges((1, chain(2)), (2, None))))
    found = [str(violation) for violation in check(replace(plan, draft=None, draft_placement=None))]
    assert "options.schedule: found 2 trees, expected nothing, as there is no draft" in found
    divided = Group(devices=("a", "b"), runs=group(MODEL, ("a", "b"), 4).runs, axis="batch", subgroups=(2,))
    runs = tuple(replace(run, kv_heads=(MODEL.layers[0].attention.num_kv_heads,) * 2) for run in divided.runs)
    plan = make_plan(MODEL, [replace(divided, runs=runs)], draft=DRAFT, batch=4)
    plan = replace(plan, options=replace(plan.options, schedule=ranges((1, chain(2)), (2, None))))
    assert any("a KV cache is divided by batch" in str(violation) for violation in check(plan))
    kept = scheduled(ranges((1, chain(2)), (2, None)))
    kept = replace(kept, options=replace(kept.options, schedule=None, keep_draft=True))
    assert "options.keep_draft: found true, expected nothing, as there is no schedule" in map(str, check(kept))


def test_a_schedule_counts_its_largest_step() -> None:
    """Buffers are at least those of each range alone, and those of the widest range where it has all sequences."""
    one = make_plan(MODEL, [group(MODEL, ["a"], 4)], draft=DRAFT, batch=4, tree=chain(3))
    many = make_plan(MODEL, [group(MODEL, ["a"], 4)], draft=DRAFT, batch=4, tree=chain(3),
                     schedule=ranges((1, chain(40)), (2, chain(3))))  # fmt: skip
    wide = make_plan(MODEL, [group(MODEL, ["a"], 4)], draft=DRAFT, batch=4, tree=chain(40))
    assert check(many) == ()
    sizes = [{buffer.name: buffer.nbytes for buffer in device_buffers(plan, "a")} for plan in (one, many, wide)]
    for name, nbytes in sizes[1].items():
        assert sizes[0][name] <= nbytes <= sizes[2][name], name
    assert sum(sizes[0].values()) < sum(sizes[1].values()) < sum(sizes[2].values())
