"""Each family against transformers: names, shapes, dtypes and meaning of tensors, and every key of a config."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaMLP

from planner.checkpoints.checkpoint import INDEX, SINGLE, read_checkpoint
from planner.checkpoints.formats import BEFORE_QUANTIZATION
from planner.errors import ConfigError
from planner.families import BaseInput, load_base, scan, within
from planner.families.config import gated_mlp
from planner.families.rope import inv_freq
from planner.families.windows import SLIDING
from plans.schema import Mlp
from plans.step import layer_class
from tests.planner.tiny_checkpoints import CLASSES, OWN, SMALL, bare, config_of, refused, saved, tensors_by_role

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

PLAIN: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"head_dim": 6},
    {"head_dim": 10, "num_key_value_heads": 4, "num_hidden_layers": 1, "vocab_size": 37},
    {"num_key_value_heads": 1, "intermediate_size": 13, "num_hidden_layers": 2},
]
BIASED: dict[str, list[dict[str, Any]]] = {
    "llama": [{"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}],
    "qwen3": [{"attention_bias": True}],
    "qwen3_moe": [
        {"attention_bias": True, "norm_topk_prob": False},
        {"mlp_only_layers": [0, 3]},
        {"decoder_sparse_step": 3},
        {"decoder_sparse_step": 2, "mlp_only_layers": [1, 6], "tie_word_embeddings": True},
    ],
    "mixtral": [{"num_local_experts": 3, "num_experts_per_tok": 1}],
    "qwen2_moe": [{"qkv_bias": False, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 10}],
    "olmo2": [{"attention_bias": True}],
    "olmoe": [{"attention_bias": True, "norm_topk_prob": True}],
    "smollm3": [{"attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 0, 1, 1, 1, 1, 1, 0]}],
    "glm4": [{"attention_bias": False}],
    "glm4_moe": [{"attention_bias": True, "use_qk_norm": True, "n_shared_experts": 2, "norm_topk_prob": False}],
    "dots1": [{"attention_bias": True, "first_k_dense_replace": 3, "norm_topk_prob": True}],
    "ernie4_5_moe": [{"moe_layer_end_index": 4, "moe_layer_start_index": 2, "moe_num_shared_experts": 0}],
    "gpt_oss": [{"attention_bias": False, "num_local_experts": 3, "intermediate_size": 10}],
}
CASES = [
    (family, changes)
    for family in CLASSES
    for changes in [*PLAIN, *BIASED.get(family, [])]
    if family not in ("olmoe", "glm4", "glm4_moe", "minimax_m2")
    or "head_dim" not in changes  # half is rotated, in pairs
]


@pytest.mark.parametrize(
    ("family", "changes", "max_shard_size"),
    [*((*case, "1GB") for case in CASES), *((family, {}, "4KB") for family in CLASSES)],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_derived_tensors_are_those_of_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any], max_shard_size: str
) -> None:
    dtype = changes.get("dtype", "float32")
    model = CLASSES[family][1](config_of(family, **changes)).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "4KB")
    headers = read_checkpoint(tmp_path).tensors
    assert headers is not None
    base = load_base(tmp_path)
    derived = {source.name: (CODES[dtype], source.shape) for source in base.roles.values()}
    kept = {name for name, info in headers.items() if info.dtype == "F32" and "e_score_correction_bias" in name}
    derived |= {name: ("F32", derived[name][1]) for name in kept}  # in float32, whatever the others are in
    assert derived == {name: (info.dtype, info.shape) for name, info in headers.items()}
    assert scan(tmp_path) == scan(tmp_path / "config.json")
    again = load_base(tmp_path / "config.json")
    assert (again.model, again.ropes, again.roles) == (base.model, base.ropes, base.roles)
    assert (again.config_sha256, again.tensors_sha256) == (base.config_sha256, base.tensors_sha256)
    assert sum(layers.num_layers for layers in base.model.layers) == model.config.num_hidden_layers
    assert base.model.tied_head == model.config.tie_word_embeddings
    assert base.model.norm_eps == model.config.rms_norm_eps
    rotary = type(model.model.rotary_emb)(model.config)
    name = "inv_freq" if hasattr(rotary, "inv_freq") else f"{model.config.layer_types[0]}_inv_freq"
    frequencies = getattr(rotary, name)
    rotated, head_dim = frequencies.tolist(), base.model.layers[0].attention.head_dim
    assert list(inv_freq(base.ropes[0], 64)) == rotated + [0.0] * (head_dim // 2 - len(rotated))


INPUT_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
OUTPUT_NORMS = {
    "attention_output_norm": "post_attention_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
GEMMA_NORMS = OUTPUT_NORMS | {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
NORMS = {
    "olmo2": OUTPUT_NORMS,
    "exaone4": OUTPUT_NORMS,
    "gemma2": GEMMA_NORMS,
    "gemma3_text": GEMMA_NORMS,
    "glm4": INPUT_NORMS
    | {"attention_output_norm": "post_self_attn_layernorm", "mlp_output_norm": "post_mlp_layernorm"},
}
"""Name in transformers of each norm of a layer."""


@pytest.mark.parametrize("family", CLASSES)
def test_roles_mean_what_transformers_computes(tmp_path: Path, family: str) -> None:
    extra = {"mlp_only_layers": [2]} if family == "qwen3_moe" else {}
    base = load_base(saved(tmp_path, family, **extra))
    model = CLASSES[family][1].from_pretrained(tmp_path, dtype=torch.float32).eval()
    tensors = tensors_by_role(base)
    x = torch.randn(5, SMALL["hidden_size"], generator=torch.Generator().manual_seed(1))
    for i, layer in enumerate(model.model.layers):
        roles = {role.removeprefix(f"layers.{i}."): t for role, t in tensors.items() if role.startswith(f"layers.{i}.")}
        for role, name in NORMS.get(family, INPUT_NORMS).items():
            torch.testing.assert_close(roles.pop(f"{role}.weight"), getattr(layer, name).weight.detach())
        assert not any(
            role.endswith(("attention_norm.weight", "mlp_norm.weight", "output_norm.weight")) for role in roles
        )
        if family == "phi3":
            joined = torch.cat([roles[f"{name}.weight"] for name in ("q", "k", "v")])
            torch.testing.assert_close(joined, layer.self_attn.qkv_proj.weight.detach())
        for name in ("o",) if family == "phi3" else ("q", "k", "v", "o"):
            linear = getattr(layer.self_attn, f"{name}_proj")
            torch.testing.assert_close(roles[f"{name}.weight"], linear.weight.detach())
            assert (f"{name}.bias" in roles) == (linear.bias is not None)
        for name in ("q_norm", "k_norm"):
            assert (f"{name}.weight" in roles) == hasattr(layer.self_attn, name)
        with torch.no_grad():
            expected = layer.mlp(x.unsqueeze(0))
            expected = (expected[0] if family == "gpt_oss" else expected).squeeze(0)
        torch.testing.assert_close(mlp_of(base, i, roles, x), expected)


def mlp_of(base: BaseInput, i: int, roles: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute the MLP of a layer as the plan's records describe it, from the tensors by role."""
    mlp = layer_class(base.model, i).mlp

    def linear(name: str, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows, roles[f"{name}.weight"], roles.get(f"{name}.bias"))

    def gated(prefix: str, rows: torch.Tensor) -> torch.Tensor:
        gates, ups, functional = linear(f"{prefix}gate", rows), linear(f"{prefix}up", rows), torch.nn.functional
        if mlp.swiglu_limit is not None:
            gates = gates.clamp(max=mlp.swiglu_limit)
            active, limit = gates * torch.sigmoid(mlp.swiglu_alpha * gates), mlp.swiglu_limit
            return linear(f"{prefix}down", active * (ups.clamp(-limit, limit) + 1))
        gates = functional.silu(gates) if mlp.activation == "silu" else functional.gelu(gates, approximate="tanh")
        return linear(f"{prefix}down", gates * ups)

    if mlp.kind == "gated":
        assert "router.weight" not in roles
        return gated("", x)
    weights, picked = routed(mlp, linear("router", x), roles.get("router.correction"))
    shared = 0.0 * x
    if mlp.shared_size is not None:
        factor = torch.sigmoid(x @ roles["shared_gate.weight"].T) if mlp.shared_gate else 1.0
        shared = factor * gated("shared.", x)
    rows = [
        sum(w * gated(f"experts.{int(e)}.", x[row]) for w, e in zip(weights[row], picked[row], strict=True))
        for row in range(len(x))
    ]
    return shared + torch.stack(rows)  # type: ignore[arg-type]


