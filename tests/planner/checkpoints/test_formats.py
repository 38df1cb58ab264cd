"""Checkpoints in forms that are not read: each is refused by the name of its format, never planned as if it were BF16.
Those that are read: tests/planner/quantized.

Keys, files and names of tensors are those that the quantizers write (AutoAWQ, GPTQModel, ModelOpt, llm-compressor,
bitsandbytes, mlx-lm, exllama).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from planner.checkpoints.checkpoint import SINGLE, read_checkpoint
from planner.checkpoints.formats import BEFORE_QUANTIZATION
from planner.errors import CheckpointError, ConfigError
from planner.families import load_base
from tests.planner.tiny_checkpoints import SMALL, bare, refused, saved

LLAMA = SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}

CONFIGS: list[tuple[dict[str, Any], str]] = [
    (
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
        "quantization_config: found ModelOpt, NVFP4",
    ),
    (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantization_config: found bitsandbytes",
    ),
    ({"quantization_config": {"quant_method": "quark"}}, "quantization_config: found 'quark'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config: found {'bits': 4}"),
    ({"quantization": {"group_size": 64, "bits": 4}}, "quantization: found MLX, 4 bits"),
]


@pytest.mark.parametrize(("keys", "message"), CONFIGS, ids=[message for _, message in CONFIGS])
def test_a_config_of_quantized_weights_is_refused_by_their_format(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path, LLAMA | keys)
    assert refused(ConfigError, lambda: load_base(file)) == f"{file}: {message}: {BEFORE_QUANTIZATION}"


SIDE_FILES = [
    (
        "hf_quant_config.json",
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}},
        "ModelOpt, NVFP4",
    ),
    ("hf_quant_config.json", {}, "ModelOpt"),
    ("quant_config.json", {"w_bit": 4, "q_group_size": 128}, "AWQ"),
    ("quantize_config.json", {"bits": 4, "desc_act": False}, "GPTQ"),
]


@pytest.mark.parametrize(("name", "content", "form"), SIDE_FILES)
def test_a_file_beside_a_config_that_does_not_say_so_tells_quantized_weights(
    tmp_path: Path, name: str, content: dict[str, Any], form: str
) -> None:
    config = bare(tmp_path, LLAMA)
    load_base(config)
    (tmp_path / name).write_text(json.dumps(content))
    message = f"{tmp_path / name}: found weights in {form}: {BEFORE_QUANTIZATION}"
    for path in (tmp_path, config):
        assert refused(CheckpointError, lambda path=path: load_base(path)) == message  # type: ignore[misc]
    other = tmp_path / "other.json"  # not the config that the file is about
    other.write_text(json.dumps(LLAMA))
    load_base(other)


NULL = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}


@pytest.mark.parametrize("beside", [True, False])
def test_an_algorithm_that_modelopt_leaves_null_means_plain_weights(tmp_path: Path, beside: bool) -> None:
    """Scales of its KV cache may be there, and no codes of weights."""
    directory = saved(tmp_path / "base", "llama")
    model = load_base(directory).model
    producer, file = {"name": "modelopt"}, directory / "config.json"
    if beside:
        (directory / "hf_quant_config.json").write_text(json.dumps({"producer": producer, "quantization": NULL}))
    else:
        quantizer = {"quant_method": "modelopt", "producer": producer} | NULL
        file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quantizer}))
    assert load_base(directory).model == model
    weights = directory / "model.safetensors"
    plain = load_file(weights)
    scale = {"model.layers.0.self_attn.k_proj.k_scale": torch.ones(1)}
    save_file(plain | scale, weights)
    assert load_base(directory).model == model
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(plain | {name: plain[name].to(torch.float8_e4m3fn)}, weights)
    assert "found dtype F8_E4M3, which is FP8" in refused(CheckpointError, lambda: load_base(directory))


@pytest.mark.parametrize("ignore", [["re:.*"], ["lm_head", "re:.*self_attn.*"], ["lm_head"]])
def test_scales_of_a_kv_cache_may_be_beside_plain_and_quantized_attention(tmp_path: Path, ignore: list[str]) -> None:
    """One of all, or one of each head; of a cache alone, of which compressed-tensors says so."""
    weights, cache = {"num_bits": 8, "type": "int", "strategy": "channel"}, {"num_bits": 8, "type": "float"}
    group = {"targets": ["Linear"], "weights": None if ignore == ["re:.*"] else weights}
    directory = saved(tmp_path / "base", "llama")
    file, weights_file = directory / "config.json", directory / "model.safetensors"
    settings = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group},
        "ignore": ignore, "kv_cache_scheme": cache,
    }  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    model, tensors = load_base(bare_copy(tmp_path / "bare", file)).model, load_file(weights_file)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        if group["weights"] is not None and ("mlp" in name or "re:.*self_attn.*" not in ignore):
            tensors[name] = tensors[name].to(torch.int8)
            tensors[name.replace(".weight", ".weight_scale")] = torch.ones(tensors[name].shape[0], 1).bfloat16()
    heads = model.layers[0].attention.num_kv_heads
    for shape in ((), (1,), (heads, 1, 1)):
        scales = {f"model.layers.0.self_attn.{name}_scale": torch.ones(shape) for name in ("k", "v")}
        save_file(tensors | scales, weights_file)
        assert load_base(directory).model.num_layers == model.num_layers
    save_file(tensors | {"model.layers.0.self_attn.k_scale": torch.ones(heads + 1)}, weights_file)
    problem = refused(CheckpointError, lambda: load_base(directory))
    assert f"self_attn.k_scale: found shape [{heads + 1}], expected [1] by config.json" in problem


@pytest.mark.parametrize("names", ["self_attn.kv", "self_attn.k_proj.output", "self_attn.v_proj.v"])
def test_scales_of_a_kv_cache_may_be_beside_fp8(tmp_path: Path, names: str) -> None:
    """By the names of AutoFP8 and of AMD, whose config has a ``kv_cache_scheme``."""
    directory = saved(tmp_path / "base", "llama")
    file, weights_file = directory / "config.json", directory / "model.safetensors"
    settings = {
        "quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"],
        "kv_cache_scheme": "static",
    }  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    tensors = load_file(weights_file)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors |= {name.replace(".weight", f".{kind}_scale"): torch.ones(1) for kind in ("weight", "input")}
    save_file(tensors | {f"model.layers.0.{names}_scale": torch.ones(1)}, weights_file)
    form = load_base(directory).model.layers[0].attention.o_format
    assert form is not None
    assert form.code == "float8_e4m3fn"


def bare_copy(directory: Path, file: Path) -> Path:
    """Copy a config to a directory without weights; return its file."""
    return bare(directory, json.loads(file.read_text()))


def linear(suffixes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.layers.0.self_attn.q_proj.{suffix}": tensor for suffix, tensor in suffixes.items()}


INTS, HALVES = torch.zeros(16, 2, dtype=torch.int32), torch.ones(1, 16, dtype=torch.float16)

TENSORS: list[tuple[dict[str, torch.Tensor], str]] = [
    (linear({"qweight": INTS, "qzeros": INTS, "scales": HALVES}), "q_proj.qweight: found AWQ or GPTQ"),
    (
        linear({"qweight": INTS, "qzeros": INTS, "scales": HALVES, "g_idx": INTS[:, 0]}),
        "q_proj.g_idx: found GPTQ",
    ),
    (
        linear({"weight_packed": INTS, "weight_scale": HALVES, "weight_shape": INTS[0]}),
        "q_proj.weight_packed: found compressed-tensors",
    ),
    (
        linear({"weight": torch.zeros(16, 16).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)}),
        "q_proj.weight_scale_inv: found FP8 in blocks",
    ),
    (
        linear(
            {"weight": torch.zeros(16, 8, dtype=torch.uint8), "weight_scale": HALVES, "weight_scale_2": HALVES[0, 0]}
        ),
        "q_proj.weight_scale_2: found ModelOpt NVFP4",
    ),
    (
        linear({"weight": torch.zeros(16, 16, dtype=torch.int8), "weight_scale": HALVES}),
        "q_proj.weight_scale: found weights with scales (FP8 or INT8)",
    ),
    (
        linear({"weight": torch.zeros(128, 1, dtype=torch.uint8), "weight.quant_state.bitsandbytes__nf4": INTS}),
        "q_proj.weight.quant_state.bitsandbytes__nf4: found bitsandbytes",
    ),
    (
        {"model.layers.0.mlp.experts.gate_up_proj_blocks": torch.zeros(2, 8, 1, 16, dtype=torch.uint8)},
        "experts.gate_up_proj_blocks: found MXFP4",
    ),
    (
        linear({"weight": torch.zeros(16, 16).to(torch.float8_e4m3fn)}),
        "q_proj.weight: found dtype F8_E4M3, which is FP8",
    ),
    (linear({"weight": torch.zeros(16, 2, dtype=torch.uint32)}), "q_proj.weight: found dtype U32, which is MLX"),
]


@pytest.mark.parametrize(("tensors", "message"), TENSORS, ids=[message for _, message in TENSORS])
def test_tensors_tell_quantized_weights_that_no_file_tells(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    where = saved(tmp_path)
    whole = load_file(where / SINGLE)
    del whole["model.layers.0.self_attn.q_proj.weight"]
    save_file(whole | {name: tensor.clone() for name, tensor in tensors.items()}, where / SINGLE)
    text = refused(CheckpointError, lambda: load_base(where))
    assert text.startswith(f"{where}: model.layers.0.")
    assert text.endswith(f"{message}: {BEFORE_QUANTIZATION}")


FILES = [
    (("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter (adapter_config.json)", "merge it"),
    (("model-q4_k_m.gguf", "model-q8_0.gguf"), "GGUF (model-q4_k_m.gguf and 1 more)", "give the model's repository"),
    (("params.json", "consolidated.safetensors"), "weights in Mistral's own layout (consolidated.safetensors)", "give"),
    (("params.json", "consolidated.00.pth"), "weights in Meta's own layout (consolidated.00.pth)", "give"),
    (("tf_model.h5",), "weights of TensorFlow (tf_model.h5)", "save the model with safetensors"),
    (("model.onnx",), "an ONNX graph (model.onnx)", "give the model's repository with safetensors"),
]


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize(("names", "form", "advice"), FILES, ids=[row[1] for row in FILES])
def test_a_directory_with_a_model_in_another_form_is_told_what_it_is(
    tmp_path: Path, names: tuple[str, ...], form: str, advice: str, with_config: bool
) -> None:
    for name in names:
        (tmp_path / name).touch()
    if with_config:
        bare(tmp_path, LLAMA)
    text = refused(CheckpointError, lambda: read_checkpoint(tmp_path))
    assert text.startswith(f"{tmp_path}: found {form}, expected safetensors files: {advice}")


def test_other_files_beside_weights_that_are_read_change_nothing(tmp_path: Path) -> None:
    where = saved(tmp_path)
    for name in ("consolidated.safetensors", "model.gguf", "pytorch_model.bin", "tf_model.h5"):
        (where / name).touch()
    assert load_base(where).model.family == "llama"


def test_the_file_of_a_gguf_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert refused(CheckpointError, lambda: read_checkpoint(file)) == (
        f"{file}: found a file, expected a checkpoint's directory or its config.json: GGUF is not read here"
    )
