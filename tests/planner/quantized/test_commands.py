"""Plans of quantized checkpoints by the planner's commands: built, checked, shown, and compiled once."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner import cli
from planner.families import load_base
from plans import codec
from plans.slots import device_slots
from plans.weights import held
from tests.plan_factory import make_plan, whole_group
from tests.planner.quantized.checkpoints import METHODS, quantized
from tests.planner.tiny_checkpoints import saved

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("method", [method for method in METHODS if method != "mxfp4"])
def test_a_plan_is_solved_again_from_its_config_and_compiled_once(method: str, tmp_path: Path) -> None:
    """The config says float32; scales are float16 or bfloat16, which the headers tell alone, and then the plan."""
    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, method)
    devices = [{"id": f"c{number}", "type": "cpu", "memory": "64 MiB", "bandwidth": "10 GB/s"} for number in range(2)]
    hosts = {"hosts": [{"name": "h", "links": {"class": "shm"}, "devices": devices}]}
    (tmp_path / "inventory.yaml").write_text(json.dumps(hosts))
    directory = tmp_path / "plan"
    run("build", "--gpus", tmp_path / "inventory.yaml", "--model", coded, "--context", "64", "--out", directory)
    assert "clean" in run("check", directory)
    forms = codec.load(directory).model.layers[0].attention
    assert forms.o_format is not None
    assert bool(forms.o_format.ordered) == method.startswith("sorted")
    for slot in ("o.scales", "gate_up.weight"):
        assert "of model.layers.1" in run("show", directory, "--slot", f"layers.1.{slot}")
    if forms.o_format.ordered:
        rows = run("show", directory, "--slot", "layers.1.gate_up.weight")
        assert "sorted by groups, rows as the sorted columns of model.layers.1.mlp.down_proj" in rows
    before = {file.name: file.stat().st_mtime_ns for file in directory.glob("*.safetensors")}
    run("compile", directory, "--model", coded)
    assert before == {file.name: file.stat().st_mtime_ns for file in directory.glob("*.safetensors")}
    (directory / "moved").mkdir()
    for file in ("plan.yaml", "config.json"):
        (directory / "moved" / file).write_bytes((directory / file).read_bytes())
    bare = run("show", directory / "moved", "--slot", "layers.1.o.scales")
    assert "scales of model.layers.1.self_attn.o_proj" in bare


@pytest.mark.parametrize("method", ["sorted-gptq", "w4a16"])
def test_what_moves_to_a_device_without_weights_is_what_its_image_has(method: str, tmp_path: Path) -> None:
    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, method)
    model = load_base(coded).model
    plan = make_plan(model, [whole_group(model, ("a", "b"))], complete=False)
    for device in ("a", "b"):
        moved = sum(item.nbytes for item in held(plan) if item.device == device)
        assert moved == sum(slot.nbytes for slot in device_slots(plan, device))
