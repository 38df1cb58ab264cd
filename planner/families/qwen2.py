"""Qwen2 and Qwen2.5: q, k and v have biases, o has none.

| key | what it does |
|---|---|
| use_sliding_window, sliding_window, max_window_layers | a window that is switched off, or begins after the last layer, is ignored; another is refused |
| layer_types | must be full_attention in every layer |
| num_key_value_heads | default: 32 |
| attention_bias | must be true: the biases of q, k and v are part of the family |
| mlp_bias, use_mrope | must be false |
"""  # noqa: E501

from planner.families.config import Keys, read_attention, read_layers, read_mlps, refuse_window
from planner.families.llama_layout import Defaults, base_reading
from planner.families.records import BaseReading

DEFAULTS = Defaults(max_positions=32768, bos_token_id=None, eos_token_id=None)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    refuse_window(keys, layers=read_layers(keys))
    keys.expect("attention_bias", True, "q, k and v of qwen2 have biases")
    keys.expect("mlp_bias", False, "the MLP of qwen2 has no biases")
    attention = read_attention(keys, default_kv_heads=32, qkv_bias=True, o_bias=False)
    return base_reading("qwen2", keys, attention, read_mlps(keys, bias=False), DEFAULTS)
