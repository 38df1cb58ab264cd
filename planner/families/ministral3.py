"""Ministral 3: Mistral with YaRN, and queries that grow with their positions.

| key | what it does |
|---|---|
| rope_parameters | without it: YaRN with factor 16 of 16384 positions, and the next key |
| rope_parameters: llama_4_scaling_beta | b of 1 + b * log(1 + floor(position / original length)), a factor of queries |
| rope_parameters: max_position_embeddings | without effect |
| sliding_window | positions that every layer attends to; null or absent: all |
| num_key_value_heads, head_dim | default: 8, 128 |
| attention_bias, mlp_bias | must be false |
"""

import dataclasses

from planner.families.config import Keys, read_attention, read_mlps, words
from planner.families.llama_layout import Defaults, base_reading, read_max_positions, rope_defaults
from planner.families.records import BaseReading
from planner.families.rope_keys import read_rope
from planner.families.windows import read_window
from plans.check_model import BETAS
from plans.schema import QueryScaling

DEFAULTS = Defaults(max_positions=262144, bos_token_id=1, eos_token_id=2, norm_eps=1e-5)
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("attention_bias", False, "ministral3 has no biases")
    keys.expect("mlp_bias", False, "ministral3 has no biases")
    attention = read_attention(keys, default_kv_heads=8, default_head_dim=128, qkv_bias=False, o_bias=False)
    mlps = read_mlps(keys, bias=False)
    rope = read_rope(
        keys,
        attention.head_dim,
        rope_defaults(DEFAULTS, read_max_positions(keys, DEFAULTS)),
        absent=ROPE,
        other=words("llama_4_scaling_beta max_position_embeddings"),
    )
    windows = (read_window(keys),) * len(mlps)
    reading = base_reading("ministral3", keys, attention, mlps, DEFAULTS, windows=windows, ropes=(rope,) * len(mlps))
    model = dataclasses.replace(reading.model, query_scaling=_read_scaling(keys))
    return dataclasses.replace(reading, model=model)


def _read_scaling(keys: Keys) -> QueryScaling | None:
    """Read the factor of queries by their positions; None where it is always 1."""
    name = next((name for name in ("rope_parameters", "rope_scaling") if keys.has(name)), "rope_parameters")
    fields = Keys(keys.get(name, ROPE), f"{keys.where}: {name}")
    beta = fields.number("llama_4_scaling_beta", least=0, most=BETAS[1])
    positions = fields.integer("original_max_position_embeddings")
    return QueryScaling(beta=beta, positions=positions) if beta >= BETAS[0] else None
