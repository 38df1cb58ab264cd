"""The longest context with which a model fits (``--context max``), found by bisection: bytes only grow with it."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from planner.enough_hosts import fits_on_enough, infeasible_on_all
from planner.formulations import Formulations
from planner.integers import ceil_div
from planner.problem.formulate import Formulation
from planner.request import Request, Wanted, resolve_request
from planner.solver.minimise import Settings

CONTEXT_STEP = 256
"""Contexts tried are multiples of this, or the model's limit."""


def longest_context(request: Request, settings: Settings, formulations: Formulations) -> int:
    """Return the model's limit where it fits, else the largest multiple of 256 of which the next is proven not to fit.

    Raise InfeasibleError where not even the least context fits.
    """
    longest = resolve_request(dataclasses.replace(request, wanted=_with_context(request.wanted, "max")))[0].context

    def formulation(context: int) -> Formulation:
        wanted = _with_context(request.wanted, context)
        options, inventory = resolve_request(dataclasses.replace(request, wanted=wanted))
        return formulations.of(request.base, request.draft, inventory, options)

    if fits_on_enough(formulation(longest), settings):
        return longest
    least = least_step(request.wanted)
    most = ceil_div(longest, CONTEXT_STEP) - 1
    steps = largest(least, most, lambda n: fits_on_enough(formulation(n * CONTEXT_STEP), settings))
    if steps is None:
        raise infeasible_on_all(formulation(min(least * CONTEXT_STEP, longest)), settings)
    return steps * CONTEXT_STEP


def _with_context(wanted: Wanted, context: int | Literal["max"]) -> Wanted:
    return dataclasses.replace(wanted, context=context)


def least_step(wanted: Wanted) -> int:
    """Return the least context that ``max`` tries, in steps of 256: a prefill chunk is at most the context."""
    return ceil_div(wanted.prefill_chunk or 1, CONTEXT_STEP)


def largest(least: int, most: int, works: Callable[[int], bool]) -> int | None:
    """Return the largest n in ``least`` … ``most`` that works, None where none does; if n works, so does n - 1."""
    low, high = least - 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low if low >= least else None
