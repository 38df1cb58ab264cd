"""GLM-4.5 and 4.6: experts that are picked by sigmoids and a bias, in groups, with a shared one, behind dense layers.

| key | what it does |
|---|---|
| n_routed_experts, num_local_experts | experts of a layer, default 128; if both are there they must agree |
| num_experts_per_tok | picked for each token, default 8 |
| n_shared_experts | size of the expert that every token takes, in experts; default 1 |
| moe_intermediate_size | channels of one expert, default 1408 |
| n_group, topk_group | groups of experts, and those that a token's are picked from; default 1, 1 |
| norm_topk_prob | true divides the weights of the picked experts by their sum, default true |
| routed_scaling_factor | factor of the weights, default 1 |
| first_k_dense_replace, intermediate_size | dense layers before those with experts, default 1, and their channels |
| num_nextn_predict_layers, num_mtp_layers | layers behind the last, for drafts: they are not read |
| scoring_func, topk_method | must be sigmoid, noaux_tc |
| attention_bias | biases of q, k and v, default false; o has none |
| use_qk_norm | norms of q and k, default false |
| partial_rotary_factor | part of the channels that is rotated, default 0.5 |
| num_key_value_heads | default: 8 |
| mlp_bias | must be false |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

import dataclasses

from planner.families.config import (
    ROUTER_TRAINING,
    Keys,
    read_attention,
    read_experts,
    read_layers,
    read_mlp,
    words,
)
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.records import BaseReading
from plans.check_model import MOST_EXPERTS, MULTIPLIERS
from plans.format import quote
from plans.schema import Mlp, Router

DEFAULTS = Defaults(max_positions=131072, bos_token_id=None, eos_token_id=None, norm_eps=1e-5, partial_rotary=0.5)
EXPERTS = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj", shared="shared_experts")
MORE_LAYERS = words("num_nextn_predict_layers num_mtp_layers")
"""Keys of layers that predict further tokens; they come behind the others, and nothing here reads them."""


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("mlp_bias", False, "the MLPs of glm4_moe have no biases")
    bias, normed = keys.boolean("attention_bias", False), keys.boolean("use_qk_norm", False)
    attention = read_attention(keys, default_kv_heads=8, qkv_bias=bias, o_bias=False, qk_norm=normed)
    experts = read_picked_by_sigmoids(keys, experts=128, per_token=8, shared=1, channels=1408, norm_topk_prob=True)
    mlps = dense_first(keys, experts, 1)
    harmless = ROUTER_TRAINING | {"intermediate_size"} | MORE_LAYERS
    reading = base_reading("glm4_moe", keys, attention, mlps, DEFAULTS, EXPERTS, harmless)
    return without_more_layers(keys, reading)


def read_picked_by_sigmoids(
    keys: Keys,
    *,
    norm_topk_prob: bool,
    experts: int | None = None,
    per_token: int | None = None,
    shared: int | None = None,
    channels: int | None = None,
) -> Mlp:
    """Read experts with sigmoid routers, by the keys of DeepSeek-V3; the numbers are the family's defaults, if any."""
    keys.expect("scoring_func", "sigmoid", "scores of experts are sigmoids in this family")
    keys.expect("topk_method", "noaux_tc", "experts are picked with a bias in this family")
    router, size = _read_router(keys), "moe_intermediate_size"
    mlp = read_experts(
        keys,
        size=size,
        default_size=channels,
        default_experts=experts,
        default_per_token=per_token,
        norm_topk_prob=keys.boolean("norm_topk_prob", norm_topk_prob),
        shared_size=keys.integer(size, channels) * keys.integer("n_shared_experts", shared, most=MOST_EXPERTS),
        router=router,
        names=("n_routed_experts", "num_experts_per_tok"),
    )
    groups, picked = router.groups, router.picked_groups
    if mlp.num_experts % groups or (groups > 1 and mlp.num_experts < 2 * groups):
        raise keys.fail("n_group", f"found {groups}, expected a divisor of {mlp.num_experts} experts, 2 in each group")
    if picked > groups or mlp.experts_per_token > mlp.num_experts // groups * picked:
        problem = f"found {picked}, expected at most {groups} groups, with {mlp.experts_per_token} experts or more"
        raise keys.fail("topk_group", problem)
    return mlp


def _read_router(keys: Keys) -> Router:
    return Router(
        scores="sigmoid",
        bias=False,
        float32=True,
        correction=True,
        groups=keys.integer("n_group", 1, most=MOST_EXPERTS),
        picked_groups=keys.integer("topk_group", 1, most=MOST_EXPERTS),
        scale=keys.number("routed_scaling_factor", 1.0, least=MULTIPLIERS[0], most=MULTIPLIERS[1]),
    )


def dense_first(keys: Keys, experts: Mlp, default: int) -> tuple[Mlp, ...]:
    """Read the MLP of each layer: of the first ``first_k_dense_replace``, by default ``default``, it is dense."""
    layers, first = read_layers(keys), keys.get("first_k_dense_replace", default)
    if type(first) is not int or first < 0:
        raise keys.fail("first_k_dense_replace", f"found {quote(first)}, expected a number of layers")
    dense = (read_mlp(keys, bias=False),) * min(first, layers) if first else ()
    return (*dense, *(experts,) * (layers - len(dense)))


def without_more_layers(keys: Keys, reading: BaseReading) -> BaseReading:
    """Return the reading of a checkpoint in which further layers, for drafts, may come behind those of the model."""
    layers = reading.model.num_layers
    most = max((value for name in MORE_LAYERS if type(value := keys.get(name, 1)) is int), default=1)
    prefixes = tuple(f"model.layers.{layers + i}." for i in range(min(max(most, 1), 8)))
    return dataclasses.replace(reading, ignored_prefixes=prefixes)
