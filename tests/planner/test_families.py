"""Families: derived names and shapes are those of real checkpoints, and every key and tensor is judged."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from planner.checkpoint import INDEX, PICKLE, SINGLE
from planner.errors import CheckpointError, ConfigError, InputError
from planner.families import (
    BaseInput,
    DraftFacts,
    Llama3Scaling,
    Rope,
    facts_of,
    inv_freq,
    inv_freq_bytes,
    load_base,
    load_draft,
    scan,
)
from planner.families.config import mlp_unit
from plans.schema import Attention, LayerClass, Mlp, Model

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def saved(path: Path, max_shard_size: str = "1GB", **changes: Any) -> Path:
    LlamaForCausalLM(LlamaConfig(**(SMALL | changes))).save_pretrained(path, max_shard_size=max_shard_size)
    return path


def bare(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path / "config.json"


def refused(error: type[InputError], action: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        action()
    assert caught.value.exit_code == 2
    return str(caught.value)


# Base models against transformers


@pytest.mark.parametrize(
    ("max_shard_size", "changes"),
    [
        ("1GB", {}),
        ("4KB", {}),
        ("1GB", {"tie_word_embeddings": True}),
        ("4KB", {"tie_word_embeddings": True}),
        ("1GB", {"attention_bias": True}),
        ("1GB", {"mlp_bias": True, "attention_bias": True}),
        ("1GB", {"head_dim": 6}),
        ("1GB", {"num_key_value_heads": 4, "intermediate_size": 13, "num_hidden_layers": 1}),
        ("1GB", {"dtype": "bfloat16"}),
    ],
)
def test_derived_tensors_are_those_of_transformers(
    tmp_path: Path, max_shard_size: str, changes: dict[str, Any]
) -> None:
    where = saved(tmp_path, max_shard_size, **changes)
    assert (where / INDEX).exists() == (max_shard_size == "4KB")
    base = load_base(where)
    assert base.checkpoint.tensors is not None
    derived = {source.name: source.shape for source in base.roles.values()}
    assert derived == {name: info.shape for name, info in base.checkpoint.tensors.items()}
    again = load_base(where / "config.json")
    assert (again.model, again.rope, again.roles) == (base.model, base.rope, base.roles)
    assert (again.config_sha256, again.tensors_sha256) == (base.config_sha256, base.tensors_sha256)


def test_the_roles_name_what_transformers_calls_them(tmp_path: Path) -> None:
    base = load_base(saved(tmp_path, attention_bias=True, mlp_bias=True))
    state = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert base.roles["embed.weight"].name == "model.embed_tokens.weight"
    assert base.roles["head.weight"].name == "lm_head.weight"
    assert base.roles["layers.6.gate.bias"].name == "model.layers.6.mlp.gate_proj.bias"
    assert base.roles["layers.0.attention_norm.weight"].name == "model.layers.0.input_layernorm.weight"
    assert base.roles["layers.0.mlp_norm.weight"].name == "model.layers.0.post_attention_layernorm.weight"
    assert {source.name for source in base.roles.values()} == set(state)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    base = load_base(saved(tmp_path, tie_word_embeddings=True))
    assert base.model.tied_head
    assert base.roles["head.weight"] == base.roles["embed.weight"]


def test_mistral_without_a_window(tmp_path: Path) -> None:
    config = MistralConfig(**SMALL, sliding_window=None, rms_norm_eps=1e-5)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    base = load_base(tmp_path)
    assert (base.model.family, base.model.norm_eps, base.max_positions) == ("mistral", 1e-5, 64)
    config.sliding_window = 4096
    config.save_pretrained(tmp_path)
    assert refused(ConfigError, lambda: load_base(tmp_path)) == (
        f"{tmp_path / 'config.json'}: sliding_window: found 4096, expected null: "
        "attention over a sliding window is not computed here"
    )
    data = json.loads((tmp_path / "config.json").read_text())
    del data["sliding_window"]
    assert refused(ConfigError, lambda: load_base(bare(tmp_path / "b", data))) == (
        f"{tmp_path / 'b' / 'config.json'}: sliding_window: missing, which means a window of 4096, "
        "expected null: no window"
    )


LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "initializer_range": 0.02,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.47.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


def test_both_spellings_of_a_published_config(tmp_path: Path) -> None:
    base = load_base(bare(tmp_path / "old", LLAMA_70B))
    attention = Attention(num_heads=64, num_kv_heads=8, head_dim=128, qkv_bias=False, o_bias=False)
    mlp = Mlp(kind="gated", intermediate_size=28672, unit=128, activation="silu", bias=False)
    assert base.model == Model(
        family="llama",
        vocab_size=128256,
        hidden_size=8192,
        norm_eps=1e-5,
        tied_head=False,
        layers=(LayerClass(num_layers=80, attention=attention, mlp=mlp),),
        bos_token_id=128000,
        eos_token_ids=(128001, 128008, 128009),
    )
    scaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    assert base.rope == Rope(theta=500000.0, dim=128, scaling=scaling)
    new = {key: value for key, value in LLAMA_70B.items() if not key.startswith("rope_") and key != "torch_dtype"}
    new["rope_parameters"] = LLAMA_70B["rope_scaling"] | {"rope_theta": 500000.0}
    new["dtype"] = "bfloat16"
    again = load_base(bare(tmp_path / "new", new))
    assert (again.model, again.rope, again.tensors_sha256) == (base.model, base.rope, base.tensors_sha256)


def test_absent_keys_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = {name: SMALL[name] for name in required}
    base = load_base(bare(tmp_path, config | {"model_type": "llama"}))
    theirs = LlamaConfig(**config)
    assert base.model.layers[0].attention.num_kv_heads == theirs.num_key_value_heads
    assert base.model.norm_eps == theirs.rms_norm_eps
    assert (base.model.bos_token_id, base.model.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert base.max_positions == theirs.max_position_embeddings
    assert base.rope == Rope(theta=10000.0, dim=4, scaling=None)
    for name in required:
        rest = {key: value for key, value in config.items() if key != name} | {"model_type": "llama"}
        file = bare(tmp_path / name, rest)
        with pytest.raises(ConfigError) as caught:
            load_base(file)
        assert str(caught.value) == f"{file}: {name}: missing, expected an integer"


KEYS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "model_type: found 'gpt2', expected one of llama, mistral"),
    (
        {"architectures": ["LlamaForSequenceClassification"]},
        "architectures: found ['LlamaForSequenceClassification'], expected ['LlamaForCausalLM']",
    ),
    (
        {"sliding_window": 1024},
        "sliding_window: found 1024, expected null: attention over a sliding window is not computed here",
    ),
    ({"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu': another activation is not computed here"),
    (
        {"quantization_config": {"bits": 4}},
        "quantization_config: found {'bits': 4}, expected null: "
        "quantized weights are not read here: give the checkpoint before quantization",
    ),
    ({"pretraining_tp": 2}, "pretraining_tp: found 2, expected 1: products in slices are not computed here"),
    (
        {"residual_multiplier": 0.2},
        "residual_multiplier: unknown key: it may change what is computed; if it does not, remove it from the config",
    ),
    (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types: found ['full_attention', 'sliding_attention'], expected full_attention in every layer",
    ),
    ({"hidden_size": 0}, "hidden_size: found 0, expected an integer from 1 to 2147483647"),
    ({"hidden_size": 16.0}, "hidden_size: found 16.0, expected an integer from 1 to 2147483647"),
    ({"hidden_size": True}, "hidden_size: found True, expected an integer from 1 to 2147483647"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000, expected an integer from 1 to 1024"),
    ({"hidden_size": 18}, "num_attention_heads: found 4, expected a divisor of hidden_size, 18"),
    ({"head_dim": 5}, "head_dim: found 5, expected an even number: rotary embedding works on pairs"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: found 3, expected a divisor of 4 heads"),
    ({"rms_norm_eps": -1}, "rms_norm_eps: found -1, expected a positive number"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings: found 'no', expected true or false"),
    ({"eos_token_id": "x"}, "eos_token_id: found 'x', expected a token id or a list of them"),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "rope_scaling: rope_type: found 'yarn', expected one of default, linear, llama3",
    ),
    (
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
        "rope_scaling: rope_type: found 'dynamic', expected one of default, linear, llama3",
    ),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: missing, expected a number"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}},
        "rope_scaling: mrope_section: unknown key: it may change what is computed; "
        "if it does not, remove it from the config",
    ),
    (
        {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_parameters: found beside rope_scaling, expected one of the two spellings",
    ),
    (
        {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5},
        "rope_theta: found 500000.0, expected 10000.0 as in rope_parameters",
    ),
    (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "rope_parameters: partial_rotary_factor: found 0.5, expected 1: "
        "rotary embedding of a part of the channels is not computed here",
    ),
    (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 8,
            }
        },
        "rope_parameters: high_freq_factor: found 4.0, expected more than low_freq_factor",
    ),
]


@pytest.mark.parametrize(("changes", "message"), KEYS, ids=[json.dumps(changes) for changes, _ in KEYS])
def test_a_key_that_is_not_computed_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = bare(tmp_path, SMALL | {"model_type": "llama"} | changes)
    assert refused(ConfigError, lambda: load_base(file)) == f"{file}: {message}"


def test_null_is_as_good_as_absent(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("sliding_window", "quantization_config", "rope_scaling", "head_dim", "eos_token_id"))
    base = load_base(bare(tmp_path, SMALL | {"model_type": "llama", "layer_types": ["full_attention"] * 7} | nulls))
    assert base.model.eos_token_ids == ()


# Tensors of a base model that are not the derived ones


def rewrite(where: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(where / SINGLE)
    change(tensors)
    save_file(tensors, where / SINGLE)


NORM = "model.layers.3.input_layernorm.weight"

TENSORS: list[tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = [
    ("missing", lambda t: t.pop(NORM), f"{NORM}: missing, expected shape [16] by config.json"),
    (
        "misshapen",
        lambda t: t.update({NORM: torch.zeros(17)}),
        f"{NORM}: found shape [17], expected [16] by config.json",
    ),
    (
        "surplus",
        lambda t: t.update({"model.extra": torch.zeros(3)}),
        "model.extra: surplus, of shape [3]: nothing that config.json describes has it",
    ),
    (
        "integers",
        lambda t: t.update({NORM: torch.zeros(16, dtype=torch.int8)}),
        f"{NORM}: found dtype I8, expected BF16 or F16 or F32",
    ),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in TENSORS], ids=[row[0] for row in TENSORS])
def test_a_tensor_that_is_not_the_derived_one_is_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    rewrite(saved(tmp_path), change)
    assert refused(CheckpointError, lambda: load_base(tmp_path)) == f"{tmp_path}: {message}"


def test_a_tied_model_has_no_second_head(tmp_path: Path) -> None:
    saved(tmp_path, tie_word_embeddings=True)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(32, 16)}))
    assert refused(CheckpointError, lambda: load_base(tmp_path)) == (
        f"{tmp_path}: lm_head.weight: surplus, of shape [32, 16]: tie_word_embeddings is true, "
        "so the embedding is the head; say false if this tensor is the head"
    )


def test_saved_rotary_frequencies_are_not_needed(tmp_path: Path) -> None:
    saved(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.zeros(2)}))
    assert name not in {source.name for source in load_base(tmp_path).roles.values()}


# Heads

HEAD: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EAGLE3 = HEAD | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 8}


def shapes_of_eagle(config: dict[str, Any], layers: int = 1) -> dict[str, tuple[int, ...]]:
    """By the table of the reference, written out."""
    table: dict[str, tuple[int, ...]] = {"fc.weight": (16, 32)}
    if config.get("bias", True):
        table["fc.bias"] = (16,)
    for i in range(layers):
        table |= {f"layers.{i}.self_attn.{name}.weight": (16, 16) for name in ("q_proj", "o_proj")}
        table |= {f"layers.{i}.self_attn.{name}.weight": (8, 16) for name in ("k_proj", "v_proj")}
        table |= {f"layers.{i}.mlp.{name}.weight": (24, 16) for name in ("gate_proj", "up_proj")}
        table[f"layers.{i}.mlp.down_proj.weight"] = (16, 24)
        table[f"layers.{i}.post_attention_layernorm.weight"] = (16,)
        if i > 0:
            table[f"layers.{i}.input_layernorm.weight"] = (16,)
        if config.get("qkv_bias"):
            table |= {f"layers.{i}.self_attn.{name}.bias": (8,) for name in ("k_proj", "v_proj")}
            table[f"layers.{i}.self_attn.q_proj.bias"] = (16,)
    return table


def shapes_of_eagle3(target: int = 16, vocab: int = 8) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {"fc.weight": (16, 3 * target), "lm_head.weight": (vocab, 16)}
    table |= {"midlayer.self_attn.q_proj.weight": (16, 32), "midlayer.self_attn.o_proj.weight": (16, 16)}
    table |= {f"midlayer.self_attn.{name}.weight": (8, 32) for name in ("k_proj", "v_proj")}
    table |= {f"midlayer.mlp.{name}.weight": (24, 16) for name in ("gate_proj", "up_proj")}
    table["midlayer.mlp.down_proj.weight"] = (16, 24)
    norms = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
    table |= {f"midlayer.{name}.weight": (16,) for name in norms} | {"norm.weight": (16,)}
    return table | ({"d2t": (vocab,), "t2d": (32,)} if vocab != 32 else {})


def head(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    bare(path, config)
    dtypes = {"d2t": torch.int64, "t2d": torch.bool}
    tensors = {name: torch.zeros(shape, dtype=dtypes.get(name, torch.float16)) for name, shape in shapes.items()}
    save_file(tensors, path / SINGLE)
    return path


@pytest.fixture
def base(tmp_path: Path) -> BaseInput:
    return load_base(bare(tmp_path / "base", SMALL | {"model_type": "llama"}))


@pytest.mark.parametrize(
    ("config", "layers"),
    [(HEAD, 1), (HEAD | {"bias": False}, 1), (HEAD | {"qkv_bias": True}, 1), (HEAD | {"num_hidden_layers": 2}, 2)],
)
@pytest.mark.parametrize("own", [False, True])
def test_the_head_of_eagle(tmp_path: Path, base: BaseInput, config: dict[str, Any], layers: int, own: bool) -> None:
    shapes = shapes_of_eagle(config, layers) | ({"embed_tokens.weight": (32, 16)} if own else {})
    where = head(tmp_path / "head", config, shapes)
    draft = load_draft(where, base)
    assert {source.name: source.shape for source in draft.roles.values()} == shapes
    assert (draft.draft.kind, draft.draft.own_embedding, draft.draft.aux_layers) == ("eagle", own, ())
    assert (draft.draft.fc_bias, draft.draft.draft_vocab_size) == (config.get("bias", True), 32)
    assert draft.rope.theta == 500000.0
    again = load_draft(where / "config.json", base, facts_of(draft.draft))
    assert (again.draft, again.roles, again.tensors_sha256) == (draft.draft, draft.roles, draft.tensors_sha256)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("maps", [False, True])
def test_the_head_of_eagle3(tmp_path: Path, base: BaseInput, own: bool, maps: bool) -> None:
    vocab = 8 if maps else 32
    shapes = shapes_of_eagle3(vocab=vocab) | ({"embed_tokens.weight": (32, 16)} if own else {})
    where = head(tmp_path / "head", EAGLE3 | {"draft_vocab_size": vocab}, shapes)
    draft = load_draft(where, base)
    read = {source.name: source.shape for source in draft.roles.values()}
    assert read == {name: shape for name, shape in shapes.items() if name != "t2d"}
    assert draft.draft.aux_layers == (2, 3, 4)
    assert facts_of(draft.draft) == DraftFacts(kind="eagle3", own_embedding=own, maps_vocabulary=maps)
    again = load_draft(where / "config.json", base, facts_of(draft.draft))
    assert (again.draft, again.roles, again.tensors_sha256) == (draft.draft, draft.roles, draft.tensors_sha256)


def test_a_bare_config_tells_the_kind_by_its_draft_vocabulary(tmp_path: Path, base: BaseInput) -> None:
    eagle = load_draft(bare(tmp_path / "eagle3-by-name", HEAD), base).draft
    assert facts_of(eagle) == DraftFacts(kind="eagle", own_embedding=False, maps_vocabulary=False)
    eagle3 = load_draft(bare(tmp_path / "eagle-by-name", EAGLE3), base).draft
    assert facts_of(eagle3) == DraftFacts(kind="eagle3", own_embedding=False, maps_vocabulary=True)
    own = load_draft(bare(tmp_path / "c", EAGLE3 | {"target_hidden_size": 16}), base).draft
    assert own.own_embedding


def test_a_head_of_another_width_brings_its_embedding(tmp_path: Path, base: BaseInput) -> None:
    wide = load_base(bare(tmp_path / "wide", SMALL | {"model_type": "llama", "hidden_size": 24, "head_dim": 6}))
    config = EAGLE3 | {"target_hidden_size": 24}
    shapes = shapes_of_eagle3(target=24)
    draft = load_draft(head(tmp_path / "own", config, shapes | {"embed_tokens.weight": (32, 16)}), wide).draft
    assert (draft.hidden_size, draft.target_hidden_size) == (16, 24)
    where = head(tmp_path / "none", config, shapes)
    assert refused(ConfigError, lambda: load_draft(where, wide)) == (
        f"{where / 'config.json'}: target_hidden_size: found 24 with hidden_size 16, "
        "expected embed_tokens.weight: the base's embedding has another width"
    )
    assert refused(ConfigError, lambda: load_draft(where, base)) == (
        f"{where / 'config.json'}: target_hidden_size: found 24, expected 16, the base model's hidden_size: "
        "the head belongs to another base model"
    )


def test_the_pickle_of_a_head(tmp_path: Path, base: BaseInput) -> None:
    where = head(tmp_path / "head", EAGLE3, shapes_of_eagle3())
    expected = load_draft(where, base)
    torch.save(load_file(where / SINGLE), where / PICKLE)
    (where / SINGLE).unlink()
    draft = load_draft(where, base, pickle_cache=tmp_path / "cache")
    assert (draft.draft, draft.roles) == (expected.draft, expected.roles)
    assert (draft.checkpoint.directory / SINGLE).is_file()
    assert "a pickle, expected model.safetensors" in refused(CheckpointError, lambda: load_draft(where, base))


HEADS: list[tuple[dict[str, Any], str]] = [
    (
        EAGLE3 | {"hidden_size": 32},
        "hidden_size: found 32, expected 16, the base model's hidden_size: the head belongs to another base model",
    ),
    (
        HEAD | {"hidden_size": 32},
        "hidden_size: found 32, expected 16, the base model's hidden_size: the head belongs to another base model",
    ),
    (
        EAGLE3 | {"vocab_size": 64},
        "vocab_size: found 64, expected 32, the base model's: the head belongs to another base model",
    ),
    (
        HEAD | {"vocab_size": 64},
        "vocab_size: found 64, expected 32, the base model's: the head belongs to another base model",
    ),
    (EAGLE3 | {"num_hidden_layers": 2}, "num_hidden_layers: found 2, expected 1: an EAGLE-3 head has one layer"),
    (
        EAGLE3 | {"norm_before_residual": True},
        "norm_before_residual: found True, expected False: the residual is the hidden state before its norm",
    ),
    (
        EAGLE3 | {"draft_vocab_size": 33},
        "draft_vocab_size: found 33, expected at most 32, the base model's vocab_size",
    ),
    (EAGLE3 | {"model_type": "qwen3"}, "model_type: found 'qwen3', expected llama, the layout of EAGLE heads"),
    (
        HEAD | {"target_hidden_size": 32},
        "target_hidden_size: found 32, expected 16, hidden_size: fc joins the two",
    ),
    (
        EAGLE3 | {"fc_norm": True},
        "fc_norm: unknown key: it may change what is computed; if it does not, remove it from the config",
    ),
    (
        EAGLE3 | {"eagle_config": {"use_mtp_layernorm": True}},
        "eagle_config: use_mtp_layernorm: found True, expected False: another form of head is not computed here",
    ),
    (
        EAGLE3 | {"eagle_aux_hidden_state_layer_ids": [1, 2]},
        "eagle_aux_hidden_state_layer_ids: found [1, 2], expected three layers",
    ),
    (
        EAGLE3 | {"eagle_aux_hidden_state_layer_ids": [1, 2, 7]},
        "eagle_aux_hidden_state_layer_ids: found [1, 2, 7], expected three different inputs of layers 0 to 6, in order",
    ),
    (
        EAGLE3 | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 6]}},
        "eagle_config: eagle_aux_hidden_state_layer_ids: found [1, 2, 6], "
        "expected three different outputs of layers 0 to 5, in order",
    ),
]


@pytest.mark.parametrize(("config", "message"), HEADS, ids=[message.partition(":")[0] for _, message in HEADS])
def test_a_head_that_does_not_fit_is_refused(
    tmp_path: Path, base: BaseInput, config: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path / "head", config)
    assert refused(ConfigError, lambda: load_draft(file, base)) == f"{file}: {message}"


def test_a_head_may_name_its_layers_in_two_conventions(tmp_path: Path, base: BaseInput) -> None:
    key = "eagle_aux_hidden_state_layer_ids"
    inputs = load_draft(bare(tmp_path / "inputs", EAGLE3 | {key: [1, 3, 6]}), base)
    outputs = load_draft(bare(tmp_path / "outputs", EAGLE3 | {"eagle_config": {key: [0, 2, 5]}}), base)
    assert inputs.draft.aux_layers == outputs.draft.aux_layers == (1, 3, 6)


def test_too_few_layers_for_three_features(tmp_path: Path) -> None:
    small = load_base(bare(tmp_path / "small", SMALL | {"model_type": "llama", "num_hidden_layers": 6}))
    file = bare(tmp_path / "head", EAGLE3)
    assert refused(ConfigError, lambda: load_draft(file, small)) == (
        f"{file}: eagle_aux_hidden_state_layer_ids: missing, and layers 2, L // 2 and L - 3 of a base model with "
        "L = 6 layers are not three different ones in order: expected at least 7 layers, or three layers named"
    )
    named = bare(tmp_path / "named", EAGLE3 | {"eagle_aux_hidden_state_layer_ids": [0, 1, 5]})
    assert load_draft(named, small).draft.aux_layers == (0, 1, 5)


def test_the_tensors_of_a_head_are_the_derived_ones(tmp_path: Path, base: BaseInput) -> None:
    shapes = shapes_of_eagle3()
    cases: list[tuple[dict[str, tuple[int, ...]], str]] = [
        (
            shapes | {"fc.weight": (16, 32)},
            "fc.weight: found shape [16, 32], expected [16, 48] by config.json",
        ),
        (
            shapes | {"fc.bias": (16,)},
            "fc.bias: surplus, of shape [16]: nothing that config.json describes has it",
        ),
        (
            {name: shape for name, shape in shapes.items() if name != "norm.weight"},
            "norm.weight: missing, expected shape [16] by config.json",
        ),
        (shapes | {"t2d": (31,)}, "t2d: found shape [31], expected [32] by config.json"),
    ]
    for number, (table, message) in enumerate(cases):
        where = head(tmp_path / str(number), EAGLE3, table)
        with pytest.raises(CheckpointError) as caught:
            load_draft(where, base)
        assert str(caught.value) == f"{where}: {message}"


def test_the_map_is_there_exactly_when_vocabularies_differ(tmp_path: Path, base: BaseInput) -> None:
    shapes = shapes_of_eagle3()
    where = head(tmp_path / "a", EAGLE3, {name: shape for name, shape in shapes.items() if name != "d2t"})
    assert refused(ConfigError, lambda: load_draft(where, base)) == (
        f"{where / 'config.json'}: draft_vocab_size: found 8 of 32 tokens, expected d2t: the map between the two"
    )
    whole = head(tmp_path / "b", EAGLE3 | {"draft_vocab_size": 32}, shapes_of_eagle3(vocab=32) | {"d2t": (32,)})
    assert refused(ConfigError, lambda: load_draft(whole, base)) == (
        f"{whole / 'config.json'}: draft_vocab_size: found 32, the whole vocabulary, expected no d2t: ids are direct"
    )


def test_what_is_no_head_is_refused(tmp_path: Path, base: BaseInput) -> None:
    where = saved(tmp_path / "model")
    assert refused(CheckpointError, lambda: load_draft(where, base)) == (
        f"{where}: not an EAGLE head: found lm_head.weight, model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight and others, "
        "expected fc.weight with midlayer.* (EAGLE-3) or with layers.* (EAGLE-1, -2)"
    )


def test_another_head_than_the_planned_one_is_refused(tmp_path: Path, base: BaseInput) -> None:
    where = head(tmp_path / "head", EAGLE3, shapes_of_eagle3())
    facts = DraftFacts(kind="eagle3", own_embedding=True, maps_vocabulary=True)
    assert refused(CheckpointError, lambda: load_draft(where, base, facts)) == (
        f"{where}: found an eagle3 head without embed_tokens, with d2t, "
        "but an eagle3 head with embed_tokens, with d2t was planned: give the planned head"
    )


# Rotary frequencies, units, scan


ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    LLAMA_70B["rope_scaling"] | {"rope_theta": 500000.0},
    LLAMA_70B["rope_scaling"] | {"rope_theta": 500000.0, "factor": 32.0},
]


@pytest.mark.parametrize("dim", [24, 32, 64, 128])
@pytest.mark.parametrize("parameters", ROPES, ids=[f"{row['rope_type']}-{row['rope_theta']:g}" for row in ROPES])
def test_frequencies_are_those_of_transformers_bit_for_bit(
    tmp_path: Path, parameters: dict[str, Any], dim: int
) -> None:
    config = LlamaConfig(**(SMALL | {"head_dim": dim, "rope_parameters": dict(parameters)}))
    config.save_pretrained(tmp_path)
    rope = load_base(tmp_path).rope
    assert torch.tensor(inv_freq(rope)).tolist() == LlamaRotaryEmbedding(config).inv_freq.tolist()
    assert inv_freq_bytes(rope) == struct.pack(f"<{dim // 2}f", *inv_freq(rope))


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6, 8e6])
def test_other_frequencies_are_transformers_to_the_last_place(theta: float) -> None:
    for dim in range(2, 258, 16):
        ours = torch.tensor(inv_freq(Rope(theta=theta, dim=dim, scaling=None)))
        theirs = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
        steps = (ours.view(torch.int32) - theirs.view(torch.int32)).abs()
        assert int(steps.max()) <= 2


@pytest.mark.parametrize(
    ("size", "unit"),
    [
        (28672, 128),
        (14336, 128),
        (11008, 128),
        (53248, 128),
        (131072, 256),
        (512, 64),
        (688, 16),
        (24, 2),
        (13, 1),
        (6, 1),
    ],
)
def test_units_divide_the_mlp(size: int, unit: int) -> None:
    assert mlp_unit(size) == unit


def test_units_are_few_and_enough() -> None:
    for size in range(8, 70_000, 8):
        unit = mlp_unit(size)
        assert size % unit == 0
        assert size // unit >= 8


def test_scan_of_a_bare_config_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)).bfloat16().save_pretrained(tmp_path)
    whole = scan(tmp_path)
    assert whole == scan(tmp_path / "config.json")
    assert whole.dtypes == ("BF16",)
    assert [block.block for block in whole.blocks] == ["embed", *(f"layer {i}" for i in range(7)), "head"]
