"""Asks about a formulation on a few of its equal hosts, where that is proven to be enough, and else on more of them.

With 125 equal hosts there are 62 000 candidate groups, nearly all of them renamed, or over so many hosts that their
messages alone take longer than an answer on one. So a few hosts are searched first; the step found and the bound of
:mod:`planner.solver.bounds.in_use` say how many hosts an answer can have that is as good, and that many are
searched last. Nothing better is left out: an answer on so many hosts is one on any others that are equal to them.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from planner.errors import InfeasibleError, NotProvenError
from planner.infeasible import infeasible
from planner.integers import ceil_div
from planner.problem.formulate import Formulation
from planner.solver.certify import devices_in_use
from planner.solver.minimise import Settings
from planner.solver.problem_bounds import least_bytes
from planner.solver.solve import LeastStep, Solved, fits, fits_counted, settle, takes_longer
from plans.check_proof import most_step_ns
from plans.format import format_bytes

ROOM = 2
"""The first search has this many times the memory that any answer takes, so that it is an easy one."""

EASY_SETS = 2000
"""A machine with no more candidates is searched as a whole unless most of its devices can be left out."""

GROWTH = 2
"""Hosts are multiplied at most by this from one search to the next, until more of them are no faster: what few have is
soon found, and limits the rest.

29 November 2026, 70B on 256 H100 of 32 hosts, NDR InfiniBand with a latency of 15, 8 and 5 us, CPU seconds of
``build``: 3.6, 5.1 and 15.7 with 2; with 16 3.7, and no proof of the others within the limit.
"""


_Answer = TypeVar("_Answer", Solved, LeastStep)


def solve_on_enough(
    formulation: Formulation, solve: Callable[[Formulation, int | None], _Answer | None]
) -> tuple[Formulation, _Answer | None]:
    """Return the formulation on as many hosts as were enough, and its answer; None where nothing fits on all of them.

    ``solve``: answers a formulation, given the step time of an answer that is known to exist. Raise NotProvenError
    where it does, with a bound that holds for all hosts.
    """
    if short_bytes(formulation):
        return formulation, None
    hosts, most = _first_hosts(formulation), len(formulation.usable.hosts)
    known_ns: int | None = None
    while (few := on_hosts(formulation, hosts)) is not formulation:
        failed: NotProvenError | None = None
        solved = None
        try:
            solved = solve(few, known_ns)
        except NotProvenError as error:
            failed = error
        if solved is None and failed is None:
            hosts *= 2
            continue
        enough = _hosts_of_better(few, solved, (failed and failed.bound_ns) or 0, most)
        if enough <= hosts:
            if failed:
                raise failed
            return few, solved
        if solved is not None and not solved.gap_ppm:
            known_ns = solved.least_ns
        hosts = min(enough, GROWTH * hosts)
    return formulation, solve(formulation, known_ns)


def settle_on_enough(formulation: Formulation, few: Formulation, step: LeastStep) -> Solved | None:
    """Return the answer whose step time was found on few hosts; None where a simpler one may be on more of them."""
    solved = settle(step)
    if few.most_hosts is None:
        return solved
    enough = _hosts_of_better(few, solved, 0, len(formulation.usable.hosts))
    return solved if enough <= few.most_hosts else None


def _hosts_of_better(few: Formulation, solved: Solved | LeastStep | None, bound_ns: int, most: int) -> int:
    """Return the most hosts of an answer that is better than the one found on few; none has more than ``most``.

    Where the search was for a simple answer, one that is no faster than the fastest found is not better with more
    devices in use. ``bound_ns``: what every answer on few takes at least, where none was found.
    """
    in_use = few.in_use
    if solved is None or solved.gap_ppm:
        return in_use.most_hosts(solved.bound_ns if solved else bound_ns, most)
    if isinstance(solved, LeastStep):
        return in_use.most_hosts(solved.least_ns - 1, most)
    limit_ns = most_step_ns(solved.least_ns, few.options)
    if not solved.is_simplest:
        return in_use.most_hosts(limit_ns, most)
    used = len(devices_in_use(few.problem, solved.answer))
    return max(in_use.most_hosts(solved.least_ns - 1, most), in_use.most_hosts(limit_ns, most, used))


def takes_longer_on_all(formulation: Formulation, step_ns: int, settings: Settings) -> bool:
    """Tell whether no answer takes at most ``step_ns``; raise NotProvenError past the limit."""
    if short_bytes(formulation):
        return True
    hosts, most = 1, len(formulation.usable.hosts)
    while (few := on_hosts(formulation, hosts)) is not formulation:
        if not takes_longer(few.problem, step_ns, settings):
            return False
        enough = few.in_use.most_hosts(step_ns, most)
        if enough <= hosts:
            return True
        hosts = min(enough, GROWTH * hosts)
    return takes_longer(formulation.problem, step_ns, settings)


def fits_on_enough(formulation: Formulation, settings: Settings) -> bool:
    """Tell whether any placement exists; raise NotProvenError past the limit."""
    return not short_bytes(formulation) and any(fits(few.problem, settings) for few in _growing(formulation))


def counted_on_enough(formulation: Formulation) -> bool | None:
    """Tell the same as far as :func:`planner.solver.solve.fits_counted` does; None where it does not."""
    known: bool | None = False
    for few in _growing(formulation):
        known = fits_counted(few.problem)
        if known:
            break
    return known


def infeasible_on_all(formulation: Formulation, settings: Settings) -> InfeasibleError:
    """Return the refusal of a formulation that has no placement."""
    short = short_bytes(formulation)
    if short and on_hosts(formulation, 1) is not formulation:  # so many hosts that their groups are not even listed
        message = f"no placement fits: at least {format_bytes(short)} short in all ({short} bytes)"
        return InfeasibleError(message, {}, short)
    return infeasible(formulation.problem, settings)


def short_bytes(formulation: Formulation) -> int:
    """Return the bytes that any placement takes beyond those of all devices together, 0 for none."""
    return max(0, needed_bytes(formulation) - sum(d.capacity_bytes for d in formulation.usable.devices))


def needed_bytes(formulation: Formulation) -> int:
    """Return bytes that every placement takes of all devices together; more hosts do not make them fewer."""
    return least_bytes(on_hosts(formulation, 1).problem)


def on_hosts(formulation: Formulation, most: int) -> Formulation:
    """Return the formulation with at most so many equal hosts; itself where that leaves none out, or spares little."""
    if formulation.options.strategy != "latency":  # the others depend on the order, or put layers on all devices
        return formulation
    few = formulation.on_few_hosts(most)
    left, listed = len(few.searched.devices), len(formulation.usable.devices)
    if 2 * left < listed or (left < listed and formulation.candidates.count > EASY_SETS):
        return few
    return formulation


def _growing(formulation: Formulation) -> Iterator[Formulation]:
    """Yield the formulation on a few equal hosts, on twice as many, … and on all."""
    hosts = _first_hosts(formulation)
    while (few := on_hosts(formulation, hosts)) is not formulation:
        yield few
        hosts *= 2
    yield formulation


def _first_hosts(formulation: Formulation) -> int:
    """Return how many of equal hosts are searched first."""
    problem = on_hosts(formulation, 1).problem
    return ceil_div(ROOM * least_bytes(problem), max(1, sum(problem.capacity_bytes)))
