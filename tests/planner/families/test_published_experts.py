"""Published configs of families with experts or queries of their own kind, and keys that are refused."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from planner.errors import ConfigError
from planner.families import load_base, within
from plans.schema import QueryScaling
from plans.step import layer_class
from tests.planner.tiny_checkpoints import OWN, SMALL, bare, refused

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
    tensors = {source.name: source.shape for source in base.roles.values()}
    assert tensors["model.layers.23.mlp.experts.gate_up_proj"] == (32, 2880, 5760)
    assert sum(map(prod, tensors.values())) == 20_914_757_184, "the number of parameters that its card states"
    file = bare(tmp_path / "b", GPT_OSS_20B | {"quantization_config": MXFP4})
    assert "quantization_config: found MXFP4" in refused(ConfigError, lambda: load_base(file))


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
    ("gpt_oss", {"swiglu_limit": 0}, "swiglu_limit: found 0, expected a number from 0.001 to 1e+06"),
]


@pytest.mark.parametrize(("family", "changes", "message"), KEYS, ids=[f"{f}-{json.dumps(c)}" for f, c, _ in KEYS])
def test_an_unsupported_key_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path, SMALL | OWN[family] | {"model_type": family} | changes)
    assert refused(ConfigError, lambda: load_base(file)) == f"{file}: {message}"
