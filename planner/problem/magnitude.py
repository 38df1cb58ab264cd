"""Refuses problems whose sums would leave 64 bits: some figure of the input is off by orders of magnitude."""

from planner.errors import InputError
from planner.solver import limits
from planner.solver.problem import Problem
from planner.solver.problem_bounds import most_bytes, most_ps


def refuse_immense(problem: Problem) -> None:
    """Raise InputError where bytes or times of a problem exceed what the solver can add up in 64 bits."""
    for name, nbytes in zip(problem.devices, problem.capacity_bytes, strict=True):
        if nbytes > limits.MOST_BYTES:
            raise InputError(f"device {name}: memory of {nbytes} bytes, expected at most 1024 TiB")
    if most_bytes(problem) > limits.MOST_BYTES:
        raise InputError("model, --batch and --context together take more than 1024 TiB: one of them is out of range")
    if most_ps(problem) > limits.MOST_PS:
        raise InputError(
            "a step could take more than 11 days: a bandwidth, flops, overhead or latency of the inventory is in the "
            f"wrong unit; the slowest device is {_slowest(problem)}"
        )


def _slowest(problem: Problem) -> str:
    """Return the device on which a unit of some layers takes longest, alone or in a group."""
    unit_ps = [max(times) for times in zip(*(kind.unit_ps for kind in problem.kinds), strict=True)]
    for group in problem.groups:
        for k, kind in enumerate(problem.kinds):
            for device, ps in zip(group.devices, group.unit_ps(k, kind), strict=True):
                unit_ps[device] = max(unit_ps[device], ps)
    return problem.devices[unit_ps.index(max(unit_ps))]
