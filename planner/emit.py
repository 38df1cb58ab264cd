"""Turns an answer into a plan: names for indices, units dealt out to single layers, memory lines, transports."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from planner.costs.memory import device_memory
from planner.costs.shares import kinds_of
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
    Mlp,
    Plan,
    Proof,
    Run,
    Simplicity,
    Stage,
    Transport,
    VocabSplit,
)
from plans.slot_bytes import weights_bytes


def emit(formulation: Formulation, inputs: Inputs, solved: Solved, previous: Previous | None = None) -> Plan:
    """Return the plan of a certified answer, its layers in an order in which the fewest bytes move from ``previous``.

    Where the solver divides freely it bounds the bytes of a share from above; the plan's lines are exact and no larger.
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
        head=_split(formulation, problem.last, _with_shares(answer), ends, certificate.last_ns),
        draft_placement=_draft(formulation, answer, certificate),
        message_transport=_transport(formulation, devices_in_use(problem, answer)),
        memory=(),
        proof=Proof(
            status="OPTIMAL" if solved.bound_ns == solved.least_ns else "FEASIBLE",
            objective_ns=certificate.step_ns,
            least_ns=min(solved.least_ns, certificate.step_ns),
            bound_ns=solved.bound_ns,
            simplicity=_simplicity(solved),
            min_free_bytes=0,
        ),
    )
    return _with_memory(plan, problem, answer, certificate)


def _simplicity(solved: Solved) -> Simplicity | None:
    bounds = solved.simplicity
    if bounds is None:
        return None
    return Simplicity(devices_bound=bounds.devices, runs_bound=bounds.runs, step_bound_ns=bounds.step_ns)


def _with_memory(plan: Plan, problem: Problem, answer: Answer, certificate: Certificate) -> Plan:
    """Return the plan with the memory lines of its devices, and assert that it is consistent."""
    lines = []
    free = []
    used = {problem.devices[index]: index for index in devices_in_use(problem, answer)}
    for device in plan.inventory.devices:
        if device.id not in used:
            continue
        name, index = device.id, used[device.id]
        line = device_memory(plan, name, *weights_bytes(plan, name))
        set_aside = device.capacity_bytes - problem.capacity_bytes[index]
        bound = certificate.load_bytes[index] + set_aside
        assert line.planned_bytes <= bound, f"{name}: {line} exceeds the {bound} bytes of the solver's problem"
        lines.append(line)
        free.append(device.capacity_bytes - line.planned_bytes)
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
    """Return the placement of a vocabulary table, which receives from the leader of ``before``."""
    members = _members(block, placed)
    devices = _names(formulation, members)
    (bundles,) = placed.shares
    assert bundles is not None
    return VocabSplit(
        devices=devices,
        transport=_transport(formulation, members),
        hop_transport=hop_transport(formulation.inventory, before, devices),
        rows=_rows(formulation, bundles),
        predicted_ns=predicted_ns,
    )


def _with_shares(answer: Answer) -> BlockAnswer:
    """Return the placement of the lm_head with the rows of the embedding where it shares them."""
    (rows,) = answer.last.shares
    return dataclasses.replace(answer.last, shares=answer.first.shares) if rows is None else answer.last


def _rows(formulation: Formulation, bundles: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(formulation.row_unit * count for count in bundles)


def _stages(
    formulation: Formulation, answer: Answer, certificate: Certificate, previous: Previous | None
) -> tuple[Stage, ...]:
    problem = formulation.problem
    kinds, mlps = problem.layer_kinds, [layers.mlp for layers in kinds_of(formulation.model)]
    first_layer = 0
    before = _names(formulation, _members(problem.first, answer.first))
    stages: list[Stage] = []
    for position, placed in enumerate(answer.stages):
        members = problem.groups[placed.group].devices
        devices = _names(formulation, members)
        division = formulation.kv_divisions[placed.group]
        stage_kinds = kinds[first_layer : first_layer + placed.num_layers]
        order = previous.in_order(placed, first_layer) if previous else _as_listed(placed)
        stages.append(
            Stage(
                first_layer=first_layer,
                devices=devices,
                transport=_transport(formulation, members),
                hop_transport=hop_transport(formulation.inventory, before, devices),
                kv_axis=division.axis,
                kv_subgroups=division.subgroups,
                runs=_runs(problem, placed, stage_kinds, order, mlps),
                predicted_ns=certificate.stage_ns[position],
            )
        )
        first_layer += placed.num_layers
        before = devices
    return tuple(stages)


def _as_listed(placed: StageAnswer) -> list[list[int]]:
    """Return the split of every layer, by kind, in the order in which splits are listed."""
    return [[split for split, count in enumerate(counts) for _ in range(count)] for counts in placed.layers]


def _runs(
    problem: Problem, placed: StageAnswer, kinds: Sequence[int], order: Sequence[Sequence[int]], mlps: Sequence[Mlp]
) -> tuple[Run, ...]:
    """Return the layers of a stage as runs of equal MLPs and shares.

    ``kinds``: of its layers, in the order of execution; ``order``: by kind, the split of every layer; ``mlps``: by
    kind.
    """
    listed = problem.groups[placed.group].splits
    layers: list[Iterator[tuple[tuple[int, ...], tuple[int, ...]]]]
    if placed.runs is None:
        layers = [
            zip((splits[split].shares for split in chosen), deal(units, len(chosen)), strict=True)
            for splits, units, chosen in zip(listed, placed.units, order, strict=True)
        ]
    else:
        layers = [
            ((splits[run.split].shares, run.units) for run in of_kind for _ in range(run.layers))
            for splits, of_kind in zip(listed, placed.runs, strict=True)
        ]
    runs: list[tuple[Mlp, Run]] = []
    for kind in kinds:
        kv_heads, units = next(layers[kind])
        run = Run(num_layers=1, kv_heads=kv_heads, mlp_units=units)
        if runs and runs[-1] == (mlps[kind], dataclasses.replace(run, num_layers=runs[-1][1].num_layers)):
            run = dataclasses.replace(run, num_layers=runs.pop()[1].num_layers + 1)
        runs.append((mlps[kind], run))
    return tuple(run for _, run in runs)


def deal(totals: Sequence[int], layers: int) -> list[tuple[int, ...]]:
    """Divide every member's total over ``layers`` layers such that all layers have the same sum.

    No two layers differ by more than one unit for any member: remainders are dealt to the layers in turn, member after
    member (McNaughton's wrap-around rule).
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
    """Return the placement of the drafter, None without one."""
    problem, placed = formulation.problem, answer.tail
    if placed is None or problem.tail is None:
        return None
    members = _members(problem.tail, placed)
    devices = _names(formulation, members)
    head = _names(formulation, _members(problem.last, answer.last))
    units, embed, rows = placed.shares
    assert units is not None, "MLP units of the drafter are no other block's"
    division = formulation.draft_kv_divisions[placed.option][placed.split]
    alone = max(division.subgroups) == 1
    return DraftPlacement(
        devices=devices,
        transport=_transport(formulation, members),
        feature_transport=hop_transport(formulation.inventory, head, devices),
        kv_axis=None if alone else division.axis,
        kv_subgroups=None if alone else division.subgroups,
        kv_heads=problem.tail.options[placed.option].splits[placed.split].shares,
        mlp_units=units,
        embed_rows=None if embed is None else _rows(formulation, embed),
        head_rows=None if rows is None else _rows(formulation, rows),
        predicted_ns=certificate.tail_ns,
    )