def routed(
    mlp: Mlp, logits: torch.Tensor, correction: torch.Tensor | None
) -> tuple[list[list[torch.Tensor]], list[list[int]]]:
    """Return weights and numbers of the experts of each row, one by one as the plan's records describe it."""
    router, weights, picked = mlp.router, [], []
    for row in logits:
        scores = torch.sigmoid(row) if router and router.scores == "sigmoid" else torch.softmax(row, 0)
        choices = (scores if correction is None else scores + correction.flatten()).tolist()
        groups = router.groups if router else 1
        size = len(choices) // groups
        best = sorted(range(groups), key=lambda g: -sum(sorted(choices[g * size : (g + 1) * size])[-2:]))
        open_groups = best[: router.picked_groups if router else 1]
        allowed = [e for e in range(len(choices)) if e // size in open_groups]
        chosen = sorted(allowed, key=lambda e: -choices[e])[: mlp.experts_per_token]
        total = sum(scores[e] for e in chosen) if mlp.norm_topk_prob else 1.0
        weights.append([scores[e] / total * (router.scale if router else 1.0) for e in chosen])
        picked.append(chosen)
    return weights, picked


@pytest.mark.parametrize("family", CLASSES)
def test_absent_keys_have_the_defaults_of_transformers(tmp_path: Path, family: str) -> None:
    required = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    config: dict[str, Any] = {name: SMALL[name] for name in required} | {"num_attention_heads": 16, "hidden_size": 64}
    if family in ("qwen2", "qwen3", "exaone4", "dots1"):
        config["num_attention_heads"] = 64  # a multiple of 32, the number of KV heads if the key is absent
        config["hidden_size"] = 128
    if family in ("phi3", "olmo2", "olmoe", "smollm3", "glm4", "gemma2", "gemma3_text", "minimax_m2"):
        config["vocab_size"] = 210000  # the default token ids are among the first so many
    if family == "dots1":
        counts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}
        required, config = [*required, *counts], config | counts
        required.remove("intermediate_size")  # of dense layers, of which there are none
    if family == "ernie4_5_moe":
        config["num_attention_heads"] = 4
    if family in ("qwen3_moe", "qwen2_moe"):
        required[required.index("intermediate_size")] = "moe_intermediate_size"
        config["moe_intermediate_size"] = 12
    base = load_base(bare(tmp_path, config | {"model_type": family}))
    theirs = CLASSES[family][0](**config)
    attention, mlp = base.model.layers[0].attention, base.model.layers[-1].mlp
    assert attention.num_kv_heads == theirs.num_key_value_heads
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert attention.head_dim == base.ropes[0].dim + base.ropes[0].passed == head_dim
    assert (base.model.norm_eps, base.max_positions) == (theirs.rms_norm_eps, theirs.max_position_embeddings)
    rotary = theirs.rope_parameters
    assert base.ropes[0].theta == (rotary if "rope_theta" in rotary else rotary[theirs.layer_types[0]])["rope_theta"]
    assert base.model.bos_token_id == theirs.bos_token_id
    ends = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    assert base.model.eos_token_ids == tuple(end for end in ends if end is not None)
    assert base.model.tied_head == theirs.tie_word_embeddings
    if mlp.kind == "moe":
        counts = {"qwen2_moe": "num_experts", "ernie4_5_moe": "moe_num_experts"}
        assert mlp.num_experts == getattr(theirs, counts.get(family, "num_local_experts"))
        assert mlp.experts_per_token == theirs.num_experts_per_tok
        assert mlp.norm_topk_prob == getattr(theirs, "norm_topk_prob", True)
    for name in required:
        rest = {key: value for key, value in config.items() if key != name} | {"model_type": family}
        file = bare(tmp_path / name, rest)
        message = refused(ConfigError, lambda file=file: load_base(file))
        assert message == f"{file}: {name}: missing, expected an integer"


