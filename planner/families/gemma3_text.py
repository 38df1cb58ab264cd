"""Gemma 3, the text model: windows in five of six layers, each kind of layer with a rotary embedding of its own.

| key | what it does |
|---|---|
| sliding_window, layer_types | positions of a window, default 4096, and the layers that have it |
| sliding_window_pattern | without layer_types: each so many-th layer has no window, default 6 |
| _sliding_window_pattern | without effect: transformers writes it beside layer_types |
| rope_parameters | an object for full_attention and one for sliding_attention |
| rope_theta, rope_scaling | without rope_parameters: of layers without a window, theta 1000000 by default |
| rope_local_base_freq | without rope_parameters: theta of layers with a window, default 10000 |
| query_pre_attn_scalar | scores are divided by its square root; default 256 |
| final_logit_softcapping | c of c * tanh(x / c), of logits; default: none |
| attn_logit_softcapping | without effect |
| head_dim | default: 256 |
| num_key_value_heads | default: 4 |
| attention_bias | biases of q, k, v and o |
| hidden_activation, hidden_act | must be gelu_pytorch_tanh |
| use_bidirectional_attention | must be false |
| tie_word_embeddings | default: true |
"""

import dataclasses

from planner.families.config import Keys
from planner.families.gemma2 import (
    LAYOUT,
    OLD,
    alternating,
    as_gemma,
    read_gemma_attention,
    read_gemma_mlps,
    read_softcap,
)
from planner.families.llama_layout import Defaults, base_reading, read_max_positions, rope_defaults
from planner.families.records import BaseReading
from planner.families.rope import Rope
from planner.families.rope_keys import MOST_THETA, read_rope, read_rope_of
from planner.families.windows import FULL, SLIDING, read_window

DEFAULTS = Defaults(max_positions=131072, bos_token_id=2, eos_token_id=1, rope_theta=1000000.0, tied=True)
LOCAL_THETA = 10000.0


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    attention = read_gemma_attention(keys, qk_norm=True)
    mlps = read_gemma_mlps(keys)
    period = keys.integer("sliding_window_pattern", 6)
    windows = alternating(keys, read_window(keys, 4096), period)
    full, sliding = _ropes(keys, attention.head_dim)
    ropes = [full if window is None else sliding for window in windows]
    softcap = read_softcap(keys, "final_logit_softcapping", 0.0) if keys.has("final_logit_softcapping") else None
    harmless = OLD | {"attn_logit_softcapping", "final_logit_softcapping", "_sliding_window_pattern"}
    reading = base_reading(
        "gemma3_text", keys, attention, mlps, DEFAULTS, harmless=harmless, windows=windows, ropes=ropes, layout=LAYOUT
    )
    return dataclasses.replace(reading, model=as_gemma(reading.model, softcap))


def _ropes(keys: Keys, head_dim: int) -> tuple[Rope, Rope]:
    """Return the rotary embedding of layers without a window, and of those with one."""
    defaults = rope_defaults(DEFAULTS, read_max_positions(keys, DEFAULTS))
    local = dataclasses.replace(defaults, theta=LOCAL_THETA)
    if keys.has("rope_parameters"):
        return read_rope_of(keys, FULL, head_dim, defaults), read_rope_of(keys, SLIDING, head_dim, local)
    theta = keys.number("rope_local_base_freq", LOCAL_THETA, least=1, most=MOST_THETA)
    return read_rope(keys, head_dim, defaults), Rope(theta=theta, dim=head_dim, scaling=None)
