"""GLM-4-0414 (9B, 32B): half of the channels of a head are rotated, in pairs of neighbours; norms before and after
attention and MLP; gate and up are packed in one matrix.

| key | what it does |
|---|---|
| attention_bias | biases of q, k and v, default true; o has none |
| head_dim | default: 128 |
| num_key_value_heads | default: 2 |
| partial_rotary_factor | part of the channels of a head that is rotated, default 0.5 |
| sliding_window | must be null |
| mlp_bias | must be false |
"""

from planner.families.config import Keys, read_attention, read_mlps
from planner.families.llama_layout import Defaults, Layout, base_reading
from planner.families.records import BaseReading

DEFAULTS = Defaults(
    max_positions=131072,
    bos_token_id=None,
    eos_token_id=(151329, 151336, 151338),
    norm_eps=0.00000015625,
    partial_rotary=0.5,
    interleaved=True,
)
LAYOUT = Layout(
    norms="around",
    attention_output_norm="post_self_attn_layernorm",
    mlp_output_norm="post_mlp_layernorm",
    packs_gate_up=True,
)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("mlp_bias", False, "the MLP of glm4 has no biases")
    bias = keys.boolean("attention_bias", True)
    attention = read_attention(keys, default_kv_heads=2, default_head_dim=128, qkv_bias=bias, o_bias=False)
    return base_reading("glm4", keys, attention, read_mlps(keys, bias=False), DEFAULTS, layout=LAYOUT)
