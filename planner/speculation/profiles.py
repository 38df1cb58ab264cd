"""Acceptance profiles of a request: that of a file, or the shipped one of the drafter's kind.

The shipped ones are derived from published means (``tools/fit_profiles.py``), as their ``source`` says: a drafter may
accept a half more or less than others of its kind.
"""

from pathlib import Path

from planner.errors import InputError
from plans.acceptance import Profile, load_profile
from plans.schema import Draft

SHIPPED = Path(__file__).parent / "profiles"


def profile_of(file: Path | None, draft: Draft) -> Profile:
    """Return the profile in a file, else the shipped one; raise PlanError, or InputError for one of another kind."""
    profile = load_profile(SHIPPED / f"{draft.kind}.yaml" if file is None else file)
    if profile.drafter != draft.kind:
        raise InputError(f"--profile {file}: found a profile of {profile.drafter}, the drafter is {draft.kind}")
    return profile
