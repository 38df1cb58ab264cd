"""OLMoE: experts in every layer; all heads of q and of k are normed together.

| key | what it does |
|---|---|
| num_experts, num_local_experts | experts of a layer, default 64; if both are there they must agree |
| num_experts_per_tok | picked for each token, default 8 |
| norm_topk_prob | true divides the weights of the picked experts by their sum, default false |
| intermediate_size | channels of one expert |
| attention_bias | biases of q, k, v and o |
| clip_qkv | must be null |
| head_dim | must be hidden_size / num_attention_heads |
| mlp_bias | must be false |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

from planner.families.config import ROUTER_TRAINING, Keys, read_attention, read_experts, read_layers
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.records import BaseReading

DEFAULTS = Defaults(max_positions=4096, bos_token_id=None, eos_token_id=50279, norm_eps=1e-5)
EXPERTS = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("clip_qkv", None, "queries, keys and values are not clipped here")
    keys.expect("mlp_bias", False, "the experts of olmoe have no biases")
    hidden, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    keys.expect(
        "head_dim", hidden // heads, "the norms of q and k have hidden_size / num_attention_heads for each head"
    )
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, qkv_bias=bias, o_bias=bias, qk_norm=True, qk_norm_whole=True)
    experts = read_experts(
        keys,
        size="intermediate_size",
        default_experts=64,
        default_per_token=8,
        norm_topk_prob=keys.boolean("norm_topk_prob", False),
    )
    mlps = (experts,) * read_layers(keys)
    return base_reading("olmoe", keys, attention, mlps, DEFAULTS, EXPERTS, ROUTER_TRAINING)
