"""Qwen2 and Qwen2.5: q, k and v have biases, o has none.

| key | what it does |
|---|---|
| use_sliding_window | false: no layer has a window; default: false |
| sliding_window, max_window_layers | positions of a window, and the first layer that has one; default: 4096, 28 |
| layer_types | which layers have the window; default: as max_window_layers says |
| num_key_value_heads | default: 32 |
| attention_bias | must be true: the biases of q, k and v are part of the family |
| mlp_bias, use_mrope | must be false |
"""

from planner.families.config import Keys, read_attention, read_layers, read_mlps
from planner.families.llama_layout import Defaults, base_reading
from planner.families.records import BaseReading
from planner.families.windows import switched_windows

DEFAULTS = Defaults(max_positions=32768, bos_token_id=None, eos_token_id=None)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    windows = switched_windows(keys, read_layers(keys))
    keys.expect("attention_bias", True, "q, k and v of qwen2 have biases")
    keys.expect("mlp_bias", False, "the MLP of qwen2 has no biases")
    attention = read_attention(keys, default_kv_heads=32, qkv_bias=True, o_bias=False)
    return base_reading("qwen2", keys, attention, read_mlps(keys, bias=False), DEFAULTS, windows=windows)
