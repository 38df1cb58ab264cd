"""The Python interface, on the demo model: the plans of the commands, typed errors, cheap imports."""

import dataclasses
import math
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import planner
from planner.api.options import BuildOptions
from planner.cli import main
from planner.commands.declarations import COMMANDS
from planner.demo_model import BASE, DEFAULT_HEAD
from planner.errors import InfeasibleError, InputError
from planner.request import DEFAULT_TREE
from plans import codec
from plans.schema import PlanError
from tests.planner.instances import ROOT, cpu, host

OPTIONS_OF_THE_COMMAND = {
    "no_draft": "a drafter is left out",
    **dict.fromkeys(("replicas", "clients", "min_tokens_per_s"), "arguments of plan_fleet"),
    "map_file": "another spelling of device_map",
    "plan_only": "planner.compile is a function of its own",
    "out": "PlanResult.write",
    "workers": "changes no plan",
    "solver_seed": "changes no plan",
    "solver_limit": "changes no plan",
    "as_json": "how a result is printed",
    "verbose": "how much is printed",
}


@pytest.fixture(scope="module")
def result() -> planner.PlanResult:
    """Return the demo's plan, with the default tree: choosing one is tested with the command."""
    return planner.plan(inventory=ROOT / "inventory.yaml", objective="step")


def test_it_makes_the_plan_of_the_command(result: planner.PlanResult, tmp_path: Path) -> None:
    directory = result.write(tmp_path / "a")
    command = ["build", "--gpus", str(ROOT / "inventory.yaml"), "--objective", "step", "--plan-only", "--out"]
    assert CliRunner().invoke(main, [*command, str(tmp_path / "b")]).exit_code == 0
    assert (directory / "plan.yaml").read_bytes() == (tmp_path / "b" / "plan.yaml").read_bytes()
    assert result.plan == planner.read(directory)
    assert result.solved.objective_ns == result.plan.proof.objective_ns
    assert result.configs_without_tensors == ()


def test_it_compiles_checks_and_compares(result: planner.PlanResult, tmp_path: Path) -> None:
    directory = result.write(tmp_path / "p")
    report = planner.compile(directory)
    assert {image.device for image in report.images} == {line.device for line in result.plan.memory}
    assert report.missing == ()
    assert all(image.reused for image in planner.compile(directory, model=BASE, draft=DEFAULT_HEAD).images)
    checked = planner.check(directory)
    assert checked.clean
    assert (checked.differences, checked.lines, checked.again.plan) == ((), (), result.plan)
    plain = planner.plan(BASE, inventory=ROOT / "inventory.yaml", context=256, batch=2, strategy="balanced")
    assert (plain.plan.draft, plain.plan.options.batch, plain.plan.options.strategy) == (None, 2, "balanced")
    compared = planner.diff(directory, plain.plan)
    assert not compared.equal
    assert compared.moved_bytes
    assert "options.batch" in {difference.path for difference in compared.differences}
    assert compared.lines[0].startswith("step ")
    assert planner.diff(result.plan, directory).equal


def test_a_plan_that_was_edited_is_not_clean(result: planner.PlanResult, tmp_path: Path) -> None:
    directory = result.write(tmp_path / "p")
    file = directory / "plan.yaml"
    file.write_text(f"# reviewed\n{file.read_text()}")
    checked = planner.check(directory)
    assert not checked.clean
    assert checked.lines == ("plan.yaml: not in canonical form",)


def test_options_are_those_of_the_command() -> None:
    options = {parameter.name for parameter in COMMANDS["build"].params}
    assert set(signature(planner.plan).parameters) == options - set(OPTIONS_OF_THE_COMMAND)
    assert signature(planner.plan).parameters["batch"].default == BuildOptions(inventory="").batch == 1


def test_fleets_are_planned_written_read_checked_and_compared(tmp_path: Path) -> None:
    machine = tmp_path / "machine.yaml"
    machine.write_text(yaml.safe_dump({"hosts": [host("127.0.0.1", cpu("cpu0", 200), cpu("cpu1", 200))]}))
    fleet = planner.plan_fleet(inventory=machine, clients=4, context=256, batch=2)
    assert [(len(replica.devices), replica.sequences) for replica in fleet.fleet.replicas] == [(1, 2), (1, 2)]
    (template,) = fleet.plans
    directory = fleet.write(tmp_path / "fleet")
    command = ["build", "--gpus", str(machine), "--replicas", "auto", "--clients", "4", "--context", "256"]
    command += ["--batch", "2", "--plan-only", "--out", str(tmp_path / "other")]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert planner.diff_fleets(directory, tmp_path / "other").equal
    loaded = planner.read_fleet(directory)
    assert loaded.plans[template] == planner.read(directory / template)
    assert planner.check_fleet(directory).clean
    one = planner.plan_fleet(inventory=machine, replicas=1, context=256)
    compared = planner.diff_fleets(loaded, one.loaded)
    assert not compared.equal
    assert "replicas 2 -> 1" in compared.lines[0]
    with pytest.raises(InputError, match="clients: found 0, expected 1 to"):
        planner.plan_fleet(inventory=machine, clients=0)
    for least, found in ((-1, "-1"), ("15", "\"15\"|'15'"), (float("nan"), "nan")):
        with pytest.raises(InputError, match=f"min_tokens_per_s: found ({found}), expected a number from 0"):
            planner.plan_fleet(inventory=machine, min_tokens_per_s=least)


