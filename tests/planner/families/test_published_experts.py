"""Published configs of families with experts or queries of their own kind, and keys that are refused."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from planner.errors import CheckpointError, ConfigError
from planner.families import BaseInput, load_base, within
from plans.schema import QueryScaling, WeightFormat
from plans.step import layer_class
from tests.planner.tiny_checkpoints import OWN, SMALL, bare, refused, saved

GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}
FLOAT4 = WeightFormat(code="float4_e2m1", group=32, zeros=False, scale="float8_e8m0")
MXFP4 = {"modules_to_not_convert": ["model.layers.*.self_attn"], "quant_method": "mxfp4"}


def test_gpt_oss_in_its_published_spelling(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path / "a", GPT_OSS_20B))
    model, mlp = base.model, base.model.layers[0].mlp
    assert [layer_class(model, layer).attention.window for layer in range(4)] == [128, None, 128, None]
    assert (mlp.num_experts, mlp.experts_per_token, mlp.bias, mlp.unit) == (32, 4, True, 64)
    assert (mlp.swiglu_limit, mlp.swiglu_alpha) == (7.0, 1.702)
    assert mlp.router is not None
    assert (mlp.router.bias, mlp.router.float32) == (True, False)
    assert base.ropes[0].attention_factor == pytest.approx(1.3466, abs=1e-4)
    assert base.roles["layers.23.experts.31.up.weight"].shape == (32, 2880, 5760)
    assert parameters(base) == 20_914_757_184, "21B by its card"
    published = load_base(bare(tmp_path / "b", GPT_OSS_20B | {"quantization_config": MXFP4})).model.layers[0]
    assert published.mlp.gate_up_format == published.mlp.down_format == FLOAT4
    assert (published.attention.qkv_format, published.mlp.unit) == (None, 64)


MINISTRAL: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"],
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 262144,
    "model_type": "ministral3",
    "num_attention_heads": 32,
    "num_hidden_layers": 34,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 16.0,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
        "type": "yarn",
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 131072,
}


def test_ministral3_grows_its_queries_beyond_the_original_length_alone(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path / "a", MINISTRAL))
    assert base.model.query_scaling == QueryScaling(beta=0.1, positions=16384)
    assert base.ropes[0].attention_factor == 1.0
    assert within(base.model, 16385) == base.model
    assert within(base.model, 16384) == replace(base.model, query_scaling=None)
    file = bare(tmp_path / "b", MINISTRAL | {"rope_parameters": {"rope_type": "default"}})
    message = refused(ConfigError, lambda: load_base(file))
    assert message == f"{file}: rope_parameters: llama_4_scaling_beta: missing, expected a number"
    text = {name: value for name, value in MINISTRAL.items() if name != "architectures"}
    wrapper = {"model_type": "mistral3", "text_config": text, "vision_config": {}}
    assert load_base(bare(tmp_path / "c", wrapper)).model == base.model


GLM_45_AIR: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0",
    "use_cache": True,
    "use_qk_norm": False,
    "vocab_size": 151552,
}
MINIMAX_M25: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "attn_type_list": [1] * 62,
    "auto_map": {"AutoModelForCausalLM": "modeling_minimax_m2.MiniMaxM2ForCausalLM"},
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "model_type": "minimax_m2",
    "mlp_intermediate_size": 8192,
    "mtp_transformer_layers": 1,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "transformers_version": "4.46.1",
    "use_cache": True,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}


ERNIE_21B: dict[str, Any] = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5_moe",
    "moe_capacity": [64, 64, 64],
    "moe_gate": "topk",
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "vocab_size": 103424,
}


def parameters(base: BaseInput) -> int:
    return sum(map(prod, {source.name: source.shape for source in base.roles.values()}.values()))


def test_glm_minimax_and_ernie_in_their_published_spelling(tmp_path: Path) -> None:
    glm = load_base(bare(tmp_path / "glm", GLM_45_AIR))
    dense, sparse = glm.model.layers
    assert (dense.num_layers, dense.mlp.kind, sparse.num_layers) == (1, "gated", 45)
    assert (sparse.mlp.shared_size, sparse.mlp.shared_gate, sparse.mlp.units) == (1408, None, 11)
    assert sparse.mlp.router is not None
    assert (sparse.mlp.router.scores, sparse.mlp.router.correction, sparse.mlp.router.float32) == (
        "sigmoid",
        True,
        True,
    )
    assert glm.ropes[0].passed == 64
    assert 106e9 < parameters(glm) < 107e9, "106B by its name, without the layer for drafts"
    minimax = load_base(bare(tmp_path / "minimax", MINIMAX_M25))
    (layers,) = minimax.model.layers
    assert (layers.attention.qk_norm_whole, layers.mlp.num_experts, layers.mlp.unit) == (True, 256, 128)
    assert (minimax.ropes[0].dim, minimax.ropes[0].passed) == (64, 64)
    assert 228e9 < parameters(minimax) < 230e9, "229B by its card"
    ernie = load_base(bare(tmp_path / "ernie", ERNIE_21B))
    assert [(layers.num_layers, layers.mlp.kind) for layers in ernie.model.layers] == [(1, "gated"), (27, "moe")]
    assert ernie.ropes[0].interleaved
    assert 21e9 < parameters(ernie) < 22e9, "21B by its name"
    fp8 = MINIMAX_M25 | {"quantization_config": {"quant_method": "fp8", "fmt": "float8_e4m3fn"}}
    (coded,) = load_base(bare(tmp_path / "fp8", fp8)).model.layers
    assert coded.attention.o_format is not None
    assert coded.attention.o_format.code == "float8_e4m3fn"


def test_layers_for_drafts_behind_the_last_are_not_read(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "glm4_moe")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors | {"model.layers.7.eh_proj.weight": torch.zeros(16, 32)}, checkpoint / "model.safetensors")
    assert load_base(checkpoint).model.num_layers == 7
    save_file(tensors | {"model.layers.8.eh_proj.weight": torch.zeros(16, 32)}, checkpoint / "model.safetensors")
    message = refused(CheckpointError, lambda: load_base(checkpoint))
    assert "model.layers.8.eh_proj.weight: surplus" in message


KEYS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt_oss", {"mlp_bias": False}, "mlp_bias: found False, expected True: the experts of gpt_oss have biases"),
    (
        "gpt_oss",
        {"initial_context_length": 8192},
        "initial_context_length: found 8192, expected 4096: the rotary embedding says which length it was trained for",
    ),
    (
        "gpt_oss",
        {"experts_per_token": 4},
        "experts_per_token: found 4, expected 2: num_experts_per_tok says how many are picked",
    ),
    (
        "glm4_moe",
        {"topk_method": "greedy"},
        "topk_method: found 'greedy', expected 'noaux_tc': experts are picked with a bias in this family",
    ),
    ("glm4_moe", {"n_group": 4}, "n_group: found 4, expected a divisor of 6 experts, 2 in each group"),
    ("dots1", {"topk_group": 2}, "topk_group: found 2, expected at most 1 groups, with 2 experts or more"),
    (
        "minimax_m2",
        {"shared_intermediate_size": 8},
        "shared_intermediate_size: found 8, expected 0: minimax_m2 has no shared expert",
    ),
    (
        "ernie4_5_moe",
        {"moe_layer_end_index": -2},
        "moe_layer_end_index: found -2, expected the number of a layer",
    ),
    ("ernie4_5_moe", {"use_bias": True}, "use_bias: found True, expected False: ernie4_5_moe has no biases"),
    ("gpt_oss", {"swiglu_limit": 0}, "swiglu_limit: found 0, expected a number from 0.001 to 1e+06"),
]


@pytest.mark.parametrize(("family", "changes", "message"), KEYS, ids=[f"{f}-{json.dumps(c)}" for f, c, _ in KEYS])
def test_an_unsupported_key_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path, SMALL | OWN[family] | {"model_type": family} | changes)
    assert refused(ConfigError, lambda: load_base(file)) == f"{file}: {message}"
