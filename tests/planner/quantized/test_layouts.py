"""Every layout of a checkpoint becomes the layout of images, bit for bit, in any rows."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from planner.errors import CheckpointError
from planner.quantized import Part, Stored, check, read_recipe
from planner.quantized.codes import Array
from planner.quantized.column_order import sorted_columns
from planner.quantized.converting import Read, rows_of
from planner.quantized.proofs import require_proofs
from plans.ranges import Range
from tests.planner.quantized import checkpoints, images, packers

MODULE = "model.layers.0.mlp.down_proj"
WORDS = {2: torch.int16, 1: torch.uint8}
NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def as_numpy(tensor: Tensor) -> Array:
    """Return a tensor as numpy holds it: floats of 8 and 16 bits as their bits."""
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn):
        bits = tensor.contiguous().view(WORDS[tensor.itemsize]).numpy()
        return bits.view(np.uint16) if tensor.itemsize == 2 else bits
    return tensor.contiguous().numpy()


def reader(tensors: dict[str, Tensor]) -> Read:
    def read(name: str, rows: Range | None) -> Array:
        array = as_numpy(tensors[name.removeprefix(f"{MODULE}.")])
        return array if rows is None else array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)[rows[0] : rows[1]]

    return read


def part_rows(stored: Stored, part: Part, span: Range, tensors: dict[str, Tensor]) -> Array:
    read = reader(tensors)
    require_proofs(stored, read)
    return rows_of(stored, part, span, read, None, sorted_columns(stored, read) if stored.sorts else None)


def stored_as(config: dict[str, Any], out: int, columns: int, scales: torch.dtype) -> Stored:
    recipe = read_recipe(config, "config.json: quantization_config")
    assert recipe is not None
    stored = recipe.stored(MODULE, out, columns, NAMES[scales])
    assert stored is not None
    return check(stored, "config.json")


def image_values(stored: Stored, tensors: dict[str, Tensor], cuts: int = 3) -> Tensor:
    """Convert a layer in several runs of rows; return its values in the image's layout."""
    for name, tensor in tensors.items():
        known = [*stored.tensors.values(), *stored.ignored.values()]
        expected = next(one for one in known if one.name == f"{MODULE}.{name}")
        assert tuple(tensor.shape) in expected.shapes, name

    def whole(part: Part) -> Array:
        rows, width = stored.shape(part)
        edges = sorted({0, rows, *(rows * i // cuts for i in range(cuts))})
        pieces = [part_rows(stored, part, span, tensors) for span in itertools.pairwise(edges)]
        assert all(piece.flags.c_contiguous for piece in pieces)
        array = np.concatenate(pieces)
        assert array.shape == (rows, width)
        return array

    return images.values(stored, whole("codes"), whole("scales"), whole("zeros") if stored.form.zeros else None)


@given(
    seed=st.integers(0, 99),
    bits=st.sampled_from([4, 8]),
    out=st.sampled_from([8, 24, 40]),
    group=st.sampled_from([32, 64, -1]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    version=st.sampled_from(["gptq", "gptq_v2"]),
)
@settings(max_examples=30, deadline=None)
def test_gptq(seed: int, bits: int, out: int, group: int, dtype: torch.dtype, version: str) -> None:
    columns = 128
    codes = packers.Codes.random(seed, out, columns, bits=bits, group=columns if group < 0 else group, dtype=dtype)
    layer = packers.gptq(codes, bits, 1 if version == "gptq" else 0)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": False, "checkpoint_format": version}
    stored = stored_as(config, out, columns, dtype)
    assert torch.equal(image_values(stored, layer.tensors), layer.values)


@pytest.mark.parametrize("bits", [4, 8])
def test_autoround(bits: int) -> None:
    codes = packers.Codes.random(bits, 24, 128, bits=bits, group=64, dtype=torch.float16)
    codes = dataclasses.replace(codes, zeros=torch.full_like(codes.zeros, 1 << (bits - 1)))
    layer = packers.gptq(codes, bits, 1)
    config = {"quant_method": "auto-round", "bits": bits, "group_size": 64, "sym": True}
    stored = stored_as(config, 24, 128, torch.float16)
    assert torch.equal(image_values(stored, layer.tensors), layer.values)
    assert torch.equal(image_values(stored, {k: t for k, t in layer.tensors.items() if k != "g_idx"}), layer.values)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("packing", "less"),
    [("auto_round:auto_gptq", 1), ("auto_round", 0), ("auto_round:gptqmodel", 0), ("auto_round:auto_awq", None)],
)
def test_autoround_with_zero_points(packing: str, less: int | None, bits: int) -> None:
    """``less``: what AutoRound 0.16 subtracts of a zero point; None: it packs as AWQ, which has 4 bits."""
    codes = packers.Codes.random(bits, 24, 128, bits=bits if less is not None else 4, group=32, dtype=torch.float16)
    layer = packers.awq(codes) if less is None else packers.gptq(codes, bits, less)
    config = {"quant_method": "auto-round", "bits": bits, "group_size": 32, "sym": False, "packing_format": packing}
    stored = stored_as(config | ({"bits": 4} if less is None else {}), 24, 128, torch.float16)
    tensors = {name: t for name, t in layer.tensors.items() if name != "g_idx" or packing == "auto_round:gptqmodel"}
    assert torch.equal(image_values(stored, tensors), layer.values)


@given(seed=st.integers(0, 99), out=st.sampled_from([8, 24, 40]), group=st.sampled_from([32, 64, 128]))
@settings(max_examples=15, deadline=None)
def test_awq(seed: int, out: int, group: int) -> None:
    codes = packers.Codes.random(seed, out, 128, bits=4, group=group, dtype=torch.float16)
    layer = packers.awq(codes)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    assert torch.equal(image_values(stored_as(config, out, 128, torch.float16), layer.tensors), layer.values)


@pytest.mark.parametrize(
    ("out", "columns", "block"), [(256, 256, (128, 128)), (200, 328, (128, 128)), (48, 64, (16, 32))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_in_blocks(out: int, columns: int, block: tuple[int, int], dtype: torch.dtype) -> None:
    weight, scales, values = packers.blocks(1, out, columns, rows=block[0], group=block[1], dtype=dtype)
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    stored = stored_as(config, out, columns, dtype)
    assert torch.equal(image_values(stored, {"weight": weight, "weight_scale_inv": scales}), values)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, ("weight_scale", "input_scale")),
        ({"quant_method": "fp8", "activation_scheme": "static"}, ("weight_scale_inv", "activation_scale")),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, ("weight_scale", "input_scale")),
    ],
    ids=["vllm", "transformers", "modelopt"],
)
def test_fp8_per_tensor(config: dict[str, Any], names: tuple[str, str], shape: tuple[int, ...]) -> None:
    """transformers has the names of blocks for a matrix too: those of Mistral's own checkpoints."""
    weight, _, _ = packers.blocks(2, 40, 96, rows=40, group=96, dtype=torch.float32)
    scale = torch.full(shape, 0.0123)
    tensors = {"weight": weight, names[0]: scale, names[1]: torch.full(shape, 1.5)}
    stored = stored_as(config, 40, 96, torch.float32).as_named({f"{MODULE}.{name}" for name in tensors})
    values = image_values(stored, tensors)
    assert torch.equal(values, weight.float() * scale.reshape(()))


@pytest.mark.parametrize("shape", [(40, 1), (40,)])
def test_fp8_per_row(shape: tuple[int, ...]) -> None:
    """FBGEMM's, in which Meta publishes Llama 3.1 405B."""
    weight, scales, values = packers.blocks(3, 40, 96, rows=1, group=96, dtype=torch.float32)
    config = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    tensors = {"weight": weight, "weight_scale": scales.reshape(shape)}
    assert torch.equal(image_values(stored_as(config, 40, 96, torch.float32), tensors), values)


def scheme(weights: dict[str, Any], form: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "group"), [("group", 32), ("group", 64), ("channel", None)])
def test_packed_by_compressed_tensors(bits: int, symmetric: bool, strategy: str, group: int | None) -> None:
    """Their program packs, and its own dequantisation is the reference."""
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group}
    own = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    rng, (out, columns) = torch.Generator().manual_seed(bits), (44, 128)
    count = columns // (group or columns)
    scales = (torch.rand((out, count), generator=rng) * 0.1 + 0.01).to(torch.bfloat16)
    half = 1 << (bits - 1)
    zeros = torch.randint(-half, half, (out, count), generator=rng, dtype=torch.int8)
    source = {"weight": torch.randn((out, columns), generator=rng), "weight_scale": scales}
    tensors = PackedQuantizationCompressor.compress(source | ({} if symmetric else {"weight_zero_point": zeros}), own)
    found = image_values(stored_as(scheme(weights, "pack-quantized"), out, columns, torch.bfloat16), tensors)
    in_float32 = {name: t.float() if name == "weight_scale" else t for name, t in tensors.items()}
    assert torch.equal(found, PackedQuantizationCompressor.decompress(in_float32, own)["weight"])


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_bytes_by_compressed_tensors(kind: str, strategy: str) -> None:
    rng, (out, columns) = torch.Generator().manual_seed(3), (64, 96)
    weights: dict[str, Any] = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": strategy}
    shape: tuple[int, ...] = {"tensor": (1,), "channel": (out, 1), "block": (2, 3)}[strategy]
    if strategy == "block":
        weights["block_structure"] = [32, 32]
    own = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    scales = torch.rand(shape, generator=rng) * 0.02 + 0.01
    source = {"weight": torch.randn((out, columns), generator=rng), "weight_scale": scales}
    tensors = NaiveQuantizationCompressor.compress(source, own)
    form = "int-quantized" if kind == "int" else "float-quantized"
    found = image_values(stored_as(scheme(weights, form), out, columns, torch.float32), tensors)
    assert torch.equal(found, NaiveQuantizationCompressor.decompress(tensors, own)["weight"])


