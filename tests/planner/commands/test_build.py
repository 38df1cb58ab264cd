"""Building a plan: output, files written, exit codes, and what is not overwritten."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from plans import codec
from plans.artifact import load_images
from tests.planner.commands.built import build, edited, planner
from tests.planner.instances import cpu, host


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


def test_a_context_beyond_the_positions_of_the_eagle_head_causes_a_warning(models: Path, tmp_path: Path) -> None:
    few = tmp_path / "head"
    shutil.copytree(models / "head", few)
    config = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    warning = f"{tmp_path / 'p'}: the EAGLE head was trained for 128 positions: beyond them it may draft worse"
    assert warning in build(models, tmp_path / "p", "--draft", few, "--plan-only").stderr
    assert warning not in build(models, tmp_path / "p", "--draft", few, "--context", 128, "--plan-only").stderr


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
    assert kv["float32"] == 2 * kv["float16"]
    head_dim = frozen.model.layers[0].attention.head_dim
    assert kv["int8"] == kv["float8_e4m3fn"]
    assert kv["int8"] * 2 * head_dim == kv["float16"] * (head_dim + 4), "a scale for each head"
    build(models, tmp_path / "default", "--plan-only", "--dtype", "bfloat16")
    assert codec.load(tmp_path / "default").options.kv_dtype == "bfloat16"


def test_a_bare_config_is_only_planned(models: Path, tmp_path: Path) -> None:
    config = models / "base" / "config.json"
    chosen = ("--gpus", models / "inventory.yaml", "--model", config, "--context", 512, "--out", tmp_path / "p")
    result = planner("build", *chosen, "--json")
    assert result.exit_code == 0
    message = f"no images: there are no tensors beside {config}; where they are: python -m planner compile "
    assert f"{message}{tmp_path / 'p'} --model <DIR>\n" in result.stderr
    assert "images" not in json.loads(result.stdout)
    assert not list((tmp_path / "p").glob("*.safetensors"))
    stderr = planner("build", *chosen, "--plan-only").stderr
    assert "no images" not in stderr
    assert f"no weights were seen: planned from {config} alone" in stderr
    assert "no weights of this plan were seen here" in planner("show", tmp_path / "p").stderr