def test_null_kv_heads_are_as_many_as_heads(tmp_path: Path) -> None:
    for family in ("mistral", "qwen3"):
        file = bare(tmp_path / family, SMALL | OWN[family] | {"model_type": family, "num_key_value_heads": None})
        assert load_base(file).model.layers[0].attention.num_kv_heads == SMALL["num_attention_heads"]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, "EEEEEEE"),
        ({"mlp_only_layers": [0, 1, 6]}, "ddEEEEd"),
        ({"decoder_sparse_step": 2}, "dEdEdEd"),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [2]}, "dddddEd"),
    ],
)
def test_dense_layers_among_experts_are_separate_classes(tmp_path: Path, changes: dict[str, Any], kinds: str) -> None:
    base = load_base(bare(tmp_path, SMALL | OWN["qwen3_moe"] | {"model_type": "qwen3_moe"} | changes))
    layers = "".join(("E" if c.mlp.kind == "moe" else "d") * c.num_layers for c in base.model.layers)
    assert layers == kinds
    assert all(one.mlp != other.mlp for one, other in zip(base.model.layers, base.model.layers[1:], strict=False))
    sizes = {c.mlp.kind: c.mlp.intermediate_size for c in base.model.layers}
    assert sizes["moe"] == 12
    assert sizes.get("gated", 24) == 24


