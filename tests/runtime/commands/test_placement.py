"""The placement of a plan as text, in the words of ``planner show``."""

from pathlib import Path

from plans import codec
from runtime.commands.placement import plan_lines

ROOT = Path(__file__).parents[3]


def test_shares_of_an_mlp_are_channels_as_planner_show_has_them() -> None:
    lines = list(plan_lines(codec.load(ROOT / "plans" / "demo"), ["cpu0", "cpu1"]))
    assert "layer 0 with 2 KV heads and 320 MLP channels, layer 1 with 2 KV heads and 256 MLP channels" in lines[0]
    assert "layer 0 with 2 KV heads and 192 MLP channels" in lines[1]
    assert not any("MLP units" in line for line in lines)
