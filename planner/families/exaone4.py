"""EXAONE 4: norms of the outputs of attention and MLP, and of each head of q and k; among layers with a window those
without one have no rotary embedding.

| key | what it does |
|---|---|
| sliding_window | window of some layers, default 4096; null: of none, and all layers have a rotary embedding |
| sliding_window_pattern | where there are no layer_types: each so many-th layer has no window, default 4; LLLG is 4 |
| layer_types | sliding_attention or full_attention for each layer |
| num_key_value_heads | default: 32 |
| head_dim | default: hidden_size / num_attention_heads |
| attention_bias, mlp_bias | must be false |
"""

import dataclasses

from planner.families.config import Keys, read_attention, read_layers, read_mlps
from planner.families.llama_layout import Defaults, Layout, base_reading, read_max_positions, rope_defaults
from planner.families.records import BaseReading
from planner.families.rope_keys import read_rope
from planner.families.windows import FULL, SLIDING, read_window, typed_windows
from plans.format import quote

DEFAULTS = Defaults(max_positions=2048, bos_token_id=0, eos_token_id=2, norm_eps=1e-5)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("attention_bias", False, "exaone4 has no biases")
    keys.expect("mlp_bias", False, "exaone4 has no biases")
    attention = read_attention(keys, default_kv_heads=32, qkv_bias=False, o_bias=False, qk_norm=True)
    mlps, window = read_mlps(keys, bias=False), read_window(keys, 4096)
    windows = typed_windows(keys, window, _default_types(keys, read_layers(keys), window))
    rope = read_rope(keys, attention.head_dim, rope_defaults(DEFAULTS, read_max_positions(keys, DEFAULTS)))
    plain = dataclasses.replace(rope, dim=0, scaling=None, passed=attention.head_dim)
    ropes = [rope if window is None or own is not None else plain for own in windows]
    layout = Layout(norms="after")
    return base_reading("exaone4", keys, attention, mlps, DEFAULTS, windows=windows, ropes=ropes, layout=layout)


def _default_types(keys: Keys, layers: int, window: int | None) -> list[str]:
    """Return the types of layers by ``sliding_window_pattern``, which has no effect without a window."""
    pattern = keys.get("sliding_window_pattern", 4)
    if window is None:
        return [FULL] * layers
    if isinstance(pattern, str) and pattern.strip("L") == "G" and pattern.endswith("G"):
        pattern = len(pattern)
    if type(pattern) is not int or pattern < 1:
        problem = f"found {quote(pattern)}, expected a number of layers, or letters L and at their end a G"
        raise keys.fail("sliding_window_pattern", problem)
    return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(layers)]
