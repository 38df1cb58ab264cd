"""Reads solutions of the CP-SAT model: their structure, the variables that are left to settle, and the answer.

A *structure* is which groups run a stage and which choice each block is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.solver.model import Model
from planner.solver.problem import Answer, BlockAnswer, RunAnswer, StageAnswer
from planner.solver.restriction import Restriction
from planner.solver.variables import Linear


@dataclass(frozen=True, slots=True)
class Ranged:
    """An expression with the least and the largest value that it may have."""

    expression: Linear
    least: int
    most: int


def chosen(model: Model) -> Restriction:
    """Return the structure of the solution, in indices of the whole problem."""
    groups = zip(model.restriction.groups, model.stages.runs, strict=True)
    blocks = zip(model.restricted.choices, model.blocks.on, strict=True)
    return Restriction(
        groups=tuple(g for g, runs in groups if model.value(runs)),
        choices=tuple(
            tuple(choice.index for choice, variable in zip(choices, on, strict=True) if model.value(variable))
            for choices, on in blocks
        ),
        left_out=model.restriction.left_out,
    )


def structure(model: Model) -> Iterator[Ranged]:
    """Yield what makes up the structure, in order: groups, those listed first first; then a choice of each block."""
    yield from (Ranged(-runs, -1, 0) for runs in model.stages.runs)
    for on in model.blocks.on:
        yield Ranged(sum(number * variable for number, variable in enumerate(on)), 0, len(on) - 1)


def order_variables(model: Model) -> Iterator[cp_model.IntVar]:
    """Yield what orders the stages, once the structure is known."""
    order = model.order
    yield from (*order.start, *order.first, *order.enters, *order.last)


def quantities(model: Model) -> Iterator[cp_model.IntVar]:
    """Yield the integers that divide layers and axes, in the order in which they are settled."""
    problem, none = model.problem, model.stages.none
    if model.runs is not None:
        for slot in (slot for kinds in model.runs.slots for slots in kinds for slot in slots):
            yield from (slot.layers, *(flag for flag in slot.split if flag is not none), *slot.units)
    yield from (n for kinds in model.stages.layers for counts in kinds for n in counts if n is not none)
    for k in range(len(problem.kinds)):
        yield from (u for kinds in model.stages.units for u in kinds[k])
    blocks = zip(problem.blocks, model.restricted.choices, model.blocks.shares, strict=True)
    for block, choices, axes in blocks:
        used = sorted({device for choice in choices for device in choice.option.devices})
        for _, counts in zip(block.axes, axes, strict=True):
            yield from (counts[device] for device in used)


def answer(model: Model) -> Answer:
    """Return the solution of a model that is restricted to one structure, in indices of the whole problem."""
    stages = tuple(
        StageAnswer(
            group=model.restriction.groups[i],
            layers=tuple(_values(model, counts) for counts in model.stages.layers[i]),
            units=tuple(_values(model, members) for members in model.stages.units[i]),
            runs=_runs(model, i),
        )
        for i in _execution_order(model)
    )
    first, last, *tail = [_block_answer(model, b) for b in range(len(model.blocks.on))]
    return Answer(stages=stages, first=first, last=last, tail=tail[0] if tail else None)


def _runs(model: Model, i: int) -> tuple[tuple[RunAnswer, ...], ...] | None:
    """Return the runs of the stage of a group, by kind; None in a model without."""
    if model.runs is None:
        return None
    return tuple(
        tuple(
            RunAnswer(
                split=next(c for c, flag in enumerate(slot.split) if model.value(flag)),
                layers=model.value(slot.layers),
                units=_values(model, slot.units),
            )
            for slot in slots
            if model.value(slot.used)
        )
        for slots in model.runs.slots[i]
    )


def _block_answer(model: Model, b: int) -> BlockAnswer:
    (choice,) = model.restricted.choices[b]
    axes = list(model.problem.blocks)[b].axes
    shares = []
    for axis, counts in zip(axes, model.blocks.shares[b], strict=True):
        pieces = _values(model, (counts[device] for device in choice.option.devices))
        shares.append(pieces if sum(pieces) == axis.count else None)
    return BlockAnswer(option=choice.index[0], split=choice.index[1], shares=tuple(shares))


def _execution_order(model: Model) -> list[int]:
    """Return the groups that run a stage, first to last."""
    order = model.order
    running = [index for index, variable in enumerate(model.stages.runs) if model.value(variable)]
    if order.start:
        return sorted(running, key=lambda index: model.value(order.start[index]))
    if model.problem.ordered:
        return running
    sites = [group.site for group in model.problem.groups]
    first = next(index for index in running if model.value(order.first[index]))
    last = next(index for index in running if model.value(order.last[index]))

    def position(index: int) -> tuple[int, ...]:
        site_rank = 0 if sites[index] == sites[first] else 2 if sites[index] == sites[last] else 1
        stage_rank = 0 if model.value(order.enters[index]) else 2 if index == last else 1
        return site_rank, sites[index], stage_rank, index

    return sorted(running, key=position)


def _values(model: Model, variables: Iterable[cp_model.IntVar]) -> tuple[int, ...]:
    return tuple(model.value(variable) for variable in variables)
