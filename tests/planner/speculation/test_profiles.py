"""Which acceptance profile a plan's directory keeps."""

import dataclasses

from planner.speculation.placed import on_same_placement
from planner.speculation.profiles import kept_profile, shipped_profile
from plans import codec
from tests.planner.instances import ROOT

PLAN = codec.load(ROOT / "plans" / "llama70b-4gpu")


def test_a_plan_keeps_what_its_tree_was_chosen_by_or_what_is_not_shipped() -> None:
    assert PLAN.draft is not None
    shipped = shipped_profile(PLAN.draft)
    other = dataclasses.replace(shipped, source="another")
    asked = dataclasses.replace(PLAN, speculation=None)
    chosen = dataclasses.replace(PLAN, speculation=on_same_placement(PLAN, shipped))
    assert [kept_profile(chosen, profile) for profile in (shipped, other)] == [shipped, other]
    assert [kept_profile(asked, profile) for profile in (None, shipped, other)] == [None, None, other]
    plain = dataclasses.replace(asked, draft=None)
    assert kept_profile(plain, other) is None, "a plan that has no drafter, and does not record why"
    assert kept_profile(dataclasses.replace(chosen, draft=None), shipped) == shipped
