"""Parsing of option values."""

from pathlib import Path
from typing import Any

import click
import pytest

from planner.commands.declarations import COMMANDS
from planner.commands.options import parse_context, parse_strategy

CONTEXT = click.Context(COMMANDS["build"])
PARAMETER = COMMANDS["build"].params[0]


@pytest.mark.parametrize(
    ("text", "positions"),
    [("1", 1), ("4096", 4096), ("32k", 32 * 1024), ("128K", 128 * 1024), ("max", "max"), (None, None)],
)
def test_a_context_is_a_number_of_positions_or_of_1024_or_max(text: str | None, positions: int | str | None) -> None:
    assert parse_context(CONTEXT, PARAMETER, text) == positions


@pytest.mark.parametrize("text", ["0", "0k", "k", "-1", "1.5k", "32kb", "32m", "٣", "maximum", "", "9" * 13])
def test_other_contexts_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected positions like 4096 or 32k"):
        parse_context(CONTEXT, PARAMETER, text)


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        (None, (None, None)),
        ("auto", ("latency", None)),
        ("balanced", ("balanced", None)),
        ("custom:a:b.yaml", ("custom", Path("a:b.yaml"))),
    ],
)
def test_a_strategy_is_a_name_and_a_device_map(text: str | None, strategy: Any) -> None:
    assert parse_strategy(CONTEXT, PARAMETER, text) == strategy
