"""Granite 3 and 4 (dense): Llama with factors of embeddings, scores, outputs and logits.

| key | what it does |
|---|---|
| embedding_multiplier | factor of embeddings, default 1 |
| attention_multiplier | factor of the products of queries and keys, default 1: not 1 / sqrt(head_dim) |
| residual_multiplier | factor of the outputs of attention and MLP where they are added to the residual, default 1 |
| logits_scaling | divisor of logits, default 1 |
| attention_bias | biases of q, k, v and o |
| mlp_bias | biases of gate, up and down |
| head_dim | default: hidden_size / num_attention_heads |
"""

import dataclasses

from planner.families.config import Keys, read_attention, read_mlps
from planner.families.llama_layout import Defaults, base_reading
from planner.families.records import BaseReading
from plans.check_model import MULTIPLIERS, SCALES

DEFAULTS = Defaults(max_positions=2048, bos_token_id=1, eos_token_id=2)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    bias = keys.boolean("attention_bias", False)
    scale = keys.number("attention_multiplier", 1.0, least=SCALES[0], most=SCALES[1])
    attention = dataclasses.replace(read_attention(keys, qkv_bias=bias, o_bias=bias), scale=scale)
    mlps = read_mlps(keys, bias=keys.boolean("mlp_bias", False))
    embedding, residual, logits = (
        _factor(keys, name) for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    )
    reading = base_reading("granite", keys, attention, mlps, DEFAULTS)
    model = dataclasses.replace(
        reading.model, embedding_multiplier=embedding, residual_multiplier=residual, logits_divisor=logits
    )
    return dataclasses.replace(reading, model=model)


def _factor(keys: Keys, name: str) -> float | None:
    """Return a factor; None: 1."""
    value = keys.number(name, 1.0, least=MULTIPLIERS[0], most=MULTIPLIERS[1])
    return None if value == 1.0 else value
