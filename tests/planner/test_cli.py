"""The commands: output, files written and exit codes."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from planner.cli import main
from planner.commands.tables import tables
from planner.request import LEAST_CHAIN, tree_text
from plans import codec
from plans.acceptance import load_profile, profile_digest
from plans.artifact import load_images
from plans.schema import SCHEMA_MAJOR, SCHEMA_MINOR
from tests.plan_factory import write_base, write_draft
from tests.planner.instances import ROOT, cpu, host

INVENTORY = {
    "hosts": [host("left", cpu("c0", 5), cpu("c1", 4), links={"class": "loopback"}), host("right", cpu("c2", 6, 8))],
    "network": {"class": "loopback"},
}
SIZES = {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 4, "head_dim": 8, "intermediate_size": 192}
TREE = "total_token=20,depth=3,top_k=4"


def planner(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def build(models: Path, out: Path, *more: object) -> Result:
    chosen = ("--model", models / "base", "--draft", models / "head", "--context", 512, "--tree", TREE)
    return planner("build", "--gpus", models / "inventory.yaml", *chosen, "--out", out, *more)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random base, an EAGLE head for it, and an inventory; return their directory."""
    directory = tmp_path_factory.mktemp("models")
    write_base(directory / "base", num_layers=8, vocab_size=512, shards=2, **SIZES)
    head = {"num_heads": 8, "head_dim": 8, "hidden_size": 64, "intermediate_size": 192}
    write_draft(directory / "head", vocab_size=512, draft_vocab_size=256, **head)
    (directory / "inventory.yaml").write_text(yaml.safe_dump(INVENTORY))
    return directory


