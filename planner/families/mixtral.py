"""Mixtral: the layers of Mistral with experts in place of the MLP.

| key | what it does |
|---|---|
| num_local_experts, num_experts | experts of a layer, default 8; if both are there they must agree |
| num_experts_per_tok | picked for each token, default 2; their weights are always divided by their sum |
| intermediate_size | channels of one expert |
| norm_topk_prob | must be true |
| sliding_window | positions that every layer attends to; null or absent: all |
| attention_bias, mlp_bias | must be false |
| router_aux_loss_coef, router_jitter_noise, output_router_logits | without effect: they are for training |
"""

from planner.families.config import ROUTER_TRAINING, Keys, read_attention, read_experts, read_layers
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.records import BaseReading
from planner.families.windows import read_window

DEFAULTS = Defaults(max_positions=4096 * 32, bos_token_id=1, eos_token_id=2, norm_eps=1e-5, rope_theta=1e6)
EXPERTS = ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("attention_bias", False, "mixtral has no biases")
    keys.expect("mlp_bias", False, "mixtral has no biases")
    keys.expect("norm_topk_prob", True, "the weights of the picked experts are divided by their sum")
    attention = read_attention(keys, default_kv_heads=8, qkv_bias=False, o_bias=False)
    experts = read_experts(keys, size="intermediate_size", default_experts=8, default_per_token=2, norm_topk_prob=True)
    mlps = (experts,) * read_layers(keys)
    windows = (read_window(keys),) * len(mlps)
    return base_reading("mixtral", keys, attention, mlps, DEFAULTS, EXPERTS, ROUTER_TRAINING, windows)
