"""Qwen3, dense: each head of q and k has a norm, and head_dim is independent of hidden_size.

| key | what it does |
|---|---|
| head_dim | default: 128 |
| attention_bias | biases of q, k, v and o |
| use_sliding_window, sliding_window, max_window_layers, layer_types | as in qwen2 |
| num_key_value_heads | default: 32 |
| mlp_bias | must be false |
"""

from planner.families.config import Keys, read_attention, read_layers, read_mlps
from planner.families.llama_layout import Defaults, base_reading
from planner.families.records import BaseReading
from planner.families.windows import switched_windows

DEFAULTS = Defaults(max_positions=32768, bos_token_id=None, eos_token_id=None)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    windows = switched_windows(keys, read_layers(keys))
    keys.expect("mlp_bias", False, "the MLP of qwen3 has no biases")
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(
        keys, default_kv_heads=32, default_head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm=True
    )
    return base_reading("qwen3", keys, attention, read_mlps(keys, bias=False), DEFAULTS, windows=windows)
