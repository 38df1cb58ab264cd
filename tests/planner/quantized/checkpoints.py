"""Saved tiny models whose linear layers are quantized, each with the checkpoint of its values in float32 beside it."""

import json
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import Plan
from tests.plan_factory import group, make_plan
from tests.planner.quantized import packers
from tests.planner.quantized.packers import Codes, Layer

LINEAR = re.compile(
    r"model\.layers\.\d+\.(self_attn|mlp|block_sparse_moe)\.(?!(?:gate|router|shared_expert_gate)\.weight).*\.weight"
)
"""Weights that every quantizer here changes: linear layers but routers; norms are vectors."""

Pack = Callable[[Tensor, int], Layer]
"""Returns a layer of the shape of a weight; the number differs by input of a layer."""


INPUTS = [(re.compile(r"(?:q|k|v)_proj"), "qkv"), (re.compile(r"(?:gate|up)_proj|w1|w3"), "gate_up")]
"""Names of layers that have one input, and what they are together."""


def input_of(module: str) -> int:
    """Return a number that layers with the same input have in common."""
    for expression, name in INPUTS:
        module = expression.sub(name, module)
    return zlib.crc32(module.encode())


def near(weight: Tensor, seed: int, bits: int, group: int | None, dtype: torch.dtype, *, zeros: bool = True) -> Codes:
    """Round a weight to codes of groups."""
    out, columns = weight.shape
    size = group or columns
    blocks = weight.float().view(out, -1, size)
    scales = ((blocks.amax(2) - blocks.amin(2)).clamp(min=1e-3) / ((1 << bits) - 2)).to(dtype)
    half = 1 << (bits - 1)
    points = (
        (half - (blocks.amax(2) + blocks.amin(2)) / 2 / scales.float()).round()
        if zeros
        else torch.full_like(scales, half)
    )
    points = points.int().clamp(1, (1 << bits) - 1)
    codes = ((blocks / scales.float().unsqueeze(2)).round().int() + points.unsqueeze(2)).clamp(0, (1 << bits) - 1)
    return Codes(codes=codes.view(out, columns), zeros=points, scales=scales, group=size)


def gptq(weight: Tensor, seed: int) -> Layer:
    return packers.gptq(near(weight, seed, 4, 32, torch.float16), 4, 1)


def sorted_gptq(weight: Tensor, seed: int) -> Layer:
    """GPTQ with columns of a group anywhere."""
    return packers.gptq(shuffled(near(weight, seed, 4, 32, torch.float16), seed), 4, 1)


def shuffled(codes: Codes, seed: int) -> Codes:
    """Give the groups of codes other columns."""
    return replace(codes, groups=packers.shuffled_groups(seed, codes.codes.shape[1], codes.group))


def sorted_w8(weight: Tensor, seed: int) -> Layer:
    """compressed-tensors W8A16, groups of 32, symmetric, with columns of a group anywhere."""
    codes = shuffled(near(weight, seed, 8, 32, torch.bfloat16, zeros=False), seed)
    tensors = {
        "weight_packed": packers.words(codes.codes, 8), "weight_scale": codes.scales,
        "weight_shape": torch.tensor(weight.shape), "weight_g_idx": codes.of_columns.int(),
    }  # fmt: skip
    return Layer(tensors=tensors, values=codes.values)


def autoround(weight: Tensor, seed: int) -> Layer:
    """AutoRound, symmetric: as GPTQ, but without groups of columns."""
    layer = packers.gptq(near(weight, seed, 4, 32, torch.float16, zeros=False), 4, 1)
    return Layer(tensors={k: t for k, t in layer.tensors.items() if k != "g_idx"}, values=layer.values)


def awq(weight: Tensor, seed: int) -> Layer:
    return packers.awq(near(weight, seed, 4, 32, torch.float16))


