"""Base models of the plain Llama layout: Llama 2 and 3, and Mistral without a sliding window."""

from dataclasses import dataclass

from planner.families.config import MAX_LAYERS, Keys, read_attention, read_mlp, read_rope, read_tokens
from planner.families.records import BaseReading, Roles, Source
from plans.schema import LayerClass, Model


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """What transformers assumes when a key is absent."""

    architecture: str
    kv_heads: int | None
    max_positions: int
    has_biases: bool
    needs_sliding_window: bool
    """An absent ``sliding_window`` means one, so the key must be there, as null."""


_VARIANTS = {
    "llama": _Variant(
        architecture="LlamaForCausalLM",
        kv_heads=None,
        max_positions=2048,
        has_biases=True,
        needs_sliding_window=False,
    ),
    "mistral": _Variant(
        architecture="MistralForCausalLM",
        kv_heads=8,
        max_positions=4096 * 32,
        has_biases=False,
        needs_sliding_window=True,
    ),
}


def read(family: str, keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    variant = _VARIANTS[family]
    architectures = keys.get("architectures", [variant.architecture])
    if architectures != [variant.architecture]:
        raise keys.fail("architectures", f"found {architectures!r}, expected {[variant.architecture]!r}")
    if variant.needs_sliding_window and not keys.spells("sliding_window"):
        raise keys.fail("sliding_window", "missing, which means a window of 4096, expected null: no window")
    if not variant.has_biases:
        keys.expect("attention_bias", False, f"{family} has no biases")
        keys.expect("mlp_bias", False, f"{family} has no biases")
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, default_kv_heads=variant.kv_heads, qkv_bias=bias, o_bias=bias)
    mlp = read_mlp(keys, bias=keys.boolean("mlp_bias", False))
    model = Model(
        family=family,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=keys.integer("hidden_size"),
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        tied_head=keys.boolean("tie_word_embeddings", False),
        layers=(
            LayerClass(num_layers=keys.integer("num_hidden_layers", most=MAX_LAYERS), attention=attention, mlp=mlp),
        ),
        bos_token_id=next(iter(read_tokens(keys, "bos_token_id", 1)), None),
        eos_token_ids=read_tokens(keys, "eos_token_id", 2),
    )
    reading = BaseReading(
        model=model,
        rope=read_rope(keys, attention.head_dim),
        max_positions=keys.integer("max_position_embeddings", variant.max_positions),
        roles=roles(model),
        ignored=_ignored(model),
    )
    keys.finish()
    return reading


def roles(model: Model) -> Roles:
    """The tensors of a checkpoint, derived."""
    hidden, vocab = model.hidden_size, model.vocab_size
    embed = Source(name="model.embed_tokens.weight", shape=(vocab, hidden))
    table: Roles = {"embed.weight": embed}
    (layers,) = model.layers
    for i in range(layers.num_layers):
        table |= _layer_roles(i, hidden, layers)
    table["norm.weight"] = Source(name="model.norm.weight", shape=(hidden,))
    table["head.weight"] = embed if model.tied_head else Source(name="lm_head.weight", shape=(vocab, hidden))
    return table


def _layer_roles(i: int, hidden: int, layers: LayerClass) -> Roles:
    attention, mlp = layers.attention, layers.mlp
    q, kv = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    inner = mlp.intermediate_size
    linears = (
        ("q", "self_attn.q_proj", q, hidden, attention.qkv_bias),
        ("k", "self_attn.k_proj", kv, hidden, attention.qkv_bias),
        ("v", "self_attn.v_proj", kv, hidden, attention.qkv_bias),
        ("o", "self_attn.o_proj", hidden, q, attention.o_bias),
        ("gate", "mlp.gate_proj", inner, hidden, mlp.bias),
        ("up", "mlp.up_proj", inner, hidden, mlp.bias),
        ("down", "mlp.down_proj", hidden, inner, mlp.bias),
    )
    table: Roles = {}
    for role, name in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        table[f"layers.{i}.{role}.weight"] = Source(name=f"model.layers.{i}.{name}.weight", shape=(hidden,))
    for role, name, rows, columns, bias in linears:
        table[f"layers.{i}.{role}.weight"] = Source(name=f"model.layers.{i}.{name}.weight", shape=(rows, columns))
        if bias:
            table[f"layers.{i}.{role}.bias"] = Source(name=f"model.layers.{i}.{name}.bias", shape=(rows,))
    return table


def _ignored(model: Model) -> dict[str, tuple[int, ...]]:
    """Rotary frequencies that old versions of transformers saved: they are evaluated from the config."""
    (layers,) = model.layers
    shape = (layers.attention.head_dim // 2,)
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": shape for i in range(layers.num_layers)}
