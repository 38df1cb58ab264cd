"""Why nothing fits: how many bytes are short, and on which devices, under the packing that misses least."""

from dataclasses import replace

from planner.errors import InfeasibleError, NotProvenError
from planner.problem import Block, Column, Group, Problem, least_bytes
from planner.solve import Settings, shortfall
from plans.diff import format_bytes

LIMIT = 1.0
"""Of the proof that no packing misses less, in the solver's units of work."""

BEST = "the best packing"


def infeasible(problem: Problem, settings: Settings) -> InfeasibleError:
    """The refusal of an infeasible problem, with its shortage; where that takes long to prove, of a simple packing."""
    least = max(0, least_bytes(problem) - sum(problem.capacity_bytes))
    at_least = f"at least {format_bytes(least)} short in all ({least} bytes)"
    found = _packed(problem, replace(settings, limit=min(settings.limit, LIMIT)))
    if found is None:
        unknown = "how many bytes are short is not known"
        return InfeasibleError(f"no placement fits: {at_least if least else unknown}", {}, least)
    missing, packing = found
    total = sum(missing)
    said = f"{format_bytes(total)} short in all ({total} bytes)"
    if packing != BEST:
        said = f"{at_least}; at most {said}" if least else f"at most {said}"
    short = {name: nbytes for name, nbytes in zip(problem.devices, missing, strict=True) if nbytes}
    capacity = dict(zip(problem.devices, problem.capacity_bytes, strict=True))
    lines = [
        f"  {name}: {format_bytes(nbytes)} short, {format_bytes(capacity[name] + nbytes)} wanted of "
        f"{format_bytes(capacity[name])} ({nbytes} bytes)"
        for name, nbytes in short.items()
    ]
    return InfeasibleError(f"no placement fits: {said} under {packing}:\n" + "\n".join(lines), short, least)


def _packed(problem: Problem, settings: Settings) -> tuple[tuple[int, ...], str] | None:
    """Bytes missing of each device under a packing, and which one that is: the first that is found within the limit."""
    hosts, devices = {*problem.hosts}, {(device,) for device in range(len(problem.devices))}
    for of, packing, is_any in (
        (problem, BEST, False),
        (_simple(problem, hosts | devices), "the best packing on whole hosts and single devices", False),
        (_simple(problem, hosts), "a packing on whole hosts", True),
    ):
        if not of.groups or not all(block.options for block in of.blocks) or (of is not problem and problem.counts):
            continue  # a strategy has other groups
        try:
            return shortfall(of, settings, any_packing=is_any), packing
        except NotProvenError:
            continue
    return None


def _simple(problem: Problem, sets: set[tuple[int, ...]]) -> Problem:
    """With stages and blocks on these sets of devices alone, each divided in the way that takes the fewest bytes."""
    groups: dict[tuple[int, ...], Group] = {}
    for group in problem.groups:
        if tuple(sorted(group.devices)) in sets:
            one = replace(group, columns=tuple(map(_least, group.columns)))
            groups[group.devices] = min(groups.get(group.devices, one), one, key=_group_bytes)

    def block(whole: Block) -> Block:
        options = (option for option in whole.options if tuple(sorted(option.devices)) in sets)
        return replace(whole, options=tuple(replace(each, columns=_least(each.columns)) for each in options))

    return replace(
        problem,
        groups=tuple(groups.values()),
        first=block(problem.first),
        last=block(problem.last),
        tail=problem.tail and block(problem.tail),
    )


def _least(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """The one of the fewest bytes, the most even of several."""
    return (min(columns, key=lambda column: (sum(column.bytes), max(column.bytes))),) if columns else ()


def _group_bytes(group: Group) -> int:
    """Of a stage with one layer of each kind."""
    return sum(group.stage_bytes) + sum(sum(column.bytes) for columns in group.columns for column in columns)
