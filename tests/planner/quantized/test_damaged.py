"""Damaged quantized checkpoints: each is refused by the datum, when it is read or when its bytes are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from planner.errors import InputError
from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from plans import codec
from tests.plan_factory import make_plan, whole_group
from tests.planner.quantized.checkpoints import quantized
from tests.planner.tiny_checkpoints import saved

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
"""Changes tensors and config in place."""
UP = "model.layers.0.mlp.up_proj."
DOWN, KEY = "model.layers.0.mlp.down_proj.", "model.layers.0.self_attn.k_proj."
EXPERTS = "model.layers.0.mlp.experts."


def drop(name: str) -> Change:
    return lambda tensors, config: tensors.pop(name)


def put(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors, config: tensors.update({name: change(tensors[name]).contiguous()})


def setting(**changes: Any) -> Change:
    return lambda tensors, config: config["quantization_config"].update(changes)


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[1] = value
        return tensor

    return change


def biased(value: Tensor) -> Change:
    """Give a layer a bias of 128 times a value, which its config has not."""
    return lambda tensors, config: tensors.update({f"{UP}bias": value.repeat(128)})


DAMAGED: list[tuple[str, Change, str]] = [
    ("gptq", drop(f"{UP}qzeros"), r"up_proj\.qzeros: missing"),
    ("gptq", drop(f"{UP}scales"), r"up_proj\.scales: missing"),
    ("gptq", drop(f"{UP}g_idx"), r"up_proj\.g_idx: missing"),
    ("gptq", put(f"{UP}qweight", lambda t: t[:-1]), r"up_proj\.qweight: found shape \[7, 128\], expected \[8, 128\]"),
    ("gptq", put(f"{UP}qzeros", lambda t: t[:, :-1]), r"up_proj\.qzeros: found shape \[2, 15\], expected \[2, 16\]"),
    ("gptq", put(f"{UP}scales", lambda t: t.t()), r"up_proj\.scales: found shape \[128, 2\]"),
    ("gptq", put(f"{UP}qweight", lambda t: t.long()), r"up_proj\.qweight: found dtype I64, expected I32"),
    ("gptq", put(f"{UP}g_idx", with_one(7)), r"up_proj\.g_idx\[1\]: found group 7, expected 0"),
    ("gptq", put(f"{UP}g_idx", with_one(-1)), r"up_proj\.g_idx\[1\]: found group -1, expected 0"),
    ("gptq", put(f"{UP}g_idx", lambda t: t.fill_(-1)), r"up_proj\.g_idx\[0\]: found group -1, expected 0: config"),
    ("gptq", put(f"{UP}scales", with_one(float("nan"))), r"up_proj\.scales\[0, 1\]: found an infinity or NaN"),
    ("gptq", put(f"{UP}scales", with_one(float("inf"))), r"up_proj\.scales\[0, 1\]: found an infinity or NaN"),
    ("gptq", setting(group_size=64), r"qzeros: found shape"),
    ("gptq", setting(bits=8), r"qweight: found shape"),
    ("gptq", setting(dynamic={"-:.*up_proj": {}}), r"up_proj\.weight: missing"),
    ("gptq", biased(torch.tensor(0.5)), r"up_proj\.bias\[0\]: found another value than 0, expected none: by config"),
    ("gptq", biased(torch.tensor(float("nan")).bfloat16()), r"up_proj\.bias\[0\]: found another value than 0"),
    ("gptq", biased(torch.zeros(2)), r"up_proj\.bias: found shape \[256\], expected \[128\]"),
    ("sorted-gptq", drop(f"{UP}g_idx"), r"up_proj\.g_idx: missing"),
    ("sorted-gptq", put(f"{UP}g_idx", with_one(2)), r"up_proj\.g_idx\[1\]: found group 2, expected 0 to 1"),
    ("sorted-gptq", put(f"{DOWN}g_idx", with_one(-1)), r"down_proj\.g_idx\[1\]: found group -1, expected 0 to 3"),
    ("sorted-gptq", put(f"{DOWN}g_idx", lambda t: t.fill_(-1)), r"down_proj\.g_idx\[0\]: found group -1, expected 0"),
    ("sorted-gptq", put(f"{DOWN}g_idx", torch.zeros_like), r"down_proj\.g_idx: group 0: found 128 columns, "),
    ("sorted-gptq", put(f"{UP}g_idx", lambda t: 1 - t), r"up_proj\.g_idx\[0\]: .*, as .*gate_proj"),
    ("sorted-gptq", put(f"{KEY}g_idx", lambda t: 1 - t), r"k_proj\.g_idx\[0\]: .*, as .*q_proj\.g_idx"),
    ("sorted-gptq", put(f"{UP}g_idx", lambda t: t[1:]), r"up_proj\.g_idx: found shape \[63\], expected \[64\]"),
    ("sorted-gptq", put(f"{UP}g_idx", lambda t: t.float()), r"up_proj\.g_idx: found dtype F32, expected I32"),
    ("sorted-gptq", setting(desc_act=False), r"q_proj\.g_idx\[\d+\]: found group ., expected .: .*does not say"),
    ("sorted-gptq", setting(static_groups=True), r"q_proj\.g_idx\[\d+\]: found group"),
    ("sorted-w8", drop(f"{UP}weight_g_idx"), r"up_proj\.weight_g_idx: missing"),
    ("sorted-w8", put(f"{UP}weight_g_idx", with_one(9)), r"up_proj\.weight_g_idx\[1\]: found group 9, expected 0 to 1"),
    ("auto-round", drop(f"{UP}qzeros"), r"up_proj\.qzeros: missing"),
    ("auto-round", put(f"{UP}qzeros", lambda t: t + 1), r"up_proj\.qzeros: found a zero point of 9, expected 8 of sym"),
    ("auto-round", setting(sym=False, bits=8), r"qweight: found shape"),
    ("auto-round", setting(packing_format="auto_round:auto_awq"), r"found shape \[8, 128\], expected \[64, 16\]"),
    (
        "auto-round",
        lambda tensors, config: tensors.update({f"{UP}g_idx": (torch.arange(64) // 32).flip(0).int()}),
        r"up_proj\.g_idx\[0\]: found group 1, expected 0",
    ),
    ("auto-round", setting(extra_config={"o_proj": {"bits": 8}}), r"extra_config\['o_proj'\]: the model has"),
    ("auto-round", setting(extra_config={UP[:-1]: {"bits": 16}}), r"up_proj\.weight: missing"),
    ("awq", drop(f"{UP}qzeros"), r"up_proj\.qzeros: missing"),
    ("awq", put(f"{UP}qweight", lambda t: t[:, 1:]), r"up_proj\.qweight: found shape \[64, 15\], expected \[64, 16\]"),
    ("awq", put(f"{UP}scales", with_one(float("-inf"))), r"up_proj\.scales\[0, 1\]: found an infinity"),
    ("awq", setting(modules_to_not_convert=["mlp"]), r"proj\.weight: missing"),
    ("awq", setting(group_size=128), r"found 64 columns, expected a multiple of group_size 128"),
    ("w4a16", drop(f"{UP}weight_zero_point"), r"up_proj\.weight_zero_point: missing"),
    ("w4a16", put(f"{UP}weight_packed", lambda t: t[:, :-1]), r"weight_packed: found shape \[128, 7\]"),
    ("w4a16", put(f"{UP}weight_shape", lambda t: t.flip(0)), r"weight_shape: found \[64, 128\], expected \[128, 64\]"),
    ("w4a16", put(f"{UP}weight_shape", lambda t: t.to(torch.int16)), r"weight_shape: found dtype I16, expected I32 or"),
    ("w4a16", put(f"{UP}weight_packed", lambda t: t.view(torch.float32)), r"weight_packed: found dtype F32"),
    ("w4a16", put(f"{UP}weight_zero_point", lambda t: t.t()), r"weight_zero_point: found shape \[1, 16\], exp"),
    ("w4a16", put(f"{UP}weight_scale", lambda t: t[:, :0]), r"weight_scale: found shape \[128, 0\], expected \[128, 1"),
    (
        "w4a16", lambda tensors, config: tensors.update({f"{UP}weight_g_idx": torch.zeros(64, dtype=torch.int32)}),
        r"up_proj\.weight_g_idx: surplus",
    ),
    ("w4a16", lambda tensors, config: tensors.update({f"{UP}weight": torch.zeros(8, 8)}), r"up_proj\.weight: surplus"),
    ("w4a16", put(f"{UP}weight_shape", lambda t: t[:1]), r"weight_shape: found shape \[1\], expected \[2\]"),
    ("w4a16", put(f"{UP}weight_scale", lambda t: t.to(torch.float8_e4m3fn)), r"weight_scale: found dtype F8_E4M3"),
    ("w4a16", put(f"{UP}weight_scale", with_one(float("nan"))), r"weight_scale\[1, 0\]: found an infinity or NaN"),
    ("w4a16", setting(ignore=["re:.*gate$"]), r"lm_head\.weight_scale: missing"),
    ("w4a16", setting(format="marlin-24"), r"format: found 'marlin-24'"),
    ("w8", put(f"{UP}weight", lambda t: t.to(torch.uint8)), r"up_proj\.weight: found dtype U8, expected I8"),
    ("w8", put(f"{UP}weight_scale", lambda t: t[:-1]), r"weight_scale: found shape \[127, 1\]"),
    ("fp8", drop(f"{UP}weight_scale_inv"), r"up_proj\.weight_scale_inv: missing"),
    ("fp8", put(f"{UP}weight_scale_inv", lambda t: t[:, :1]), r"weight_scale_inv: found shape \[4, 1\]"),
    ("fp8", put(f"{UP}weight", with_one(float("nan"))), r"up_proj\.weight\[0, 1\]: found NaN"),
    ("fp8", put(f"{UP}weight_scale_inv", with_one(float("nan"))), r"weight_scale_inv\[0, 1\]: found an inf"),
    ("fp8", setting(weight_block_size=[64, 64]), r"weight_scale_inv: found shape"),
    ("fp8", setting(weight_block_size=None), r"weight_scale_inv: found shape \[4, 2\], expected \[\] or \[1\]"),
    ("mxfp4", drop(f"{EXPERTS}down_proj_scales"), r"down_proj_scales: missing"),
    ("mxfp4", put(f"{EXPERTS}gate_up_proj_blocks", lambda t: t[:, :, :1]), r"gate_up_proj_blocks: found shape"),
    ("mxfp4", put(f"{EXPERTS}gate_up_proj_scales", with_one(255)), r"gate_up_proj_scales: found an exponent of 255"),
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Quantized checkpoints by method."""
    directory = tmp_path_factory.mktemp("quantized")
    made = {}
    for method in dict.fromkeys(method for method, _, _ in DAMAGED):
        family = "gpt_oss" if method == "mxfp4" else "llama"
        own = {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["full_attention"]}
        plain = saved(directory / f"{method}-plain", family, **(SIZES | (own if method == "mxfp4" else {})))
        made[method] = quantized(plain, directory / method, method)[0]
    return made


