"""The text part of Qwen3-VL with experts: qwen3_moe with the matrices of all experts in packed tensors.

These are as transformers writes them, or transposed, as they are published.

| key | what it does |
|---|---|
| num_experts, num_local_experts | experts of a layer, default 60; if both are there they must agree |
| num_experts_per_tok | picked for each token, default 4; their weights are always divided by their sum |
| norm_topk_prob | must be true |
| moe_intermediate_size | channels of one expert, default 1408 |
| decoder_sparse_step, mlp_only_layers, intermediate_size | dense layers, as in qwen3_moe |
| head_dim | default: hidden_size / num_attention_heads |
| attention_bias | biases of q, k, v and o |
| num_key_value_heads | default: 16 |
| sliding_window, use_sliding_window | without effect: there are no windows |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

from planner.families.config import ROUTER_TRAINING, Keys, read_attention, read_experts
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.qwen3_moe import read_sparse_mlps
from planner.families.records import BaseReading

DEFAULTS = Defaults(max_positions=128000, bos_token_id=None, eos_token_id=None, rope_theta=500000.0)
EXPERTS = ExpertNames(block="mlp", gate="gate_up_proj", up="", down="down_proj", packed="rows")


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("norm_topk_prob", True, "the weights of the picked experts are divided by their sum")
    for name in ("sliding_window", "use_sliding_window"):
        keys.get(name)
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, default_kv_heads=16, qkv_bias=bias, o_bias=bias, qk_norm=True)
    experts = read_experts(
        keys,
        size="moe_intermediate_size",
        default_size=1408,
        default_experts=60,
        default_per_token=4,
        norm_topk_prob=True,
    )
    harmless = ROUTER_TRAINING | {"intermediate_size"}
    return base_reading(
        "qwen3_vl_moe_text", keys, attention, read_sparse_mlps(keys, experts), DEFAULTS, EXPERTS, harmless
    )
