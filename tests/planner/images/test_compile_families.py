"""Compiling checkpoints of every family: each slot equals the slice that torch takes of transformers' tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from planner.checkpoints.checkpoint import SINGLE
from planner.costs import memory
from planner.families import BaseInput, inputs_of, load_base, within
from planner.images import blocks
from planner.images.compile import compile_plan
from plans import codec, slot_bytes, slots, weights
from plans.schema import DType, Plan, Run
from plans.step import layer_class
from tests.plan_factory import Group, make_plan
from tests.planner.tiny_checkpoints import CLASSES, saved, saved_wrapper, tensors_by_role

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {"num_hidden_layers": 2}) for family in CLASSES),
    ("qwen3", {"num_hidden_layers": 2, "attention_bias": True, "head_dim": 6}),
    ("qwen3_moe", {"num_hidden_layers": 4, "mlp_only_layers": [2], "attention_bias": True}),
    ("mixtral", {"num_hidden_layers": 1, "num_local_experts": 3, "intermediate_size": 40}),
]


def two_devices(base: BaseInput, units_of_first: int, dtype: DType = "float32") -> Plan:
    """Plan a pair of devices with one KV head each; the first has ``units_of_first`` units of each MLP, at most all."""
    runs, model = [], within(base.model, 32)
    for layers in model.layers:
        units = layers.mlp.units
        first = min(units_of_first, units)
        runs.append(Run(num_layers=layers.num_layers, kv_heads=(1, 1), mlp_units=(first, units - first)))
    groups = [Group(devices=("a", "b"), runs=tuple(runs))]
    return make_plan(model, groups, inputs=inputs_of(base, None), context=32, dtype=dtype)


@pytest.mark.parametrize("units", [0, 1, 1000])
@pytest.mark.parametrize(("family", "changes"), CASES, ids=[f"{family}-{len(c)}" for family, c in CASES])
def test_slots_are_slices_of_the_checkpoint(tmp_path: Path, family: str, changes: dict[str, Any], units: int) -> None:
    checkpoint = saved(tmp_path / "base", family, **changes)
    base = load_base(checkpoint)
    plan = two_devices(base, units)
    directory = tmp_path / "plan"
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, checkpoint, None)
    tensors = tensors_by_role(base)
    for member, device in enumerate("ab"):
        expected = slots_of_member(plan, member, tensors)
        with safe_open(directory / f"{device}.safetensors", framework="pt") as image:
            names = {name for name in image.keys() if not name.startswith("_pad.")}  # noqa: SIM118 - not a mapping
            assert {name for name in names if name.startswith("layers.")} == set(expected)
            for name, tensor in expected.items():
                assert torch.equal(image.get_tensor(name), tensor), name
        held = sum(item.nbytes for item in weights.held(plan) if item.device == device)
        assert held == sum(spec.nbytes for spec in slots.device_slots(plan, device)), "what a new plan need not move"


@pytest.mark.parametrize("nbytes", [1000, 100])
def test_small_blocks_give_the_same_bytes_of_transposed_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    """With blocks of 100 bytes not even a column is read at once; the dtype is another than that of the checkpoint."""
    checkpoint = saved(tmp_path / "base", "gpt_oss", hidden_size=40, num_hidden_layers=1)
    base = load_base(checkpoint)
    plan, images = two_devices(base, 2, "bfloat16"), []
    for number in range(2):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        (directory / "plan.yaml").write_text(codec.dumps(plan))
        compile_plan(directory, checkpoint, None)
        images.append([(directory / f"{device}.safetensors").read_bytes() for device in "ab"])
        monkeypatch.setattr(blocks, "BLOCK_BYTES", nbytes)
    assert images[0] == images[1]


def test_packed_experts_in_either_order_of_axes_give_the_same_bytes(tmp_path: Path) -> None:
    """As transformers writes Qwen3-VL's experts, and transposed, as they are published."""
    checkpoint, images = saved_wrapper(tmp_path / "base", "qwen3_vl_moe"), []
    stored = load_file(checkpoint / SINGLE)
    plan = two_devices(load_base(checkpoint), 1)
    for number in range(2):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        (directory / "plan.yaml").write_text(codec.dumps(plan))
        compile_plan(directory, checkpoint, None)
        images.append([(directory / f"{device}.safetensors").read_bytes() for device in "ab"])
        turned = {name: t.mT.contiguous() if t.dim() == 3 and ".experts." in name else t for name, t in stored.items()}
        save_file(turned, checkpoint / SINGLE)
    assert images[0] == images[1]
    assert load_base(checkpoint).roles["layers.0.experts.1.up.weight"].shape == (4, 16, 24)


