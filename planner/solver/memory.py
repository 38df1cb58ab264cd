"""Memory in the CP-SAT model: all that is on a device fits, and how much is left."""

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.solver import limits
from planner.solver.problem import Problem, free_granule_bytes, granule_bytes
from planner.solver.variables import Bool, Builder, Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Free memory in granules, as objectives.

    Granules, as in bytes the largest of these would be a number partitioning problem, hard to prove and of no use.
    """

    free: cp_model.IntVar
    """At most the free memory of any device in use."""
    balance: cp_model.IntVar
    """At most the free memory of any device but ``Problem.spare``."""
    spare: cp_model.IntVar
    """At least the load of ``Problem.spare``."""
    short: tuple[cp_model.IntVar, ...]
    """short[d]: bytes that device d has too few; empty unless the model is elastic."""


def add_memory(
    builder: Builder, problem: Problem, load: Sequence[Linear], used: Sequence[Bool], *, elastic: bool
) -> Memory:
    """Add that the load of each device, in bytes, fits its capacity; ``elastic``: short bytes make up for the rest."""
    granule, free_granule, most = granule_bytes(problem), free_granule_bytes(problem), max(problem.capacity_bytes)
    memory = Memory(
        free=builder.integer(most // free_granule, "free"),
        balance=builder.integer(most // granule, "balance"),
        spare=builder.integer(most // granule + 1, "spare"),
        short=tuple(builder.integer(limits.MOST_BYTES, f"short{d}") for d in range(len(load))) if elastic else (),
    )
    for device, capacity in enumerate(problem.capacity_bytes):
        if elastic:
            builder.model.add(load[device] <= capacity + memory.short[device])
            continue
        builder.model.add(load[device] <= capacity)
        builder.model.add(load[device] + free_granule * memory.free <= capacity).only_enforce_if(used[device])
        if problem.goal == "balance":
            if device == problem.spare:
                builder.model.add(load[device] <= granule * memory.spare)
            else:
                builder.model.add(load[device] + granule * memory.balance <= capacity)
    return memory