@pytest.fixture(scope="module")
def plan(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a plan with its images; return its directory."""
    out = tmp_path_factory.mktemp("plans") / "p"
    assert build(models, out).exit_code == 0
    return out


def test_build_json_is_one_object(models: Path, tmp_path: Path) -> None:
    result = build(models, tmp_path / "p", "--plan-only", "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    plan = codec.load(tmp_path / "p")
    assert data["plan"] == str(tmp_path / "p")
    assert data["digest"] == codec.digest(plan)
    assert data["status"] == "OPTIMAL"
    assert data["objective_ns"] == plan.proof.objective_ns
    assert data["least_ns"] == data["bound_ns"] == plan.proof.least_ns <= data["objective_ns"]
    assert 0 < data["solve_s"] < 60
    for stage, planned in zip(data["stages"], plan.stages, strict=True):
        assert stage["devices"] == list(planned.devices)
        assert stage["layers"] == planned.num_layers
        assert sum(stage["attention_shares"]) == 4 * planned.num_layers
        assert len(stage["mlp_shares"]) == len(planned.devices)
    for device, line in zip(data["devices"], plan.memory, strict=True):
        terms = {name: value for name, value in device.items() if name.endswith("_bytes") and name != "capacity_bytes"}
        assert device["id"] == line.device
        assert device["capacity_bytes"] == plan.device(line.device).memory_bytes
        assert sum(terms.values()) == device["capacity_bytes"]
        assert terms["weights_bytes"] == line.weights_bytes
        assert terms["free_bytes"] >= 0
    assert not list((tmp_path / "p").glob("*.safetensors"))


def test_stdout_is_data_and_stderr_is_for_people(models: Path, tmp_path: Path) -> None:
    result = build(models, tmp_path / "p", "--plan-only", "-v")
    assert result.stdout == f"{tmp_path / 'p'}\n"
    assert "OPTIMAL" in result.stderr
    assert "c0" in result.stderr


def test_images_are_safetensors_with_the_weights_of_the_checkpoint(models: Path, plan: Path) -> None:
    frozen = codec.load(plan)
    images = load_images(plan)
    assert images.plan_sha256 == codec.digest(frozen)
    assert [image.device for image in images.images] == [device.id for device in frozen.devices]
    source = load_file(models / "base" / "model-00001-of-00002.safetensors")
    source |= load_file(models / "base" / "model-00002-of-00002.safetensors")
    tensors: dict[str, Any] = {}
    for image in images.images:
        with safe_open(plan / f"{image.device}.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensors.setdefault(name, []).append(file.get_tensor(name))
    assert all(tensor.equal(source["model.norm.weight"]) for tensor in tensors["norm.weight"])
    rows = sum(tensor.shape[0] for tensor in tensors["embed.weight"])
    assert rows == 512
    assert len({name.split(".")[1] for name in tensors if name.startswith("layers.")}) == 8
    assert sum(tensor.shape[0] for tensor in tensors["draft.head.weight"]) == 256


def test_a_second_build_reuses_every_image(models: Path, plan: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in plan.rglob("*") if file.name != ".lock"}
    data = json.loads(build(models, plan, "--json").stdout)
    assert all(image["reused"] for image in data["images"])
    assert {file: file.stat().st_mtime_ns for file in plan.rglob("*") if file.name != ".lock"} == before


def test_a_plan_can_be_compiled_later_and_one_device_at_a_time(models: Path, plan: Path, tmp_path: Path) -> None:
    build(models, tmp_path / "p", "--plan-only")
    frozen = codec.load(tmp_path / "p")
    chosen = ("--model", models / "base", "--draft", models / "head")
    first, *others = [device.id for device in frozen.devices]
    result = planner("compile", tmp_path / "p", *chosen, "--only", first, "--json")
    data = json.loads(result.stdout)
    assert [image["device"] for image in data["images"]] == [first]
    assert data["missing"] == others
    assert planner("compile", tmp_path / "p", *chosen).exit_code == 0
    for file in (*(f"{device.id}.safetensors" for device in frozen.devices), "images.yaml", "plan.yaml"):
        assert (tmp_path / "p" / file).read_bytes() == (plan / file).read_bytes(), file


def test_show_has_four_forms(plan: Path, tmp_path: Path) -> None:
    assert "c0" in planner("show", plan).stdout
    assert planner("show", plan, "--markdown").stdout.startswith("#")
    data = json.loads(planner("show", plan, "--json").stdout)
    assert data["content"] == codec.encode(codec.load(plan))
    page = tmp_path / "plan.html"
    assert planner("show", plan, "--html", page).exit_code == 0
    assert page.read_text().lower().startswith("<!doctype html>")
    refused = planner("show", plan, "--html", tmp_path / "none" / "x.html")
    assert refused.exit_code == 2
    assert str(tmp_path / "none" / "x.html") in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "forms"),
    [
        (("show", "p", "--json", "--markdown"), "--json and --markdown"),
        (("show", "p", "--json", "--html", "x"), "--json and --html"),
        (("show", "p", "--device-map", "--html", "x"), "--html and --device-map"),
        (("diff", "p", "q", "--json", "--markdown"), "--json and --markdown"),
    ],
)
def test_two_output_formats_at_once_are_refused(arguments: tuple[str, ...], forms: str) -> None:
    result = planner(*arguments)
    assert result.exit_code == 2
    assert f"found {forms}, expected one of them at most" in result.stderr


def test_the_file_of_a_plan_instead_of_its_directory_is_refused(plan: Path) -> None:
    file = plan / "plan.yaml"
    result = planner("show", file)
    assert result.exit_code == 2
    assert result.stderr == f"error: {file}: found a file, expected the directory of a plan: give {plan}\n"


def test_an_unknown_slot_is_refused_with_similar_names(plan: Path) -> None:
    message = planner("show", plan, "--slot", "layers.0.qkv.weigth").stderr
    assert "did you mean layers.0.qkv.weight" in message
    assert "no device has it: expected a name like embed.weight, " in planner("show", plan, "--slot", "?").stderr


def test_a_context_beyond_the_positions_of_the_eagle_head_causes_a_warning(models: Path, tmp_path: Path) -> None:
    few = tmp_path / "head"
    shutil.copytree(models / "head", few)
    config = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    warning = f"{tmp_path / 'p'}: the EAGLE head was trained for 128 positions: beyond them it may draft worse"
    assert warning in build(models, tmp_path / "p", "--draft", few, "--plan-only").stderr
    assert warning not in build(models, tmp_path / "p", "--draft", few, "--context", 128, "--plan-only").stderr


def test_diff_exits_with_1_if_plans_differ(models: Path, plan: Path, tmp_path: Path) -> None:
    same = planner("diff", plan, plan, "--json")
    assert same.exit_code == 0
    assert json.loads(same.stdout)["equal"] is True
    build(models, tmp_path / "q", "--plan-only", "--context", 500)
    other = planner("diff", plan, tmp_path / "q", "--json")
    assert other.exit_code == 1
    data = json.loads(other.stdout)
    assert data["equal"] is False
    assert "options.context" in {difference["path"] for difference in data["differences"]}
    assert planner("diff", plan, tmp_path / "q").exit_code == 1
    assert "context" in planner("diff", plan, tmp_path / "q", "--markdown").stdout


def edited(plan: Path, to: Path, old: str, new: str) -> Path:
    """Copy a plan's directory without images, with one edit of plan.yaml."""
    (to / "draft").mkdir(parents=True)
    for name in ("config.json", "draft/config.json"):
        (to / name).write_bytes((plan / name).read_bytes())
    text = (plan / "plan.yaml").read_text()
    assert re.search(old, text), old
    (to / "plan.yaml").write_text(re.sub(old, new, text, count=1))
    return to


def test_check_solves_again(plan: Path, tmp_path: Path) -> None:
    result = planner("check", plan, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"plans": [{"plan": str(plan), "clean": True, "differences": []}]}
    # Consistent, but with another step time than the solver finds.
    proof = r"objective_ns: \d+\n(\s+)least_ns: \d+\n\s+bound_ns: \d+"
    wrong = edited(
        plan, tmp_path / "a", proof, r"objective_ns: 9000000000\n\1least_ns: 9000000000\n\1bound_ns: 9000000000"
    )
    result = planner("check", plan, wrong, "--json")
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)["plans"]
    assert first["clean"]
    assert not second["clean"]
    assert any("objective_ns" in line for line in second["differences"])
    # The same plan in other bytes.
    spelt = edited(plan, tmp_path / "b", r"\A", "# reviewed\n")
    result = planner("check", spelt)
    assert result.exit_code == 1
    assert "plan.yaml: not in canonical form" in result.stderr
    # An inconsistent plan.
    broken = edited(plan, tmp_path / "c", r"first_layer: 0", "first_layer: 1")
    result = planner("check", broken, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "InvalidPlanError"
    assert "stages[0].first_layer" in error["message"]
    # The other plans are checked although one is refused.
    result = planner("check", broken, plan, tmp_path / "none", "--json")
    assert result.exit_code == 2
    data = json.loads(result.stdout)
    assert data["plans"] == [{"plan": str(plan), "clean": True, "differences": []}]
    assert data["error"]["type"] == "InvalidPlanError"
    assert f"{tmp_path / 'none'}: no plan.yaml here" in result.stderr
    # The config differs from the hash in the plan.
    other = edited(plan, tmp_path / "d", r"\A", "")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert planner("check", other).exit_code == 1


def test_scan_counts_tensors_from_headers(models: Path) -> None:
    data = json.loads(planner("scan", models / "base", "--json").stdout)
    assert data["num_tensors"] == 3 + 9 * 8
    assert data["dtypes"] == ["F32"]
    assert data["nbytes"] == sum(tensor["nbytes"] for tensor in data["tensors"])
    assert len(data["blocks"]) == 2 + 8
    text = planner("scan", models / "base").stdout
    assert [line.split("  ")[1] for line in text.splitlines()[1:]] == ["embed", "layers 0-7", "lm_head"]
    assert "9 tensors each" in text
    text = planner("scan", models / "head").stdout
    assert "draft" in text
    assert "tensors" in text
    bare = json.loads(planner("scan", models / "base" / "config.json", "--json").stdout)
    assert bare["nbytes"] == data["nbytes"]


def test_inventory_writes_defaults_out(models: Path, tmp_path: Path) -> None:
    text = planner("inventory", models / "inventory.yaml").stdout
    (tmp_path / "full.yaml").write_text(text)
    assert planner("inventory", tmp_path / "full.yaml").stdout == text
    assert "reserve" in text
    data = json.loads(planner("inventory", models / "inventory.yaml", "--json").stdout)
    assert [device["id"] for device in data["inventory"]["devices"]] == ["c0", "c1", "c2"]


def test_devices_are_shown_where_nothing_fits(tmp_path: Path) -> None:
    inventory = tmp_path / "small.yaml"
    inventory.write_text(yaml.safe_dump({"hosts": [host("box", cpu("c0", 1))]}))
    command = ("build", "--gpus", inventory, "--plan-only", "--out", tmp_path / "p")
    assert "Devices found" not in planner(*command).stderr
    refused = planner(*command, "-v")
    assert refused.exit_code == 3
    assert refused.stderr.index("Devices found: 1 on 1 host\n  c0 on box: cpu, ") < refused.stderr.index("error: no ")


def test_an_infeasible_instance_is_reported_as_json(models: Path, tmp_path: Path) -> None:
    small = {"hosts": [host("box", cpu("c0", 2), cpu("c1", 2))]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    chosen = ("--model", models / "base", "--draft", models / "head", "--json")
    result = planner("build", "--gpus", tmp_path / "small.yaml", *chosen, "--out", tmp_path / "p")
    assert result.exit_code == 3
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "InfeasibleError"
    assert error["exit_code"] == 3
    assert error["short_bytes"] == sum(device["short_bytes"] for device in error["devices"]) > 0
    assert {device["id"] for device in error["devices"]} <= {"c0", "c1"}
    for change in error["changes"]:
        assert change["change"] in result.stderr
    assert not (tmp_path / "p").exists()


def test_a_refusal_without_proof_reports_objective_bound_and_gap(models: Path, tmp_path: Path) -> None:
    result = build(models, tmp_path / "p", "--plan-only", "--json", "--solver-limit", 0)
    assert result.exit_code == 3
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "NotProvenError"
    assert {"objective_ns", "bound_ns", "gap"} <= set(error)
    assert not (tmp_path / "p").exists()


def test_the_longest_context(models: Path, tmp_path: Path) -> None:
    chosen = ("--model", models / "base", "--plan-only", "--context", "max", "--out", tmp_path / "p")
    result = planner("build", "--gpus", models / "inventory.yaml", *chosen)
    assert result.exit_code == 0
    assert f"{tmp_path / 'p'}: --context max is 512, the model's limit\n" in result.stderr
    assert codec.load(tmp_path / "p").options.context == 512


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gap", "1"),
        ("--gap", "nan"),
        ("--gap", "100%"),
        ("--gap", "-0.1"),
        ("--batch", "0"),
        ("--batch", "1000000000000"),
        ("--context", "0"),
        ("--context", "many"),
        ("--context", "-5"),
        ("--dtype", "int8"),
        ("--tree", "depth=65"),
        ("--tree", "depht=3"),
        ("--tree", "total_token=1"),
        ("--tree", "static=0,1.0"),
        ("--tree", "static=0,a"),
        ("--tree", "static="),
        ("--tree", ""),
        ("--prefill-chunk", "0"),
        ("--surprise",),
    ],
)
def test_usage_errors_come_before_any_file_is_read(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = planner("build", "--gpus", tmp_path / "none.yaml", "--out", tmp_path / "p", *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--gpus", "inventory.yaml", "--out", "a" * 300),
        ("build", "--gpus", "inventory.yaml", "--model", "a" * 300),
        ("compile", "a" * 300),
        ("show", "a" * 300),
        ("diff", "a" * 300, "plans/demo"),
        ("scan", "a" * 300),
    ],
)
def test_a_path_that_the_system_refuses_is_reported_with_its_reason(arguments: tuple[str, ...]) -> None:
    result = planner(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: \S*a{300}\S*: (cannot read: )?File name too long\n", result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--json"),
        ("build", "--gpus", "x", "--kv", "contxt", "--json"),
        ("build", "--gpus", "x", "--strategy", "fast", "--json"),
        ("build", "--gpus", "x", "--strategy", "latency:map.yaml", "--json"),
        ("build", "--gpus", "x", "--surprise", "--json"),
        ("show", "--json"),
        ("buidl", "--json"),
        ("--json",),
    ],
)
def test_a_usage_error_is_a_json_object(arguments: tuple[str, ...]) -> None:
    result = planner(*arguments)
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "UsageError"
    assert error["exit_code"] == 2
    assert error["message"] in result.stderr
    plain = planner(*(argument for argument in arguments if argument != "--json"))
    assert plain.exit_code in (0, 2)  # without --json the command may succeed
    assert "{" not in plain.stdout


