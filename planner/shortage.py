"""Why nothing fits: how many bytes are short, and on which devices, under the packing that misses least."""

from dataclasses import replace

from planner.cpsat import Restriction
from planner.errors import InfeasibleError, NotProvenError
from planner.problem import Problem, least_bytes
from planner.solve import Settings, shortfall
from plans.diff import format_bytes

LIMIT = 1.0
"""Of the proof that no packing misses less, in the solver's units of work."""


def infeasible(problem: Problem, settings: Settings) -> InfeasibleError:
    """The refusal of an infeasible problem; where the least shortage takes long to prove, with that of simple packings,
    or without the bytes.
    """
    limited = replace(settings, limit=min(settings.limit, LIMIT))
    at_most, packing = "", "the best packing"
    try:
        missing = shortfall(problem, limited)
    except NotProvenError:
        at_most, packing = "at most ", "the best packing on whole hosts and single devices"
        try:
            missing = shortfall(problem, limited, whole_hosts_and_devices(problem))
        except NotProvenError as error:
            return InfeasibleError(f"no placement fits{_at_least(problem)}: {error}", {})
    short = dict(zip(problem.devices, missing, strict=True))
    capacity = dict(zip(problem.devices, problem.capacity_bytes, strict=True))
    lines = [
        f"  {name}: {format_bytes(nbytes)} short, {format_bytes(capacity[name] + nbytes)} wanted of "
        f"{format_bytes(capacity[name])} ({nbytes} bytes)"
        for name, nbytes in short.items()
        if nbytes
    ]
    total = sum(short.values())
    return InfeasibleError(
        f"no placement fits: {at_most}{format_bytes(total)} short in all ({total} bytes) under {packing}:\n"
        + "\n".join(lines),
        {name: nbytes for name, nbytes in short.items() if nbytes},
    )


def _at_least(problem: Problem) -> str:
    least = least_bytes(problem) - sum(problem.capacity_bytes)
    if least <= 0:
        return "; how many bytes are short is not known"
    return (
        f": at least {format_bytes(least)} short in all ({least} bytes); how many under the best packing is not known"
    )


def whole_hosts_and_devices(problem: Problem) -> Restriction:
    """Stages and blocks on all devices of a host, or on one."""
    simple = {*problem.hosts, *((device,) for device in range(len(problem.devices)))}
    return Restriction(
        groups=tuple(index for index, group in enumerate(problem.groups) if tuple(sorted(group.devices)) in simple),
        choices=tuple(
            tuple(
                (o, c)
                for o, option in enumerate(block.options)
                if tuple(sorted(option.devices)) in simple
                for c in range(len(option.columns))
            )
            for block in problem.blocks
        ),
    )
