"""The placement of a plan as text, in the words of ``planner show``."""

from pathlib import Path

from plans import codec
from runtime.commands.placement import plan_lines
from tests.sample_plans import two_stage_plan

ROOT = Path(__file__).parents[3]


def test_shares_of_an_mlp_are_channels_as_planner_show_has_them() -> None:
    lines = list(plan_lines(codec.load(ROOT / "plans" / "demo"), ["cpu0", "cpu1"]))
    assert "layers 0-1 with 2 KV heads and 320 MLP channels" in lines[0]
    assert "layers 0-1 with 2 KV heads and 192 MLP channels" in lines[1]
    assert not any("MLP units" in line for line in lines)


def test_runs_of_a_stage_are_listed_one_by_one() -> None:
    first, second = plan_lines(two_stage_plan(), ["cpu0", "cpu1"])
    assert "layers 0-2 with 3 KV heads and 512 MLP channels, layers 3-4 with 2 KV heads and 528 MLP channels" in first
    assert "layers 0-2 with 1 KV heads and 256 MLP channels, layers 3-4 with 2 KV heads and 240 MLP channels" in second


def test_how_steps_are_started_is_said_of_gpus() -> None:
    *_, captured = plan_lines(codec.load(ROOT / "plans" / "llama8b-1gpu"), [])
    assert captured == "steps: in CUDA graphs, 4 shapes at most"
    *_, divided = plan_lines(codec.load(ROOT / "plans" / "qwen3-32b-3gpu-cpu"), [])
    assert divided == "steps: in CUDA graphs, 4 shapes at most, divided where a message passes through the host"
    assert list(plan_lines(codec.load(ROOT / "plans" / "demo"), [])) == []
