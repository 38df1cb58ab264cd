"""Acceptance profiles of a request: that of a file, the drafter's own, or the shipped one of its kind.

A drafter's own lies beside its config, as the plan's lies beside the plan. The shipped ones are derived from published
means (``tools/fit_profiles.py``), as their ``source`` says: a drafter may accept a half more or less than others of its
kind.
"""

from pathlib import Path

from planner.errors import InputError
from plans.acceptance import ACCEPTANCE, Profile, load_profile
from plans.schema import Draft

SHIPPED = Path(__file__).parent / "profiles"


def profile_of(file: Path | None, draft: Draft) -> Profile:
    """Return the profile in a file, else the shipped one; raise PlanError, or InputError for one of another kind."""
    if file is None:
        return load_profile(SHIPPED / f"{draft.kind}.yaml")
    profile = load_profile(file)
    if profile.drafter != draft.kind:
        raise InputError(f"{file}: found a profile of {profile.drafter}, the drafter is {draft.kind}")
    return profile


def profile_beside(directory: Path) -> Path | None:
    """Return the file with the profile that a drafter's directory, or a plan's, has of its own, None without one."""
    file = directory / ACCEPTANCE
    return file if file.exists() else None
