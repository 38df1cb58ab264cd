"""Every change that a refusal lists works, through the real command, and takes the time that it says."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from planner.build import DEMO, largest
from planner.cli import main
from plans import codec
from tests.planner.instances import ROOT, cpu, host

BASE, EAGLE3, EAGLE1 = DEMO / "base", DEMO / "eagle3", DEMO / "eagle1"
LLAMA70B = ("--model", ROOT / "plans/llama70b-4gpu/config.json")
HEAD70B = ("--draft", ROOT / "plans/llama70b-4gpu/draft/config.json")
LARGE_BATCH = ("--batch", 48, "--context", 500, "--prefill-chunk", 64)


def gpu(name: str, mib: int, **figures: str) -> dict[str, Any]:
    """An accelerator that no catalogue lists."""
    rates = {"bandwidth": "500 GB/s", "flops": "50 TFLOP/s", "reserve": "0 B"}
    return {"id": name, "type": "tiny-gpu", "memory": f"{mib} MiB"} | rates | figures


GPUS = {"hosts": [host("box", gpu("gpu0", 8), gpu("gpu1", 6), links={"class": "pcie"})]}
KIB = (6445, 3331, 5121)
CPUS = {"hosts": [host("left", cpu("c0", 7), cpu("c1", 5)), host("right", cpu("c2", 6))], "network": {"class": "shm"}}


def command(inventory: Path, arguments: tuple[object, ...], out: Path) -> tuple[int, dict[str, Any]]:
    given = ("build", "--gpus", inventory, *arguments, "--plan-only", "--out", out, "--json")
    result = CliRunner().invoke(main, [str(argument) for argument in given])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


def refused(data: Any, arguments: tuple[object, ...], tmp_path: Path) -> dict[str, Any]:
    """The error of an infeasible instance, after each of its changes was applied and built."""
    file = tmp_path / "inventory.yaml"
    file.write_text(yaml.safe_dump(data))
    code, said = command(file, arguments, tmp_path / "p")
    assert code == 3, said
    error: dict[str, Any] = said["error"]
    for number, change in enumerate(error["changes"]):
        code, said = apply(file, arguments, change, tmp_path / str(number))
        assert code == 0, (change, said)
        assert said["objective_ns"] == change["objective_ns"], change
    assert not (tmp_path / "p").exists()
    return error


def apply(file: Path, arguments: tuple[object, ...], change: dict[str, Any], out: Path) -> tuple[int, dict[str, Any]]:
    assert set(change) in ({"change", "objective_ns", "args"}, {"change", "objective_ns", "inventory"})
    if "args" in change:
        return command(file, (*arguments, *change["args"]), out)
    changed = file.with_name(f"{out.name}.yaml")
    changed.write_text(change["inventory"])
    return command(changed, arguments, out)


def options(error: dict[str, Any]) -> set[str]:
    return {change["args"][0] if "args" in change else "inventory" for change in error["changes"]}


@pytest.mark.parametrize(
    ("data", "arguments", "expected"),
    [
        (CPUS, ("--draft", EAGLE3, "--model", BASE), {"--dtype"}),
        (CPUS, (), {"--dtype"}),
        (GPUS, ("--model", BASE, "--draft", EAGLE1, "--dtype", "bfloat16"), {"--no-draft", "inventory"}),
    ],
)
def test_every_change_works(data: Any, arguments: tuple[object, ...], expected: set[str], tmp_path: Path) -> None:
    error = refused(data, arguments, tmp_path)
    assert expected <= options(error)
    assert sum(device["short_bytes"] for device in error["devices"]) == error["short_bytes"] > 0


def test_quantities_change_no_more_than_they_must(tmp_path: Path) -> None:
    """The next context and the next batch that could be asked for are infeasible."""
    arguments = ("--no-draft", "--dtype", "bfloat16", "--context", 250, "--batch", 16)
    error = refused({"hosts": [host("box", cpu("c0", 10), cpu("c1", 10))]}, arguments, tmp_path)
    assert {"--context", "--batch", "--kv-dtype", "inventory"} <= options(error)
    for change in error["changes"]:
        option, number = change.get("args", ("", ""))
        if number.isdecimal():
            more = command(tmp_path / "inventory.yaml", (*arguments, option, int(number) + 1), tmp_path / "more")
            assert more[0] == 3, change


def test_the_longest_context_among_the_changes_is_that_of_max(tmp_path: Path) -> None:
    config = json.loads((BASE / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ("--model", tmp_path / "config.json", "--dtype", "bfloat16", "--prefill-chunk", 64)
    data = {"hosts": [host("box", gpu("gpu0", 8), gpu("gpu1", 8))]}
    error = refused(data, (*model, "--context", 4000), tmp_path)
    (args,) = (change["args"] for change in error["changes"] if change.get("args", [""])[0] == "--context")
    assert command(tmp_path / "inventory.yaml", (*model, "--context", "max"), tmp_path / "max")[0] == 0
    assert args == ["--context", str(codec.load(tmp_path / "max").options.context)]


def test_the_least_context_of_max_may_be_too_long(tmp_path: Path) -> None:
    arguments = ("--no-draft", "--dtype", "bfloat16", "--context", "max", "--batch", 16, "--prefill-chunk", 32)
    error = refused({"hosts": [host("box", cpu("c0", 10), cpu("c1", 10))]}, arguments, tmp_path)
    (args,) = (change["args"] for change in error["changes"] if change.get("args", [""])[0] == "--context")
    assert 1 <= int(args[1]) < 256


def test_no_draft_overrides_a_head_and_its_tree(tmp_path: Path) -> None:
    tree = ("--tree", "total_token=40,depth=4,top_k=8")
    error = refused(GPUS, ("--model", BASE, "--draft", EAGLE1, "--dtype", "bfloat16", *tree), tmp_path)
    assert "--no-draft" in options(error)
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump({"hosts": [host("box", cpu("c0", 64))]}))
    code, _ = command(tmp_path / "inventory.yaml", ("--no-draft", *tree), tmp_path / "demo")
    assert code == 0
    assert codec.load(tmp_path / "demo").draft is None


def test_what_cannot_help_is_not_listed(tmp_path: Path) -> None:
    """More than the largest tree, context and batch could give back is missing."""
    error = refused({"hosts": [host("box", cpu("c0", 1))]}, ("--dtype", "bfloat16"), tmp_path)
    assert options(error) <= {"inventory"}


def test_one_more_device_keeps_the_names_and_numbers_of_the_others(tmp_path: Path) -> None:
    data = {
        "hosts": [
            host("a", gpu("x1", 8), gpu("y0", 2), links={"class": "pcie"}),
            host("b", gpu("x7", 8), gpu("y3", 2), links={"class": "pcie"}),
            host("c", gpu("z0", 3), gpu("z1", 3), links={"class": "pcie"}),
        ],
        "network": {"class": "ethernet"},
    }
    error = refused(data, ("--model", BASE, "--dtype", "float32"), tmp_path)
    changed = [yaml.safe_load(c["inventory"]) for c in error["changes"] if "one more" in c["change"]]
    assert changed
    for inventory in changed:
        new = [
            d for h in inventory["hosts"] for d in h["devices"] if d["id"] not in ("x1", "y0", "x7", "y3", "z0", "z1")
        ]
        assert len(new) == 1
    names = [c["change"].split(" on ")[1] for c in error["changes"] if "one more" in c["change"]]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("b,")], "of equal hosts, one is tried"


def test_an_order_or_an_axis_that_was_asked_for_may_be_what_is_in_the_way(tmp_path: Path) -> None:
    """On as little memory as the fastest placement takes, others are refused, and told that it would fit."""
    arguments = ("--no-draft", "--dtype", "bfloat16", "--context", 500, "--batch", 4)
    file = tmp_path / "inventory.yaml"

    def data(percent: int) -> dict[str, Any]:
        devices = (gpu(f"gpu{i}", 1) | {"memory": f"{kib * percent // 100} KiB"} for i, kib in enumerate(KIB))
        return {"hosts": [host("box", *devices, links={"class": "pcie"})]}

    def is_short(percent: int) -> bool:
        file.write_text(yaml.safe_dump(data(percent)))
        return command(file, arguments, tmp_path / "p")[0] == 3

    short = largest(10, 400, is_short)
    assert short is not None
    wider = data(short + 1)
    for option, value, instead in (("--kv", "context", "heads"), ("--strategy", "sequential", "latency")):
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        error = refused(wider, (*arguments, option, value), tmp_path)
        assert [option, instead] in [change.get("args") for change in error["changes"]]


def test_a_device_map_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    """Of the devices nothing is said, since the map says which are used."""
    (tmp_path / "map.json").write_text('{"": 0}')
    data = {"hosts": [host("box", gpu("gpu0", 13), gpu("gpu1", 64), links={"class": "pcie"})]}
    arguments = ("--no-draft", "--strategy", "custom", "--device-map", tmp_path / "map.json", "--batch", 8)
    error = refused(data, (*arguments, "--dtype", "bfloat16"), tmp_path)
    assert [device["id"] for device in error["devices"]] == ["gpu0"]
    assert "inventory" not in options(error)
    assert {"--context", "--batch"} <= options(error)


@pytest.mark.parametrize("seed", range(8))
def test_every_change_of_random_instances_works(seed: int, tmp_path: Path) -> None:
    """Memory is taken away in steps until nothing fits, so that little is missing and much helps."""
    rng = random.Random(seed)
    kind = rng.choice((cpu, gpu))
    sizes = [[rng.randint(2, 9) for _ in range(rng.randint(1, 2))] for _ in range(rng.randint(1, 2))]
    arguments: list[object] = ["--batch", rng.choice((1, 2, 6)), "--context", rng.choice((100, 512, "max"))]
    arguments += rng.choice(([], ["--dtype", "float32"], ["--dtype", "bfloat16"]))
    arguments += rng.choice(([], ["--model", BASE, "--draft", EAGLE1, "--tree", "total_token=200,depth=5,top_k=12"]))
    network = {"network": {"class": "ethernet"}} if len(sizes) > 1 else {}
    file = tmp_path / "inventory.yaml"
    for percent in range(1000, 0, -20):
        hosts = [
            host(f"h{h}", *(kind(f"d{h}{i}", max(1, mib * percent // 100)) for i, mib in enumerate(row)))
            for h, row in enumerate(sizes)
        ]
        file.write_text(yaml.safe_dump({"hosts": hosts} | network))
        if percent <= 600 and command(file, tuple(arguments), tmp_path / "largest")[0] == 3:
            break
    error = refused({"hosts": hosts} | network, tuple(arguments), tmp_path)
    assert len(error["changes"]) > 1


def test_a_large_model_on_too_little_is_explained_in_seconds(tmp_path: Path) -> None:
    data = {
        "hosts": [host("box", *({"id": f"gpu{i}", "type": "a100-40g"} for i in range(3)), links={"class": "nvlink"})]
    }
    error = refused(data, (*LLAMA70B, *HEAD70B), tmp_path)
    assert [change["change"].split(" of ")[0] for change in error["changes"]][-1] == "one more a100-40g"