def test_a_file_that_is_no_plan_is_not_overwritten(models: Path, tmp_path: Path) -> None:
    for text in ("steps: [lay out, review]\n", "- a\n", ": [\n", ""):
        (tmp_path / "plan.yaml").write_text(text)
        result = build(models, tmp_path, "--plan-only", "--json")
        assert result.exit_code == 2
        assert json.loads(result.stdout)["error"]["type"] == "OutputError"
        assert (tmp_path / "plan.yaml").read_text() == text


def test_a_plan_of_another_version_is_overwritten(models: Path, plan: Path, tmp_path: Path) -> None:
    edited(plan, tmp_path / "p", r"schema: '\d+\.\d+'", "schema: '1.0'")
    assert build(models, tmp_path / "p", "--plan-only").exit_code == 0
    assert (tmp_path / "p" / "plan.yaml").read_bytes() == (plan / "plan.yaml").read_bytes()


def test_the_kv_cache_has_a_dtype_of_its_own(models: Path, tmp_path: Path) -> None:
    kv = {}
    for name in ("float32", "float16", "float8_e4m3fn", "int8"):
        assert build(models, tmp_path / name, "--plan-only", "--kv-dtype", name).exit_code == 0
        frozen = codec.load(tmp_path / name)
        assert (frozen.options.dtype, frozen.options.kv_dtype) == ("float32", name)
        kv[name] = sum(line.kv_bytes for line in frozen.memory)
    assert kv["float32"] > 1.9 * kv["float16"] > 3.6 * kv["float8_e4m3fn"]
    head_dim = frozen.model.layers[0].attention.head_dim
    assert kv["int8"] * head_dim == kv["float8_e4m3fn"] * (head_dim + 4), "a scale for each head"
    build(models, tmp_path / "default", "--plan-only", "--dtype", "bfloat16")
    assert codec.load(tmp_path / "default").options.kv_dtype == "bfloat16"


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