def packed(weight: Tensor, seed: int) -> Layer:
    """compressed-tensors W4A16, groups of 64, asymmetric."""
    codes = near(weight, seed, 4, 64 if weight.shape[1] % 64 == 0 else 32, torch.bfloat16)
    tensors = {
        "weight_packed": packers.words(codes.codes, 4),
        "weight_scale": codes.scales,
        "weight_zero_point": packers.words(codes.zeros.t().contiguous(), 4).t().contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return Layer(tensors=tensors, values=codes.values)


def int8(weight: Tensor, seed: int) -> Layer:
    """compressed-tensors W8, a scale per row."""
    codes = near(weight, seed, 8, None, torch.float32, zeros=False)
    tensors = {"weight": (codes.codes - 128).to(torch.int8), "weight_scale": codes.scales}
    return Layer(tensors=tensors, values=codes.values)


def fp8(weight: Tensor, seed: int) -> Layer:
    """FP8 in blocks of 32 x 32."""
    out, columns = weight.shape
    padded = torch.zeros(-(-out // 32) * 32, -(-columns // 32) * 32)
    padded[:out, :columns] = weight.float()
    tiles = padded.view(padded.shape[0] // 32, 32, -1, 32)
    scales = tiles.abs().amax((1, 3)).clamp(min=1e-4) / 440
    whole = scales.repeat_interleave(32, 0)[:out].repeat_interleave(32, 1)[:, :columns]
    codes = (weight.float() / whole).to(torch.float8_e4m3fn)
    return Layer(tensors={"weight": codes, "weight_scale_inv": scales}, values=codes.float() * whole)


def mxfp4(weight: Tensor, seed: int) -> Layer:
    """MXFP4 of experts' weights [E, in, out]: blocks [E, out, groups, 16] and exponents [E, out, groups]."""
    rows = weight.float().transpose(1, 2)  # [E, out, in]
    groups = rows.unflatten(2, (-1, 32))
    exponents = (groups.abs().amax(3).clamp(min=1e-6) / 6).log2().ceil().int()
    scaled = groups / torch.exp2(exponents.float()).unsqueeze(3)
    codes = (scaled.abs().unsqueeze(4) - torch.tensor(packers.FLOAT4)).abs().argmin(4)
    codes = codes + 8 * (scaled < 0)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    magnitudes = torch.tensor(packers.FLOAT4)[codes & 7] * torch.where(codes > 7, -1.0, 1.0)
    values = (magnitudes * torch.exp2(exponents.float()).unsqueeze(3)).flatten(2).transpose(1, 2)
    return Layer(tensors={"_blocks": blocks, "_scales": (exponents + 127).to(torch.uint8)}, values=values)


def scheme(weights: dict[str, Any], form: str) -> dict[str, Any]:
    """Return the config of compressed-tensors with one scheme for all linear layers but lm_head and routers."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head", "re:.*gate$"],
    }  # fmt: skip


W4 = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64}
W8_SORTED = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "actorder": "group",
}  # fmt: skip
W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}

METHODS: dict[str, tuple[Pack, dict[str, Any]]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}),
    "sorted-gptq": (
        sorted_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True}
    ),
    "sorted-w8": (sorted_w8, scheme(W8_SORTED, "pack-quantized")),
    "auto-round": (
        autoround,
        {
            "quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "data_type": "int", "iters": 200,
            "packing_format": "auto_round:auto_gptq", "extra_config": {"lm_head": {"bits": 16, "data_type": "float"}},
        },
    ),
    "awq": (
        awq,
        {
            "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["gate"],
        },
    ),
    "w4a16": (packed, scheme(W4, "pack-quantized")),
    "w8": (int8, scheme(W8, "int-quantized")),
    "mxfp4": (mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["gate"]}),
}  # fmt: skip


def w4_plain(weight: Tensor, seed: int) -> Layer:
    """compressed-tensors W4A16, groups of 32, symmetric."""
    codes = near(weight, seed, 4, 32, torch.bfloat16, zeros=False)
    tensors = {"weight_packed": packers.words(codes.codes, 4), "weight_scale": codes.scales}
    return Layer(tensors=tensors, values=codes.values)


def gptq8(weight: Tensor, seed: int) -> Layer:
    return packers.gptq(near(weight, seed, 8, 32, torch.float16), 8, 1)


def sorted_w4(weight: Tensor, seed: int) -> Layer:
    """compressed-tensors W4A16, groups of 32, symmetric, with columns of a group anywhere, by the input alone."""
    codes = shuffled(near(weight, seed, 4, 32, torch.bfloat16, zeros=False), seed + 1)
    tensors = {
        "weight_packed": packers.words(codes.codes, 4), "weight_scale": codes.scales,
        "weight_g_idx": codes.of_columns.int(),
    }  # fmt: skip
    return Layer(tensors=tensors, values=codes.values)


def groups_of(groups: dict[str, dict[str, Any]], ignore: list[str]) -> dict[str, Any]:
    """Return the config of compressed-tensors with a scheme for each expression, as llm-compressor's recipes have."""
    named = {
        f"group_{number}": {
            "targets": [f"re:{target}"], "weights": weights, "input_activations": None,
            "output_activations": None, "format": "int-quantized" if "group_size" not in weights else "pack-quantized",
        }
        for number, (target, weights) in enumerate(groups.items())
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
        "config_groups": named, "ignore": ["lm_head", *ignore],
    }  # fmt: skip


W4_PLAIN = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
MIXED: dict[str, tuple[dict[str, Pack | None], dict[str, Any]]] = {
    "v and down in 8 bits": (
        {"v_proj|down_proj|up_proj": int8, ".*": w4_plain},
        groups_of({".*(q|k|o|gate)_proj$": W4_PLAIN, ".*(v|down|up)_proj$": W8}, []),
    ),
    "k, v and gate plain": (
        {"k_proj|v_proj|gate_proj": None, ".*": w4_plain},
        groups_of({".*(q|o|up|down)_proj$": W4_PLAIN}, ["re:.*(k|v|gate)_proj$"]),
    ),
    "orders of their own": (
        {"v_proj|up_proj": sorted_w8, "q_proj|k_proj|gate_proj": sorted_w4, ".*": w4_plain},
        groups_of(
            {
                ".*(q|k|gate)_proj$": W4_PLAIN | {"actorder": "group"}, ".*(v|up)_proj$": W8_SORTED,
                ".*(o|down)_proj$": W4_PLAIN,
            },
            [],
        ),
    ),
    "dynamic of GPTQModel": (
        {"v_proj|gate_proj": gptq8, "k_proj": None, ".*": gptq},
        {
            "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False, "lm_head": False,
            "dynamic": {r"-:.*\.k_proj": {}, r"+:.*\.(v|gate)_proj": {"bits": 8}},
        },
    ),
}  # fmt: skip
"""Packs of layers by the first expression that is found in their names, None: plain; and the config that says so."""


def mixed(checkpoint: Path, target: Path, recipe: str) -> tuple[Path, Path]:
    """Write a saved model of several formats, and its values in float32; return both directories."""
    packs, settings = MIXED[recipe]

    def pack_of(module: str) -> Pack | None:
        return next(pack for expression, pack in packs.items() if re.search(expression, module))

    return written(checkpoint, target, pack_of, settings)


def quantized(checkpoint: Path, target: Path, method: str, *, head: bool = False) -> tuple[Path, Path]:
    """Write a saved model quantized, and its values in float32; return both directories.

    ``head``: its lm_head too, by gptq or compressed-tensors.
    """
    pack, settings = METHODS[method]
    if head:
        settings = settings | ({"lm_head": True} if method.endswith("gptq") else {"ignore": ["re:.*gate$"]})
    return written(checkpoint, target, lambda module: pack, settings, head=head)


def written(
    checkpoint: Path,
    target: Path,
    pack_of: Callable[[str], Pack | None],
    settings: dict[str, Any],
    *,
    head: bool = False,
) -> tuple[Path, Path]:
    """Write a saved model quantized by the packs of its layers, and its values in float32; return both directories."""
    method = settings["quant_method"]
    coded, exact = target / "coded", target / "exact"
    for directory in (coded, exact):
        shutil.copytree(checkpoint, directory)
    tensors, stored = load_file(checkpoint / "model.safetensors"), dict[str, Tensor]()
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        pack = pack_of(name)
        if method == "mxfp4" and pack is not None and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            layer = pack(tensor, number)
            stored |= {name + part: t.contiguous() for part, t in layer.tensors.items()}
            tensors[name] = layer.values
            continue
        is_linear = LINEAR.fullmatch(name) is not None or (head and name == "lm_head.weight")
        if method == "mxfp4" or pack is None or not is_linear or tensor.dim() != 2:
            stored[name] = tensor
            continue
        module = name.removesuffix(".weight")
        layer = pack(tensor, input_of(module))
        stored |= {f"{module}.{part}": t.contiguous() for part, t in layer.tensors.items()}
        tensors[name] = layer.values
    save_file(stored, coded / "model.safetensors", metadata={"format": "pt"})
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, exact / "model.safetensors", metadata={"format": "pt"}
    )
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return coded, exact


GROUPS = {"int8": None, "int4-g128": 128, "int4-g32": 32, "fp8": None}
LARGEST = {"int8": 127.5, "int4-g128": 7.5, "int4-g32": 7.5, "fp8": 448.0}


def nearest(weight: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Round a weight [.., in] to the nearest codes; return these and scales [.., groups] in bfloat16."""
    rows = weight.float().unflatten(-1, (-1, GROUPS[form] or weight.shape[-1]))
    scales = (rows.abs().amax(-1) / LARGEST[form]).bfloat16()
    scales[scales == 0] = torch.finfo(torch.float32).eps
    scaled = rows / scales.float().unsqueeze(-1)
    if form == "fp8":
        return scaled.to(torch.float8_e4m3fn).flatten(-2), scales
    half = 128 if form == "int8" else 8
    return scaled.round().clamp(-half, half - 1).int().flatten(-2), scales


def near_values(weight: Tensor, form: str) -> Tensor:
    """Return the values of those codes in float32."""
    codes, scales = nearest(weight, form)
    return codes.float() * scales.float().repeat_interleave(codes.shape[-1] // scales.shape[-1], -1)


def dequantised(checkpoint: Path, target: Path, form: str) -> Path:
    """Write a saved model with the values of its rounded layers in float32; return the directory."""
    shutil.copytree(checkpoint, target)
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    for name, tensor in tensors.items():
        if name == head and form != "fp8":
            tensors[name] = near_values(tensor, "int8")
        elif name.endswith(("experts.gate_up_proj", "experts.down_proj")):  # [E, in, out]
            tensors[name] = near_values(tensor.transpose(1, 2), form).transpose(1, 2).contiguous()
        elif LINEAR.fullmatch(name) and tensor.dim() == 2:
            tensors[name] = near_values(tensor, form)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def compiled(checkpoint: Path, directory: Path) -> Plan:
    """Compile a plan of two devices, each of which has a part of every layer."""
    base = load_base(checkpoint)
    plan = make_plan(base.model, [group(base.model, ["a", "b"], 2)], inputs=inputs_of(base, None), dtype="float32")
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, checkpoint, None)
    return plan
