"""Qwen3 with experts: the attention of qwen3, and in each layer experts or a dense MLP.

| key | what it does |
|---|---|
| num_experts, num_local_experts | experts of a layer, default 128; if both are there they must agree |
| num_experts_per_tok | picked for each token, default 8 |
| norm_topk_prob | true divides the weights of the picked experts by their sum, default false |
| moe_intermediate_size | channels of one expert |
| decoder_sparse_step | layer i has experts if it divides i + 1, default 1 |
| mlp_only_layers | layers that are dense all the same |
| intermediate_size | channels of a dense layer; needed if there is one |
| head_dim | default: hidden_size / num_attention_heads |
| attention_bias | biases of q, k, v and o |
| num_key_value_heads | default: 4 |
| use_sliding_window, sliding_window | whether every layer has a window, and its positions; default: false, 4096 |
| mlp_bias | must be false |
| qkv_bias | must be false: attention_bias says which biases there are |
| use_qk_norm | must be true: the norms of q and k are part of the family |
| shared_expert_intermediate_size | must be 0: no expert is shared |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

from planner.families.config import (
    ROUTER_TRAINING,
    Keys,
    read_attention,
    read_experts,
    read_layers,
    read_mlp,
)
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.records import BaseReading
from planner.families.windows import switched_windows
from plans.format import quote
from plans.schema import Mlp

DEFAULTS = Defaults(max_positions=32768, bos_token_id=None, eos_token_id=None)
EXPERTS = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    windows = switched_windows(keys, read_layers(keys), by_layer=False)
    keys.expect("mlp_bias", False, "the MLP of qwen3_moe has no biases")
    keys.expect("qkv_bias", False, "attention_bias says whether q, k and v have biases")
    keys.expect("use_qk_norm", True, "q and k of qwen3_moe have norms")
    keys.expect("shared_expert_intermediate_size", 0, "experts that every token takes are not computed here")
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, default_kv_heads=4, qkv_bias=bias, o_bias=bias, qk_norm=True)
    experts = read_experts(
        keys,
        size="moe_intermediate_size",
        default_experts=128,
        default_per_token=8,
        norm_topk_prob=keys.boolean("norm_topk_prob", False),
    )
    mlps = read_sparse_mlps(keys, experts)
    harmless = ROUTER_TRAINING | {"intermediate_size"}
    return base_reading("qwen3_moe", keys, attention, mlps, DEFAULTS, EXPERTS, harmless, windows)


def read_sparse_mlps(keys: Keys, experts: Mlp) -> tuple[Mlp, ...]:
    """Read the MLP of each layer: experts, unless ``mlp_only_layers`` or ``decoder_sparse_step`` makes it dense."""
    count = read_layers(keys)
    step = keys.integer("decoder_sparse_step", 1)
    only = keys.get("mlp_only_layers", [])
    if not isinstance(only, list) or len(only) > count or not all(type(i) is int and 0 <= i < count for i in only):
        raise keys.fail("mlp_only_layers", f"found {quote(only)}, expected a list of layers from 0 to {count - 1}")
    sparse = [i not in only and (i + 1) % step == 0 for i in range(count)]
    dense = None if all(sparse) else read_mlp(keys, bias=False)
    return tuple(experts if is_sparse or dense is None else dense for is_sparse in sparse)
