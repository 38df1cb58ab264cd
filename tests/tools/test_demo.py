"""The demo: its committed plan and head belong together, and a wrong command line ends with one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import demo
from demo import HEAD, PLAN, build_options
from planner.costs.acceptance import expected_ppm
from plans import codec
from plans.acceptance import load_profile
from runtime.commands.prompts import DEFAULT_PROMPT

ROOT = Path(__file__).parents[2]
MOST_HEAD_BYTES = 16_000_000
WEIGHT_BYTES = 2 * 134_515_008


def test_the_committed_plan_is_the_one_that_the_demo_builds(tmp_path: Path) -> None:
    """The head has its weights, the base only its config: its tensors follow from that."""
    options = build_options(PLAN / "config.json")
    command = [sys.executable, "-m", "planner", "build", *options, "--plan-only", "--out", tmp_path / "plan"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in ("plan.yaml", "acceptance.yaml"):
        assert (tmp_path / "plan" / name).read_bytes() == (PLAN / name).read_bytes()


def test_the_head_has_a_profile_of_prompts_that_are_not_held_out() -> None:
    """Over those the demo's tree accepted 1.84 tokens on one device."""
    counted = (HEAD / "profile_prompts.txt").read_text().splitlines()
    assert not set(counted) & set(json.loads((HEAD / "prompts.json").read_text()))
    profile, tree = load_profile(PLAN / "acceptance.yaml", inside=False), codec.load(PLAN).options.tree
    assert (HEAD / "acceptance.yaml").read_bytes() == (PLAN / "acceptance.yaml").read_bytes()
    assert (profile.origin, f"{len(counted)} prompts" in profile.source) == ("counted", True)
    assert expected_ppm(profile, tree) / 1e6 == pytest.approx(1.82, abs=0.05)


def test_no_device_could_hold_the_model_alone() -> None:
    devices = yaml.safe_load((PLAN / "plan.yaml").read_text())["inventory"]["devices"]
    assert len(devices) == 4
    assert len({device["host"] for device in devices}) == 2
    assert len({device["memory_bytes"] for device in devices}) == 4
    assert max(device["memory_bytes"] for device in devices) < WEIGHT_BYTES


def test_the_head_is_small_and_has_its_card() -> None:
    assert (HEAD / "model.safetensors").stat().st_size <= MOST_HEAD_BYTES
    assert "## Acceptance" in (HEAD / "README.md").read_text()


@pytest.mark.parametrize(
    "arguments", [["a", "b", "c"], ["question", "0"], ["question", "many"], ["--embeded"], ["--weights", "int3"]]
)
def test_a_wrong_command_line_ends_with_two(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    assert capsys.readouterr().err.splitlines()[-1].startswith("tools/demo: error: ")


def test_both_demos_ask_for_what_was_given() -> None:
    default, own = demo.embedded(None, None), demo.embedded("x = ", 7)
    assert default.prompt == DEFAULT_PROMPT
    rounded = demo.embedded(None, None, "int8")
    assert rounded.build == (*default.build, "--weights", "int8")
    assert rounded.plan != default.plan, "the committed plan is left alone"
    assert (own.prompt, own.run[-1]) == ("x = ", "7")
