"""A plan whose tree was asked for, beside plain decoding on its own placement; needs no solver."""

from planner.costs.acceptance import expected_ppm
from planner.problem.placed import plain_step_ns
from plans.acceptance import Profile, profile_digest
from plans.schema import Plan, Speculation


def on_same_placement(plan: Plan, profile: Profile) -> Speculation | None:
    """Return what a plan's tree is expected to gain, in the form of a record; None where it has no draft."""
    if plan.draft is None:
        return None
    return Speculation(
        profile_sha256=profile_digest(profile),
        profile_source=profile.source,
        acceptance_ppm=expected_ppm(profile, plan.options.tree),
        plain_ns=plain_step_ns(plan),
        trees=0,
        runner_up=None,
    )