def test_sizes_of_each_layer(tmp_path: Path) -> None:
    """Compare with a model of transformers whose MLPs are replaced by ones of other sizes."""
    sizes = [24, 24, 40, 8, 8, 8, 24]
    saved(tmp_path)
    config = config_of("llama")
    tensors = {name: t for name, t in load_file(tmp_path / SINGLE).items() if ".mlp." not in name}
    for i, size in enumerate(sizes):
        config.intermediate_size = size
        tensors |= {f"model.layers.{i}.mlp.{name}": t for name, t in LlamaMLP(config).state_dict().items()}
    save_file(tensors, tmp_path / SINGLE)
    data = json.loads((tmp_path / "config.json").read_text())
    bare(tmp_path, data | {"intermediate_size": sizes})
    base = load_base(tmp_path)
    derived = {source.name: source.shape for source in base.roles.values()}
    assert derived == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    classes = [(c.num_layers, c.mlp) for c in base.model.layers]
    assert classes == [(n, gated_mlp(size, bias=False)) for n, size in ((2, 24), (1, 40), (3, 8), (1, 24))]
    for wrong, message in (
        (sizes[1:], "intermediate_size: found a list of 6, expected 7: one for each of num_hidden_layers"),
        (
            [*sizes[:6], 24.0],
            "intermediate_size[6]: found 24.0, expected an integer from 1 to 2147483647",
        ),
    ):
        file = bare(tmp_path / "wrong", data | {"intermediate_size": wrong})
        assert refused(ConfigError, lambda file=file: load_base(file)) == f"{file}: {message}"


def test_mixtral_in_its_published_spelling(tmp_path: Path) -> None:
    config = {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    }
    base = load_base(bare(tmp_path, config))
    (layers,) = base.model.layers
    assert (layers.num_layers, layers.mlp.num_experts, layers.mlp.unit) == (32, 8, 128)
    assert base.roles["layers.31.experts.7.down.weight"].name == "model.layers.31.block_sparse_moe.experts.7.w2.weight"
    parameters = sum(torch.Size(source.shape).numel() for source in base.roles.values())
    assert parameters == 46_702_792_704


QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_qwen3_moe_in_its_published_spelling(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path, QWEN3_MOE))
    (layers,) = base.model.layers
    assert (layers.attention.qk_norm, layers.mlp.num_experts, layers.mlp.norm_topk_prob) == (True, 128, True)
    parameters = sum(torch.Size(source.shape).numel() for source in base.roles.values())
    assert parameters == 30_532_122_624


KEYS: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"intermediate_size": [24]},
        "intermediate_size: found a list of 1, expected 7: one for each of num_hidden_layers",
    ),
    ("mistral", {"sliding_window": 0}, "sliding_window: found 0, expected an integer from 1 to 2147483647"),
    ("mistral", {"attention_bias": True}, "attention_bias: found True, expected False: mistral has no biases"),
    (
        "mixtral",
        {"norm_topk_prob": False},
        "norm_topk_prob: found False, expected True: the weights of the picked experts are divided by their sum",
    ),
    ("mixtral", {"num_experts": 8}, "num_local_experts: found 4, expected 8 as in num_experts"),
    (
        "mixtral",
        {"num_experts_per_tok": 5},
        "num_experts_per_tok: found 5, expected at most 4, the number of experts",
    ),
    ("mixtral", {"num_local_experts": 0}, "num_local_experts: found 0, expected an integer from 1 to 1024"),
    (
        "mixtral",
        {"intermediate_size": [24] * 7},
        "intermediate_size: found [24, 24, 24, 24, 24, 24, 24], expected an integer from 1 to 2147483647",
    ),
    (
        "qwen2",
        {"attention_bias": False},
        "attention_bias: found False, expected True: q, k and v of qwen2 have biases",
    ),
    (
        "qwen2",
        {"use_mrope": True},
        "use_mrope: found True, expected False: rotary embedding in sections is not computed here",
    ),
    (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": -1},
        "max_window_layers: found -1, expected a number of layers",
    ),
    (
        "qwen3",
        {"layer_types": ["full_attention"] * 6 + ["sliding_attention"]},
        "layer_types: found sliding_attention without a window, expected full_attention in every layer",
    ),
    (
        "qwen3",
        {"layer_types": ["chunked_attention"]},
        "layer_types: found ['chunked_attention'], expected sliding_attention or full_attention for every layer",
    ),
    (
        "qwen3",
        {"layer_types": ["full_attention"] * 6},
        "layer_types: found 6 of them, expected 7: one for each layer",
    ),
    ("qwen3", {"mlp_bias": True}, "mlp_bias: found True, expected False: the MLP of qwen3 has no biases"),
    (
        "qwen3",
        {"num_experts": 4},
        "num_experts: unknown key: not known here, and it may change what is computed",
    ),
    (
        "qwen3",
        {"rope_scaling": {"rope_type": "mrope", "factor": 4.0}},
        "rope_scaling: rope_type: found 'mrope', expected one of default, linear, dynamic, yarn, longrope, llama3",
    ),
    ("qwen3_moe", {"mlp_only_layers": [7]}, "mlp_only_layers: found [7], expected a list of layers from 0 to 6"),
    (
        "qwen3_moe",
        {"decoder_sparse_step": 0},
        "decoder_sparse_step: found 0, expected an integer from 1 to 2147483647",
    ),
    ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob: found 1, expected true or false"),
    ("qwen3_moe", {"moe_intermediate_size": None}, "moe_intermediate_size: missing, expected an integer"),
    (
        "qwen3_moe",
        {"shared_expert_intermediate_size": 8},
        "shared_expert_intermediate_size: found 8, expected 0: experts that every token takes are not computed here",
    ),
    ("qwen3_moe", {"use_qk_norm": False}, "use_qk_norm: found False, expected True: q and k of qwen3_moe have norms"),
    (
        "qwen3_moe",
        {"qkv_bias": True},
        "qkv_bias: found True, expected False: attention_bias says whether q, k and v have biases",
    ),
    (
        "qwen3_moe",
        {"quantization_config": {"quant_method": "hqq"}},
        f"quantization_config: found HQQ: {BEFORE_QUANTIZATION}",
    ),
    (
        "qwen3_moe",
        {"architectures": ["Qwen3ForCausalLM"]},
        "architectures: found ['Qwen3ForCausalLM'], expected ['Qwen3MoeForCausalLM']",
    ),
]