def test_a_bare_config_is_only_planned(models: Path, tmp_path: Path) -> None:
    config = models / "base" / "config.json"
    chosen = ("--gpus", models / "inventory.yaml", "--model", config, "--context", 512, "--out", tmp_path / "p")
    result = planner("build", *chosen, "--json")
    assert result.exit_code == 0
    message = f"only planned: {config} without tensors, which images are compiled from: python -m planner compile "
    assert f"{message}{tmp_path / 'p'} --model <DIR>\n" in result.stderr
    assert "images" not in json.loads(result.stdout)
    assert not list((tmp_path / "p").glob("*.safetensors"))
    stderr = planner("build", *chosen, "--plan-only").stderr
    assert "only planned" not in stderr
    assert f"no weights were seen: planned from {config} alone" in stderr
    assert "no weights of this plan were seen here" in planner("show", tmp_path / "p").stderr


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


def test_verbosity_from_the_environment(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [build(models, tmp_path / "p", "--plan-only", *flags).stderr for flags in ((), ("-v",), ("-vv",))]
    for level, output in enumerate(outputs):
        monkeypatch.setenv("DEBUG", str(level))
        again = build(models, tmp_path / "p", "--plan-only").stderr
        assert len(again.splitlines()) == len(output.splitlines())
    monkeypatch.setenv("DEBUG", "yes")
    assert build(models, tmp_path / "p", "--plan-only").exit_code == 0
    assert len(outputs[0].splitlines()) == 4, "the plan, the layers that its EAGLE head reads, and what it gains"
    assert "Devices found: 3 on 2 hosts\n  c0 on left: cpu, 5.0 MiB of which" in outputs[1]
    assert "Memory" in outputs[1]
    assert (
        "Contents of each device\n  c2: embed, 512 rows; stage 0: layers 0-7 with 4 KV heads, 192 MLP channels"
        in outputs[2]
    )
    assert re.search(r"Objectives, in the order .*\n.* \d+ bound +\d+ ", outputs[2])


def test_every_command_prints_more_with_v_and_vv(models: Path, plan: Path, tmp_path: Path) -> None:
    build(models, tmp_path / "q", "--plan-only", "--context", 500)
    expected: dict[tuple[object, ...], tuple[str, str]] = {
        ("inventory", models / "inventory.yaml"): (
            "\n  memory     5 MiB          given\n  reserve    0 B            catalogue\n",
            "",
        ),
        ("scan", models / "base"): ("model.norm.weight: F32, 64, 256 B", ""),
        ("compile", plan, "--model", models / "base", "--draft", models / "head"): (
            "slots of the model",
            "  layers.0.qkv.weight: F32, ",
        ),
        ("show", plan): ("Devices found: 3 on 2 hosts", "Contents of each device"),
        ("diff", plan, tmp_path / "q"): ("  c2: draft KV ", "  stage 0: "),
        ("check", plan): ("solved again on 3 devices in ", "Objectives, in the order"),
    }
    for arguments, texts in expected.items():
        quiet, once, twice = (planner(*arguments, *flags) for flags in ((), ("-v",), ("-vv",)))
        assert quiet.stdout == once.stdout == twice.stdout
        assert quiet.exit_code == once.exit_code == twice.exit_code
        first, second = texts
        assert first in once.stderr
        assert first not in quiet.stderr
        assert second in twice.stderr
        assert not second or second not in once.stderr


PRINTING = {
    "help": ("--help",),
    "build": ("build", "--gpus", "inventory.yaml", "--no-draft", "--plan-only", "--out", "p"),
    "build -vv": ("build", "--gpus", "inventory.yaml", "--no-draft", "--plan-only", "--out", "p", "-vv", "--json"),
    "compile": ("compile", "p", "--json"),
    "show": ("show", "plans/demo"),
    "show --json": ("show", "plans/demo", "--json"),
    "diff": ("diff", "plans/demo", "plans/llama70b-4gpu"),
    "check": ("check", "plans/demo", "--json"),
    "inventory": ("inventory", "inventory.yaml"),
    "scan": ("scan", "planner/demo/base", "--json"),
    "refusal": ("show", "nothing", "--json"),
    "usage": ("show", "--json"),
}


@pytest.mark.parametrize("arguments", PRINTING.values(), ids=PRINTING)
def test_a_closed_pipe_ends_a_command_quietly(arguments: tuple[str, ...], plan: Path, tmp_path: Path) -> None:
    """Close the reading end of stdout, then of stdout and stderr."""
    for name in ("inventory.yaml", "plans", "planner"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "plans" / "demo", tmp_path / "p")
    for both in (False, True):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "planner", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryFile() as errors:
            stderr = writing if both else errors
            done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=writing, stderr=stderr, check=False)
            os.close(writing)
            errors.seek(0)
            text = errors.read().decode()
        assert done.returncode >= 0, text
        assert "Traceback" not in text
        assert "Broken pipe" not in text
        assert "BrokenPipe" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_colours_unless_no_color_is_set(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = codec.load(plan)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in tables(frozen, Terminal())
    assert "\x1b[" not in tables(frozen, io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in tables(frozen, Terminal())


def test_the_commands_run_as_a_module_and_planning_imports_no_torch(models: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from planner.cli import main\n"
        "try:\n"
        f"    main(['build', '--gpus', {str(models / 'inventory.yaml')!r}, '--model', {str(models / 'base')!r},\n"
        f"          '--plan-only', '--out', {str(tmp_path / 'p')!r}])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    shown = subprocess.run(
        [sys.executable, "-m", "planner", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for command in ("build", "compile", "show", "diff", "check", "scan", "inventory"):
        assert command in shown.stdout


@pytest.mark.parametrize("module", ["click", "planner.errors", "numpy"])
def test_ctrl_c_during_imports_ends_with_130_and_without_traceback(models: Path, module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "planner", "build", "--gpus", str(models / "inventory.yaml")]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    assert any(line.rstrip().endswith(f" {module}") for line in run.stderr)
    run.send_signal(signal.SIGINT)
    _, text = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in text
    assert "interrupted\n" in text


@pytest.mark.parametrize("package", ["planner", "runtime"])
def test_the_version_is_that_of_the_package_and_of_its_plans(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", package, "--version"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == f"eagleplan {metadata.version('eagleplan')}, plans of schema {SCHEMA_MAJOR}.{SCHEMA_MINOR}\n"


def test_the_layers_that_a_head_reads_are_told_or_asked_for(models: Path, tmp_path: Path) -> None:
    """From the config to the plan and its report; an option that is given decides, also when images are compiled."""
    told = build(models, tmp_path / "a", "--plan-only")
    assert "the EAGLE head reads inputs of layers 2, 4, 5 (the default)" in told.stderr
    head = tmp_path / "head"
    shutil.copytree(models / "head", head)
    config = json.loads((head / "config.json").read_text())
    exported = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_last_layernorm": True}
    (head / "config.json").write_text(json.dumps(config | {"eagle_config": exported}))
    refused = build(models, tmp_path / "b", "--draft", head)
    assert refused.exit_code == 2
    assert "give --aux-layers outputs=1,3,4 or --aux-layers inputs=1,3,4" in refused.stderr
    asked = build(models, tmp_path / "b", "--draft", head, "--aux-layers", "outputs=1,3,8")
    assert asked.exit_code == 2
    assert "--aux-layers: found [2, 4, 9], expected 1 to 16 different layers from 0 to 8, in order" in asked.stderr
    asked = build(models, tmp_path / "b", "--draft", head, "--aux-layers", "outputs=1,3,7")
    assert asked.exit_code == 0, asked.stderr
    assert "reads inputs of layers 2, 4 and the output of the last (as --aux-layers says)" in asked.stderr
    assert (tmp_path / "b" / "images.yaml").is_file()
    shown = planner("show", tmp_path / "b").stdout
    assert "reads inputs of layers 2, 4" in re.sub(r"\s+", " ", shown)
    assert planner("check", tmp_path / "b").exit_code == 0
    for wrong in ("1,2", "inputs=2,1"):
        assert build(models, tmp_path / "c", "--aux-layers", wrong).exit_code == 2


def test_a_bare_config_is_planned_with_the_layers_that_are_likely(models: Path, tmp_path: Path) -> None:
    """Its weights may be of a producer that used others: compiling them then asks."""
    head = tmp_path / "head"
    shutil.copytree(models / "head", head)
    told = build(models, tmp_path / "a", "--draft", head / "config.json", "--plan-only")
    assert "a bare config does not tell who trained the head: make sure of them" in told.stderr
    tensors = load_file(head / "model.safetensors")
    del tensors["t2d"]
    save_file(tensors, head / "model.safetensors")
    compiled = planner("compile", tmp_path / "a", "--model", models / "base", "--draft", head)
    assert compiled.exit_code == 2
    assert "eagle_aux_hidden_state_layer_ids: missing, and nothing tells on which layers" in compiled.stderr


def test_aux_layers_without_a_head_are_refused(models: Path, tmp_path: Path) -> None:
    alone = ("--gpus", models / "inventory.yaml", "--model", models / "base", "--out", tmp_path / "p")
    refused = planner("build", *alone, "--aux-layers", "inputs=2,4,5")
    assert (refused.exit_code, "--aux-layers: there is no EAGLE head" in refused.stderr) == (2, True)


TOKENS = ("expected_tokens_per_s", "plain_tokens_per_s", "expected_acceptance", "break_even_acceptance", "tree")


def test_the_tree_is_chosen_and_checked_again(tmp_path: Path) -> None:
    """One slow device on which rows cost nothing: a tree; the plan is that of --tree but for the record."""
    inventory = tmp_path / "gpu.yaml"
    figures = "memory: 1 GiB, bandwidth: 1 GB/s, flops: 50 TFLOP/s, reserve: 0 B"
    inventory.write_text(f"hosts: [{{name: a, devices: [{{id: g0, type: slow-gpu, {figures}}}]}}]\n")
    out, by_hand = tmp_path / "chosen", tmp_path / "by-hand"
    done = planner("build", "--gpus", inventory, "--out", out, "--plan-only", "--json", "--dtype", "float32")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    tree = data["tree"]
    assert data["expected_tokens_per_s"] > data["plain_tokens_per_s"]
    assert data["expected_acceptance"] > data["break_even_acceptance"] > 1
    assert "drafting pays from" in done.stderr
    plan = codec.load(out)
    assert plan.speculation is not None
    assert plan.speculation.profile_sha256 == profile_digest(load_profile(out / "acceptance.yaml", inside=False))
    text = f"total_token={tree['total_token']},depth={tree['depth']},top_k={tree['top_k']}"
    asked = ("--gpus", inventory, "--out", by_hand, "--plan-only", "--json", "--dtype", "float32", "--tree", text)
    again = planner("build", *asked)
    assert dataclasses.replace(plan, speculation=None) == codec.load(by_hand)
    assert json.loads(again.stdout)["break_even_acceptance"] == pytest.approx(data["break_even_acceptance"], rel=0.01)
    assert planner("check", out).exit_code == 0
    shown = planner("show", out).stdout
    assert f"with the draft, {text}: " in shown
    assert {key: json.loads(planner("show", out, "--json").stdout)[key] for key in TOKENS} == {
        key: data[key] for key in TOKENS
    }
    assert "expected acceptance: `published means" in planner("show", out, "--markdown").stdout


RIGHT_IN_TEN = (
    "profile: '1.0'\ndrafter: {drafter}\norigin: published\nsource: {count} of ten\n"
    "contexts:\n- {{steps: 0, tokens: 1, levels: [{{nodes: 10, chosen: [{count}]}}]}}\n"
)


def test_a_head_may_have_a_profile_of_its_own(models: Path, tmp_path: Path) -> None:
    """It is taken unless another is given, and the plan keeps it, also where the tree is not chosen by it."""
    head, out, other = tmp_path / "head", tmp_path / "p", tmp_path / "other.yaml"
    shutil.copytree(models / "head", head)
    (head / "acceptance.yaml").write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=5))
    other.write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=2))
    for more, acceptance in (((), 1.5), (("--profile", other), 1.2)):
        built = build(models, out, "--plan-only", "--json", "--draft", head, *more)
        assert json.loads(built.stdout)["expected_acceptance"] == acceptance
        assert json.loads(planner("show", out, "--json").stdout)["expected_acceptance"] == acceptance
        assert planner("check", out).exit_code == 0
    assert "2 of ten" in (out / "acceptance.yaml").read_text()
    shipped = json.loads(build(models, out, "--plan-only", "--json").stdout)
    assert json.loads(planner("show", out, "--json").stdout)["expected_acceptance"] == shipped["expected_acceptance"]
    assert not (out / "acceptance.yaml").exists(), "a shipped profile is not copied"
    (head / "acceptance.yaml").write_text(RIGHT_IN_TEN.format(drafter="eagle", count=5))
    refused = build(models, out, "--plan-only", "--draft", head)
    message = f"{head}/acceptance.yaml: found a profile of eagle, the drafter is eagle3"
    assert (refused.exit_code, message in refused.stderr) == (2, True)


def test_no_link_beside_a_plan_is_followed_out_of_it(models: Path, tmp_path: Path) -> None:
    """It may be a stranger's, as a head's may, which a Hugging Face cache links to blobs; --profile is the user's."""
    head, out, own = tmp_path / "snapshots" / "head", tmp_path / "p", tmp_path / "blobs" / "own.yaml"
    shutil.copytree(models / "head", head)
    own.parent.mkdir()
    own.write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=5))
    (tmp_path / "link.yaml").symlink_to(own)
    (head / "acceptance.yaml").symlink_to(own)
    for given in ((), ("--profile", tmp_path / "link.yaml")):
        assert build(models, out, "--plan-only", "--draft", head, *given).exit_code == 0
        assert "5 of ten" in (out / "acceptance.yaml").read_text()
    secret = tmp_path / "secret"
    secret.write_text("precious")
    for target, reason in ((secret, "outside of"), (own, "outside of"), (tmp_path / "gone", "No such file")):
        (out / "acceptance.yaml").unlink()
        (out / "acceptance.yaml").symlink_to(target)
        shown = planner("show", out)
        assert (shown.exit_code, "precious" in shown.output) == (2, False)
        assert re.search(f"{re.escape(str(out))}/acceptance.yaml: cannot read: .*{reason}", shown.stderr)
    for link, reason in ((secret, "a link to"), (tmp_path / "gone", "No such file")):
        (head / "acceptance.yaml").unlink()
        (head / "acceptance.yaml").symlink_to(link)
        refused = build(models, out, "--plan-only", "--draft", head)
        assert (refused.exit_code, "precious" in refused.output) == (2, False)
        assert f"{head}/acceptance.yaml: cannot read: {reason}" in refused.stderr


