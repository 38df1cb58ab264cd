"""Published configs are read, with what they say of layers; keys that change what is computed are refused."""

from pathlib import Path
from typing import Any

import pytest

from planner.errors import ConfigError
from planner.families import load_base
from planner.families.rope import LongScaling
from tests.planner.tiny_checkpoints import bare, refused

COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.0",
    "use_cache": True,
}
QWEN15_MOE: dict[str, Any] = COMMON | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151643,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PHI4_MINI: dict[str, Any] = COMMON | {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 199999,
    "embd_pdrop": 0.0,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
OLMO2: dict[str, Any] = COMMON | {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 100257,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
OLMOE: dict[str, Any] = COMMON | {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "clip_qkv": None,
    "eos_token_id": 50279,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "vocab_size": 50304,
}
SMOLLM3: dict[str, Any] = COMMON | {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": None,
    "eos_token_id": 128012,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128004,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
GLM4: dict[str, Any] = COMMON | {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151552,
}
GRANITE: dict[str, Any] = COMMON | {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_multiplier": 0.0078125,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_size": 4096,
    "intermediate_size": 12800,
    "logits_scaling": 16.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}
EXAONE4: dict[str, Any] = COMMON | {
    "architectures": ["Exaone4ForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 361,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 27392,
    "layer_types": [*(["sliding_attention"] * 3 + ["full_attention"]) * 16],
    "max_position_embeddings": 131072,
    "model_type": "exaone4",
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 1000000,
    "sliding_window": 4096,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False,
    "vocab_size": 102400,
}


def test_layers_that_published_configs_describe(tmp_path: Path) -> None:
    configs = QWEN15_MOE, PHI4_MINI, OLMO2, OLMOE, SMOLLM3, GLM4, GRANITE, EXAONE4
    moe, phi, olmo, olmoe, smol, glm, granite, exaone = (
        load_base(bare(tmp_path / config["model_type"], config)) for config in configs
    )
    mlp = moe.model.layers[0].mlp
    assert (mlp.units, mlp.unit, mlp.shared_unit, mlp.shared_gate) == (11, 128, 512, True)
    assert phi.model.rotary is not None
    assert (phi.model.rotary[0].channels, phi.model.rotary[0].by_context, phi.model.rotary[0].scaled) == (
        96,
        True,
        True,
    )
    assert isinstance(phi.ropes[0].scaling, LongScaling)
    assert phi.roles["layers.3.v.weight"].first == (24 + 8) * 128
    assert phi.roles["layers.3.up.weight"].name == "model.layers.3.mlp.gate_up_proj.weight"
    assert (olmo.model.norms, olmo.model.layers[0].attention.qk_norm_whole, olmo.model.rotary) == ("after", True, None)
    assert olmoe.roles["layers.0.q_norm.weight"].shape == (2048,)
    assert smol.model.rotary is not None
    assert [len(table.layers) for table in smol.model.rotary] == [27, 9]
    assert smol.model.tied_head
    assert glm.model.rotary is not None
    assert (glm.model.rotary[0].channels, glm.model.rotary[0].interleaved, glm.model.norms) == (64, True, "around")
    assert granite.model.layers[0].attention.scale == 0.0078125
    factors = granite.model.embedding_multiplier, granite.model.residual_multiplier, granite.model.logits_divisor
    assert factors == (12.0, 0.22, 16.0)
    assert exaone.model.pattern == (0, 0, 0, 1)
    assert exaone.model.rotary is not None
    assert exaone.model.rotary[1].layers == tuple(range(3, 64, 4))


KEYS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (QWEN15_MOE, {"use_sliding_window": True}, "use_sliding_window: found True, expected False"),
    (QWEN15_MOE, {"attention_bias": False}, "attention_bias: found False, expected True"),
    (PHI4_MINI, {"lm_head_bias": True}, "lm_head_bias: found True, expected False"),
    (PHI4_MINI, {"partial_rotary_factor": 0.01}, "partial_rotary_factor: gives 1 rotated channels of 128"),
    (PHI4_MINI, {"rope_scaling": {"type": "linear", "factor": 2.0, "short_factor": []}}, "short_factor: unknown key"),
    (OLMO2, {"mlp_bias": True}, "mlp_bias: found True, expected False"),
    (OLMO2, {"clip_qkv": 8.0}, "clip_qkv: unknown key"),
    (OLMOE, {"clip_qkv": 8.0}, "clip_qkv: found 8.0, expected null"),
    (OLMOE, {"head_dim": 64}, "head_dim: found 64, expected 128"),
    (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers: found [1, 0], expected 0 or 1 for each of 36 layers"),
    (GLM4, {"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
    (GRANITE, {"attention_multiplier": 0}, "attention_multiplier: found 0, expected a number from 1e-06 to 4"),
    (GRANITE, {"logits_scaling": -1}, "logits_scaling: found -1, expected a number from 1e-06 to 1e+06"),
    (EXAONE4, {"sliding_window_pattern": "LGL", "layer_types": None}, "sliding_window_pattern: found 'LGL'"),
    (EXAONE4, {"attention_bias": True}, "attention_bias: found True, expected False"),
]


@pytest.mark.parametrize(("config", "changes", "message"), KEYS, ids=[message.split(":")[0] for *_, message in KEYS])
def test_a_key_that_is_not_computed_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    assert message in refused(ConfigError, lambda: load_base(bare(tmp_path, config | changes)))
