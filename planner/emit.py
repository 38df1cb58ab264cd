"""Answer -> Plan: names instead of indices, units dealt out to single layers, memory lines, transports."""

import dataclasses
from collections.abc import Iterable, Sequence

from planner.costs.memory import device_memory
from planner.problem.formulate import Formulation
from planner.problem.previous_plan import Previous
from planner.solver.certify import Certificate, certify, devices_in_use
from planner.solver.problem import Answer, Block, BlockAnswer, Problem, StageAnswer
from planner.solver.solve import Solved
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
from plans.slots import weights_bytes


def emit(formulation: Formulation, inputs: Inputs, solved: Solved, previous: Previous | None = None) -> Plan:
    """The plan of a certified answer; its layers in an order in which the fewest bytes move from ``previous``.

    The solver counts a share's bytes from above where it divides freely; the plan's lines are exact, and never more.
    """
    problem, answer = formulation.problem, solved.answer
    certificate = certify(problem, answer)
    assert solved.bound_ns <= certificate.step_ns <= solved.objective_ns, (certificate.step_ns, solved)
    embed = _members(problem.first, answer.first)
    ends = _names(formulation, problem.groups[answer.stages[-1].group].devices)
    plan = Plan(
        schema=f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}",
        inputs=inputs,
        options=dataclasses.replace(formulation.options, gap_ppm=solved.gap_ppm),
        inventory=formulation.inventory,
        model=formulation.model,
        draft=formulation.draft,
        stages=_stages(formulation, answer, certificate, previous),
        embed=_split(formulation, problem.first, answer.first, _names(formulation, embed), certificate.first_ns),
        head=_split(formulation, problem.last, answer.last, ends, certificate.last_ns),
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
        told = certificate.load_bytes[index]
        assert line.planned_bytes <= told, f"{name}: {line} is more than the {told} bytes that the solver was told"
        lines.append(line)
        free.append(problem.capacity_bytes[index] - line.planned_bytes)
    proof = dataclasses.replace(plan.proof, min_free_bytes=min(free))
    whole = dataclasses.replace(plan, memory=tuple(lines), proof=proof)
    violations = check(whole)
    assert not violations, violations
    return whole


def _names(formulation: Formulation, members: Iterable[int]) -> tuple[str, ...]:
    return tuple(formulation.problem.devices[index] for index in members)


def _members(block: Block, placed: BlockAnswer) -> tuple[int, ...]:
    return block.options[placed.option].devices


def _transport(formulation: Formulation, members: Iterable[int]) -> Transport:
    return group_transport(formulation.inventory, _names(formulation, members))


def _split(
    formulation: Formulation, block: Block, placed: BlockAnswer, before: tuple[str, ...], predicted_ns: int
) -> VocabSplit:
    """A table, which receives from the leader of ``before``."""
    members = _members(block, placed)
    devices = _names(formulation, members)
    (bundles,) = placed.shares
    assert bundles is not None, "a table of its own is shared with nothing"
    return VocabSplit(
        devices=devices,
        transport=_transport(formulation, members),
        hop_transport=hop_transport(formulation.inventory, before, devices),
        rows=_rows(formulation, bundles),
        predicted_ns=predicted_ns,
    )


def _rows(formulation: Formulation, bundles: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(formulation.row_unit * count for count in bundles)


def _stages(
    formulation: Formulation, answer: Answer, certificate: Certificate, previous: Previous | None
) -> tuple[Stage, ...]:
    problem = formulation.problem
    kinds = [kind for kind, count in problem.sequence for _ in range(count)]
    first_layer = 0
    before = _names(formulation, _members(problem.first, answer.first))
    stages: list[Stage] = []
    for position, placed in enumerate(answer.stages):
        members = problem.groups[placed.group].devices
        devices = _names(formulation, members)
        way = formulation.ways[placed.group]
        here = kinds[first_layer : first_layer + placed.num_layers]
        order = previous.in_order(placed, first_layer) if previous else _as_listed(placed)
        stages.append(
            Stage(
                first_layer=first_layer,
                devices=devices,
                transport=_transport(formulation, members),
                hop_transport=hop_transport(formulation.inventory, before, devices),
                kv_axis=way.axis,
                kv_subgroups=way.subgroups,
                runs=_runs(problem, placed, here, order),
                predicted_ns=certificate.stage_ns[position],
            )
        )
        first_layer += placed.num_layers
        before = devices
    return tuple(stages)


def _as_listed(placed: StageAnswer) -> list[list[int]]:
    """Of each kind, the split of each of its layers."""
    return [[split for split, count in enumerate(counts) for _ in range(count)] for counts in placed.layers]


def _runs(
    problem: Problem, placed: StageAnswer, kinds: Sequence[int], order: Sequence[Sequence[int]]
) -> tuple[Run, ...]:
    """The layers of a stage, of these kinds in this order; runs of equal layers with equal shares are one."""
    listed = problem.groups[placed.group].splits
    layers = [
        zip((splits[split].shares for split in each), deal(units, len(each)), strict=True)
        for splits, units, each in zip(listed, placed.units, order, strict=True)
    ]
    runs: list[tuple[int, Run]] = []
    for kind in kinds:
        kv_heads, units = next(layers[kind])
        run = Run(num_layers=1, kv_heads=kv_heads, mlp_units=units)
        if runs and runs[-1] == (kind, dataclasses.replace(run, num_layers=runs[-1][1].num_layers)):
            run = dataclasses.replace(run, num_layers=runs.pop()[1].num_layers + 1)
        runs.append((kind, run))
    return tuple(run for _, run in runs)


def deal(totals: Sequence[int], layers: int) -> list[tuple[int, ...]]:
    """Divide each member's total over ``layers`` layers such that every layer has the same sum.

    No two layers differ by more than one unit for any member: what is left over after equal shares goes round the
    layers once, member after member (McNaughton's wrap-around rule).
    """
    if not layers:
        return []
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
    members = _members(problem.tail, placed)
    devices = _names(formulation, members)
    head = _names(formulation, _members(problem.last, answer.last))
    units, embed, rows = placed.shares
    assert units is not None, "units are shared with nothing"
    way = formulation.draft_ways[placed.option][placed.split]
    alone = max(way.subgroups) == 1
    return DraftPlacement(
        devices=devices,
        transport=_transport(formulation, members),
        feature_transport=hop_transport(formulation.inventory, head, devices),
        kv_axis=None if alone else way.axis,
        kv_subgroups=None if alone else way.subgroups,
        kv_heads=problem.tail.options[placed.option].splits[placed.split].shares,
        mlp_units=units,
        embed_rows=None if embed is None else _rows(formulation, embed),
        head_rows=None if rows is None else _rows(formulation, rows),
        predicted_ns=certificate.tail_ns,
    )
