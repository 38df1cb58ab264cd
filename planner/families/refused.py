"""Models that people run and that are not computed here, by ``model_type``, with what is missing."""

from collections.abc import Mapping

_LATENT = "latent attention (MLA) is not computed here"
_LINEAR = "layers of linear attention are not computed here"
_STATE = "state-space layers are not computed here"
_EXPERTS = "its router and its shared experts are not computed here"

REASONS: Mapping[str, str] = {
    "llama4": "its attention in chunks is not computed here",
    "llama4_text": "its attention in chunks is not computed here",
    "mllama": "cross attention to images is not computed here",
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v4": _LATENT,
    "kimi_k2": _LATENT,
    "kimi_k25": _LATENT,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "minicpm3": _LATENT,
    "longcat_flash": _LATENT,
    "kimi_linear": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "minimax": _LINEAR,
    "nemotron_h": _STATE,
    "jamba": _STATE,
    "bamba": _STATE,
    "falcon_h1": _STATE,
    "granitemoehybrid": _STATE,
    "lfm2": "its convolutions are not computed here",
    "lfm2_moe": "its convolutions are not computed here",
    "gemma3n": "its layers of several sizes are not computed here",
    "qwen3_vl_moe": "its experts in packed tensors are not read here",
    "gpt2": "learned positions and biased norms are not computed here",
    "falcon": "its parallel attention and MLP are not computed here",
    "nemotron-nas": "layers without attention are not computed here, nor is code that comes with a checkpoint",
}
