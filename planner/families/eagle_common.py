"""Read the parts that EAGLE heads of all kinds share: checks against the base, attention, MLP, roles of a layer.

An EAGLE head is a small dense Llama, whatever its base model is. Its config may carry over keys of the base model's
family (``model_type``), of which only sizes count; tensors decide about biases and norms of q and k, which configs
often state wrongly. Official heads exist for

- eagle: llama (Llama 2 and 3, Vicuna), qwen2 (with biases of q, k and v: ``qkv_bias``) and mixtral (one dense MLP, and
  as many KV heads as query heads);
- eagle3: llama, and for qwen2, qwen3, qwen3_moe, mistral those of SpecForge, SGLang and AngelSlim, in the same layout,
  and those of speculators (Red Hat) and ModelOpt (NVIDIA) in theirs.
"""

from planner.families.config import NO_WINDOW, ROUTER_TRAINING, Keys, gated_mlp, read_attention, words
from planner.families.llama_layout import attention_roles, mlp_roles, prefixed
from planner.families.records import DraftFacts, Roles, Source
from planner.families.rope import Rope, rotaries
from planner.families.windows import switched_windows
from plans.schema import Attention, Draft, Mlp, Model, Rotary

HARMLESS = words("bos_token_id eos_token_id tie_word_embeddings target_model_type") | ROUTER_TRAINING
"""Keys without effect: token ids are the base model's, and an EAGLE head has its own tables or uses the base's."""
CARRIED_OVER = words("num_local_experts num_experts num_experts_per_tok norm_topk_prob moe_intermediate_size") | words(
    "decoder_sparse_step mlp_only_layers"
)
"""Keys of a base model with experts, in the config of an EAGLE head that is dense all the same, as its tensors show."""


def check_base(width: tuple[Keys, str, int], layer: Keys, base: Model) -> None:
    """Raise ConfigError unless the EAGLE head was trained for a base model of this width and vocabulary.

    ``width``: the key that has the base's hidden size, with its value.
    """
    keys, name, hidden = width
    reason = "the EAGLE head is for another base model"
    if hidden != base.hidden_size:
        raise keys.fail(name, f"found {hidden}, expected {base.hidden_size}, the base model's hidden_size: {reason}")
    vocab = layer.integer("vocab_size")
    if vocab != base.vocab_size:
        raise layer.fail("vocab_size", f"found {vocab}, expected {base.vocab_size}, the base model's: {reason}")


def read_drafter_attention(keys: Keys, facts: DraftFacts) -> Attention:
    """Read Llama attention; its biases and norms are those of the tensors."""
    for name in ("qkv_bias", "attention_bias"):
        refuse_claim(keys, name, present=facts.qkv_bias, tensor="bias of q, k and v")
    if keys.has("use_sliding_window") and any(windows := switched_windows(keys, 1, by_layer=False)):
        problem = f"found True, a window of {windows[0]} in every layer, expected False: {NO_WINDOW}"
        raise keys.fail("use_sliding_window", problem)
    return read_attention(keys, qkv_bias=facts.qkv_bias, o_bias=facts.o_bias, qk_norm=facts.qk_norm)


def read_drafter_mlp(keys: Keys, facts: DraftFacts) -> Mlp:
    """Read the gated MLP; its biases are those of the tensors."""
    refuse_claim(keys, "mlp_bias", present=facts.mlp_bias, tensor="bias of the MLP")
    return gated_mlp(keys.integer("intermediate_size"), bias=facts.mlp_bias)


def drafter_rotary(rope: Rope, num_layers: int) -> Rotary | None:
    """Return the one rotary table of an EAGLE head; None: a plain one."""
    tables = rotaries((rope,) * num_layers)
    return None if tables is None else tables[0]


def read_draft_vocabulary(keys: Keys, default: int) -> int:
    """Read the number of drafted tokens, which has two names."""
    other = keys.integer("truncated_vocab_size", default)
    size = keys.integer("draft_vocab_size", other)
    if keys.has("truncated_vocab_size") and size != other:
        raise keys.fail("truncated_vocab_size", f"found {other}, expected {size} as in draft_vocab_size")
    return size


def refuse_claim(keys: Keys, name: str, *, present: bool, tensor: str) -> None:
    """Raise ConfigError where a key claims a tensor that the head lacks; one that it denies is there all the same."""
    if keys.boolean(name, present) and not present:
        raise keys.fail(name, f"found True, expected False: the head has no {tensor}")


def layer_roles(draft: Draft, i: int, prefix: str) -> Roles:
    """Return the roles of attention and MLP of layer ``i``, and of its norms.

    ``prefix``: first part of the names of the layer's tensors. The first layer of EAGLE-3 has a norm for each half of
    its input, that of EAGLE-1 none.
    """
    hidden = draft.hidden_size
    layer = attention_roles(draft.attention, hidden, draft.attention_width(i)) | mlp_roles(draft.mlp, hidden)
    norms = {"mlp_norm": "post_attention_layernorm"}
    if i:
        norms["attention_norm"] = "input_layernorm"
    elif draft.kind == "eagle3":
        norms |= {"input_norm": "input_layernorm", "hidden_norm": "hidden_norm"}
    layer |= {f"{role}.weight": Source(name=f"{name}.weight", shape=(hidden,)) for role, name in norms.items()}
    return prefixed(layer, f"draft.layers.{i}", prefix)
