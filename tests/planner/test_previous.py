"""A plan that keeps as much of an earlier one as its step allows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from planner import build
from planner.cli import main
from planner.solve import Settings
from plans import codec
from plans.diff import moved_bytes
from plans.schema import Plan
from tests.planner.instances import EQUAL, UNLIKE, cpu, demo, host, inventory_of, options_of

PERCENT = 10_000
ROOMY: Any = {"hosts": [host("box", *(cpu(f"cpu{i}", 30) for i in range(3)))]}


def planned(data: Any, context: int, previous: Plan | None = None, within_ppm: int | None = None) -> Plan:
    base, draft = demo("eagle3")
    options = dataclasses.replace(options_of(base, draft, context, "float32"), within_ppm=within_ppm)
    return build.plan(base, draft, inventory_of(data), options, Settings(), previous).plan


def moved(a: Plan, b: Plan) -> int:
    return sum(moved_bytes(a, b).values())


@pytest.mark.parametrize("data", [EQUAL, UNLIKE], ids=["equal", "unlike"])
@pytest.mark.parametrize("context", [200, 256, 280])
def test_no_more_moves_than_anew_and_the_step_is_within(data: Any, context: int) -> None:
    before, anew = planned(data, 256), planned(data, context)
    kept = planned(data, context, before, 2 * PERCENT)
    assert moved(before, kept) <= moved(before, anew)
    assert kept.proof.bound_ns == anew.proof.objective_ns
    assert kept.proof.objective_ns <= anew.proof.objective_ns * 1.02


def test_nothing_moves_where_the_earlier_plan_is_still_good() -> None:
    before = planned(UNLIKE, 256)
    kept = planned(UNLIKE, 255, before, 2 * PERCENT)
    assert moved(before, kept) == 0
    assert [stage.runs for stage in kept.stages] == [stage.runs for stage in before.stages]


def test_how_much_longer_decides() -> None:
    """One device of the earlier plan is slow now: it is left at once, or kept for as long as that costs little."""
    before = planned(ROOMY, 256)
    slow = json.loads(json.dumps(ROOMY))
    used = max(before.stages, key=lambda stage: stage.num_layers).devices[0]
    for device in slow["hosts"][0]["devices"]:
        if device["id"] == used:
            device["bandwidth"] = "6 GB/s"
    strict, lax = (planned(slow, 256, before, ppm) for ppm in (0, 10**6))
    assert moved(before, lax) == 0
    assert lax.proof.objective_ns > strict.proof.objective_ns == strict.proof.bound_ns == lax.proof.bound_ns


def test_a_device_that_is_gone_loses_what_it_held() -> None:
    roomy = json.loads(json.dumps(ROOMY))
    before = planned(roomy, 256)
    fewer = json.loads(json.dumps(roomy))
    gone = before.devices[0].id
    fewer["hosts"][0]["devices"] = [d for d in fewer["hosts"][0]["devices"] if d["id"] != gone]
    kept = planned(fewer, 256, before, 2 * PERCENT)
    assert gone not in {device.id for device in kept.devices}
    assert 0 < moved(before, kept) <= moved(before, planned(fewer, 256))


def test_it_is_what_its_own_inputs_lead_to(tmp_path: Path) -> None:
    inventory = tmp_path / "gpus.yaml"
    inventory.write_text(yaml.safe_dump(UNLIKE))
    run = CliRunner().invoke
    common = ["build", "--gpus", str(inventory), "--plan-only", "--out"]
    assert run(main, [*common, str(tmp_path / "a"), "--context", "256"]).exit_code == 0
    kept = run(main, [*common, str(tmp_path / "b"), "--context", "240", "--previous", str(tmp_path / "a")])
    assert kept.exit_code == 0, kept.output
    assert "moves no weights" in kept.output
    assert codec.load(tmp_path / "b").options.within_ppm == 2 * PERCENT
    assert run(main, ["check", str(tmp_path / "b")]).exit_code == 0


def test_refusals(tmp_path: Path) -> None:
    inventory = tmp_path / "gpus.yaml"
    inventory.write_text(yaml.safe_dump(UNLIKE))
    common = ["build", "--gpus", str(inventory), "--plan-only", "--out", str(tmp_path / "b")]
    for arguments, said in (
        (["--within", "2%"], "--within: there is no earlier plan"),
        (["--previous", "plans/llama8b-1gpu"], "--previous: a plan of another model"),
        (["--previous", "plans/demo", "--within", "200%"], "expected a part of the step's time"),
        (["--previous", "plans/demo", "--gap", "0.1"], "--previous: what is near the least"),
        (["--previous", str(tmp_path / "nowhere")], "nowhere"),
    ):
        result = CliRunner().invoke(main, [*common, *arguments])
        assert result.exit_code == 2, result.output
        assert said in result.output
    assert not (tmp_path / "b").exists()