def test_no_draft_is_said_plainly(tmp_path: Path) -> None:
    """A drafter that is never right: plain decoding, with the option that keeps the draft."""
    profile = tmp_path / "never.yaml"
    profile.write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=0))
    out = tmp_path / "plain"
    asked = ("build", "--gpus", ROOT / "inventory.yaml", "--plan-only", "--profile", profile, "--json", "--out")
    done = planner(*asked, out)
    data = json.loads(done.stdout)
    assert (data["tree"], data["expected_acceptance"], codec.load(out).draft) == (None, 1.0, None)
    assert "no draft: plain decoding is expected to be the fastest" in done.stderr
    assert "to keep it, give --tree total_token=60,depth=7,top_k=10, or --objective step" in done.stderr
    assert not (out / "draft").exists()
    assert planner("check", out).exit_code == 0
    kept = planner(*asked, tmp_path / "kept", "--objective", "step")
    assert "the draft is expected to lose" in kept.stderr
    assert codec.load(tmp_path / "kept").draft is not None


def test_the_least_tree_that_is_chosen_can_be_asked_for(tmp_path: Path) -> None:
    """One drafted token: a pass of the drafter, and none behind it."""
    asked = ("build", "--gpus", ROOT / "inventory.yaml", "--plan-only", "--json", "--out", tmp_path / "p")
    done = planner(*asked, "--tree", tree_text(LEAST_CHAIN))
    assert done.exit_code == 0, done.stderr
    assert codec.load(tmp_path / "p").options.tree == LEAST_CHAIN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "tokens", "--tree", "depth=3"), "--objective tokens: chooses the tree: leave --tree out"),
        (("--objective", "tokens", "--strategy", "balanced"), "--objective tokens: found --strategy balanced"),
        (("--profile", "none.yaml"), "none.yaml: cannot read: No such file"),
    ],
)
def test_objectives_that_contradict_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = planner("build", "--gpus", ROOT / "inventory.yaml", "--out", tmp_path / "p", *arguments)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
