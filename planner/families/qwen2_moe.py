"""Qwen1.5-MoE and Qwen2-MoE: experts, of which one is shared and taken by every token, by the sigmoid of a gate.

| key | what it does |
|---|---|
| num_experts, num_local_experts | experts of a layer, default 60; if both are there they must agree |
| num_experts_per_tok | picked for each token, default 4 |
| norm_topk_prob | true divides the weights of the picked experts by their sum, default false |
| moe_intermediate_size | channels of one expert, default 1408 |
| shared_expert_intermediate_size | channels of the shared expert, default 5632 |
| decoder_sparse_step, mlp_only_layers, intermediate_size | dense layers, as in qwen3_moe |
| qkv_bias | biases of q, k and v, default true; o has none |
| num_key_value_heads | default: 16 |
| use_sliding_window, sliding_window | a window that is switched off is ignored; another is refused |
| mlp_bias | must be false |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

from planner.families.config import NO_WINDOW, ROUTER_TRAINING, Keys, read_attention, read_experts
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.qwen3_moe import read_sparse_mlps
from planner.families.records import BaseReading

DEFAULTS = Defaults(max_positions=32768, bos_token_id=None, eos_token_id=None)
EXPERTS = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("use_sliding_window", False, NO_WINDOW)
    keys.get("sliding_window")
    keys.expect("mlp_bias", False, "the MLP of qwen2_moe has no biases")
    bias = keys.boolean("qkv_bias", True)
    keys.expect("attention_bias", bias, "qkv_bias says whether q, k and v have biases")
    attention = read_attention(keys, default_kv_heads=16, qkv_bias=bias, o_bias=False)
    experts = read_experts(
        keys,
        size="moe_intermediate_size",
        default_experts=60,
        default_per_token=4,
        norm_topk_prob=keys.boolean("norm_topk_prob", False),
        shared_size=keys.integer("shared_expert_intermediate_size", 5632),
        shared_gate=True,
    )
    mlps = read_sparse_mlps(keys, experts)
    harmless = ROUTER_TRAINING | {"intermediate_size"}
    return base_reading("qwen2_moe", keys, attention, mlps, DEFAULTS, EXPERTS, harmless)
