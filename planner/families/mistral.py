"""Mistral, with a sliding window in every layer or without one (v0.2 and later).

| key | what it does |
|---|---|
| sliding_window | positions that every layer attends to; null: all; absent: 4096 |
| num_key_value_heads | default: 8 |
| head_dim | default: hidden_size / num_attention_heads |
| attention_bias, mlp_bias | must be false |
"""

from planner.families.config import Keys, read_attention, read_mlps
from planner.families.llama_layout import Defaults, base_reading
from planner.families.records import BaseReading
from planner.families.windows import read_window

DEFAULTS = Defaults(max_positions=4096 * 32, bos_token_id=1, eos_token_id=2)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("attention_bias", False, "mistral has no biases")
    keys.expect("mlp_bias", False, "mistral has no biases")
    attention = read_attention(keys, default_kv_heads=8, qkv_bias=False, o_bias=False)
    mlps = read_mlps(keys, bias=False)
    windows = (read_window(keys, 4096),) * len(mlps)
    return base_reading("mistral", keys, attention, mlps, DEFAULTS, windows=windows)
