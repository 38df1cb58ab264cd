"""Reads solutions of the CP-SAT model: their structure, the variables that are left to settle, and the answer.

A *structure* is which groups run a stage and which choice each block is.
"""

from collections.abc import Iterable, Iterator

from ortools.sat.python import cp_model

from planner.solver.model import Model
from planner.solver.problem import Answer, BlockAnswer, StageAnswer
from planner.solver.restriction import Restriction
from planner.solver.variables import Bool

Ranged = tuple[cp_model.IntVar, int]
"""A variable with the largest value that it may have."""


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
    )


def forbid(model: Model, structure: Restriction) -> None:
    """Exclude the solutions that have exactly this structure."""
    groups = zip(model.restriction.groups, model.stages.runs, strict=True)
    literals = [runs.negated() if g in structure.groups else runs for g, runs in groups]
    for choices, on, (key,) in zip(model.restricted.choices, model.blocks.on, structure.choices, strict=True):
        literals += [variable.negated() for choice, variable in zip(choices, on, strict=True) if choice.index == key]
    model.model.add_bool_or(literals)


def structure_flags(model: Model) -> list[Bool]:
    """Return the variables that make up the structure, in order."""
    return [*model.stages.runs, *(variable for on in model.blocks.on for variable in on)]


def order_variables(model: Model) -> list[Ranged]:
    """Return the variables that order the stages, once the structure is known."""
    order = model.order
    flags = (*order.first, *order.enters, *order.last)
    return [*((start, model.problem.layers) for start in order.start), *((flag, 1) for flag in flags)]


def quantities(model: Model) -> Iterator[Ranged]:
    """Yield the integers that divide layers and axes, in the order in which they are settled."""
    problem = model.problem
    yield from ((n, problem.layers) for kinds in model.stages.layers for counts in kinds for n in counts)
    for k, kind in enumerate(problem.kinds):
        most = problem.layers_of(k) * kind.units
        yield from ((u, most) for kinds in model.stages.units for u in kinds[k])
    blocks = zip(problem.blocks, model.restricted.choices, model.blocks.shares, strict=True)
    for block, choices, axes in blocks:
        used = sorted({device for choice in choices for device in choice.option.devices})
        for axis, counts in zip(block.axes, axes, strict=True):
            yield from ((counts[device], axis.count) for device in used)


def answer(model: Model) -> Answer:
    """Return the solution of a model that is restricted to one structure, in indices of the whole problem."""
    stages = tuple(
        StageAnswer(
            group=model.restriction.groups[i],
            layers=tuple(_values(model, counts) for counts in model.stages.layers[i]),
            units=tuple(_values(model, members) for members in model.stages.units[i]),
        )
        for i in _execution_order(model)
    )
    first, last, *tail = [_block_answer(model, b) for b in range(len(model.blocks.on))]
    return Answer(stages=stages, first=first, last=last, tail=tail[0] if tail else None)


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
