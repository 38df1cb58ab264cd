"""Loading base models: both spellings of a config, every key, every tensor of a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from planner.checkpoints.checkpoint import SINGLE
from planner.errors import CheckpointError, ConfigError
from planner.families import Llama3Scaling, Rope, heads, load, load_base, scan
from planner.families.config import gated_mlp, mlp_unit
from plans.schema import Attention, LayerClass, Model
from tests.planner.tiny_checkpoints import SMALL, bare, refused, saved

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
    attention = Attention(num_heads=64, num_kv_heads=8, head_dim=128, qkv_bias=False, o_bias=False, qk_norm=False)
    mlp = gated_mlp(28672, bias=False)
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
    assert base.ropes[0] == Rope(theta=500000.0, dim=128, scaling=scaling)
    new = {key: value for key, value in LLAMA_70B.items() if not key.startswith("rope_") and key != "torch_dtype"}
    new["rope_parameters"] = LLAMA_70B["rope_scaling"] | {"rope_theta": 500000.0}
    new["dtype"] = "bfloat16"
    again = load_base(bare(tmp_path / "new", new))
    assert (again.model, again.ropes, again.tensors_sha256) == (base.model, base.ropes, base.tensors_sha256)


def test_absent_keys_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = {name: SMALL[name] for name in required}
    base = load_base(bare(tmp_path, config | {"model_type": "llama"}))
    theirs = LlamaConfig(**config)
    assert base.model.layers[0].attention.num_kv_heads == theirs.num_key_value_heads
    assert base.model.norm_eps == theirs.rms_norm_eps
    assert (base.model.bos_token_id, base.model.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert base.max_positions == theirs.max_position_embeddings
    assert base.ropes[0] == Rope(theta=10000.0, dim=4, scaling=None)
    for name in required:
        rest = {key: value for key, value in config.items() if key != name} | {"model_type": "llama"}
        file = bare(tmp_path / name, rest)
        with pytest.raises(ConfigError) as caught:
            load_base(file)
        assert str(caught.value) == f"{file}: {name}: missing, expected an integer"


def test_the_readme_lists_every_family_and_kind_of_eagle_head() -> None:
    text = Path(load.__file__).with_name("README.md").read_text()
    rows = {tuple(line.split("`")[1::2][:2]) for line in text.splitlines() if line.startswith("| `")}
    assert set(load.FAMILIES.items()) <= rows
    assert all(f"\n| `{kind}`" in text for kind in heads.DRAFTERS)


KEYS: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "gpt2"},
        "model_type: found 'gpt2': learned positions and biased norms are not computed here, expected one of "
        + ", ".join([*load.FAMILIES, *load.WRAPPERS]),
    ),
    (
        {"architectures": ["LlamaForSequenceClassification"]},
        "architectures: found ['LlamaForSequenceClassification'], expected ['LlamaForCausalLM']",
    ),
    (
        {"sliding_window": 1024},
        "sliding_window: found 1024, expected null: attention over a sliding window is not computed here",
    ),
    ({"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu': another activation is not computed here"),
    ({"pretraining_tp": 2}, "pretraining_tp: found 2, expected 1: products in slices are not computed here"),
    (
        {"residual_multiplier": 0.2},
        "residual_multiplier: unknown key: not known here, and it may change what is computed",
    ),
    (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types: found ['full_attention', 'sliding_attention'], expected full_attention in every layer",
    ),
    (
        {"hidden_size": None, "text_config": {"hidden_size": 16}},
        "hidden_size: missing, expected an integer here: a config with its keys inside text_config is of a layout "
        "that is not read",
    ),
    ({"hidden_size": 0}, "hidden_size: found 0, expected an integer from 1 to 2147483647"),
    ({"hidden_size": 16.0}, "hidden_size: found 16.0, expected an integer from 1 to 2147483647"),
    ({"hidden_size": True}, "hidden_size: found True, expected an integer from 1 to 2147483647"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000, expected an integer from 1 to 1024"),
    ({"hidden_size": 18}, "num_attention_heads: found 4, expected a divisor of hidden_size, 18"),
    ({"head_dim": 5}, "head_dim: found 5, expected an even number: rotary embedding works on pairs"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: found 3, expected a divisor of 4 heads"),
    ({"rms_norm_eps": -1}, "rms_norm_eps: found -1, expected a number from 1e-15 to 1"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings: found 'no', expected true or false"),
    *(
        (
            {"vocab_size": 32, "eos_token_id": value},
            f"eos_token_id: found {value!r}, expected a token id from 0 to 31 (vocab_size 32), or a list of them",
        )
        for value in ("x", 32, [2, 32], [[]], -1, 1.0, True, {})
    ),
    ({"vocab_size": 2}, "eos_token_id: found 2, expected a token id from 0 to 1 (vocab_size 2), or a list of them"),
    (
        {"bos_token_id": 10**50},
        "bos_token_id: found an integer of 167 bits, expected a token id from 0 to 31 (vocab_size 32), or a list of "
        "them",
    ),
    ({"eos_token_id": [1] * 257}, "eos_token_id: found 257 token ids, expected at most 256"),
    ({"rope_theta": 0.5}, "rope_theta: found 0.5, expected a number from 1 to 1e+12"),
    ({"rope_theta": 1e300}, "rope_theta: found 1e+300, expected a number from 1 to 1e+12"),
    ({"rope_theta": 10**400}, "rope_theta: found an integer of 1329 bits, expected a number from 1 to 1e+12"),
    (
        {"rope_scaling": {"rope_type": "linear", "factor": 1e-300}},
        "rope_scaling: factor: found 1e-300, expected a number from 1e-06 to 1e+06",
    ),
    (
        {"rope_scaling": {"rope_type": "mrope", "factor": 4.0}},
        "rope_scaling: rope_type: found 'mrope', expected one of default, linear, dynamic, yarn, longrope, llama3",
    ),
    (
        {"rope_scaling": {"type": "ntk", "factor": 4.0}},
        "rope_scaling: rope_type: found 'ntk', expected one of default, linear, dynamic, yarn, longrope, llama3",
    ),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: missing, expected a number"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}},
        "rope_scaling: mrope_section: unknown key: not known here, and it may change what is computed",
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
def test_an_unsupported_key_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = bare(tmp_path, SMALL | {"model_type": "llama"} | changes)
    assert refused(ConfigError, lambda: load_base(file)) == f"{file}: {message}"


HARMLESS: dict[str, Any] = {
    "_commit_hash": "4e20de362430cd3b72f300e6b0f18e50e7166e08",  # Llama-3.2-1B, as code dumps it
    "max_sequence_length": 2048,  # Vicuna 1.3
    "model_max_length": 4096,
    "tokenizer_model_max_length": 16384,  # LongChat
    "tokenizer_padding_side": "right",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "quantization_config": None,
    "use_cache": True,
    "transformers_version": "4.31.0",
    "torch_dtype": "float16",
    "attn_implementation": "flash_attention_2",
    "_attn_implementation_internal": "sdpa",
    "_flash_attn_2_enabled": True,
    "use_flash_attn": False,
    "unsloth_fixed": True,
    "max_length": 4096,
    "max_new_tokens": 512,
    "pad_token_id": -1,
    "auto_map": None,
    "gradient_checkpointing": True,
    "_auto_class": None,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_key_that_changes_nothing_is_known(tmp_path: Path, name: str) -> None:
    plain = load_base(bare(tmp_path / "plain", SMALL | {"model_type": "llama"}))
    base = load_base(bare(tmp_path / "more", SMALL | {"model_type": "llama", name: HARMLESS[name]}))
    assert (base.model, base.ropes, base.max_positions, base.roles, base.notes) == (
        plain.model,
        plain.ropes,
        plain.max_positions,
        plain.roles,
        (),
    )


def test_code_of_a_known_architecture_is_not_run_and_that_is_noted(tmp_path: Path) -> None:
    known = SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    classes = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "org/x--modeling_x.LlamaForCausalLM"}
    base = load_base(bare(tmp_path / "known", known | {"auto_map": classes}))
    assert base.notes == (
        "auto_map: code that comes with the checkpoint is not run: computed as LlamaForCausalLM of transformers",
    )
    other = classes | {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    for config in (known | {"auto_map": other}, SMALL | {"model_type": "llama", "auto_map": classes}):
        file = bare(tmp_path / "other", config)
        message = refused(ConfigError, lambda file=file: load_base(file))  # type: ignore[misc]
        assert message.startswith(f"{file}: auto_map: found {{'AutoConfig': 'configuration_x.XConfig', ")
        assert message.endswith("expected null: code that comes with a checkpoint is never run")


def test_null_counts_as_absent(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("sliding_window", "quantization_config", "rope_scaling", "head_dim", "eos_token_id"))
    base = load_base(bare(tmp_path, SMALL | {"model_type": "llama", "layer_types": ["full_attention"] * 7} | nulls))
    assert base.model.eos_token_ids == ()


# Tensors of a base model that differ from those derived of its config


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
def test_a_tensor_that_differs_from_the_derived_one_is_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    rewrite(saved(tmp_path), change)
    assert refused(CheckpointError, lambda: load_base(tmp_path)) == f"{tmp_path}: {message}"


def test_a_tied_model_has_no_separate_lm_head(tmp_path: Path) -> None:
    saved(tmp_path, tie_word_embeddings=True)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(32, 16)}))
    assert refused(CheckpointError, lambda: load_base(tmp_path)) == (
        f"{tmp_path}: lm_head.weight: surplus, of shape [32, 16]: tie_word_embeddings is true, "
        "so the embedding is the lm_head; say false if this tensor is the lm_head"
    )


def test_saved_rotary_frequencies_are_not_needed(tmp_path: Path) -> None:
    saved(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.zeros(2)}))
    assert name not in {source.name for source in load_base(tmp_path).roles.values()}


# Units, scan


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
