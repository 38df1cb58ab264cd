"""SmolLM3: Llama with layers that have no rotary embedding, every fourth unless the config lists them.

| key | what it does |
|---|---|
| no_rope_layers | 1 for each layer with rotary embedding, 0 for one without |
| no_rope_layer_interval | where there is no list: each so many-th layer has none, default 4 |
| num_key_value_heads | default: 4 |
| attention_bias | biases of q, k, v and o |
| mlp_bias | biases of gate, up and down |
| tie_word_embeddings | default: true |
| pretraining_tp | without effect: products are not cut in slices |
| use_sliding_window, sliding_window, layer_types | a window, if on: by default of layers without rotary embedding |
"""

import dataclasses

from planner.families.config import Keys, read_attention, read_layers, read_mlps
from planner.families.llama_layout import Defaults, base_reading, read_max_positions, rope_defaults
from planner.families.records import BaseReading
from planner.families.rope_keys import read_rope
from planner.families.windows import FULL, SLIDING, read_window, typed_windows
from plans.format import quote

DEFAULTS = Defaults(max_positions=32768, bos_token_id=128000, eos_token_id=128001, rope_theta=2000000.0, tied=True)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.get("pretraining_tp")
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, default_kv_heads=4, qkv_bias=bias, o_bias=bias)
    rope = read_rope(keys, attention.head_dim, rope_defaults(DEFAULTS, read_max_positions(keys, DEFAULTS)))
    plain = dataclasses.replace(rope, dim=0, scaling=None, passed=attention.head_dim)
    rotated = _rotated(keys)
    ropes = [rope if has_rope else plain for has_rope in rotated]
    window = read_window(keys)
    window = window if keys.boolean("use_sliding_window", False) else None
    windows = typed_windows(keys, window, [FULL if window is None or has_rope else SLIDING for has_rope in rotated])
    mlps = read_mlps(keys, bias=keys.boolean("mlp_bias", False))
    return base_reading("smollm3", keys, attention, mlps, DEFAULTS, windows=windows, ropes=ropes)


def _rotated(keys: Keys) -> list[bool]:
    """Return for each layer whether it has a rotary embedding."""
    count, interval = read_layers(keys), keys.integer("no_rope_layer_interval", 4)
    listed = keys.get("no_rope_layers")
    if listed is None:
        return [(i + 1) % interval != 0 for i in range(count)]
    flags = isinstance(listed, list) and all(type(i) is int and i in (0, 1) for i in listed)
    if not flags or len(listed) < count:
        raise keys.fail("no_rope_layers", f"found {quote(listed)}, expected 0 or 1 for each of {count} layers")
    return [bool(i) for i in listed[:count]]
