"""Acceptance profiles of a request: that of a file, the drafter's own, or the shipped one of its kind.

A drafter's own lies beside its config, as the plan's lies beside the plan. The shipped ones are derived from published
means (``tools/fit_profiles.py``), as their ``source`` says: a drafter may accept a half more or less than others of its
kind.
"""

import os
from pathlib import Path

from planner.errors import InputError
from plans.acceptance import ACCEPTANCE, Profile, load_profile
from plans.schema import Draft, Plan

SHIPPED = Path(__file__).parent / "profiles"


def profile_of(file: Path | None, draft: Draft, *, inside: bool) -> Profile:
    """Return the profile in a file, else the shipped one; raise PlanError, or InputError for one of another kind.

    ``inside``: the file lies in the directory of a plan or a drafter, out of which no link may lead.
    """
    if file is None:
        return shipped_profile(draft)
    profile = load_profile(file, inside=inside)
    if profile.drafter != draft.kind:
        raise InputError(f"{file}: found a profile of {profile.drafter}, the drafter is {draft.kind}")
    return profile


def shipped_profile(draft: Draft) -> Profile:
    """Return the shipped profile of a drafter's kind."""
    return load_profile(SHIPPED / f"{draft.kind}.yaml", inside=False)


def profile_beside(directory: Path) -> Path | None:
    """Return the file with the profile that a drafter's directory, or a plan's, has of its own, None without one.

    A link that leads nowhere is one, too: reading it names it.
    """
    file = directory / ACCEPTANCE
    return file if os.path.lexists(file) else None


def kept_profile(plan: Plan, profile: Profile | None) -> Profile | None:
    """Return the profile that a plan's directory keeps, None for none.

    ``profile``: that of the request. A plan keeps it where its tree, or no draft, was chosen by it, as ``check``
    chooses again; else where it has a drafter whose profile is not the shipped one, as ``show`` expects tokens by it.
    """
    if plan.speculation is not None:
        return profile
    return profile if plan.draft is not None and profile != shipped_profile(plan.draft) else None
