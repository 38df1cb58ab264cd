"""Tiny models of every family as transformers saves them, bare configs, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Dots1Config,
    Dots1ForCausalLM,
    Ernie4_5_MoeConfig,
    Ernie4_5_MoeForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MiniMaxM2Config,
    MiniMaxM2ForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from planner.checkpoints.checkpoint import SINGLE
from planner.errors import InputError
from planner.families import BaseInput

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "exaone4": (Exaone4Config, Exaone4ForCausalLM),
    "granite": (GraniteConfig, GraniteForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    "gpt_oss": (GptOssConfig, GptOssForCausalLM),
    "ministral3": (Ministral3Config, Ministral3ForCausalLM),
    "glm4_moe": (Glm4MoeConfig, Glm4MoeForCausalLM),
    "dots1": (Dots1Config, Dots1ForCausalLM),
    "minimax_m2": (MiniMaxM2Config, MiniMaxM2ForCausalLM),
    "ernie4_5_moe": (Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM),
}
"""Config and model class of each family."""

OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 24,
    },
    "phi3": {"pad_token_id": None},
    "olmo2": {"pad_token_id": None},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": None},
    "smollm3": {"pad_token_id": None},
    "glm4": {"head_dim": 8, "pad_token_id": None},
    "exaone4": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 12},
    "gemma3_text": {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 12},
    "ministral3": {"head_dim": 8, "pad_token_id": None},
    "glm4_moe": {
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 1.8,
        "first_k_dense_replace": 2,
        "head_dim": 8,
    },
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 12,
        "sliding_window": None,
    },
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "rotary_dim": 4},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12, "moe_layer_interval": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 9},
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.22,
        "logits_scaling": 3.0,
    },
}
"""Keys of a small config of each family, in addition to SMALL."""


_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 32, "patch_size": 8}
_QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
_QWEN_VISION |= {"out_hidden_size": 16, "deepstack_visual_indexes": [0]}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

WRAPPED: dict[str, tuple[type[Any], type[Any], dict[str, Any], dict[str, Any]]] = {
    "llava": (
        LlavaConfig,
        LlavaForConditionalGeneration,
        {"model_type": "llama"},
        {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
    ),
    "gemma3": (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 12},
        {"model_type": "siglip_vision_model", **_VISION},
    ),
    "mistral3": (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        {"model_type": "mistral", "sliding_window": None, "head_dim": 6},
        {"model_type": "pixtral", **_VISION},
    ),
    "qwen2_vl": (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        {"num_attention_heads": 2, "rope_parameters": _MROPE},
        {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4},
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        {"num_attention_heads": 2, "rope_parameters": _MROPE, "rms_norm_eps": 1e-6},
        _QWEN_VISION,
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        {"head_dim": 8, "rope_parameters": _MROPE | {"mrope_interleaved": True}},
        _QWEN_VISION,
    ),
    "qwen3_vl_moe": (
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        {
            "head_dim": 8,
            "rope_parameters": _MROPE | {"mrope_interleaved": True},
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "mlp_only_layers": [2],
        },
        _QWEN_VISION,
    ),
}
"""Config and model class of each wrapper, keys of its text part in addition to SMALL, and of its vision part."""


def saved_wrapper(path: Path, name: str, tied: bool = False, **changes: Any) -> Path:
    """Save a tiny random model of text and images; ``changes`` are of its text part."""
    config_class, model_class, text, vision = WRAPPED[name]
    config = config_class(text_config=SMALL | text | changes, vision_config=vision, tie_word_embeddings=tied)
    model_class(config).save_pretrained(path)
    return path


def config_of(family: str, **changes: Any) -> Any:
    """Return transformers' config of a tiny model."""
    return CLASSES[family][0](**(SMALL | OWN[family] | changes))


def saved(path: Path, family: str = "llama", max_shard_size: str = "1GB", **changes: Any) -> Path:
    """Save a tiny random model in a directory; no bias is 0 and no norm weight is 1."""
    model = CLASSES[family][1](config_of(family, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, tensor in model.state_dict().items():
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def tensors_by_role(base: BaseInput) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved model by role, the parts of packed ones cut out."""
    stored = load_file(base.checkpoint.directory / SINGLE)
    packed: dict[str, list[int]] = {}
    for source in base.roles.values():
        packed.setdefault(source.name, []).append(source.first)
    tensors = {}
    for role, source in base.roles.items():
        tensor, turned = stored[source.name], source.columns
        if turned is not None:
            rows = tensor.flatten(0, -2)[source.first : source.first + turned.width]
            count = len({other.columns.first for other in base.roles.values() if other.name == source.name})
            turned_rows = rows.T[turned.first :: turned.step][: rows.shape[1] // count]
            tensors[role] = turned_rows if turned.width > 1 else turned_rows[:, 0]
        else:  # the rows of the next role are behind those of this one
            end = min((first for first in packed[source.name] if first > source.first), default=None)
            tensors[role] = (tensor.flatten(0, -2) if tensor.dim() > 2 else tensor)[source.first : end]
    return tensors


def bare(path: Path, config: dict[str, Any]) -> Path:
    """Write a bare config; return its file."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path / "config.json"


def refused(error: type[InputError], action: Callable[[], Any]) -> str:
    """Return the message with which ``action`` is refused."""
    with pytest.raises(error) as caught:
        action()
    assert caught.value.exit_code == 2
    return str(caught.value)
