"""MiniMax-M2 to M2.7: experts that are picked by sigmoids and a bias; all heads of q, and of k, are normed together.

| key | what it does |
|---|---|
| num_local_experts, num_experts | experts of a layer, default 256; if both are there they must agree |
| num_experts_per_tok | picked for each token, default 8; their weights are always divided by their sum |
| intermediate_size | channels of one expert |
| mlp_intermediate_size | without effect: of dense layers, of which there are none |
| rotary_dim | channels of a head that are rotated; default: all, or those of partial_rotary_factor |
| num_key_value_heads, head_dim | default: 8, 128 |
| scoring_func, use_routing_bias, use_qk_norm, qk_norm_type | must be sigmoid, true, true, per_layer |
| shared_intermediate_size | must be 0: no expert is shared |
| attn_type_list | must be 1 for every layer: attention of all positions |
| norm_topk_prob | must be true |
| use_mtp, num_mtp_modules, mtp_transformer_layers | layers behind the last, for drafts: they are not read |
| attention_bias, mlp_bias | must be false |
| router_aux_loss_coef, router_jitter_noise, output_router_logits | without effect: they are for training |
"""

import dataclasses

from planner.families.config import ROUTER_TRAINING, Keys, read_attention, read_experts, read_layers, words
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.records import BaseReading
from plans.schema import Router

DEFAULTS = Defaults(
    max_positions=196608, bos_token_id=200034, eos_token_id=200020, rope_theta=5000000.0, partial_rotary=1.0
)
EXPERTS = ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2", correction="e_score_correction_bias")
ROUTER = Router(scores="sigmoid", bias=False, float32=True, correction=True, groups=1, picked_groups=1, scale=1.0)
MTP = words("use_mtp num_mtp_modules mtp_transformer_layers")
UNUSED = words("mlp_intermediate_size")


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    _expect_usual(keys)
    attention = read_attention(
        keys, default_kv_heads=8, default_head_dim=128, qkv_bias=False, o_bias=False, qk_norm=True, qk_norm_whole=True
    )
    experts = read_experts(
        keys, size="intermediate_size", default_experts=256, default_per_token=8, norm_topk_prob=True, router=ROUTER
    )
    mlps = (experts,) * read_layers(keys)
    rotated = keys.integer("rotary_dim", attention.head_dim, most=attention.head_dim)
    defaults = dataclasses.replace(DEFAULTS, partial_rotary=rotated / attention.head_dim)
    reading = base_reading("minimax_m2", keys, attention, mlps, defaults, EXPERTS, ROUTER_TRAINING | MTP | UNUSED)
    modules = keys.integer("num_mtp_modules", 1, most=8)
    behind = tuple(f"model.layers.{len(mlps) + i}." for i in range(modules))
    return dataclasses.replace(reading, ignored_prefixes=behind)


def _expect_usual(keys: Keys) -> None:
    keys.expect("attention_bias", False, "minimax_m2 has no biases")
    keys.expect("mlp_bias", False, "minimax_m2 has no biases")
    keys.expect("scoring_func", "sigmoid", "scores of experts are sigmoids in this family")
    keys.expect("use_routing_bias", True, "experts are picked with a bias in this family")
    keys.expect("use_qk_norm", True, "q and k of minimax_m2 have norms")
    keys.expect("qk_norm_type", "per_layer", "all heads of q and of k are normed together in this family")
    keys.expect("norm_topk_prob", True, "the weights of the picked experts are divided by their sum")
    keys.expect("shared_intermediate_size", 0, "minimax_m2 has no shared expert")
    keys.expect("attn_type_list", [1] * read_layers(keys), "other attention than of all positions is not computed here")
