"""Phi-3, Phi-3.5 and Phi-4 (dense), with their LongRoPE: q, k and v are packed in one matrix, gate and up in another.

| key | what it does |
|---|---|
| rope_scaling | longrope, of which `su` and `yarn` are other names here; absent: none |
| original_max_position_embeddings | length before scaling, default 4096 |
| partial_rotary_factor | part of the channels of a head that is rotated, default 1 |
| head_dim | default: hidden_size / num_attention_heads |
| sliding_window | window of every layer; null or absent: none |
| attention_bias, mlp_bias, lm_head_bias | must be false |
| full_attn_mod, interpolate_factor | must be 1 |
| embd_pdrop, resid_pdrop | without effect: they are for training |
"""

from planner.families.config import Keys, read_attention, read_mlps
from planner.families.llama_layout import Defaults, Layout, base_reading
from planner.families.records import BaseReading
from planner.families.windows import read_window

DEFAULTS = Defaults(
    max_positions=4096,
    bos_token_id=1,
    eos_token_id=32000,
    norm_eps=1e-5,
    partial_rotary=1.0,
    original_positions=4096,
    longrope_names=("su", "yarn"),
)
LAYOUT = Layout(packs_qkv=True, packs_gate_up=True)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("attention_bias", False, "phi3 has no biases")
    keys.expect("mlp_bias", False, "phi3 has no biases")
    keys.expect("lm_head_bias", False, "phi3 has no biases")
    keys.expect("full_attn_mod", 1, "every layer has the same attention")
    keys.expect("interpolate_factor", 1, "positions are not interpolated")
    keys.integer("original_max_position_embeddings", DEFAULTS.original_positions)
    attention, mlps = read_attention(keys, qkv_bias=False, o_bias=False), read_mlps(keys, bias=False)
    windows = (read_window(keys),) * len(mlps)
    return base_reading("phi3", keys, attention, mlps, DEFAULTS, windows=windows, layout=LAYOUT)
