"""Explains a refusal: every single change of the request with which a placement exists, and its step time.

The changes that are tried are those of :mod:`planner.remedies.changes`. Where the fastest placement of a change is not
proven within its part of the solver's limit, the change is listed with the gap that is.
"""

from collections.abc import Callable
from dataclasses import replace

from planner.errors import Change, InfeasibleError
from planner.formulations import Formulations
from planner.remedies.changes import kinds_of_change
from planner.remedies.estimates import estimates
from planner.remedies.probe import Probe
from planner.request import Request, default_tree, tree_text
from planner.solver import limits
from planner.solver.minimise import Settings


def explain(
    request: Request, refused: InfeasibleError, settings: Settings, trying: Callable[[str], None]
) -> InfeasibleError:
    """Return the refusal of ``request`` with the changes that would help; ``trying`` gets the words of each first.

    Their steps are those of the tree that is asked for, else of the drafter's default: no tree is chosen for a change.
    """
    chooses = request.wanted.objective == "tokens"
    request = replace(request, wanted=replace(request.wanted, objective="step"))
    limit = min(settings.limit, limits.CHANGE_LIMIT)
    formulations = Formulations()
    changes: list[Change] = []
    undecided: list[str] = []
    untimed: list[str] = []
    probe = Probe(settings=replace(settings, limit=limit), formulations=formulations)
    for kind, candidates in kinds_of_change(request):
        probe = Probe(settings=replace(settings, limit=limit), formulations=formulations)
        helpful: list[Change] = []
        trying(kind)
        for candidate in candidates(probe):
            trying(candidate.words)
            if change := probe.solve(candidate):
                helpful.append(change)
        if probe.undecided or probe.untimed or probe.near:  # the budget was exhausted: a person waits for all kinds
            limit = min(limit, max(limits.LEAST_CHANGE_LIMIT, limit / 2))
        changes += helpful
        if not helpful and probe.untimed:
            untimed.append(kind)
        elif not helpful and probe.undecided:
            undecided.append(kind)
    changes.sort(key=lambda change: change.slow)  # stable: the others keep the order of their kinds
    return InfeasibleError(
        str(refused),
        refused.short_bytes,
        refused.least_bytes,
        tuple(changes),
        tuple(undecided),
        tuple(untimed),
        tuple(estimates(request, probe.formulation(request))),
        tree_text(default_tree(request.draft)) if chooses and request.draft is not None else None,
    )
