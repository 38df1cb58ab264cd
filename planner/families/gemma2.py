"""Gemma 2: windows in every other layer, capped scores and logits, norms around attention and MLP.

| key | what it does |
|---|---|
| sliding_window, layer_types | positions of a window, default 4096, and the layers that have it, by default the first of every two |
| query_pre_attn_scalar | scores are divided by its square root; default 256 |
| attn_logit_softcapping, final_logit_softcapping | c of c * tanh(x / c), of scores and of logits; default 50 and 30, null: none |
| head_dim | default: 256 |
| num_key_value_heads | default: 4 |
| attention_bias | biases of q, k, v and o |
| hidden_activation, hidden_act | must be gelu_pytorch_tanh |
| use_bidirectional_attention | must be false or null |
| sliding_window_size, cache_implementation | of old programs: without effect |
| tie_word_embeddings | default: true |
"""  # noqa: E501

import dataclasses

from planner.families.config import Keys, read_attention, read_layers, read_mlps, words
from planner.families.llama_layout import Defaults, Layout, base_reading
from planner.families.records import BaseReading
from planner.families.windows import FULL, SLIDING, Windows, read_window, typed_windows
from plans.check_model import SOFTCAPS
from plans.schema import Attention, Mlp, Model

DEFAULTS = Defaults(max_positions=8192, bos_token_id=2, eos_token_id=1, tied=True)
LAYOUT = Layout(
    norms="around",
    mlp_norm="pre_feedforward_layernorm",
    attention_output_norm="post_attention_layernorm",
    mlp_output_norm="post_feedforward_layernorm",
)
OLD = words("sliding_window_size cache_implementation")


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    attention = dataclasses.replace(
        read_gemma_attention(keys), softcap=read_softcap(keys, "attn_logit_softcapping", 50.0)
    )
    mlps = read_gemma_mlps(keys)
    windows = alternating(keys, read_window(keys, 4096), 2)
    softcap = read_softcap(keys, "final_logit_softcapping", 30.0)
    reading = base_reading("gemma2", keys, attention, mlps, DEFAULTS, harmless=OLD, windows=windows, layout=LAYOUT)
    return dataclasses.replace(reading, model=as_gemma(reading.model, softcap))


def read_gemma_attention(keys: Keys, *, qk_norm: bool = False) -> Attention:
    """Read attention whose scores have a factor of their own."""
    bias = keys.boolean("attention_bias", False)
    keys.expect("use_bidirectional_attention", False, "attention to later positions is not computed here")
    attention = read_attention(
        keys, default_kv_heads=4, default_head_dim=256, qkv_bias=bias, o_bias=bias, qk_norm=qk_norm
    )
    scalar = keys.number("query_pre_attn_scalar", 256, least=1e-3, most=1e6)
    return dataclasses.replace(attention, scale=None if scalar == attention.head_dim else scalar**-0.5)


def read_gemma_mlps(keys: Keys) -> tuple[Mlp, ...]:
    """Read the MLP of each layer, gated by the approximation of gelu by tanh."""
    for name in ("hidden_activation", "hidden_act"):
        keys.expect(name, "gelu_pytorch_tanh", "another activation is not computed here")
    return tuple(dataclasses.replace(mlp, activation="gelu_pytorch_tanh") for mlp in read_mlps(keys, bias=False))


def alternating(keys: Keys, window: int | None, period: int) -> Windows:
    """Return the window of each layer; by default all have it but the last of each ``period``."""
    count = read_layers(keys)
    return typed_windows(keys, window, [SLIDING if (i + 1) % period else FULL for i in range(count)])


def read_softcap(keys: Keys, name: str, default: float) -> float | None:
    """Read c of a soft cap; null is none."""
    if keys.spells(name) and not keys.has(name):
        keys.get(name)
        return None
    return keys.number(name, default, least=SOFTCAPS[0], most=SOFTCAPS[1])


def as_gemma(model: Model, softcap: float | None) -> Model:
    """Return a model with norms by 1 + weight, embeddings times sqrt(H) in their dtype, and capped logits."""
    return dataclasses.replace(
        model,
        norm_offset=True,
        embedding_multiplier=model.hidden_size**0.5,
        embedding_multiplier_rounded=True,
        logit_softcap=softcap,
    )