@pytest.mark.parametrize(
    ("method", "change", "problem"),
    DAMAGED,
    ids=[f"{method}-{number}" for number, (method, _, _) in enumerate(DAMAGED)],
)
def test_damaged_checkpoints_are_refused(
    tmp_path: Path, checkpoints: dict[str, Path], method: str, change: Change, problem: str
) -> None:
    whole = checkpoints[method]
    tensors, config = load_file(whole / "model.safetensors"), json.loads((whole / "config.json").read_text())
    change(tensors, config)
    damaged = tmp_path / "checkpoint"
    damaged.mkdir()
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    (damaged / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=problem) as refused:
        compiled(tmp_path, damaged)
    assert str(refused.value).startswith(str(damaged)), "the path of the checkpoint, of a plan with two"
    assert "\n" not in str(refused.value)
    assert list(tmp_path.rglob("a.safetensors")) == []


def test_whole_ones_are_compiled(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    for method, checkpoint in checkpoints.items():
        (tmp_path / method).mkdir()
        if method.endswith("gptq"):  # AutoGPTQ gives every layer a bias, of zeros where there was none
            tensors = load_file(checkpoint / "model.safetensors")
            for name in [name for name in tensors if name.endswith(".qweight")]:
                bias = torch.full((tensors[name].shape[1],), -0.0, dtype=torch.bfloat16)
                tensors[name.replace("qweight", "bias")] = bias
            save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
        compiled(tmp_path / method, checkpoint)
        assert len(list((tmp_path / method).rglob("a.safetensors"))) == 1


def compiled(directory: Path, checkpoint: Path) -> None:
    base = load_base(checkpoint)
    plan = make_plan(
        base.model,
        [whole_group(base.model, ("a",))],
        inputs=inputs_of(base, None),
    )  # fmt: skip
    (directory / "plan").mkdir()
    (directory / "plan" / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory / "plan", checkpoint, None)
