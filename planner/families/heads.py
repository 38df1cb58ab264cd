"""What the heads of EAGLE-1, -2 and -3 have in common: checks against the base model, and the roles of a layer."""

from planner.families.config import Keys, words
from planner.families.records import Roles, Source
from plans.schema import Draft, Model

# The token ids are the base's; tying means nothing to a head, which has its own tables or borrows the base's.
HARMLESS = words("bos_token_id eos_token_id tie_word_embeddings target_model_type")


def check_base(keys: Keys, base: Model, target_hidden_size: int, name: str) -> None:
    """The head was trained for a model of this width and vocabulary; raise ConfigError otherwise."""
    reason = "the head belongs to another base model"
    if target_hidden_size != base.hidden_size:
        problem = f"found {target_hidden_size}, expected {base.hidden_size}, the base model's hidden_size: {reason}"
        raise keys.fail(name, problem)
    vocab = keys.integer("vocab_size")
    if vocab != base.vocab_size:
        raise keys.fail("vocab_size", f"found {vocab}, expected {base.vocab_size}, the base model's: {reason}")


def layer_roles(draft: Draft, i: int, prefix: str, width: int) -> Roles:
    """Attention (on inputs of ``width``) and MLP of layer ``i``, whose tensors' names start with ``prefix``."""
    attention, hidden, inner = draft.attention, draft.hidden_size, draft.mlp.intermediate_size
    q, kv = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    linears = (
        ("q", "self_attn.q_proj", q, width, attention.qkv_bias),
        ("k", "self_attn.k_proj", kv, width, attention.qkv_bias),
        ("v", "self_attn.v_proj", kv, width, attention.qkv_bias),
        ("o", "self_attn.o_proj", hidden, q, False),
        ("gate", "mlp.gate_proj", inner, hidden, False),
        ("up", "mlp.up_proj", inner, hidden, False),
        ("down", "mlp.down_proj", hidden, inner, False),
    )
    table: Roles = {}
    for role, name, rows, columns, bias in linears:
        table[f"draft.layers.{i}.{role}.weight"] = Source(name=f"{prefix}.{name}.weight", shape=(rows, columns))
        if bias:
            table[f"draft.layers.{i}.{role}.bias"] = Source(name=f"{prefix}.{name}.bias", shape=(rows,))
    norm = Source(name=f"{prefix}.post_attention_layernorm.weight", shape=(hidden,))
    return table | {f"draft.layers.{i}.mlp_norm.weight": norm}
