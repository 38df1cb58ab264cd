"""Conversion of an answer to a plan: MLP units per layer, names, transports, and figures that add up."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.emit import deal, emit
from planner.problem.formulate import Formulation
from planner.problem.previous_plan import Previous
from planner.solver.certify import certify
from planner.solver.minimise import Settings
from planner.solver.solve import Solved, solve
from plans import codec
from plans.buffers import OUTBOX, device_buffers
from plans.check import check
from plans.dtypes import cached_width
from plans.schema import Inputs, KvAxis, Pin, Plan, Strategy, Tree
from tests.planner.instances import EQUAL, UNLIKE, Head, cpu, formulation, host

FAST = {"class": "fast", "latency": "1 us", "bandwidth": "1000 GB/s"}
INPUTS = Inputs(
    base_config_sha256="0" * 64, base_tensors_sha256="1" * 64, draft_config_sha256=None, draft_tensors_sha256=None
)
WITH_DRAFT = dataclasses.replace(INPUTS, draft_config_sha256="2" * 64, draft_tensors_sha256="3" * 64)
CASES: dict[str, tuple[Any, Head, int]] = {
    "equal": (EQUAL, "eagle3", 256),
    "unlike": (UNLIKE, "eagle3", 256),
    "eagle1": (UNLIKE, "eagle1", 256),
    "plain": (EQUAL, None, 256),
    "odd context": (UNLIKE, "eagle3", 201),
}
SMALL = Tree(kind="dynamic", total_token=6, depth=1, top_k=3, paths=None)


@given(st.data())
def test_units_are_distributed_evenly_over_layers(data: st.DataObject) -> None:
    layers, units = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50))
    members = data.draw(st.integers(1, 6))
    cuts = sorted(data.draw(st.lists(st.integers(0, layers * units), min_size=members - 1, max_size=members - 1)))
    totals = [b - a for a, b in zip([0, *cuts], [*cuts, layers * units], strict=True)]
    dealt = deal(totals, layers)
    assert len(dealt) == layers
    assert all(sum(layer) == units for layer in dealt)
    for member, total in enumerate(totals):
        shares = [layer[member] for layer in dealt]
        assert sum(shares) == total
        assert max(shares) - min(shares) <= 1


def test_the_remainder_goes_to_different_layers() -> None:
    assert deal((5, 7), 3) == [(2, 2), (2, 2), (1, 3)]
    assert deal((0, 8), 2) == [(0, 4), (0, 4)]


def _solved(case: str) -> tuple[Formulation, Solved, Plan]:
    data, head, context = CASES[case]
    return _planned(formulation(data, head, context=context))


def _planned(formulated: Formulation) -> tuple[Formulation, Solved, Plan]:
    solved = solve(formulated.problem, Settings())
    assert solved is not None
    return formulated, solved, emit(formulated, WITH_DRAFT if formulated.draft else INPUTS, solved)


@pytest.mark.parametrize("case", CASES)
def test_a_plan_passes_check_and_has_the_certified_figures(case: str) -> None:
    formulated, solved, plan = _solved(case)
    assert check(plan) == ()
    assert codec.loads(codec.dumps(plan)) == plan
    certificate = certify(formulated.problem, solved.answer)
    placement = plan.draft_placement
    total = sum(stage.predicted_ns for stage in plan.stages) + plan.embed.predicted_ns + plan.head.predicted_ns
    total += (placement.predicted_ns if placement else 0) + certificate.message_ns
    assert total == plan.proof.objective_ns == certificate.step_ns
    for stage, answer in zip(plan.stages, solved.answer.stages, strict=True):
        group = formulated.problem.groups[answer.group]
        for j in range(len(stage.devices)):
            assert sum(run.num_layers * run.mlp_units[j] for run in stage.runs) == sum(
                units[j] for units in answer.units
            )
            heads = sum(
                n * split.shares[j]
                for counts, splits in zip(answer.layers, group.splits, strict=True)
                for n, split in zip(counts, splits, strict=True)
            )
            assert sum(run.num_layers * run.kv_heads[j] for run in stage.runs) == heads
        assert all(a != b for a, b in zip(stage.runs, stage.runs[1:], strict=False)), "equal runs are merged"
    assert sum(plan.embed.rows) == sum(plan.head.rows) == plan.model.vocab_size
    for line in plan.memory:
        index = formulated.problem.devices.index(line.device)
        outbox = sum(buffer.nbytes for buffer in device_buffers(plan, line.device) if buffer.name == OUTBOX)
        room = formulated.problem.capacity_bytes[index]
        assert line.planned_bytes - outbox <= certificate.load_bytes[index] <= room
        assert outbox <= plan.device(line.device).capacity_bytes - room


BOXES: dict[str, Any] = {
    "hosts": [
        host(f"h{i}", *(cpu(f"h{i}{letter}", 12) | {"overhead": "1 us"} for letter in "ab"), links=FAST)
        for i in range(2)
    ],
    "network": FAST | {"latency": "2 us"},
}
"""Two equal hosts with links and blocks so fast that stages span several devices."""


def _with(formulated: Formulation, **changes: Any) -> Formulation:
    return dataclasses.replace(formulated, options=dataclasses.replace(formulated.options, **changes))


def _with_heads(formulated: Formulation, kv_heads: int) -> Formulation:
    (layers,) = formulated.model.layers
    layers = dataclasses.replace(layers, attention=dataclasses.replace(layers.attention, num_kv_heads=kv_heads))
    return dataclasses.replace(formulated, model=dataclasses.replace(formulated.model, layers=(layers,)))


@pytest.mark.parametrize("axis", ["heads", "context", "head_dim", "batch"])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_each_axis_has_sound_plans(axis: KvAxis, kv_heads: int) -> None:
    formulated = _with_heads(_with(formulation(BOXES, None), kv_axis=axis, batch=4), kv_heads)
    _, _, plan = _planned(formulated)
    assert check(plan) == ()
    for stage in plan.stages:
        assert stage.kv_axis == ("heads" if len(stage.devices) == 1 else axis)
        assert sum(stage.kv_subgroups) == len(stage.devices)
    if axis != "heads" or kv_heads > 1:
        assert max(len(stage.devices) for stage in plan.stages) > 1


@pytest.mark.parametrize(("devices", "kv_heads"), [(3, 1), (4, 2)])
def test_the_drafter_may_be_split_over_more_devices_than_it_has_kv_heads(devices: int, kv_heads: int) -> None:
    """Large vocabularies fill the devices with tables, so that the drafter needs all of them."""
    data = {"hosts": [host("box", *(cpu(f"c{i}", 24) for i in range(devices)), links=FAST)]}
    formulated = _with(formulation(data, "eagle3"), context=64, prefill_chunk=16, tree=SMALL)
    assert formulated.draft is not None
    attention = dataclasses.replace(formulated.draft.attention, num_heads=4, num_kv_heads=kv_heads, head_dim=48)
    vocab = 64 * 300
    draft = dataclasses.replace(formulated.draft, attention=attention, draft_vocab_size=vocab, maps_vocabulary=False)
    model = dataclasses.replace(formulated.model, vocab_size=vocab)
    formulated, solved, plan = _planned(dataclasses.replace(formulated, model=model, draft=draft))
    placement = plan.draft_placement
    assert placement is not None
    assert placement.kv_subgroups is not None
    assert sum(placement.kv_subgroups) == len(placement.devices) > kv_heads
    assert check(plan) == ()
    assert codec.loads(codec.dumps(plan)) == plan
    tail, previous = solved.answer.tail, Previous(formulated, WITH_DRAFT, plan)
    assert tail is not None
    assert previous.choice_bytes(2, tail.option, tail.split) == 0, "all bytes of the split are on their devices already"
    others = [c for c in range(len(formulated.draft_kv_divisions[tail.option])) if c != tail.split]
    assert all(previous.choice_bytes(2, tail.option, split) > 0 for split in others)


def test_a_narrow_cache_has_a_sound_plan() -> None:
    wide, narrow = (
        _planned(_with(formulation(BOXES, "eagle3"), kv_dtype=kv))[2] for kv in ("float32", "float8_e4m3fn")
    )
    cached = [sum(line.kv_bytes + line.draft_kv_bytes for line in plan.memory) for plan in (wide, narrow)]
    dims = narrow.model.layers[0].attention.head_dim
    assert cached[0] * cached_width("float8_e4m3fn", dims) == 4 * dims * cached[1]
    assert narrow.proof.objective_ns <= wide.proof.objective_ns


@pytest.mark.parametrize("strategy", ["balanced", "balanced_low_0", "sequential"])
def test_each_strategy_has_sound_plans(strategy: Strategy) -> None:
    _, _, plan = _planned(_with(formulation(UNLIKE, "eagle3"), strategy=strategy))
    assert check(plan) == ()
    assert plan.options.strategy == strategy
    if strategy == "sequential":
        assert all(len(stage.devices) == 1 for stage in plan.stages)
    assert plan.proof.objective_ns >= _solved("unlike")[2].proof.objective_ns


def test_a_device_map_is_planned_as_given() -> None:
    where = {"embed": "b1", "head": "a0", "draft": "b0"} | {
        f"layers.{i}": ["a0", "a0", "a1", "a1", "b1", "b1", "b1", "b1"][i] for i in range(8)
    }
    pins = tuple(Pin(module=module, device=device) for module, device in sorted(where.items()))
    data = {
        **UNLIKE,
        "hosts": [h | {"devices": [d | {"memory": "32 MiB"} for d in h["devices"]]} for h in UNLIKE["hosts"]],
    }
    _, _, plan = _planned(_with(formulation(data, "eagle3"), strategy="custom", custom=pins))
    assert check(plan) == ()
    assert [(stage.devices, stage.num_layers) for stage in plan.stages] == [(("a0",), 2), (("a1",), 2), (("b1",), 4)]
    assert (plan.embed.devices, plan.head.devices) == (("b1",), ("a0",))
    assert plan.draft_placement is not None
    assert plan.draft_placement.devices == ("b0",)
    assert plan.draft_placement.embed_rows is not None


def test_layers_of_several_kinds_are_in_their_order() -> None:
    formulated = formulation(UNLIKE, None)
    (layers,) = formulated.model.layers
    wide = dataclasses.replace(
        layers, num_layers=1, mlp=dataclasses.replace(layers.mlp, intermediate_size=2 * layers.mlp.intermediate_size)
    )
    few, twice = dataclasses.replace(layers, num_layers=2), dataclasses.replace(wide, num_layers=2)
    formulated = dataclasses.replace(
        formulated, model=dataclasses.replace(formulated.model, layers=(few, wide, few, twice))
    )
    _, solved, plan = _planned(formulated)
    units = [sum(run.mlp_units) for stage in plan.stages for run in stage.runs for _ in range(run.num_layers)]
    once = layers.mlp.intermediate_size // layers.mlp.unit
    assert units == [once, once, 2 * once, once, once, 2 * once, 2 * once]
    assert check(plan) == ()
    assert certify(formulated.problem, solved.answer).step_ns == plan.proof.objective_ns


def test_experts_have_a_sound_plan() -> None:
    formulated = formulation(UNLIKE, "eagle3")
    (layers,) = formulated.model.layers
    moe = dataclasses.replace(layers.mlp, kind="moe", num_experts=4, experts_per_token=2, intermediate_size=128)
    gated = dataclasses.replace(layers, num_layers=3)
    mixed = (gated, dataclasses.replace(layers, num_layers=5, mlp=moe))
    _, _, plan = _planned(dataclasses.replace(formulated, model=dataclasses.replace(formulated.model, layers=mixed)))
    assert check(plan) == ()


def test_an_accepted_gap_is_stated_and_never_understates_the_time() -> None:
    data, head, context = CASES["unlike"]
    formulated = formulation(data, head, context=context)
    formulated = dataclasses.replace(formulated, options=dataclasses.replace(formulated.options, gap_ppm=500_000))
    solved = solve(formulated.problem, Settings(gap_ppm=500_000))
    assert solved is not None
    plan = emit(formulated, WITH_DRAFT, solved)
    exact = _solved("unlike")[2].proof.objective_ns
    assert plan.proof.bound_ns <= exact <= plan.proof.objective_ns
    assert plan.proof.objective_ns == certify(formulated.problem, solved.answer).step_ns
    assert (plan.proof.status == "OPTIMAL") == (plan.proof.bound_ns == plan.proof.least_ns)
    assert check(plan) == ()


def test_an_answer_above_the_proven_objective_is_an_assertion_error() -> None:
    formulated, solved, _ = _solved("plain")
    with pytest.raises(AssertionError):
        emit(formulated, INPUTS, dataclasses.replace(solved, objective_ns=solved.objective_ns - 1))
