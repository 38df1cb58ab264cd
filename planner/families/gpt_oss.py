"""gpt-oss: experts with biases and clamped gates, attention with sinks, windows in every other layer.

| key | what it does |
|---|---|
| num_local_experts, num_experts | experts of a layer, default 128; if both are there they must agree |
| num_experts_per_tok, experts_per_token | picked for each token, default 4; if both are there they must agree |
| intermediate_size | channels of one expert |
| swiglu_limit | gates are at most this, ups between its negative and it; default 7 |
| swiglu_alpha | a of the activation g * sigmoid(a * g); default 1.702 |
| sliding_window, layer_types | positions of a window, default 128, and which layers have it: the first, third, ... |
| attention_bias | biases of q, k, v and o, default true |
| num_key_value_heads, head_dim | default: 8, 64 |
| rope_parameters, rope_scaling | without both: YaRN with factor 32 of 4096 positions |
| initial_context_length | must be the rotary embedding's original length |
| norm_topk_prob | must be true: a softmax over the picked experts |
| mlp_bias | must be true |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

import dataclasses

from planner.families.config import ROUTER_TRAINING, Keys, read_attention, read_experts, read_layers
from planner.families.llama_layout import Defaults, ExpertNames, base_reading, read_max_positions, rope_defaults
from planner.families.records import BaseReading
from planner.families.rope import Rope, YarnScaling
from planner.families.rope_keys import read_rope
from planner.families.windows import FULL, SLIDING, read_window, typed_windows
from plans.check_model import ALPHAS, SOFTCAPS
from plans.schema import Mlp, Router

DEFAULTS = Defaults(max_positions=131072, bos_token_id=None, eos_token_id=None, norm_eps=1e-5, rope_theta=150000.0)
EXPERTS = ExpertNames(block="mlp", router="router", gate="gate_up_proj", up="", down="down_proj", packed="interleaved")
ROUTER = Router(scores="softmax", bias=True, float32=False, correction=False, groups=1, picked_groups=1, scale=1.0)
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    bias = keys.boolean("attention_bias", True)
    attention = dataclasses.replace(
        read_attention(keys, default_kv_heads=8, default_head_dim=64, qkv_bias=bias, o_bias=bias), sinks=True
    )
    types = [FULL if i % 2 else SLIDING for i in range(read_layers(keys))]
    windows = typed_windows(keys, read_window(keys, 128), types)
    mlps, rope = (_read_mlp(keys),) * len(types), _read_rope(keys, attention.head_dim)
    return base_reading(
        "gpt_oss", keys, attention, mlps, DEFAULTS, EXPERTS, ROUTER_TRAINING, windows, [rope] * len(types)
    )


def _read_mlp(keys: Keys) -> Mlp:
    keys.expect("norm_topk_prob", True, "the weights of the picked experts are divided by their sum")
    keys.expect("mlp_bias", True, "the experts of gpt_oss have biases")
    experts = read_experts(
        keys,
        size="intermediate_size",
        default_experts=128,
        default_per_token=4,
        norm_topk_prob=True,
        bias=True,
        router=ROUTER,
    )
    keys.expect("experts_per_token", experts.experts_per_token, "num_experts_per_tok says how many are picked")
    limit = keys.number("swiglu_limit", 7.0, least=SOFTCAPS[0], most=SOFTCAPS[1])
    alpha = keys.number("swiglu_alpha", 1.702, least=ALPHAS[0], most=ALPHAS[1])
    return dataclasses.replace(experts, swiglu_limit=limit, swiglu_alpha=alpha)


def _read_rope(keys: Keys, head_dim: int) -> Rope:
    rope = read_rope(keys, head_dim, rope_defaults(DEFAULTS, read_max_positions(keys, DEFAULTS)), absent=ROPE)
    if isinstance(rope.scaling, YarnScaling):
        original = rope.scaling.original_max_position_embeddings
        keys.expect("initial_context_length", original, "the rotary embedding says which length it was trained for")
    return rope