def test_mxfp4_by_transformers() -> None:
    """Its own dequantisation is the reference of the values with which models are compared."""
    layer = checkpoints.mxfp4(torch.randn(3, 96, 20, generator=torch.Generator().manual_seed(2)), 0)
    found = convert_moe_packed_tensors(layer.tensors["_blocks"], layer.tensors["_scales"], dtype=torch.float32)
    assert torch.equal(found, layer.values)


def sorted_layer(seed: int, bits: int, group: int, *, compressed: bool, zeros: bool) -> tuple[Stored, packers.Layer]:
    """Return a layer [24, 256] whose groups have columns anywhere."""
    codes = packers.Codes.random(seed, 24, 256, bits=bits, group=group, dtype=torch.float16, shuffled=True)
    if not compressed:
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": True}
        return stored_as(config, 24, 256, torch.float16), packers.gptq(codes, bits, 1)
    if not zeros:
        codes = dataclasses.replace(codes, zeros=torch.full_like(codes.zeros, 1 << (bits - 1)))
    tensors = {
        "weight_packed": packers.words(codes.codes, bits), "weight_scale": codes.scales,
        "weight_g_idx": codes.of_columns.int(),
    }  # fmt: skip
    if zeros:
        tensors["weight_zero_point"] = packers.words(codes.zeros.t().contiguous(), bits).t().contiguous()
    weights = {
        "num_bits": bits, "type": "int", "symmetric": not zeros, "strategy": "group", "group_size": group,
        "actorder": "group",
    }  # fmt: skip
    stored = stored_as(scheme(weights, "pack-quantized"), 24, 256, torch.float16)
    return stored, packers.Layer(tensors=tensors, values=codes.values)


