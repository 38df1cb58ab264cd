"""Models of text and images: the text part is read from transformers' own checkpoints and from published configs."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config

from planner.checkpoints.checkpoint import SINGLE
from planner.errors import CheckpointError, ConfigError
from planner.families import Rope, load_base
from planner.families.load import FAMILIES
from planner.families.refused import REASONS
from planner.families.wrappers import WRAPPERS
from tests.planner.tiny_checkpoints import WRAPPED, bare, refused, saved_wrapper


def test_no_model_that_is_planned_is_among_the_refused() -> None:
    assert not REASONS.keys() & {*FAMILIES, *WRAPPERS}


def test_every_wrapper_is_tested() -> None:
    assert list(WRAPPED) == list(WRAPPERS)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_the_tensors_of_the_text_part_are_those_of_transformers(tmp_path: Path, name: str, tied: bool) -> None:
    base = load_base(saved_wrapper(tmp_path, name, tied, dtype="bfloat16"))
    stored = load_file(tmp_path / SINGLE)
    text = {key for key in stored if not key.startswith(WRAPPERS[name].vision)}
    assert {source.name for source in base.roles.values()} == text
    assert len(text) < len(stored)
    assert base.model.tied_head == tied
    assert base.model.num_layers == 7
    again = load_base(tmp_path / "config.json")
    assert (again.model, again.ropes, again.roles) == (base.model, base.ropes, base.roles)
    assert (again.config_sha256, again.tensors_sha256) == (base.config_sha256, base.tensors_sha256)
    family = base.model.family
    assert base.notes == again.notes == (f"planned as its text part, {family}: images are not read",)
    surplus = dict(stored) | {"model.unknown.weight": stored[next(iter(text))].clone()}
    save_file(surplus, tmp_path / SINGLE)
    assert "model.unknown.weight: surplus" in refused(CheckpointError, lambda: load_base(tmp_path))


@pytest.mark.parametrize("name", ["llava", "gemma3", "mistral3", "qwen2_5_vl"])
def test_both_spellings_of_the_names_of_tensors_are_read(tmp_path: Path, name: str) -> None:
    saved_wrapper(tmp_path, name)
    first, second = WRAPPERS[name].prefixes
    old = load_base(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    renamed = {key.replace(first[0], second[0]).replace(first[1], second[1]): value for key, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / SINGLE)
    new = load_base(tmp_path)
    assert new.roles != old.roles
    assert (new.model, new.tensors_sha256) == (old.model, old.tensors_sha256)


QWEN2_5_VL_7B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {"depth": 32, "hidden_size": 1280, "out_hidden_size": 3584},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}

MISTRAL_SMALL_3_1: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "text_config": {
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "initializer_range": 0.02,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "use_cache": True,
        "vocab_size": 131072,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral"},
    "vision_feature_layer": -1,
}


def test_a_published_config_with_the_text_keys_among_its_own(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path, QWEN2_5_VL_7B))
    assert (base.model.family, base.model.num_layers, base.model.hidden_size) == ("qwen2", 28, 3584)
    assert base.ropes[0] == Rope(theta=1000000.0, dim=128, scaling=None)
    assert base.roles["layers.3.q.weight"].name == "model.layers.3.self_attn.q_proj.weight"
    assert (base.model.bos_token_id, base.model.eos_token_ids) == (151643, (151645,))


def test_a_published_config_with_a_text_config(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path, MISTRAL_SMALL_3_1))
    assert (base.model.family, base.model.num_layers, base.model.tied_head) == ("mistral", 40, False)
    assert base.roles["head.weight"].name == "language_model.lm_head.weight"
    assert base.max_positions == 131072


GEMMA_3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def test_a_published_config_that_leaves_defaults_of_the_text_part_out(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path, GEMMA_3_4B))
    theirs = Gemma3Config(text_config=GEMMA_3_4B["text_config"]).text_config
    attention = base.model.layers[0].attention
    assert (base.model.vocab_size, base.model.tied_head) == (theirs.vocab_size, True)
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
        theirs.head_dim,
    )
    assert base.model.eos_token_ids == (1, 106)


QWEN3_VL_30B: dict[str, Any] = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl_moe",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": False,
    "video_token_id": 151656,
    "vision_config": {"depth": 27, "hidden_size": 1152, "model_type": "qwen3_vl_moe"},
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}


def test_a_published_config_with_packed_experts(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path, QWEN3_VL_30B))
    (layers,) = base.model.layers
    assert (layers.mlp.num_experts, layers.mlp.unit, layers.attention.qk_norm) == (128, 64, True)
    tensors = {source.name: source.shape for source in base.roles.values()}
    assert tensors["model.language_model.layers.47.mlp.experts.gate_up_proj"] == (128, 1536, 2048)
    assert sum(map(prod, tensors.values())) == 30_532_122_624, "as Qwen3-30B-A3B"


KEYS: list[tuple[dict[str, Any], str]] = [
    (
        MISTRAL_SMALL_3_1 | {"logit_scale": 2},
        "logit_scale: unknown key",
    ),
    (
        MISTRAL_SMALL_3_1 | {"text_config": {"model_type": "mamba"}},
        "text_config: model_type: found 'mamba', expected one of mistral",
    ),
    (
        MISTRAL_SMALL_3_1 | {"text_config": MISTRAL_SMALL_3_1["text_config"] | {"logit_scale": 2}},
        "text_config: logit_scale: unknown key",
    ),
    (MISTRAL_SMALL_3_1 | {"text_config": [1]}, "text_config: found [1], expected an object"),
    (
        {key: value for key, value in QWEN2_5_VL_7B.items() if key != "rms_norm_eps"},
        "rms_norm_eps: missing, expected it here: its default is not that of qwen2",
    ),
    (
        {"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"], "text_config": {}},
        "model_type: found 'llama4': its attention in chunks is not computed here, expected one of ",
    ),
    (
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
        "model_type: found 'deepseek_v3': latent attention (MLA) is not computed here, expected one of ",
    ),
    (
        {"model_type": "nemotron_h", "time_step_limit": [0.0, float("inf")]},  # json.dumps writes Infinity
        "model_type: found 'nemotron_h': state-space layers are not computed here, expected one of ",
    ),
]


@pytest.mark.parametrize(("config", "message"), KEYS, ids=[message[:40] for _, message in KEYS])
def test_what_a_wrapper_has_and_is_not_computed_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path, config)
    assert refused(ConfigError, lambda: load_base(file)).startswith(f"{file}: {message}")


def test_keys_repeated_beside_the_text_config_must_be_equal(tmp_path: Path) -> None:
    same = {name: MISTRAL_SMALL_3_1["text_config"][name] for name in ("hidden_size", "vocab_size")}
    assert load_base(bare(tmp_path / "same", MISTRAL_SMALL_3_1 | same)).model.hidden_size == 5120
    file = bare(tmp_path / "other", MISTRAL_SMALL_3_1 | {"hidden_size": 4096})
    assert refused(ConfigError, lambda: load_base(file)).startswith(f"{file}: hidden_size: unknown key")
