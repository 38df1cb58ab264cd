"""Strategies, device maps, axes of the KV cache and static trees: recorded, shown and planned again."""

import json
from pathlib import Path

import pytest
import yaml

from plans import codec
from tests.planner.commands.built import build, planner
from tests.planner.instances import ROOT, cpu, host


def test_a_device_map_implies_the_strategy_custom_and_excludes_others(models: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text('"": c9\n')
    file = tmp_path / "map.yaml"
    forms: tuple[tuple[object, ...], ...] = (
        ("--device-map", file),
        ("--strategy", f"custom:{file}"),
        ("--strategy", "custom", "--device-map", file),
        (file,),
    )
    for arguments in forms:
        result = build(models, tmp_path / "p", "--plan-only", *arguments)
        assert result.exit_code == 2
        assert f"{file}: '': found 'c9', expected a device: c0, c1, c2, or an index" in result.stderr
    refused = {
        ("--strategy", "custom"): "no device map was given",
        ("--strategy", "latency", "--device-map", str(file)): "is strategy custom: leave --strategy latency out",
        ("--strategy", f"custom:{file}", "--device-map", str(file)): "expected one device map",
        ("--strategy", "custom", "--device-map", str(tmp_path / "none")): "cannot read",
    }
    for arguments, message in refused.items():
        result = build(models, tmp_path / "p", "--plan-only", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_auto_is_the_default_strategy(models: Path, tmp_path: Path) -> None:
    assert build(models, tmp_path / "p", "--plan-only", "--strategy", "auto").exit_code == 0
    assert codec.load(tmp_path / "p").options.strategy == "latency"


def test_a_device_map_is_planned_exactly_and_shown_again(models: Path, tmp_path: Path) -> None:
    devices = [cpu("c0", 16), cpu("c1", 16), cpu("c2", 16, 40)]
    (tmp_path / "box.yaml").write_text(yaml.safe_dump({"hosts": [host("box", *devices)]}))
    wanted = {"model.embed_tokens": "c1", "model.layers": "c0", "model.norm": "c1", "lm_head": "c1", "draft": 2}
    wanted |= {f"model.layers.{layer}": "c1" for layer in (5, 6, 7)}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(wanted))
    chosen = ("--gpus", tmp_path / "box.yaml", "--model", models / "base", "--draft", models / "head", "--plan-only")
    for spelt in (("custom", tmp_path / "map.yaml"), ("custom", "--device-map", tmp_path / "map.yaml")):
        built = planner("build", *chosen, "--out", tmp_path / "p", "--strategy", *spelt)
        assert built.exit_code == 0, built.stderr
    frozen = codec.load(tmp_path / "p")
    assert [(stage.devices, stage.num_layers) for stage in frozen.stages] == [(("c0",), 5), (("c1",), 3)]
    assert (frozen.embed.devices, frozen.head.devices) == (("c1",), ("c1",))
    assert frozen.draft_placement is not None
    assert frozen.draft_placement.devices == ("c2",)
    assert planner("check", tmp_path / "p").exit_code == 0
    shown = planner("show", tmp_path / "p", "--device-map").stdout
    (tmp_path / "map.yaml").write_text(shown)
    built = planner("build", *chosen, "--out", tmp_path / "q", "--strategy", f"custom:{tmp_path / 'map.yaml'}")
    assert built.exit_code == 0
    assert (tmp_path / "q" / "plan.yaml").read_bytes() == (tmp_path / "p" / "plan.yaml").read_bytes()


@pytest.mark.parametrize("strategy", ["balanced", "balanced_low_0", "sequential"])
def test_a_strategy_is_recorded_and_planned_again(models: Path, tmp_path: Path, strategy: str) -> None:
    assert build(models, tmp_path / "p", "--plan-only", "--strategy", strategy).exit_code == 0
    assert codec.load(tmp_path / "p").options.strategy == strategy
    assert planner("check", tmp_path / "p").exit_code == 0


@pytest.mark.parametrize("axis", ["heads", "context", "head_dim", "batch"])
def test_an_axis_is_recorded_and_planned_again(models: Path, tmp_path: Path, axis: str) -> None:
    assert build(models, tmp_path / "p", "--plan-only", "--kv", axis, "--batch", 4).exit_code == 0
    frozen = codec.load(tmp_path / "p")
    assert frozen.options.kv_axis == axis
    assert {stage.kv_axis for stage in frozen.stages if len(stage.devices) > 1} <= {axis}
    assert planner("check", tmp_path / "p").exit_code == 0


@pytest.mark.parametrize(("asked", "nodes"), [("static", 26), ("static=1,0.1,0,0.0", 5)])
def test_a_static_tree_is_recorded_and_planned_again(models: Path, tmp_path: Path, asked: str, nodes: int) -> None:
    assert build(models, tmp_path / "p", "--plan-only", "--tree", asked).exit_code == 0
    tree = codec.load(tmp_path / "p").options.tree
    assert tree is not None
    assert (tree.kind, tree.total_token, len(tree.paths or ())) == ("static", nodes, nodes - 1)
    assert planner("check", tmp_path / "p").exit_code == 0
    assert "static, total_token" in planner("show", tmp_path / "p").stdout


def test_a_plan_is_shown_as_a_device_map(models: Path, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"hosts": [host("box", cpu("only", 64))]}))
    chosen = ("--model", models / "base", "--plan-only", "--out", tmp_path / "p")
    assert planner("build", "--gpus", tmp_path / "one.yaml", *chosen).exit_code == 0
    lines = yaml.safe_load(planner("show", tmp_path / "p", "--device-map").stdout)
    assert lines == dict.fromkeys(lines, "cpu")
    assert len(lines) == 8 + 4
    assert json.loads(planner("show", tmp_path / "p", "--device-map", "--json").stdout)["device_map"] == lines
    split = planner("show", ROOT / "plans/llama70b-4gpu", "--device-map", "--json")
    assert split.exit_code == 2
    assert "is split over" in json.loads(split.stdout)["error"]["message"]