def test_options_of_fleets_are_those_of_the_command() -> None:
    of_one = {"strategy", "device_map", "previous", "within"}
    more = {"replicas", "clients", "min_tokens_per_s"}
    assert set(signature(planner.plan_fleet).parameters) == set(signature(planner.plan).parameters) - of_one | more


def test_refusals_are_typed(tmp_path: Path) -> None:
    inventory = ROOT / "inventory.yaml"
    refused: tuple[dict[str, Any], ...] = (
        *({"gap": 1.0}, {"gap": -0.1}, {"within": 0.1}, {"strategy": "latency", "device_map": "map.yaml"}),
        *({"batch": 0}, {"batch": 1025}, {"context": 0}, {"prefill_chunk": 0}, {"stall_timeout_s": 0}),
        *({"simplify": -0.1}, {"simplify": 1.5}, {"simplify": "5%"}, {"max_devices": 0}, {"max_devices": 5000}),
        *({"dtype": "int8"}, {"weights": "int3"}, {"kv_dtype": "int4"}, {"kv_axis": "layers"}, {"strategy": "fast"}),
        *({"batch": 1.5}, {"batch": True}, {"context": "32k"}, {"gap": "5%"}, {"gap": math.nan}, {"tree": "static"}),
    )
    trees: tuple[dict[str, Any], ...] = (
        *({"depth": "7"}, {"depth": -1}, {"depth": 65}, {"top_k": 0}, {"top_k": 1.0}, {"total_token": 1}),
        *({"total_token": True}, {"total_token": 10**5000}, {"kind": "static"}, {"paths": ((0,),)}),
        *({"kind": "static", "paths": paths} for paths in (((0,),), ((1.5,),), ((0, 0),), (), ("0",))),
    )
    numbers: tuple[dict[str, Any], ...] = tuple(
        {name: value}
        for name in ("batch", "context", "prefill_chunk", "stall_timeout_s", "gap", "within")
        for value in (10**5000, -(10**400), math.inf, -math.nan, "\u0663", [])
    )
    of_trees = tuple({"tree": dataclasses.replace(DEFAULT_TREE, **tree)} for tree in trees)
    for options in (*refused, *numbers, *of_trees):
        with pytest.raises(InputError) as refusal:
            planner.plan(inventory=inventory, **options)
        assert len(str(refusal.value)) < 300
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({"hosts": [host("box", cpu("c0", 1))]}))
    with pytest.raises(InfeasibleError) as short:
        planner.plan(inventory=small)
    assert short.value.changes is not None
    with pytest.raises(PlanError):
        planner.read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: found 0, expected 1 to 64"),
        ({"workers": True}, "workers: found True, expected an integer"),
        ({"workers": None}, "workers: found None, expected an integer"),
        ({"workers": "2"}, "workers: found '2', expected an integer"),
        ({"seed": -1}, "seed: found -1, expected 0 to 2147483647"),
        ({"seed": 1.5}, "seed: found 1.5, expected an integer"),
    ],
)
@pytest.mark.parametrize("check", [planner.check, planner.check_fleet])
def test_workers_and_seeds_that_the_solver_does_not_take_are_refused(
    check: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        check(ROOT / "plans/demo", **options)
    assert str(caught.value) == message


def test_auto_is_the_strategy_of_least_latency(result: planner.PlanResult) -> None:
    auto = planner.plan(inventory=ROOT / "inventory.yaml", objective="step", strategy="auto")
    assert auto.plan == result.plan


def test_one_name_of_a_device_is_a_name_and_no_sequence(result: planner.PlanResult, tmp_path: Path) -> None:
    directory = result.write(tmp_path / "p")
    device = result.plan.memory[0].device
    assert [image.device for image in planner.compile(directory, only=device).images] == [device]


def test_results_are_frozen(result: planner.PlanResult) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.plan = codec.load(ROOT / "plans" / "demo")  # type: ignore[misc]


def test_names_are_listed_and_imported_when_they_are_used() -> None:
    assert set(planner.__all__) == set(planner._MODULES) == set(dir(planner))
    for name in planner.__all__:
        assert getattr(planner, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'plans'"):
        _ = planner.plans  # type: ignore[attr-defined]
    program = (
        "import sys, planner\n"
        "heavy = {'ortools', 'torch', 'numpy', 'rich', 'click', 'yaml'}\n"
        "assert not heavy & set(sys.modules)\n"
        "assert planner.read('plans/demo').options.batch == 1\n"
        "assert planner.diff('plans/demo', 'plans/demo').equal\n"
        "planner.compile\n"
        "assert not {'ortools', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
