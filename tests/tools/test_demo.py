"""The demo: its committed plan and head belong together, and a wrong command line ends with one line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

import demo
import demo_rates
import planner
from demo import HEAD, INVENTORY, PLAN, build_options, own_inventory
from demo_rates import Rates
from planner.costs.acceptance import expected_ppm
from planner.hardware.inventory import load_inventory
from plans import codec
from plans.acceptance import load_profile
from plans.schema import RoundedWeights
from runtime.commands.prompts import DEFAULT_PROMPT

ROOT = Path(__file__).parents[2]
MOST_HEAD_BYTES = 16_000_000
WEIGHT_BYTES = 2 * 134_515_008


def test_the_committed_plan_is_the_one_that_the_demo_builds(tmp_path: Path) -> None:
    """The head has its weights, the base only its config: its tensors follow from that."""
    options = build_options(PLAN / "config.json", INVENTORY)
    command = [sys.executable, "-m", "planner", "build", *options, "--plan-only", "--out", tmp_path / "plan"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in ("plan.yaml", "acceptance.yaml"):
        assert (tmp_path / "plan" / name).read_bytes() == (PLAN / name).read_bytes()


def test_the_head_has_a_profile_of_prompts_that_are_not_held_out() -> None:
    """Its tree for a processor with AMX accepted 2.43 tokens over the 20 that are, on the demo's devices."""
    counted = (HEAD / "profile_prompts.txt").read_text().splitlines()
    assert not set(counted) & set(json.loads((HEAD / "prompts.json").read_text()))
    profile = load_profile(PLAN / "acceptance.yaml", inside=False)
    assert (HEAD / "acceptance.yaml").read_bytes() == (PLAN / "acceptance.yaml").read_bytes()
    assert (profile.origin, f"{len(counted)} prompts" in profile.source) == ("counted", True)
    tree = dataclasses.replace(codec.load(PLAN).options.tree, total_token=16, depth=2, top_k=6)
    assert expected_ppm(profile, tree) / 1e6 == pytest.approx(2.37, abs=0.01)


@pytest.mark.parametrize(("gflops", "nodes"), [(650, (16, 2, 6)), (100, (3, 1, 1))])
def test_the_planner_chooses_the_tree_by_the_processor(
    gflops: int, nodes: tuple[int, int, int], tmp_path: Path
) -> None:
    inventory = own_inventory(tmp_path, None, Rates(bytes_per_s=12 * 10**9, flops_per_s=gflops * 10**9))
    found = planner.plan(PLAN / "config.json", inventory=inventory, draft=HEAD, dtype="bfloat16", context=2048)
    tree = found.plan.options.tree
    assert tree is not None
    assert (tree.total_token, tree.depth, tree.top_k) == nodes


def test_no_device_could_hold_the_model_alone() -> None:
    devices = yaml.safe_load((PLAN / "plan.yaml").read_text())["inventory"]["devices"]
    assert len(devices) == 4
    assert len({device["host"] for device in devices}) == 2
    assert len({device["memory_bytes"] for device in devices}) == 4
    assert max(device["memory_bytes"] for device in devices) < WEIGHT_BYTES


def test_devices_have_the_rates_of_this_processors_products(tmp_path: Path) -> None:
    rates = Rates(bytes_per_s=6 * 10**9, flops_per_s=50 * 10**9)
    own, committed = load_inventory(own_inventory(tmp_path, "int8", rates)), load_inventory(INVENTORY)
    assert [device.memory_bytes for device in own.devices] == [device.memory_bytes for device in committed.devices]
    assert [device.bandwidth_bytes_per_s for device in own.devices] == [6 * 10**9] * 2 + [5 * 10**9] * 2
    assert {rate for device in own.devices for rate in device.flops_per_s.values()} == {50 * 10**9}


@pytest.mark.parametrize(("free", "rows"), [(1, 2), (2, 3), (3, 4), (16, 32), (64, 64)], ids=lambda number: str(number))
def test_operations_are_counted_where_rows_begin_to_cost(free: int, rows: int) -> None:
    """A product of ``free`` rows takes as long as one of a row, of more in proportion to them."""
    second, values = 1e-3, demo_rates.OUTPUTS * demo_rates.INPUTS
    rates = demo_rates.rates_of(lambda count: second * max(1, count / free), 2 * values)
    assert rates.bytes_per_s == pytest.approx(2 * values / second / 0.8, rel=0.06)
    assert rates.flops_per_s == pytest.approx(2 * values * rows / max(1, rows / free) / second / 0.5, rel=0.06)


@pytest.mark.parametrize("weights", [None, *get_args(RoundedWeights)])
def test_rates_of_all_weights_are_measured(weights: RoundedWeights | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_rates, "TOTAL_BYTES", 4 << 20)
    threads = torch.get_num_threads()
    rates = demo_rates.measured(weights)
    assert rates.bytes_per_s > 10**7
    assert rates.flops_per_s > 10**8
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("plan", "decoded"), [("demo", [(), ("--no-draft",)]), ("plain", [()])])
def test_where_the_planner_takes_no_draft_there_is_nothing_to_compare(
    plan: str, decoded: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    planned = codec.load(ROOT / "plans" / "demo")
    plain = dataclasses.replace(planned, draft=None, draft_placement=None)
    (tmp_path / "plain" / "plan.yaml").write_text(codec.dumps(plain))
    calls: list[tuple[str, ...]] = []

    def decode(_: demo.Demo, *options: str) -> demo.Decoded:
        calls.append(options)
        return demo.Decoded(text=b"", tokens_per_s=1.0, acceptance_length=1.0)

    monkeypatch.setattr(demo, "run", lambda *_: None)
    monkeypatch.setattr(demo, "decode", decode)
    where = ROOT / "plans" / "demo" if plan == "demo" else tmp_path / "plain"
    assert demo.show(demo.Demo(plan=where, build=(), prompt="", run=())) == 0
    assert calls == decoded


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
