"""Layers whose q, k and v, or gate and up, have different formats: planned, checked, compiled to exact values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from planner.errors import ConfigError
from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from plans import codec
from plans.check import check
from plans.schema import GateUpFormats, QkvFormats, WeightFormat
from plans.slot_records import MatrixSlots
from plans.slots import base_slots
from tests.plan_factory import make_plan, whole_group
from tests.planner.quantized import images
from tests.planner.quantized.checkpoints import MIXED, mixed
from tests.planner.quantized.test_commands import HOSTS, SIZES, run
from tests.planner.tiny_checkpoints import bare, config_of, saved
from tests.plans.test_check_model import one_device_plan

INT4 = WeightFormat(code="int4", group=32, zeros=False, scale="bfloat16")
INT8 = WeightFormat(code="int8", group=None, zeros=False, scale="bfloat16")


def value(image: dict[str, Tensor], slots: MatrixSlots) -> Tensor:
    """Return the values of a matrix of an image [out, in] in float32, in the input's order of columns."""
    if slots.form is None:
        return image[slots.weight.name].float()
    assert slots.scales is not None
    codes, scales = image[slots.weight.name].numpy(), image[slots.scales.name]
    zeros = None if slots.zeros is None else image[slots.zeros.name].numpy()
    raw = scales.view(torch.uint16 if scales.itemsize == 2 else torch.float32).numpy()
    own = images.matrix(slots.form, slots.weight.shape[0], slots.held_columns, codes, raw, zeros)
    if slots.order is None:
        return own
    order = image[slots.order.name]
    held = order >= 0
    exact = torch.zeros(own.shape[0], slots.inputs)
    exact[:, order[held].long()] = own[:, held]
    return exact


@pytest.mark.parametrize("recipe", MIXED)
def test_values_of_images_are_those_of_the_checkpoint(tmp_path: Path, recipe: str) -> None:
    """Bit for bit; two devices divide heads and channels."""
    coded, exact = mixed(saved(tmp_path / "base", **SIZES), tmp_path, recipe)
    values, base = load_file(exact / "model.safetensors"), load_base(coded)
    plan = make_plan(base.model, [whole_group(base.model, ("a",))], inputs=inputs_of(base, None), dtype="float32")
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(tmp_path / "plan", coded, None)
    image, stage = load_file(tmp_path / "plan" / "a.safetensors"), base_slots(plan, "a").stage
    assert stage is not None
    for number, layer in enumerate(stage.layers):
        own = [*zip(("q", "k", "v"), layer.attention.qkv, strict=True), ("o", layer.attention.o)]
        for name, slots in own:
            assert torch.equal(value(image, slots), values[f"model.layers.{number}.self_attn.{name}_proj.weight"])
        gate, up = layer.mlp.gate_up
        rows = (
            values[f"model.layers.{number}.mlp.gate_proj.weight"],
            values[f"model.layers.{number}.mlp.up_proj.weight"],
        )
        assert torch.equal(value(image, gate), rows[0])
        assert torch.equal(value(image, up), rows[1])


@pytest.mark.parametrize("recipe", MIXED)
def test_a_plan_is_solved_again_from_its_config_and_shown(tmp_path: Path, recipe: str) -> None:
    coded, _ = mixed(saved(tmp_path / "base", **SIZES), tmp_path, recipe)
    (tmp_path / "inventory.yaml").write_text(json.dumps(HOSTS))
    directory = tmp_path / "plan"
    run("build", "--gpus", tmp_path / "inventory.yaml", "--model", coded, "--context", "64", "--out", directory)
    assert "clean" in run("check", directory)
    assert codec.load(directory).model.layers[0].attention.qkv_formats is not None
    assert "model.layers.1.self_attn.v_proj" in run("show", directory, "--slot", "layers.1.v.weight")


def test_experts_of_one_layer_have_one_format(tmp_path: Path) -> None:
    config = config_of("mixtral", **SIZES).to_dict()
    config["quantization_config"] = MIXED["dynamic of GPTQModel"][1] | {"dynamic": {r"-:.*\.w1": {}}}
    problem = r"experts\.0\.w3: another format than .*experts\.0\.w1 has, expected the same for both of an expert"
    with pytest.raises(ConfigError, match=problem):
        load_base(bare(tmp_path, config))


def test_formats_of_each_differ_and_are_not_beside_that_of_all() -> None:
    plan = one_device_plan()
    (layers,) = plan.model.layers

    def problems(qkv: WeightFormat | None, each: QkvFormats | None, both: GateUpFormats | None) -> list[str]:
        own = replace(
            layers,
            attention=replace(layers.attention, qkv_format=qkv, qkv_formats=each),
            mlp=replace(layers.mlp, gate_up_formats=both),
        )
        found = check(replace(plan, model=replace(plan.model, layers=(own,))))
        return [violation.path for violation in found if "format" in violation.path]

    path = "model.layers[0]."
    assert problems(None, QkvFormats(q=INT8), GateUpFormats(up=INT8)) == []
    assert problems(INT8, QkvFormats(q=INT8), None) == [f"{path}attention.qkv_format"]
    assert problems(None, QkvFormats(q=INT8, k=INT8, v=INT8), GateUpFormats()) == [
        f"{path}attention.qkv_formats", f"{path}mlp.gate_up_formats",
    ]  # fmt: skip
    wrong = replace(INT4, group=31)
    assert problems(None, QkvFormats(k=wrong), None) == [f"{path}attention.qkv_formats.k.group"]
