"""Llama 2 and 3, and models published in their layout.

| key | what it does |
|---|---|
| attention_bias | biases of q, k, v and o |
| mlp_bias | biases of gate, up and down |
| intermediate_size | one size, or a list of one per layer |
| head_dim | default: hidden_size / num_attention_heads |
| pretraining_tp | must be 1 |
| sliding_window | must be null |
"""

from planner.families.config import Keys, read_attention, read_mlps
from planner.families.llama_layout import Defaults, base_reading
from planner.families.records import BaseReading

DEFAULTS = Defaults(max_positions=2048, bos_token_id=1, eos_token_id=2)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, qkv_bias=bias, o_bias=bias)
    mlps = read_mlps(keys, bias=keys.boolean("mlp_bias", False))
    return base_reading("llama", keys, attention, mlps, DEFAULTS)
