"""Formulations of requests, the last few of which are kept: a question that is asked again is not formulated again."""

from functools import lru_cache

from planner.families import BaseInput, DraftInput, within
from planner.problem.formulate import Formulation
from plans.schema import Inventory, Options

KEPT = 8
"""Formulations kept: a bisection asks about several, and solves one of the last."""


class Formulations:
    """The formulations made last; equal inputs get the same object, with everything that it has computed."""

    def __init__(self) -> None:
        self._interned = lru_cache(maxsize=KEPT)(_itself)

    def of(self, base: BaseInput, draft: DraftInput | None, inventory: Inventory, options: Options) -> Formulation:
        """Return the formulation of a model and its drafter on an inventory."""
        drafter = draft.draft if draft else None
        model = within(base.model, options.context)
        return self._interned(Formulation(model=model, draft=drafter, options=options, inventory=inventory))


def _itself(formulation: Formulation) -> Formulation:
    return formulation
