"""Plans made with ``--previous``: fewest moved bytes within a tolerance of the shortest step."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from planner import build
from planner.cli import main
from planner.emit import emit
from planner.families import load_base
from planner.problem.formulate import Formulation
from planner.problem.previous_plan import Previous, listed_order
from planner.solver.solve import Solved
from plans import codec
from plans.diff import moved_bytes
from plans.schema import Plan
from tests.planner import instances
from tests.planner.every_answer import every_answer, value
from tests.planner.instances import EQUAL, TINY, UNLIKE, cpu, demo, gpu, host, inventory_of, options_of, plan_of, saved
from tests.planner.machines import FAST, device

PERCENT = 10_000
ROOMY: Any = {"hosts": [host("box", *(cpu(f"cpu{i}", 30) for i in range(3)))]}


def planned(data: Any, context: int, previous: Plan | None = None, within_ppm: int | None = None) -> Plan:
    if previous is None:
        return instances.planned(data, "eagle3", context).plan
    base, draft = demo("eagle3")
    options = dataclasses.replace(options_of(base, draft, context, "float32"), within_ppm=within_ppm)
    return plan_of(base, draft, inventory_of(data), options, previous=previous).plan


def moved(a: Plan, b: Plan) -> int:
    return sum(moved_bytes(a, b).values())


@pytest.mark.parametrize(("data", "context"), [(EQUAL, 280), (UNLIKE, 200), (UNLIKE, 280)])
def test_no_more_bytes_move_than_without_previous_and_the_step_is_within_the_tolerance(data: Any, context: int) -> None:
    before, fresh = planned(data, 256), planned(data, context)
    kept = planned(data, context, before, 2 * PERCENT)
    assert moved(before, kept) <= moved(before, fresh)
    assert kept.proof.bound_ns == fresh.proof.least_ns
    assert kept.proof.objective_ns <= fresh.proof.least_ns * 1.02


def test_nothing_moves_where_the_earlier_plan_is_still_good() -> None:
    before = planned(UNLIKE, 256)
    kept = planned(UNLIKE, 255, before, 2 * PERCENT)
    assert moved(before, kept) == 0
    assert [stage.runs for stage in kept.stages] == [stage.runs for stage in before.stages]


def test_the_tolerance_decides_whether_a_slow_device_is_kept() -> None:
    """Slow one device of the earlier plan: without tolerance it is left, with a large one it keeps its weights."""
    before = planned(ROOMY, 256)
    slow = json.loads(json.dumps(ROOMY))
    used = max(before.stages, key=lambda stage: stage.num_layers).devices[0]
    for entry in slow["hosts"][0]["devices"]:
        if entry["id"] == used:
            entry["bandwidth"] = "6 GB/s"
    strict, tolerant = (planned(slow, 256, before, ppm) for ppm in (0, 10**6))
    assert moved(before, tolerant) == 0
    assert strict.proof.least_ns == strict.proof.bound_ns == tolerant.proof.bound_ns
    assert tolerant.proof.objective_ns > strict.proof.objective_ns
    assert strict.proof.objective_ns <= strict.proof.least_ns * 1.005


def test_groups_keep_the_order_of_their_devices_where_figures_change() -> None:
    """Two devices in one stage of the earlier plan, of which the first is smaller now: each keeps its weights."""
    before = planned({"hosts": [host("box", device("a", 25 << 10), device("b", 24 << 10), links=FAST)]}, 256)
    assert ("a", "b") in [stage.devices for stage in before.stages]
    smaller = host("box", device("a", 24 << 10), device("b", 25 << 10), links=FAST)
    kept = planned({"hosts": [smaller]}, 256, before, PERCENT)
    assert moved(before, kept) == 0
    assert [stage.devices for stage in kept.stages] == [stage.devices for stage in before.stages]


def test_an_order_of_devices_is_read_from_an_earlier_plan() -> None:
    before = planned(UNLIKE, 256)
    assert sorted(listed_order(before)) == sorted(device.id for device in before.inventory.devices)
    (stage, *_) = before.stages
    one, other = (dataclasses.replace(stage, devices=devices) for devices in (("b1", "b0"), ("a1", "b1", "a0")))
    swapped = dataclasses.replace(
        before, stages=(one, other), head=dataclasses.replace(before.head, devices=("b0", "b1"))
    )
    order = listed_order(swapped)
    assert [name for name in order if name in ("b1", "b0")] == ["b1", "b0"], "stages count before the lm_head"
    assert [name for name in order if name in ("a1", "b1", "a0")] == ["a1", "b1", "a0"]


def test_the_weights_of_a_removed_device_move() -> None:
    roomy = json.loads(json.dumps(ROOMY))
    before = planned(roomy, 256)
    fewer = json.loads(json.dumps(roomy))
    removed = before.devices[0].id
    fewer["hosts"][0]["devices"] = [d for d in fewer["hosts"][0]["devices"] if d["id"] != removed]
    kept = planned(fewer, 256, before, 2 * PERCENT)
    assert removed not in {device.id for device in kept.devices}
    assert 0 < moved(before, kept) <= moved(before, planned(fewer, 256))


def test_a_plan_with_previous_checks_clean(tmp_path: Path) -> None:
    inventory = tmp_path / "gpus.yaml"
    inventory.write_text(yaml.safe_dump(UNLIKE))
    run = CliRunner().invoke
    common = ["build", "--gpus", str(inventory), "--objective", "step", "--plan-only", "--out"]
    assert run(main, [*common, str(tmp_path / "a"), "--context", "256"]).exit_code == 0
    kept = run(main, [*common, str(tmp_path / "b"), "--context", "240", "--previous", str(tmp_path / "a")])
    assert kept.exit_code == 0, kept.output
    assert "moves no weights" in kept.output
    assert codec.load(tmp_path / "b").options.within_ppm == 2 * PERCENT
    assert run(main, ["check", str(tmp_path / "b")]).exit_code == 0


@pytest.mark.parametrize(
    ("layers", "before", "after", "within"),
    [
        (3, [401, 376], [361, 376], 20),
        (3, [382, 376], [362, 376], 20),
        (3, [419, 376], [419, 346], 100),
        (3, [371, 347], [401, 327], 2),
        (3, [392, 455], [422, 415], 2),
        (3, [368, 376], [398, 356], 20),
        (2, [302, 315, 158], [242, 315, 198], 100),
        (2, [315, 235, 292], [345, 265, 252], 20),
    ],
)
def test_the_answer_moves_the_least_of_all_within_the_tolerance(
    tmp_path: Path, layers: int, before: list[int], after: list[int], within: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with the bytes that `diff` counts for the plan of every answer; sizes are KiB, without captured steps."""
    for module in ("planner.costs.shares", "plans.buffers"):
        monkeypatch.setattr(f"{module}.with_graph_pool", lambda buffers_of, options: buffers_of(options))
    sizes = {"num_hidden_layers": layers, "vocab_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    base = load_base(saved(tmp_path / "m", TINY | sizes))
    common = options_of(base, None, 64, "bfloat16")

    def on(kib: list[int], previous: Plan | None = None) -> tuple[Formulation, build.Built]:
        devices = [gpu(f"g{i}", size_kib) for i, size_kib in enumerate(kib)]
        inventory = inventory_of({"hosts": [host("box", *devices)]}, "bfloat16")
        options = dataclasses.replace(common, within_ppm=within * PERCENT if previous else None)
        listed = listed_order(previous) if previous else ()
        formulation = Formulation(model=base.model, draft=None, options=options, inventory=inventory, listed=listed)
        return formulation, plan_of(base, None, inventory, options, previous=previous)

    old = on(before)[1].plan
    formulation, kept = on(after, old)
    previous, bound = Previous(formulation, kept.plan.inputs, old), kept.solved.bound_ns
    least = None
    for answer in every_answer(formulation.problem):
        price = value(formulation.problem, answer)
        if price is not None and price[0] * 100 <= bound * (100 + within):
            solved = Solved(
                answer=answer,
                objective_ns=price[0],
                least_ns=bound,
                bound_ns=bound,
                simplicity=None,
                optima=(),
                solve_s=0.0,
            )
            moves = moved(old, emit(formulation, kept.plan.inputs, solved, previous))
            least = moves if least is None else min(least, moves)
    rounding = layers * previous.unit_bytes(0)
    assert least is not None
    assert least <= moved(old, kept.plan) <= least + rounding


def test_refusals(tmp_path: Path) -> None:
    inventory = tmp_path / "gpus.yaml"
    inventory.write_text(yaml.safe_dump(UNLIKE))
    common = ["build", "--gpus", str(inventory), "--plan-only", "--out", str(tmp_path / "b")]
    both = [["--draft", "planner/demo/eagle3", "--objective", objective] for objective in ("step", "tokens")]
    for arguments, message in (
        (["--within", "2%"], "--within: there is no earlier plan"),
        (["--previous", "plans/llama8b-1gpu"], "--previous: a plan of another model"),
        *((["--previous", "plans/llama8b-1gpu", *drafted], "--previous: a plan of another model") for drafted in both),
        (["--previous", "plans/demo", "--within", "200%"], "expected a fraction of the step time"),
        (["--previous", "plans/demo", "--gap", "0.1"], "--previous: needs the proven shortest step"),
        (["--previous", str(tmp_path / "nowhere")], "nowhere"),
    ):
        result = CliRunner().invoke(main, [*common, *arguments])
        assert result.exit_code == 2, result.output
        assert message in result.output
    assert not (tmp_path / "b").exists()
