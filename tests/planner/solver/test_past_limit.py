import re

import click
import pytest

from planner.commands.options import parse_gap
from planner.solver.past_limit import past_limit
from plans.acceptance import PPM


@pytest.mark.parametrize(
    ("reached", "accepted_ppm"), [(0.0001, 0), (0.0227, 0), (0.4575, 0), (0.4, 500_000), (0.81, 0)]
)
def test_the_gap_that_a_refusal_names_is_accepted_by_the_command_and_more_than_both(
    reached: float, accepted_ppm: int
) -> None:
    found = re.search(r"--gap (\S+%), or search longer", past_limit(reached, accepted_ppm))
    assert found is not None
    gap = click.Option(["--gap"])
    assert parse_gap(click.Context(click.Command("build")), gap, found[1]) > max(reached, accepted_ppm / PPM)


def test_a_refusal_names_no_gap_that_would_say_nothing() -> None:
    assert past_limit(0.95, 0) == "search longer with --solver-limit"