SORTED = {
    "seed": st.integers(0, 99), "bits": st.sampled_from([4, 8]), "group": st.sampled_from([32, 64, 128]),
    "compressed": st.booleans(), "zeros": st.booleans(),
}  # fmt: skip


@given(cuts=st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True), **SORTED)
@settings(max_examples=30, deadline=None)
def test_columns_of_each_device_are_sorted_by_groups(
    cuts: list[int], seed: int, bits: int, group: int, compressed: bool, zeros: bool
) -> None:
    """Each column of a device is there once, with its values, and no others but those that the input has as 0."""
    stored, layer = sorted_layer(seed, bits, group, compressed=compressed, zeros=zeros)
    ranges = tuple(itertools.pairwise(sorted({0, *(32 * cut for cut in cuts), 256})))
    for share in (None, ranges[::2], ranges[1::2] or None):
        own = dataclasses.replace(stored, share=share)
        columns = torch.cat([torch.arange(*span) for span in share or ((0, 256),)])
        order = torch.from_numpy(part_rows(own, "order", (0, own.held_columns), layer.tensors).copy()).flatten()
        assert sorted(order[order >= 0].tolist()) == list(range(len(columns)))
        filled = min(256, (len(columns) + 31 * 256 // group) // 32 * 32)
        assert own.held_columns == (256 if len(columns) == 256 else filled)
        as_stored = dataclasses.replace(own, form=own.image_form, columns=own.held_columns)
        codes, scales, *points = (part_rows(own, part, (0, 24), layer.tensors) for part in own.parts if part != "order")
        found = images.values(as_stored, codes, scales, points[0] if points else None)
        assert torch.equal(found[:, order >= 0], layer.values[:, columns[order[order >= 0]]])


@given(**SORTED)
@settings(max_examples=10, deadline=None)
def test_columns_that_another_layer_computes_in_their_order(
    seed: int, bits: int, group: int, compressed: bool, zeros: bool
) -> None:
    stored, layer = sorted_layer(seed, bits, group, compressed=compressed, zeros=zeros)
    folded = stored.folded()
    assert "order" not in folded.parts
    groups = layer.tensors["weight_g_idx" if compressed else "g_idx"]
    assert torch.equal(image_values(folded, layer.tensors), layer.values[:, torch.sort(groups, stable=True).indices])


def test_groups_that_compressed_tensors_leaves_open_are_neighbours() -> None:
    codes = packers.Codes.random(0, 24, 256, bits=4, group=64, dtype=torch.float16)
    stored, layer = sorted_layer(0, 4, 64, compressed=True, zeros=True)
    open_groups = layer.tensors | {"weight_g_idx": torch.full((256,), -1, dtype=torch.int32)}
    assert torch.equal(image_values(stored.folded(), open_groups), codes.values)


def test_groups_that_gptq_leaves_open_are_refused() -> None:
    layer = packers.gptq(packers.Codes.random(0, 24, 256, bits=4, group=64, dtype=torch.float16), 4, 1)
    tensors = layer.tensors | {"g_idx": torch.full((256,), -1, dtype=torch.int32)}
    for sorts in (False, True):
        config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": sorts}
        with pytest.raises(CheckpointError, match=r"g_idx\[0\]: found group -1, expected 0"):
            image_values(stored_as(config, 24, 256, torch.float16), tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_refused(value: float) -> None:
    weight, scales, _ = packers.blocks(1, 64, 64, rows=32, group=32, dtype=torch.bfloat16)
    scales[1, 0] = value
    stored = stored_as({"quant_method": "fp8", "weight_block_size": [32, 32]}, 64, 64, torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"weight_scale_inv\[1, 0\]: found an infinity"):
        image_values(stored, {"weight": weight, "weight_scale_inv": scales})
