"""Read the parts that EAGLE heads of all kinds share: checks against the base, attention, roles of a layer.

An EAGLE head is a small Llama, whatever its base model is: its attention has no norms of q and k, and its MLP is dense.
Its config may carry over keys of the base model's family (``model_type``), of which only sizes count. Official heads
exist for

- eagle: llama (Llama 2 and 3, Vicuna), qwen2 (with biases of q, k and v: ``qkv_bias``) and mixtral (one dense MLP, and
  as many KV heads as query heads);
- eagle3: llama, and for qwen2, qwen3, qwen3_moe, mistral those of SpecForge, SGLang and AngelSlim, in the same layout.
"""

from planner.families.config import NO_WINDOW, ROUTER_TRAINING, Keys, read_attention, words
from planner.families.llama_layout import attention_roles, mlp_roles, prefixed
from planner.families.records import DraftFacts, Roles, Source
from planner.families.windows import switched_windows
from plans.schema import Attention, Draft, Model

HARMLESS = words("bos_token_id eos_token_id tie_word_embeddings target_model_type") | ROUTER_TRAINING
"""Keys without effect: token ids are the base model's, and an EAGLE head has its own tables or uses the base's."""
CARRIED_OVER = words("num_local_experts num_experts num_experts_per_tok norm_topk_prob moe_intermediate_size") | words(
    "decoder_sparse_step mlp_only_layers"
)
"""Keys of a base model with experts, in the config of an EAGLE head that is dense all the same, as its tensors show."""


def check_base(keys: Keys, base: Model, target_hidden_size: int, name: str) -> None:
    """Raise ConfigError unless the EAGLE head was trained for a base model of this width and vocabulary.

    ``name``: the key that has ``target_hidden_size``.
    """
    reason = "the EAGLE head is for another base model"
    if target_hidden_size != base.hidden_size:
        problem = f"found {target_hidden_size}, expected {base.hidden_size}, the base model's hidden_size: {reason}"
        raise keys.fail(name, problem)
    vocab = keys.integer("vocab_size")
    if vocab != base.vocab_size:
        raise keys.fail("vocab_size", f"found {vocab}, expected {base.vocab_size}, the base model's: {reason}")


def read_drafter_attention(keys: Keys, facts: DraftFacts) -> Attention:
    """Read Llama attention; the tensors tell if q, k and v have biases, and the config must not contradict them."""
    biases = "have them" if facts.qkv_bias else "have none"
    keys.expect("qkv_bias", facts.qkv_bias, f"biases of q, k and v: the tensors of the EAGLE head {biases}")
    keys.expect("attention_bias", False, "o of an EAGLE head has no bias; those of q, k and v are qkv_bias")
    keys.expect("mlp_bias", False, "the MLP of an EAGLE head has no biases")
    if keys.has("use_sliding_window") and any(windows := switched_windows(keys, 1, by_layer=False)):
        problem = f"found True, a window of {windows[0]} in every layer, expected False: {NO_WINDOW}"
        raise keys.fail("use_sliding_window", problem)
    return read_attention(keys, qkv_bias=facts.qkv_bias, o_bias=False)


def layer_roles(draft: Draft, i: int, prefix: str, width: int) -> Roles:
    """Return the roles of attention, on inputs of ``width``, and MLP of layer ``i``.

    ``prefix``: first part of the names of the layer's tensors.
    """
    layer = attention_roles(draft.attention, draft.hidden_size, width) | mlp_roles(draft.mlp, draft.hidden_size)
    layer["mlp_norm.weight"] = Source(name="post_attention_layernorm.weight", shape=(draft.hidden_size,))
    return prefixed(layer, f"draft.layers.{i}", prefix)