@pytest.mark.parametrize(("family", "changes", "message"), KEYS, ids=[f"{f}-{json.dumps(c)}" for f, c, _ in KEYS])
def test_an_unsupported_key_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path, SMALL | OWN[family] | {"model_type": family} | changes)
    assert refused(ConfigError, lambda: load_base(file)) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 5}),
        ("qwen2", {"sliding_window": 131072}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 7}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}),
        ("qwen3_moe", {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 0}),
        ("qwen3_moe", {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}),
        ("mixtral", {"router_jitter_noise": 0.1, "router_aux_loss_coef": 0.5, "output_router_logits": True}),
        ("mistral", {"attention_dropout": 0.3}),
    ],
)
def test_a_key_without_effect_is_accepted(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    config = SMALL | OWN[family] | {"model_type": family}
    plain, changed = load_base(bare(tmp_path / "a", config)), load_base(bare(tmp_path / "b", config | changes))
    assert (changed.model, changed.ropes, changed.roles) == (plain.model, plain.ropes, plain.roles)
    if "use_sliding_window" in changes:
        theirs = CLASSES[family][0](**(SMALL | OWN[family] | changes))
        assert set(getattr(theirs, "layer_types", None) or ["full_attention"]) == {"full_attention"}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 9}),
        ("mixtral", {"sliding_window": 9}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 9}),
        ("qwen3", {"use_sliding_window": True, "layer_types": [SLIDING, "full_attention"] * 3 + [SLIDING]}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 9}),
    ],
)
def test_windows_are_those_of_transformers(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    theirs = CLASSES[family][0](**(SMALL | OWN[family] | changes))
    model = load_base(bare(tmp_path, SMALL | OWN[family] | {"model_type": family} | changes)).model
    types = getattr(theirs, "layer_types", None) or [SLIDING] * 7
    expected = [theirs.sliding_window if kind == SLIDING else None for kind in types]
    assert [layer_class(model, layer).attention.window for layer in range(7)] == expected
    assert model.pattern == ((0, 1) if "layer_types" in changes else None)
    assert sum(layers.num_layers for layers in model.layers) == 7

    most = max(window for window in expected if window is not None)
    assert within(model, most + 1) == model
    plain = load_base(bare(tmp_path / "plain", SMALL | OWN[family] | {"model_type": family, "sliding_window": None}))
    assert within(model, most) == plain.model, "a window over all positions is none"


def test_a_family_is_found_by_its_architecture(tmp_path: Path) -> None:
    for family, (_, model) in CLASSES.items():
        config = SMALL | OWN[family] | {"architectures": [model.__name__]}
        assert load_base(bare(tmp_path / family, config)).model.family == family
