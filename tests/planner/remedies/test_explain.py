"""Infeasible instances: every change that the refusal suggests makes the build work, with the promised step time."""

import json
import random
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from planner import build, cli, longest_context
from planner.commands import build as commands_build
from planner.commands.refusals import changes_table
from planner.demo_model import DEMO
from planner.errors import Change, InfeasibleError, InputError
from planner.hardware import inventory as inventory_module
from planner.hardware.records import HardwareInventory
from planner.problem.formulate import Formulation
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from planner.solver.solve import Keep, fits
from plans import codec
from tests.planner.instances import ROOT, TINY, TINY_HEAD, cpu, gpu, host, saved

CPUS = {"hosts": [host("left", cpu("c0", 7), cpu("c1", 5)), host("right", cpu("c2", 6))], "network": {"class": "shm"}}
ETHERNET = {"network": {"class": "ethernet"}}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
INSTEAD = (("--kv", "context", "heads"), ("--strategy", "sequential", "latency"))


def pcie(name: str, *devices: dict[str, Any]) -> dict[str, Any]:
    return host(name, *devices, links={"class": "pcie"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Return the command line options of a tiny model."""
    return "--model", saved(tmp_path_factory.mktemp("tiny") / "base", TINY)


@pytest.fixture(scope="module")
def drafted(plain: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Return the command line options of a tiny model and its EAGLE head."""
    return *plain, "--draft", saved(tmp_path_factory.mktemp("tiny") / "head", TINY_HEAD)


def command(inventory: Path, arguments: tuple[object, ...], out: Path) -> tuple[int, dict[str, Any]]:
    words = ("build", "--gpus", inventory, *arguments, "--plan-only", "--out", out, "--json")
    result = CliRunner().invoke(cli.main, [str(argument) for argument in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


def refused(data: Any, arguments: tuple[object, ...], tmp_path: Path) -> dict[str, Any]:
    """Return the error of an infeasible instance; build it with each suggested change."""
    file = tmp_path / "inventory.yaml"
    file.write_text(yaml.safe_dump(data))
    code, reply = command(file, arguments, tmp_path / "p")
    assert code == 3, reply
    error: dict[str, Any] = reply["error"]
    for number, change in enumerate(error["changes"]):
        code, reply = apply(file, arguments, change, tmp_path / str(number))
        assert code == 0, (change, reply)
        assert reply["objective_ns"] == change["objective_ns"], change
    assert not (tmp_path / "p").exists()
    return error


def apply(file: Path, arguments: tuple[object, ...], change: dict[str, Any], out: Path) -> tuple[int, dict[str, Any]]:
    """Build with a suggested change of arguments, inventory or both."""
    assert {"change", "objective_ns"} < set(change) <= {"change", "objective_ns", "bound_ns", "args", "inventory"}
    assert change.get("bound_ns", change["objective_ns"]) <= change["objective_ns"]
    if "inventory" in change:
        file = file.with_name(f"{out.name}.yaml")
        file.write_text(change["inventory"])
    return command(file, (*arguments, *change.get("args", ())), out)


def largest_short(
    data: Callable[[int], Any], arguments: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Return the largest n for which an instance is infeasible, without computing shortage or suggestions."""
    file = tmp_path / "edge.yaml"

    def is_short(n: int) -> bool:
        file.write_text(yaml.safe_dump(data(n)))
        return command(file, arguments, tmp_path / "edge")[0] == 3

    def only_fits(problem: Problem, settings: Settings, keep: Keep | None = None) -> None:
        """Decide feasibility only, without minimising the step."""
        raise InfeasibleError("", {}) if not fits(problem, settings) else InputError("it fits")

    with monkeypatch.context() as patch:
        for module in (build, longest_context):
            patch.setattr(module, "infeasible_on_all", lambda formulation, settings: InfeasibleError("", {}))
        patch.setattr(build, "solve", only_fits)
        patch.setattr(commands_build, "explain", lambda request, refused, settings, trying: refused)
        short = longest_context.largest(1, 100, is_short)
    assert short is not None
    return short


def options(error: dict[str, Any]) -> set[str]:
    return {"inventory" if "inventory" in change else change["args"][0] for change in error["changes"]}


@pytest.mark.parametrize("named", [False, True])
def test_every_change_works(named: bool, tmp_path: Path) -> None:
    """Plan the demo, as the default or with its model and EAGLE head named; steps of changes are those of one tree."""
    arguments: tuple[object, ...] = ("--objective", "step")
    arguments += ("--draft", DEMO / "eagle3", "--model", DEMO / "base") if named else ()
    error = refused(CPUS, arguments, tmp_path)
    assert "--dtype" in options(error)
    assert sum(device["short_bytes"] for device in error["devices"]) == error["short_bytes"] > 0


def test_suggested_quantities_are_the_largest_that_fit(plain: tuple[object, ...], tmp_path: Path) -> None:
    """Assert that one more than the suggested context or batch is infeasible."""
    arguments = (*plain, "--context", 250, "--batch", 16)
    error = refused({"hosts": [pcie("box", gpu("g0", 1800), gpu("g1", 1200))]}, arguments, tmp_path)
    assert {"--context", "--batch", "--kv-dtype", "inventory"} <= options(error)
    for change in error["changes"]:
        option, number = change.get("args", ("", ""))
        if number.isdecimal():
            more = command(tmp_path / "inventory.yaml", (*arguments, option, int(number) + 1), tmp_path / "more")
            assert more[0] == 3, change


def test_the_suggested_context_is_that_of_max(tmp_path: Path) -> None:
    model = ("--model", saved(tmp_path / "model", TINY | {"max_position_embeddings": 4096}), "--prefill-chunk", 64)
    data = {"hosts": [pcie("box", gpu("gpu0", 1600), gpu("gpu1", 1200))]}
    error = refused(data, (*model, "--context", 4000), tmp_path)
    (args,) = (change["args"] for change in error["changes"] if change.get("args", [""])[0] == "--context")
    assert command(tmp_path / "inventory.yaml", (*model, "--context", "max"), tmp_path / "max")[0] == 0
    assert args == ["--context", str(codec.load(tmp_path / "max").options.context)]


def test_a_context_below_the_least_of_max_is_suggested(plain: tuple[object, ...], tmp_path: Path) -> None:
    arguments = (*plain, "--context", "max", "--batch", 16, "--prefill-chunk", 32)
    error = refused({"hosts": [pcie("box", gpu("g0", 1800), gpu("g1", 1200))]}, arguments, tmp_path)
    (args,) = (change["args"] for change in error["changes"] if change.get("args", [""])[0] == "--context")
    assert 1 <= int(args[1]) < 256


def test_no_draft_overrides_draft_and_tree(drafted: tuple[object, ...], tmp_path: Path) -> None:
    tree = ("--tree", "total_token=40,depth=4,top_k=8")
    error = refused({"hosts": [pcie("box", gpu("gpu0", 1000))]}, (*drafted, *tree, "--context", 256), tmp_path)
    assert "--no-draft" in options(error)
    assert error["tree"] is None, "the tree is asked for"
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump({"hosts": [host("box", cpu("c0", 64))]}))
    code, _ = command(tmp_path / "inventory.yaml", ("--no-draft", *tree), tmp_path / "demo")
    assert code == 0
    assert codec.load(tmp_path / "demo").draft is None


def test_changes_that_cannot_help_are_not_listed(tmp_path: Path) -> None:
    """The instance lacks more bytes than the smallest tree, context and batch would free."""
    error = refused({"hosts": [host("box", cpu("c0", 1))]}, ("--dtype", "bfloat16"), tmp_path)
    assert options(error) <= {"inventory"}


def test_one_more_device_keeps_the_names_and_numbers_of_the_others(plain: tuple[object, ...], tmp_path: Path) -> None:
    hosts = [pcie("a", gpu("x1", 400)), pcie("b", gpu("x7", 400)), pcie("c", gpu("y0", 340))]
    error = refused(ETHERNET | {"hosts": hosts}, (*plain, "--context", 1000, "--prefill-chunk", 16), tmp_path)
    changes = {c["change"]: yaml.safe_load(c["inventory"]) for c in error["changes"] if "one more" in c["change"]}
    expected = [("a", 400, "x1", "x8"), ("c", 340, "y0", "y1")]
    assert list(changes) == [
        f"one more tiny-gpu of {kib} KiB on {name}, like {like}" for name, kib, like, _ in expected
    ]
    for inventory, (name, _, _, new) in zip(changes.values(), expected, strict=True):
        by_host = {
            listed_host["name"]: [(device["id"], device.get("ordinal")) for device in listed_host["devices"]]
            for listed_host in inventory["hosts"]
        }
        assert by_host.pop(name)[1] == (new, 1)
        assert all(len(devices) == 1 for devices in by_host.values()), "of equal hosts only one is tried"


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_fewer_bits_are_suggested_than_those_asked_for(weights: str, tmp_path: Path) -> None:
    """Never as many or more: of 8 bits one would not fit either, and 4 bits are offered with groups of 128."""
    model = ("--model", ROOT / "plans/llama70b-4gpu/config.json", "--context", 4096)
    listed = [{"id": f"gpu{i}", "type": "rtx-3090"} for i in range(2)]
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump({"hosts": [pcie("box", *listed)]}))
    code, reply = command(tmp_path / "inventory.yaml", (*model, "--weights", weights), tmp_path / "p")
    assert code == 3
    (fewer,) = [change["args"] for change in reply["error"]["changes"] if change["change"].startswith("weights in")]
    assert fewer == ["--weights", "int4-g128"]
    assert command(tmp_path / "inventory.yaml", (*model, *fewer), tmp_path / "p")[0] == 0


def test_the_fewest_more_devices_are_suggested_and_bytes_are_estimated(tmp_path: Path) -> None:
    """Llama-3.3-70B on two RTX 3090, the commonest set-up at home, which needs cards or fewer bits."""
    model = ("--model", ROOT / "plans/llama70b-4gpu/config.json", "--context", 4096)
    listed = [{"id": f"gpu{i}", "type": "rtx-3090"} for i in range(2)]
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump({"hosts": [pcie("box", *listed)]}))
    code, reply = command(tmp_path / "inventory.yaml", model, tmp_path / "p")
    assert code == 3
    error = reply["error"]
    steps = [change["objective_ns"] for change in error["changes"]]
    bits, cards, cpu_change = error["changes"]
    layers = 80 * (8192 * 8192 * 2 + 8192 * 1024 * 2 + 3 * 8192 * 28672)
    others = 128256 * 8192 + (2 * 80 + 1) * 8192
    least = (layers * (4 + 16 / 128) / 8 + others * 2 + 128256 * (8192 + 2)) / (1 << 30)
    said = re.fullmatch(r"weights in int4-g128: ([0-9.]+) GiB in all instead of ([0-9.]+) GiB", bits["change"])
    assert said is not None
    assert least < float(said[1]) < least + 3 < 2 * 24050 / 1024
    assert re.fullmatch(r"\d more rtx-3090 of 24050 MiB on box, like gpu0", cards["change"])
    assert max(steps[:2]) < 10**9 < steps[2], "what nobody waits for comes last"
    devices = yaml.safe_load(cards["inventory"])["hosts"][0]["devices"]
    assert len(devices) == 2 + int(cards["change"][0])
    assert error["tree"] is None, "there is no draft"
    slow = Change(change="x", objective_ns=2 * 10**9)
    table = changes_table(InfeasibleError("", {}, changes=(slow,), tree="total_token=60,depth=7,top_k=10"))
    assert "steps of the tree total_token=60,depth=7,top_k=10; build chooses the tree, or none" in table
    assert table.endswith("x (slow: more than 1 s per step)")

    (smaller,) = error["estimates"]
    room = re.search(r"room for about ([0-9.]+) GiB of weights, ([0-9.]+) billion of bfloat16", smaller)
    assert room is not None
    assert float(room[2]) == pytest.approx(float(room[1]) * (1 << 30) / 2e9, rel=0.01)
    assert 40 < float(room[1]) < 2 * 24050 / 1024
    assert cpu_change["change"].startswith("the host CPU of box")


def test_where_a_tree_would_be_chosen_the_steps_of_changes_are_of_a_tree_that_is_named(
    drafted: tuple[object, ...], tmp_path: Path
) -> None:
    file, arguments = tmp_path / "inventory.yaml", (*drafted, "--context", 256)
    file.write_text(yaml.safe_dump({"hosts": [pcie("box", gpu("gpu0", 700))]}))
    error = command(file, arguments, tmp_path / "p")[1]["error"]
    assert error["changes"]
    for number, change in enumerate(error["changes"]):
        tree = () if "--tree" in change.get("args", ()) else ("--tree", error["tree"])
        _, reply = apply(file, (*arguments, *tree), change, tmp_path / str(number))
        assert reply["objective_ns"] == change["objective_ns"], change


@pytest.mark.parametrize(("option", "value", "instead"), INSTEAD)
def test_another_strategy_or_kv_axis_is_suggested_where_it_fits(
    option: str, value: str, instead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give just enough memory for the default: the requested option is infeasible, the default is suggested instead."""
    arguments = ("--model", saved(tmp_path / "model", TINY | {"num_hidden_layers": 7}), "--context", 500, "--batch", 4)

    def data(percent: int) -> dict[str, Any]:
        return {"hosts": [pcie("box", *(gpu(f"g{i}", n * percent) for i, n in enumerate((26, 14, 20))))]}

    least = largest_short(data, arguments, tmp_path, monkeypatch) + 1
    error = refused(data(least), (*arguments, option, value), tmp_path)
    assert [option, instead] in [change.get("args") for change in error["changes"]]


def test_a_device_map_that_does_not_fit_is_explained(plain: tuple[object, ...], tmp_path: Path) -> None:
    """No change of the inventory is suggested, since the map fixes the devices."""
    (tmp_path / "map.json").write_text('{"": 0}')
    data = {"hosts": [pcie("box", gpu("gpu0", 2000), gpu("gpu1", 9000))]}
    arguments = (*plain, "--strategy", "custom", "--device-map", tmp_path / "map.json", "--batch", 8)
    error = refused(data, arguments, tmp_path)
    assert [device["id"] for device in error["devices"]] == ["gpu0"]
    assert "inventory" not in options(error)
    assert {"--context", "--batch"} <= options(error)


@pytest.mark.parametrize("seed", [2, 3, 10, 13, 15])
def test_every_change_of_random_instances_works(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the largest memory that is infeasible: little is missing, so many changes help."""
    rng = random.Random(seed)
    config = TINY | rng.choice(({}, {"intermediate_size": [128, 64, 192, 64]}, MIXTRAL))
    model = ("--model", saved(tmp_path / "model", config))
    ratios = [[rng.randint(4, 9) for _ in range(rng.randint(1, 2))] for _ in range(rng.randint(1, 2))]
    network = ETHERNET if len(ratios) > 1 else {}
    arguments: list[object] = ["--batch", rng.choice((1, 2, 6)), "--context", rng.choice((100, 512, "max"))]
    arguments += rng.choice(([], ["--strategy", "balanced"], ["--kv", "context"]))
    arguments += rng.choice(([], ["--draft", saved(tmp_path / "head", TINY_HEAD), "--tree", "depth=5,top_k=12"]))

    def inventory(n: int) -> dict[str, Any]:
        devices = ([gpu(f"d{h}{i}", 8 * n * ratio) for i, ratio in enumerate(row)] for h, row in enumerate(ratios))
        return {"hosts": [pcie(f"h{h}", *row) for h, row in enumerate(devices)]} | network

    short = largest_short(inventory, (*model, *arguments), tmp_path, monkeypatch)
    error = refused(inventory(short), (*model, *arguments), tmp_path)
    assert len(error["changes"]) > 1


def test_the_inventory_is_parsed_once_and_no_request_is_formulated_twice(
    plain: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the refused request itself may be formulated twice: by the build and by the explanation."""
    parsed: list[str] = []
    formulated: list[Formulation] = []
    parse, formulate = inventory_module.parse_inventory, Formulation.problem.func

    def recording_formulate(formulation: Formulation) -> Problem:
        formulated.append(formulation)
        return formulate(formulation)

    def recording_parse(data: Any, where: str) -> HardwareInventory:
        parsed.append(where)
        return parse(data, where)

    monkeypatch.setattr(inventory_module, "parse_inventory", recording_parse)
    problem = cached_property(recording_formulate)
    problem.__set_name__(Formulation, "problem")
    monkeypatch.setattr(Formulation, "problem", problem)
    file = tmp_path / "inventory.yaml"
    file.write_text(yaml.safe_dump({"hosts": [pcie("box", *(gpu(f"gpu{i}", 1050) for i in range(3)))]}))
    code, reply = command(file, (*plain, "--context", 250, "--batch", 16), tmp_path / "p")
    assert code == 3
    assert len(reply["error"]["changes"]) > 2
    assert parsed == [str(file)]
    assert {formulation for formulation in formulated if formulated.count(formulation) > 1} <= {formulated[0]}


def test_a_large_model_on_too_little_is_explained_in_seconds(tmp_path: Path) -> None:
    model = ("--model", ROOT / "plans/llama70b-4gpu/config.json")
    error = refused({"hosts": [pcie("box", {"id": "gpu0", "type": "a100-80g"})]}, model, tmp_path)
    changes = [re.split(" of |:", change["change"])[0] for change in error["changes"]]
    assert changes == ["weights in int8", "weights in int4-g128", "one more a100-80g", "the host CPU"]


def test_a_change_without_proof_in_time_is_listed_with_its_gap(tmp_path: Path) -> None:
    """A build with that gap has the promised step and bound; a change without any bound is listed as fitting only."""
    model = saved(tmp_path / "model", TINY | {"num_hidden_layers": 7, "num_key_value_heads": 4})
    data = {"hosts": [pcie("box", *(gpu(f"g{i}", kib) for i, kib in enumerate((391, 336, 270, 200))))]}
    error = refused(data, ("--model", model, "--context", 64, "--solver-limit", 0.01), tmp_path)
    near = [change for change in error["changes"] if "--gap" in change.get("args", ())]
    assert near
    for change in near:
        assert 0 < change["bound_ns"] < change["objective_ns"]
    refusal = InfeasibleError("", {}, changes=tuple(Change(**change) for change in near), untimed=("a smaller tree",))
    table = changes_table(refusal)
    assert re.search(r"\(the fastest placement is not proven: none takes less than .* [um]s\): .*--gap \d+%", table)
    assert "Also makes it fit, with a step time that was not proven within the limit: a smaller" in table
