"""dots.llm1: the experts of glm4_moe without its dense first layer, and norms of q and k.

| key | what it does |
|---|---|
| n_routed_experts, num_experts_per_tok, n_shared_experts | needed; as in glm4_moe |
| moe_intermediate_size | channels of one expert, default 1408 |
| n_group, topk_group, routed_scaling_factor, scoring_func, topk_method | as in glm4_moe |
| norm_topk_prob | true divides the weights of the picked experts by their sum, default false |
| first_k_dense_replace, intermediate_size | dense layers before those with experts, default 0, and their channels |
| sliding_window, max_window_layers, layer_types | window, default 4096, of layers from the 62nd on or by layer_types |
| attention_bias | biases of q, k, v and o |
| num_key_value_heads | default: 32 |
| mlp_bias | must be false |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

from planner.families.config import ROUTER_TRAINING, Keys, read_attention, read_layers
from planner.families.glm4_moe import EXPERTS, dense_first, read_picked_by_sigmoids
from planner.families.llama_layout import Defaults, base_reading
from planner.families.records import BaseReading
from planner.families.windows import FULL, SLIDING, Windows, read_window, typed_windows
from plans.format import quote

DEFAULTS = Defaults(max_positions=2048, bos_token_id=None, eos_token_id=None)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("mlp_bias", False, "the MLPs of dots1 have no biases")
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, default_kv_heads=32, qkv_bias=bias, o_bias=bias, qk_norm=True)
    experts = read_picked_by_sigmoids(keys, channels=1408, norm_topk_prob=False)
    harmless = ROUTER_TRAINING | {"intermediate_size"}
    return base_reading(
        "dots1", keys, attention, dense_first(keys, experts, 0), DEFAULTS, EXPERTS, harmless, _windows(keys)
    )


def _windows(keys: Keys) -> Windows:
    window, first = read_window(keys, 4096), keys.get("max_window_layers", 62)
    if type(first) is not int or first < 0:
        raise keys.fail("max_window_layers", f"found {quote(first)}, expected a number of layers")
    types = [FULL if window is None or i < first else SLIDING for i in range(read_layers(keys))]
    return typed_windows(keys, window, types)
