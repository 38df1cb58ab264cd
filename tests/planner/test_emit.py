"""From an answer to a plan: units dealt out to layers, names, transports, and figures that add up."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.certify import certify
from planner.emit import deal, emit
from planner.formulate import Formulation
from planner.solve import Settings, Solved, solve
from plans import codec
from plans.check import check
from plans.schema import Inputs, Plan
from tests.planner.instances import EQUAL, UNLIKE, Head, formulation

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


@given(st.data())
def test_units_are_dealt_out_evenly(data: st.DataObject) -> None:
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


def test_what_is_left_over_goes_round_the_layers() -> None:
    assert deal((5, 7), 3) == [(2, 2), (2, 2), (1, 3)]
    assert deal((0, 8), 2) == [(0, 4), (0, 4)]


def _solved(case: str) -> tuple[Formulation, Solved, Plan]:
    data, head, context = CASES[case]
    found = formulation(data, head, context=context)
    solved = solve(found.problem, Settings())
    assert solved is not None
    return found, solved, emit(found, WITH_DRAFT if head else INPUTS, solved)


@pytest.mark.parametrize("case", CASES)
def test_a_plan_is_sound_and_says_what_was_certified(case: str) -> None:
    found, solved, plan = _solved(case)
    assert check(plan) == ()
    assert codec.loads(codec.dumps(plan)) == plan
    certificate = certify(found.problem, solved.answer)
    placement = plan.draft_placement
    total = sum(stage.predicted_ns for stage in plan.stages) + plan.embed.predicted_ns + plan.head.predicted_ns
    total += (placement.predicted_ns if placement else 0) + certificate.message_ns
    assert total == plan.proof.objective_ns == certificate.step_ns
    for stage, answer in zip(plan.stages, solved.answer.stages, strict=True):
        columns = found.problem.groups[answer.group].columns
        for j in range(len(stage.devices)):
            assert sum(run.num_layers * run.mlp_units[j] for run in stage.runs) == answer.units[j]
            heads = sum(n * column.shares[j] for n, column in zip(answer.layers, columns, strict=True))
            assert sum(run.num_layers * run.kv_heads[j] for run in stage.runs) == heads
        assert all(a != b for a, b in zip(stage.runs, stage.runs[1:], strict=False)), "equal runs are one"
    assert sum(plan.embed.rows) == sum(plan.head.rows) == plan.model.vocab_size


def test_an_accepted_gap_is_stated_and_never_understates_the_time() -> None:
    data, head, context = CASES["unlike"]
    found = formulation(data, head, context=context)
    found = dataclasses.replace(found, options=dataclasses.replace(found.options, gap_ppm=500_000))
    solved = solve(found.problem, Settings(gap_ppm=500_000))
    assert solved is not None
    plan = emit(found, WITH_DRAFT, solved)
    exact = _solved("unlike")[2].proof.objective_ns
    assert plan.proof.bound_ns <= exact <= plan.proof.objective_ns
    assert plan.proof.objective_ns == certify(found.problem, solved.answer).step_ns
    assert (plan.proof.status == "OPTIMAL") == (plan.proof.bound_ns == plan.proof.objective_ns)
    assert check(plan) == ()


def test_an_answer_that_costs_more_than_was_proven_is_our_bug() -> None:
    found, solved, _ = _solved("plain")
    with pytest.raises(AssertionError):
        emit(found, INPUTS, dataclasses.replace(solved, objective_ns=solved.objective_ns - 1))