def slots_of_member(plan: Plan, member: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute with torch the slots of all layers on one member of the pair, from tensors by role."""
    slots: dict[str, torch.Tensor] = {}
    layer = 0
    for run in plan.stages[0].runs:
        for _ in range(run.num_layers):
            prefix = f"layers.{layer}."
            roles = {role.removeprefix(prefix): t for role, t in tensors.items() if role.startswith(prefix)}
            mine = attention_slots(plan, layer, member, roles) | mlp_slots(plan, layer, member, run, roles)
            slots |= {f"layers.{layer}.{name}": tensor for name, tensor in mine.items()}
            layer += 1
    return slots


def in_halves(tensor: torch.Tensor, plan: Plan, layer: int, dim: int) -> torch.Tensor:
    """Order the rows of each head so that rotary pairs are halves apart, as images have them."""
    table = next((table for table in plan.model.rotary or () if layer in table.layers), None)
    if table is None:
        return tensor
    heads = tensor.unflatten(0, (-1, dim))
    rotated, passed = heads[:, : table.channels], heads[:, table.channels :].chunk(2, 1)
    first, second = (rotated[:, 0::2], rotated[:, 1::2]) if table.interleaved else rotated.chunk(2, 1)
    return torch.cat([first, passed[0], second, passed[-1] if len(passed) > 1 else passed[0][:, :0]], 1).flatten(0, 1)


def attention_slots(plan: Plan, layer: int, member: int, roles: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    attention = layer_class(plan.model, layer).attention
    group, dim = attention.num_heads // attention.num_kv_heads, attention.head_dim
    kv = slice(member * dim, (member + 1) * dim)
    q = slice(member * group * dim, (member + 1) * group * dim)
    norms = ("attention_norm", "mlp_norm", "attention_output_norm", "mlp_output_norm")
    slots = {f"{name}.weight": roles[f"{name}.weight"] for name in norms if f"{name}.weight" in roles}
    for kind in ("weight", "bias") if attention.qkv_bias else ("weight",):
        turned = [in_halves(roles[f"{name}.{kind}"][span], plan, layer, dim) for name, span in (("q", q), ("k", kv))]
        slots[f"qkv.{kind}"] = torch.cat([*turned, roles[f"v.{kind}"][kv]])
    slots["o.weight"] = roles["o.weight"][:, q]
    if attention.o_bias and member == 0:
        slots["o.bias"] = roles["o.bias"]
    if attention.sinks:
        slots["sinks"] = roles["sinks"][member * group : (member + 1) * group]
    if attention.qk_norm:
        spans = (q, kv) if attention.qk_norm_whole else (slice(None), slice(None))
        names = ("q_norm.weight", "k_norm.weight")
        slots |= {name: in_halves(roles[name][span], plan, layer, dim) for name, span in zip(names, spans, strict=True)}
    return slots


def mlp_slots(plan: Plan, layer: int, member: int, run: Run, roles: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mlp = layer_class(plan.model, layer).mlp
    start = sum(run.mlp_units[:member]) * mlp.unit
    span = slice(start, start + run.mlp_units[member] * mlp.unit)
    whole = ("router.weight", "router.bias", "router.correction", "shared_gate.weight")
    slots = {name: roles[name].flatten() if "correction" in name else roles[name] for name in whole if name in roles}
    experts = range(mlp.num_experts)
    if mlp.kind == "moe" and mlp.bias and member == 0:
        slots["down.bias"] = torch.stack([roles[f"experts.{e}.down.bias"] for e in experts])
    if span.start == span.stop:
        return slots
    if mlp.kind == "gated":
        slots["gate_up.weight"] = torch.cat([roles["gate.weight"][span], roles["up.weight"][span]])
        slots["down.weight"] = roles["down.weight"][:, span]
        return slots
    if mlp.shared_size is not None:
        ratio = mlp.shared_size // mlp.units
        of_shared = slice(start // mlp.unit * ratio, span.stop // mlp.unit * ratio)
        halves = [roles[f"shared.{name}.weight"][of_shared] for name in ("gate", "up")]
        slots["shared.gate_up.weight"] = torch.cat(halves)
        slots["shared.down.weight"] = roles["shared.down.weight"][:, of_shared]
    gate, up, down = (
        torch.stack([roles[f"experts.{e}.{name}.weight"] for e in experts]) for name in ("gate", "up", "down")
    )
    if mlp.bias:
        biases = [[roles[f"experts.{e}.{name}.bias"][span] for name in ("gate", "up")] for e in experts]
        slots["gate_up.bias"] = torch.stack([torch.cat(halves) for halves in biases])
    slots["gate_up.weight"] = torch.cat([gate[:, span], up[:, span]], 1)
    slots["down.weight"] = down[:, :, span]
    return slots


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_bounds_of_expert_bytes_hold(tmp_path: Path, family: str, dtype: Any) -> None:
    base = load_base(
        saved(tmp_path, family, **({"mlp_only_layers": [0]} if family == "qwen3_moe" else {})) / "config.json"
    )
    for layers in base.model.layers:
        for leader in (True, False):
            bound = memory.layer_mlp(base.model, dtype, layers, leader)
            for units in range(layers.mlp.units + 1):
                exact = slot_bytes.mlp_bytes(base.model, dtype, layers, units, leader)
                assert exact <= bound.fixed + bound.slope * units <= exact + 4 * 256
