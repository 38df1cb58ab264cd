"""Models that people run and that are not computed here, by ``model_type``, with what is missing."""

from collections.abc import Mapping

_LATENT = "latent attention (MLA) is not computed here"
_LINEAR = "layers of linear attention are not computed here"
_STATE = "state-space layers are not computed here"
_COMPRESSED = "compressed sparse attention is not computed here"
_TWO_SIZES = "attention of two head sizes is not computed here"
_OWN_CODE = "a model of code that comes with a checkpoint, which is never run"

REASONS: Mapping[str, str] = {
    "llama4": "its attention in chunks is not computed here",
    "llama4_text": "its attention in chunks is not computed here",
    "mllama": "cross attention to images is not computed here",
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v4": _COMPRESSED,
    "deepseek_ref": _COMPRESSED,
    "kimi_k2": _LATENT,
    "kimi_k25": _LATENT,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "minicpm3": _LATENT,
    "longcat_flash": _LATENT,
    "kimi_linear": _LINEAR,
    "kimi_k3": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "minimax": _LINEAR,
    "minimax_m3": "sparse attention is not computed here",
    "minimax_m3_vl": "sparse attention is not computed here",
    "gemma4": _TWO_SIZES,
    "gemma4_text": _TWO_SIZES,
    "gemma4_unified": _TWO_SIZES,
    "mimo": _OWN_CODE,
    "mimo_v2_flash": "values of another size than keys are not computed here",
    "step3p7": _OWN_CODE,
    "nemotron_h": _STATE,
    "jamba": _STATE,
    "bamba": _STATE,
    "falcon_h1": _STATE,
    "granitemoehybrid": _STATE,
    "lfm2": "its convolutions are not computed here",
    "lfm2_moe": "its convolutions are not computed here",
    "gemma3n": "its layers of several sizes are not computed here",
    "gpt2": "learned positions and biased norms are not computed here",
    "falcon": "its parallel attention and MLP are not computed here",
    "nemotron-nas": "layers without attention are not computed here, nor is code that comes with a checkpoint",
}
