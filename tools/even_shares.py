"""Answers of a problem in even shares, as engines divide a model: for placements that are priced, not searched."""

from collections.abc import Iterator, Sequence

from planner.problem.kv_splits import even
from planner.solver.problem import Answer, Block, BlockAnswer, Problem, Split, StageAnswer


def even_answer(problem: Problem, layers: Sequence[int], first: tuple[int, ...], last: tuple[int, ...]) -> Answer:
    """Return the answer with so many layers per group, in the order of groups, and the tables on these devices.

    The drafter, where there is one, is on the devices of ``last``, as the embedding and the lm_head whose tables it may
    share.
    """
    return Answer(
        stages=tuple(_stages(problem, layers)),
        first=_block(problem.first, first),
        last=_block(problem.last, last),
        tail=None if problem.tail is None else _block(problem.tail, last),
    )


def _stages(problem: Problem, layers: Sequence[int]) -> Iterator[StageAnswer]:
    kinds, start = problem.layer_kinds, 0
    for g, count in enumerate(layers):
        own_kinds = kinds[start : start + count]
        start += count
        group, numbers, units = problem.groups[g], [], []
        for k, splits in enumerate(group.splits):
            chosen = _even_split(splits)
            numbers.append(tuple(own_kinds.count(k) * (split is splits[chosen]) for split in splits))
            units.append(even(problem.kinds[k].units * own_kinds.count(k), len(group.devices)))
        yield StageAnswer(group=g, layers=tuple(numbers), units=tuple(units))


def _block(block: Block, devices: tuple[int, ...]) -> BlockAnswer:
    option = next(i for i, option in enumerate(block.options) if option.devices == devices)
    shares = (None if axis.shared else even(axis.count, len(devices)) for axis in block.axes)
    return BlockAnswer(option=option, split=_even_split(block.options[option].splits), shares=tuple(shares))


def _even_split(splits: Sequence[Split]) -> int:
    """Return the split with as many heads for every member, without subgroups where there is one."""
    equal = [number for number, split in enumerate(splits) if len(set(split.shares)) == 1]
    return max(equal, key=lambda number: (splits[number].shares[0], -number))
