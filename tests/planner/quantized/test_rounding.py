"""Plain weights rounded to the nearest codes: bits, shares, errors, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import planner
from planner import cli
from planner.errors import CheckpointError, ConfigError
from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from planner.quantized import Expected, Rounded, Stored
from planner.quantized.codes import Array, Read
from planner.quantized.converting import rows_of
from plans import codec
from plans.artifact import Image, load_images
from plans.check import check
from plans.quantized import ROUNDED
from plans.ranges import Range
from plans.schema import Plan, RoundedWeights
from tests.plan_factory import make_plan, whole_group
from tests.planner.instances import cpu, host
from tests.planner.quantized.checkpoints import METHODS, near_values, nearest, quantized
from tests.planner.quantized.test_layouts import MODULE, as_numpy, image_values
from tests.planner.tiny_checkpoints import WRAPPED, saved, saved_wrapper, tensors_by_role

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
LINEAR = re.compile(r"layers\.\d+\.(experts\.\d+\.|shared\.)?(q|k|v|o|gate|up|down)\.weight")
FORMS = get_args(RoundedWeights)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "int8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int4-g128": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    "int4-g32": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
}


def stored_as(form: RoundedWeights, out: int, columns: int) -> Stored:
    tensor = Expected(name=f"{MODULE}.weight", dtypes=frozenset(), shapes=((out, columns),))
    return Stored(
        module=MODULE, out=out, columns=columns, form=ROUNDED[form], layout=Rounded(),
        tensors={"codes": tensor, "scales": tensor}, ignored={},
    )  # fmt: skip


def weight(seed: int, out: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return weights of very unlike sizes, one group of zeros, and some ties."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn((out, columns), generator=rng) * torch.exp2(
        torch.randint(-12, 3, (out, 1), generator=rng).float()
    )
    values[0] = 0
    values[-1] = torch.arange(columns) % 16 - 7.5
    return values.to(dtype)


@given(
    seed=st.integers(0, 99),
    out=st.sampled_from([3, 40]),
    columns=st.sampled_from([128, 384]),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
@settings(max_examples=60, deadline=None)
def test_codes_and_scales_have_the_bits_of_round_to_nearest(
    seed: int, out: int, columns: int, form: RoundedWeights, dtype: torch.dtype
) -> None:
    source = weight(seed, out, columns, dtype)
    assert torch.equal(image_values(stored_as(form, out, columns), {"weight": source}), near_values(source, form))


@pytest.mark.parametrize("form", FORMS)
def test_codes_are_those_of_compressed_tensors(form: RoundedWeights) -> None:
    source = weight(3, 40, 256, torch.float32)
    arguments = QuantizationArgs(symmetric=True, **ARGUMENTS[form])
    groups = source.unflatten(1, (-1, ARGUMENTS[form].get("group_size", 256)))
    scales, zeros = calculate_qparams(groups.amin(2), groups.amax(2), arguments)
    codes, ours = nearest(source, form)
    assert torch.equal(scales.bfloat16(), ours)
    theirs = quantize(source, ours.float(), torch.zeros_like(zeros), arguments)
    assert torch.equal(theirs.float(), codes.float())


def bits(value: float) -> int:
    """Return a number as bfloat16."""
    return torch.tensor(value).bfloat16().view(torch.int16).item() & 0xFFFF  # type: ignore[no-any-return]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    values = np.zeros((8, 64), np.uint16)
    values[5, 7] = bits(value)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight: found an infinity or NaN at \(5, 7\)"):
        rows_of(stored_as("int4-g32", 8, 64), "codes", (2, 8), lambda name, rows: values[slice(*rows or (0, 8))])


@pytest.mark.parametrize(
    "family", ["gemma3_text", "phi3", "qwen2_moe", "ernie4_5_moe", "gpt_oss", "qwen3_vl", "qwen3_vl_moe"]
)
def test_all_linear_layers_are_rounded_and_nothing_else(family: str, tmp_path: Path) -> None:
    """Packed, transposed, in turn and in wrappers too: rows of each role are the codes of its plain weights."""
    checkpoint = saved_wrapper(tmp_path / "base", family) if family in WRAPPED else saved(tmp_path / "base", family)
    plain, rounded = load_base(checkpoint), load_base(checkpoint, "int8")
    tensors, read = tensors_by_role(plain), reader_of(checkpoint / "model.safetensors")
    tables = {"head.weight", "embed.weight"} if plain.model.tied_head else {"head.weight"}
    linear = {role for role in tensors if LINEAR.fullmatch(role)} | tables
    assert rounded.model.head_format == ROUNDED["int8"]
    assert {role for role, source in rounded.roles.items() if source.part == "codes" and source.stored} == linear
    assert {role: source for role, source in rounded.roles.items() if source.stored is None} == {
        role: source for role, source in plain.roles.items() if role not in linear
    }
    for role in linear:
        codes, scales = nearest(tensors[role], "int8")
        for name, part, expected in (
            (role, "codes", codes),
            (role.removesuffix("weight") + "scales", "scales", scales),
        ):
            source = rounded.roles[name]
            assert source.stored is not None
            found = rows_of(source.stored, source.part, (source.first, source.first + len(codes)), read)
            assert source.part == part
            ours = torch.from_numpy(found)
            assert torch.equal(ours.int() - 128 if part == "codes" else ours.view(torch.bfloat16), expected), name


def reader_of(file: Path) -> Read:
    tensors = load_file(file)

    def read(name: str, rows: Range | None) -> Array:
        array = as_numpy(tensors[name])
        assert rows is not None
        return array.reshape(-1, array.shape[-1])[rows[0] : rows[1]]

    return read


# ---- images ----


def planned(checkpoint: Path, target: Path, weights: RoundedWeights, devices: tuple[str, ...]) -> Plan:
    base = load_base(checkpoint, weights)
    plan = make_plan(base.model, [whole_group(base.model, devices)], inputs=inputs_of(base, None))
    plan = replace(plan, options=replace(plan.options, weights=weights))
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    return plan


def test_images_of_devices_are_slices_of_the_whole_with_the_errors_of_their_rows(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "base", **SIZES)
    for name, devices in (("one", ("a",)), ("two", ("a", "b"))):
        planned(checkpoint, tmp_path / name, "int4-g32", devices)
        compile_plan(tmp_path / name, checkpoint, None)
    whole = load_file(tmp_path / "one/a.safetensors")
    halves = [load_file(tmp_path / f"two/{device}.safetensors") for device in "ab"]
    for slot in ("o.weight", "o.scales", "down.weight", "down.scales"):
        both = torch.cat([half[f"layers.1.{slot}"] for half in halves], 1)
        assert torch.equal(whole[f"layers.1.{slot}"], both)
    gate_up = [half["layers.0.gate_up.weight"].chunk(2) for half in halves]
    rows = torch.cat([*(gate for gate, _ in gate_up), *(up for _, up in gate_up)])
    assert torch.equal(whole["layers.0.gate_up.weight"], rows)

    tensors = load_file(checkpoint / "model.safetensors")
    down, gate, up = (tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("down", "gate", "up"))
    one, two = (load_images(tmp_path / name).images for name in ("one", "two"))
    assert [layer.layer for layer in one[0].rounding or ()] == [0, 1, None]
    assert (one[0].rounding or ())[2].errors_ppm == (error(tensors["lm_head.weight"], "int8"),)
    heads = torch.cat([half["head.weight"] for half in halves]), torch.cat([half["head.scales"] for half in halves])
    assert torch.equal(whole["head.weight"], heads[0])
    assert torch.equal(whole["head.scales"], heads[1])
    codes, scales = nearest(tensors["lm_head.weight"], "int8")
    assert torch.equal(whole["head.weight"].int() - 128, codes)
    assert torch.equal(whole["head.scales"], scales)
    qkv, o, gate_up, of_down = first_errors(one[0])
    assert of_down == error(down)
    assert gate_up == error(torch.cat([gate, up]))
    assert [first_errors(image)[3] for image in two] == [error(down)] * 2
    assert first_errors(two[1])[2] == error(torch.cat([gate[64:], up[64:]]))
    assert 30_000 < min(qkv, o) < max(qkv, o) < 120_000


def first_errors(image: Image) -> tuple[int, ...]:
    """Return the errors of qkv, o, gate_up and down of the first layer."""
    assert image.rounding is not None
    return image.rounding[0].errors_ppm


def error(source: Tensor, form: RoundedWeights = "int4-g32") -> int:
    loss = near_values(source, form).double() - source.double()
    return round(float((loss.square().sum() / source.double().square().sum()).sqrt()) * 10**6)


def test_images_are_made_one_by_one_and_kept(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "base", **SIZES)
    planned(checkpoint, tmp_path / "all", "int8", ("a", "b"))
    planned(checkpoint, tmp_path / "each", "int8", ("a", "b"))
    assert not any(image.reused for image in compile_plan(tmp_path / "all", checkpoint, None).images)
    for device in ("b", "a"):
        report = compile_plan(tmp_path / "each", checkpoint, None, [device])
    assert report.rounding is not None
    assert report.rounding.median_ppm < report.rounding.most_ppm < 20_000
    for name in ("images.yaml", "a.safetensors", "b.safetensors"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "each" / name).read_bytes()
    again = compile_plan(tmp_path / "all", checkpoint, None)
    assert all(image.reused for image in again.images)
    assert again.rounding == report.rounding


# ---- plans ----


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_has_the_bytes_of_rounded_weights_and_is_solved_again(tmp_path: Path, form: RoundedWeights) -> None:
    """From a bare config; check, show and slots know the format."""
    checkpoint = saved(tmp_path / "base", **(SIZES | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}))
    (tmp_path / "inventory.yaml").write_text(json.dumps({"hosts": [host("h", cpu("c0", 64), cpu("c1", 64))]}))
    arguments = ("--gpus", tmp_path / "inventory.yaml", "--context", "64", "--max-devices", "1")
    config = checkpoint / "config.json"
    reply = run("build", "--model", config, "--weights", form, *arguments, "--out", tmp_path / "bare", "--plan-only")
    assert f"weights are rounded to the nearest {form} when images are compiled" in reply
    run("build", "--model", checkpoint, "--weights", form, *arguments, "--out", tmp_path / "plan")
    plan = codec.load(tmp_path / "plan")
    assert plan == codec.load(tmp_path / "bare")
    linear = 2 * (2 * 4 * 64 * 128 + 2 * 2 * 64 * 128 + 3 * 128 * 256)
    rows = 2 * ((4 + 2 * 2) * 64 + 128 + 2 * 256 + 128)
    scales = linear // int(form.rpartition("g")[2]) if form.startswith("int4") else rows
    vocab = plan.model.vocab_size
    head = vocab * 128 * 4 if form == "fp8" else vocab * (128 + 2)
    others = (vocab * 128 + 5 * 128 + 32) * 4 + head  # embedding, norms, inv_freq
    expected = linear // (2 if form.startswith("int4") else 1) + 2 * scales + others
    assert expected <= plan.memory[0].weights_bytes <= expected + 256 * 40
    assert "clean" in run("check", tmp_path / "plan", tmp_path / "bare")
    slot = run("show", tmp_path / "plan", "--slot", "layers.0.down.scales")
    assert "scales of model.layers.0.mlp.down_proj, rounded to the nearest code" in slot
    assert "of model.layers.0.mlp.down_proj.weight (base)\n    model.safetensors: in another order" in slot
    assert (
        planner.plan(checkpoint, inventory=tmp_path / "inventory.yaml", context=64, max_devices=1, weights=form).plan
        == plan
    )


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("form", "changes", "problem"),
    [
        ("int4-g128", {}, r"--weights int4-g128: .*q_proj: found 64 columns, expected a multiple of group_size 128"),
        ("int4-g32", {"hidden_size": 80}, r"q_proj: found 80 columns, expected a multiple of 32 at 4 bits"),
    ],
)
def test_sizes_that_groups_do_not_divide_are_refused(
    tmp_path: Path, form: RoundedWeights, changes: dict[str, Any], problem: str
) -> None:
    checkpoint = saved(tmp_path / "base", **(SIZES | changes))
    with pytest.raises(ConfigError, match=problem):
        load_base(checkpoint, form)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "mxfp4"])
def test_quantized_weights_are_not_rounded_again(tmp_path: Path, method: str) -> None:
    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, method)
    with pytest.raises(ConfigError, match=r"--weights int8: .*the weights are quantized already: leave --weights out"):
        load_base(coded, "int8")


def test_weights_that_are_no_numbers_end_the_compile(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "base", **SIZES)
    planned(checkpoint, tmp_path / "plan", "fp8", ("a",))
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: found an infinity or NaN at \(3, 5\)"):
        compile_plan(tmp_path / "plan", checkpoint, None)
    assert not (tmp_path / "plan/images.yaml").exists()


def test_a_plan_whose_formats_are_not_those_of_its_option_is_refused(tmp_path: Path) -> None:
    plan = planned(saved(tmp_path / "base", **SIZES), tmp_path / "plan", "int4-g32", ("a",))
    assert not check(plan)
    forged = replace(plan, options=replace(plan.options, weights="int4-g128"))
    assert any("options.weights, int4-g128, says" in str(line) for line in check(forged))
    plain = replace(plan, model=load_base(tmp_path / "base").model)
    assert any("options.weights, int4-g32, says" in str(line) for line in check(plain))
