"""Devices that cannot run a model are left unused and change nothing else; where no other is left, they are refused."""

import copy
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cli import main
from planner.errors import InputError
from planner.problem.formulate import Formulation
from planner.report import render
from plans.codec import load
from plans.schema import DType, Inventory
from plans.usable import unusable_devices
from tests.planner.instances import TINY, formulation, host, saved
from tests.planner.machines import FAST, NETWORK, Listed, random_machine

T4, A100, V100 = ({"id": name, "type": kind} for name, kind in (("t", "t4"), ("a", "a100-80g"), ("v", "v100-32g")))
CPU = {"id": "c", "type": "cpu", "memory": "8 GiB", "bandwidth": "40 GB/s"}
REASON = "t4 has compute capability 7.5, expected at least 8.0, whose tensor cores the GPU kernels are for"


def on(*devices: Any, dtype: DType = "bfloat16") -> Formulation:
    return formulation({"hosts": [host("h", *devices, links={"class": "pcie"})]}, "eagle3", dtype=dtype)


@pytest.mark.parametrize(
    ("devices", "dtype", "usable"),
    [
        ((T4, A100), "bfloat16", ("a",)),
        ((T4, A100, V100), "bfloat16", ("a",)),
        ((T4, CPU), "bfloat16", ("c",)),
        ((T4, A100, V100), "float16", ("a",)),
    ],
)
def test_devices_that_can_run_models_are_candidates(
    devices: tuple[Any, ...], dtype: DType, usable: tuple[str, ...]
) -> None:
    formulated = on(*devices, dtype=dtype)
    assert tuple(sorted(formulated.problem.devices)) == usable
    assert len(formulated.inventory.devices) == len(devices)


def test_a_machine_that_can_run_no_model_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        _ = on(T4, T4 | {"id": "u"}).problem
    assert str(caught.value) == f"inventory: no device can run a model: t, u: {REASON}: add a newer GPU or a CPU"


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_device_that_cannot_run_the_model_changes_nothing_but_the_inventory(seed: int) -> None:
    rng = random.Random(seed)
    machine = random_machine(rng, 3, 4, 8 << 10)
    one, other = (formulation(data, "eagle3", dtype="bfloat16") for data in (machine, _with_t4s(rng, machine)))
    strategy = rng.choice(("latency", "balanced", "balanced_low_0", "sequential"))
    one, other = (
        dataclasses.replace(f, options=dataclasses.replace(f.options, strategy=strategy)) for f in (one, other)
    )
    assert one.problem == other.problem
    assert _without_ordinals(one.searched) == _without_ordinals(other.searched)
    assert one.in_use == other.in_use


def _without_ordinals(inventory: Inventory) -> Inventory:
    """Return the inventory as if no device had a place among others: by default that is its ordinal."""
    return dataclasses.replace(
        inventory, devices=tuple(dataclasses.replace(device, ordinal=0) for device in inventory.devices)
    )


def _with_t4s(rng: random.Random, machine: Listed) -> Listed:
    """Return the machine with one to three T4 more, on its hosts, over links of their own, or on a new host."""
    machine = copy.deepcopy(machine)
    for number in range(rng.randint(1, 3)):
        name = f"{rng.choice('adz')}-t4-{number}"
        if rng.random() < 0.3:
            machine["hosts"].append(host(f"{rng.choice('az')}{number}", {"id": name, "type": "t4"}))
            machine["network"] = NETWORK
            continue
        chosen = rng.choice(machine["hosts"])
        others = [entry["id"] for entry in chosen["devices"]]
        chosen["devices"].insert(rng.randint(0, len(others)), {"id": name, "type": "t4"})
        if rng.random() < 0.7:
            pair = {"between": [name, rng.choice(others)]} | FAST
            chosen["links"]["pairs"] = [*chosen["links"].get("pairs", []), pair]
    return machine


def built(tmp_path: Path, devices: list[Any], *arguments: str) -> tuple[int, str, Path]:
    """Plan a tiny model on a host with the command; return exit code, messages and plan directory."""
    model = tmp_path / "model"
    if not model.exists():
        saved(model, TINY)
    file, out = tmp_path / "inventory.yaml", tmp_path / "plan"
    file.write_text(json.dumps({"hosts": [host("h", *devices, links={"class": "pcie"})]}))
    words = ["build", "--gpus", file, "--model", model, "--plan-only", "--out", out, *arguments]
    done = CliRunner().invoke(main, list(map(str, words)))
    return done.exit_code, done.stderr, out


def test_the_plan_and_its_reports_say_which_device_is_unused_and_why(tmp_path: Path) -> None:
    code, messages, out = built(tmp_path, [T4, A100])
    assert code == 0
    assert f"warning: nothing is placed on t: {REASON}" in messages.splitlines()
    plan = load(out)
    assert [line.device for line in plan.memory] == ["a"]
    assert [device.id for device in plan.inventory.devices] == ["a", "t"]
    assert unusable_devices(plan.inventory) == {"t": REASON}
    assert f"not used: t: {REASON}" in render.text(plan, 200, color=False).splitlines()
    assert f"Not used: `t: {REASON}`." in render.markdown(plan).splitlines()
    assert f"not used: t: {REASON}<" in render.html(plan)
    assert render.summary(plan)["unusable"] == {"t": REASON}
    assert CliRunner().invoke(main, ["check", str(out)]).exit_code == 0
    alone, _, other = built(tmp_path / "alone", [A100])
    assert alone == 0
    assert dataclasses.replace(load(other), inventory=plan.inventory) == plan


def test_a_device_map_that_names_such_a_device_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text("model.embed_tokens: 0\nmodel.layers: 1\nmodel.norm: 0\nlm_head: 0\n")
    code, messages, _ = built(tmp_path, [A100, T4], "--device-map", str(file))
    assert code == 2
    assert messages == f"error: device map: layers.0 is on t: {REASON}: name another device\n"
    file.write_text("'': 0\n")
    assert built(tmp_path, [A100, T4], "--device-map", str(file))[0] == 0, "it is unused, and index 0 is the A100"
