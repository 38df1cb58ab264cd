"""ERNIE 4.5 with experts: picked by a softmax and a bias, with a shared one; neighbouring channels are rotary pairs.

| key | what it does |
|---|---|
| moe_num_experts, num_local_experts | experts of a layer, default 64; if both are there they must agree |
| moe_k | picked for each token, default 6; their weights are always divided by their sum |
| moe_intermediate_size | channels of one expert, default 1536 |
| moe_num_shared_experts | size of the expert that every token takes, in experts; default 2 |
| moe_layer_start_index, moe_layer_end_index | first and last layer with experts; default 1, and -1: the last |
| moe_layer_interval, intermediate_size | every so many-th layer has experts, default 1; channels of the others |
| moe_norm_min | must be 1e-12: the least sum by which weights are divided |
| moe_gate, moe_use_aux_free | must be topk or topk_fused, and true |
| num_nextn_predict_layers | a layer for drafts, which is not read |
| moe_capacity | without effect: it is for training |
| num_key_value_heads | default: 4 |
| tie_word_embeddings | default: true |
| use_bias, attention_bias, mlp_bias | must be false |
| router_aux_loss_coef, output_router_logits | without effect: they are for training |
"""

import dataclasses

from planner.families.config import ROUTER_TRAINING, Keys, read_attention, read_experts, read_layers, read_mlp
from planner.families.llama_layout import Defaults, ExpertNames, base_reading
from planner.families.records import BaseReading
from plans.format import quote
from plans.schema import Mlp, Router

DEFAULTS = Defaults(
    max_positions=131072,
    bos_token_id=1,
    eos_token_id=2,
    norm_eps=1e-5,
    rope_theta=500000.0,
    tied=True,
    interleaved=True,
)
EXPERTS = ExpertNames(
    block="mlp",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
    shared="shared_experts",
    correction="moe_statics.e_score_correction_bias",
    correction_shape=(1,),
)
ROUTER = Router(scores="softmax", bias=False, float32=True, correction=True, groups=1, picked_groups=1, scale=1.0)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    for name in ("use_bias", "attention_bias", "mlp_bias"):
        keys.expect(name, False, "ernie4_5_moe has no biases")
    keys.expect("moe_norm_min", 1e-12, "another least sum of weights is not computed here")
    if (gate := keys.get("moe_gate", "topk")) not in ("topk", "topk_fused"):
        raise keys.fail("moe_gate", f"found {quote(gate)}, expected topk or topk_fused: no other is computed here")
    keys.expect("moe_use_aux_free", True, "experts are picked with a bias in this family")
    attention = read_attention(keys, default_kv_heads=4, qkv_bias=False, o_bias=False)
    harmless = ROUTER_TRAINING | {"intermediate_size", "moe_capacity", "num_nextn_predict_layers"}
    reading = base_reading("ernie4_5_moe", keys, attention, _read_mlps(keys), DEFAULTS, EXPERTS, harmless)
    return dataclasses.replace(reading, ignored_prefixes=("model.mtp_",))


def _read_mlps(keys: Keys) -> tuple[Mlp, ...]:
    """Read the MLP of each layer: experts, or dense outside the range and the interval of layers."""
    inner, shared = keys.integer("moe_intermediate_size", 1536), keys.get("moe_num_shared_experts", 2)
    if type(shared) is not int or not 0 <= shared <= 64:
        raise keys.fail("moe_num_shared_experts", f"found {quote(shared)}, expected an integer from 0 to 64")
    experts = read_experts(
        keys,
        size="moe_intermediate_size",
        default_size=1536,
        default_experts=64,
        default_per_token=6,
        norm_topk_prob=True,
        shared_size=inner * shared if shared else None,
        router=ROUTER,
        names=("moe_num_experts", "moe_k"),
    )
    layers, interval = read_layers(keys), keys.integer("moe_layer_interval", 1)
    first, last = keys.get("moe_layer_start_index", 1), keys.get("moe_layer_end_index", -1)
    for name, value, least in (("moe_layer_start_index", first, 0), ("moe_layer_end_index", last, -1)):
        if type(value) is not int or value < least:
            raise keys.fail(name, f"found {quote(value)}, expected the number of a layer")
    last = layers - 1 if last == -1 else last
    sparse = [(i + 1) % interval == 0 and first <= i <= last for i in range(layers)]
    dense = None if all(sparse) else read_mlp(keys, bias=False)
    return tuple(experts if is_sparse or dense is None else dense for is_sparse in sparse)
