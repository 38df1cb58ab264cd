"""Answer -> Plan: names instead of indices, units dealt out to single layers, memory lines, transports."""

import dataclasses
from collections.abc import Iterable, Sequence

from planner.certify import Certificate, certify, devices_in_use
from planner.formulate import Formulation
from planner.layout import weights_bytes
from planner.memory import device_memory
from planner.problem import Answer, Problem, StageAnswer
from planner.solve import Solved
from plans.check import check, group_transport, hop_transport
from plans.schema import (
    SCHEMA_MAJOR,
    SCHEMA_MINOR,
    DraftPlacement,
    Inputs,
    Plan,
    Proof,
    Run,
    Stage,
    Transport,
    VocabSplit,
)


def emit(formulation: Formulation, inputs: Inputs, solved: Solved) -> Plan:
    """The plan of a certified answer.

    The solver counts a share's bytes from above where it divides freely; the plan's lines are exact, and never more.
    """
    problem, answer = formulation.problem, solved.answer
    certificate = certify(problem, answer)
    assert solved.bound_ns <= certificate.step_ns <= solved.objective_ns, (certificate.step_ns, solved)
    plan = Plan(
        schema=f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}",
        inputs=inputs,
        options=formulation.options,
        inventory=formulation.inventory,
        model=formulation.model,
        draft=formulation.draft,
        stages=_stages(formulation, answer, certificate),
        embed=_split(formulation, answer.stages[0], answer.first_rows, certificate.first_ns),
        head=_split(formulation, answer.stages[-1], answer.last_rows, certificate.last_ns),
        draft_placement=_draft(formulation, answer, certificate),
        message_transport=_transport(formulation, devices_in_use(problem, answer)),
        memory=(),
        proof=Proof(
            status="OPTIMAL" if solved.bound_ns == certificate.step_ns else "FEASIBLE",
            objective_ns=certificate.step_ns,
            bound_ns=solved.bound_ns,
            min_free_bytes=0,
        ),
    )
    return _with_memory(plan, problem, answer, certificate)


def _with_memory(plan: Plan, problem: Problem, answer: Answer, certificate: Certificate) -> Plan:
    lines = []
    free = []
    for index in devices_in_use(problem, answer):
        name = problem.devices[index]
        line = device_memory(plan, name, *weights_bytes(plan, name))
        assert line.planned_bytes <= certificate.load_bytes[index], f"{name}: more bytes than the solver was told"
        lines.append(line)
        free.append(problem.capacity_bytes[index] - line.planned_bytes)
    proof = dataclasses.replace(plan.proof, min_free_bytes=min(free))
    whole = dataclasses.replace(plan, memory=tuple(lines), proof=proof)
    violations = check(whole)
    assert not violations, violations
    return whole


def _transport(formulation: Formulation, members: Iterable[int]) -> Transport:
    return group_transport(formulation.inventory, (formulation.inventory.devices[index].id for index in members))


def _split(formulation: Formulation, stage: StageAnswer, bundles: tuple[int, ...], predicted_ns: int) -> VocabSplit:
    """A table on the devices of a stage."""
    members = formulation.problem.groups[stage.group].devices
    return VocabSplit(
        devices=tuple(formulation.problem.devices[index] for index in members),
        transport=_transport(formulation, members),
        hop_transport="local",
        rows=_rows(formulation, bundles),
        predicted_ns=predicted_ns,
    )


def _rows(formulation: Formulation, bundles: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(formulation.row_unit * count for count in bundles)


def _stages(formulation: Formulation, answer: Answer, certificate: Certificate) -> tuple[Stage, ...]:
    problem = formulation.problem
    first_layer = 0
    stages: list[Stage] = []
    for position, placed in enumerate(answer.stages):
        members = problem.groups[placed.group].devices
        before = problem.groups[answer.stages[position - 1].group].devices[:1] if position else ()
        runs = _runs(problem, placed)
        stages.append(
            Stage(
                first_layer=first_layer,
                devices=tuple(problem.devices[index] for index in members),
                transport=_transport(formulation, members),
                hop_transport=_transport(formulation, (*before, *members)) if position else "local",
                kv_axis="heads",
                kv_subgroups=(1,) * len(members),
                runs=runs,
                predicted_ns=certificate.stage_ns[position],
            )
        )
        first_layer += stages[-1].num_layers
    return tuple(stages)


def _runs(problem: Problem, placed: StageAnswer) -> tuple[Run, ...]:
    columns = problem.groups[placed.group].columns
    heads = [column.shares for n, column in zip(placed.layers, columns, strict=True) for _ in range(n)]
    layers = list(zip(heads, deal(placed.units, len(heads)), strict=True))
    runs: list[Run] = []
    for kv_heads, units in layers:
        if runs and (runs[-1].kv_heads, runs[-1].mlp_units) == (kv_heads, units):
            runs[-1] = dataclasses.replace(runs[-1], num_layers=runs[-1].num_layers + 1)
        else:
            runs.append(Run(num_layers=1, kv_heads=kv_heads, mlp_units=units))
    return tuple(runs)


def deal(totals: Sequence[int], layers: int) -> list[tuple[int, ...]]:
    """Divide each member's total over ``layers`` layers such that every layer has the same sum.

    No two layers differ by more than one unit for any member: what is left over after equal shares goes round the
    layers once, member after member (McNaughton's wrap-around rule).
    """
    dealt = [[total // layers for total in totals] for _ in range(layers)]
    turn = 0
    for member, total in enumerate(totals):
        for _ in range(total % layers):
            dealt[turn % layers][member] += 1
            turn += 1
    return [tuple(units) for units in dealt]


def _draft(formulation: Formulation, answer: Answer, certificate: Certificate) -> DraftPlacement | None:
    problem, placed = formulation.problem, answer.tail
    if placed is None or problem.tail is None:
        return None
    choice = problem.tail.groups[placed.group]
    members = problem.groups[choice.group].devices
    devices = tuple(problem.devices[index] for index in members)
    head = tuple(problem.devices[index] for index in problem.groups[answer.stages[-1].group].devices)
    return DraftPlacement(
        devices=devices,
        transport=_transport(formulation, members),
        feature_transport=hop_transport(formulation.inventory, head, devices),
        kv_heads=choice.columns[placed.column].shares,
        mlp_units=placed.units,
        embed_rows=None if placed.first_rows is None else _rows(formulation, placed.first_rows),
        head_rows=None if placed.last_rows is None else _rows(formulation, placed.last_rows),
        predicted_ns=certificate.tail_ns,
    )
