"""Layouts in which EAGLE heads are published, read to one; and drafters of other kinds, refused by their names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from planner.checkpoints.checkpoint import SINGLE
from planner.errors import CheckpointError, ConfigError
from planner.families import BaseInput, load_base, load_draft, load_planned_draft
from tests.planner.families.test_heads import EAGLE3, HEAD, head, shapes_of_eagle, shapes_of_eagle3
from tests.planner.tiny_checkpoints import SMALL, bare, refused

KEY = "eagle_aux_hidden_state_layer_ids"
Shapes = dict[str, tuple[int, ...]]

LAYER = {key: value for key, value in HEAD.items() if key not in ("architectures", "tie_word_embeddings")}
SPECULATORS: dict[str, Any] = {
    "architectures": ["Eagle3Speculator"],
    "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
    "draft_vocab_size": 8,
    "has_no_defaults_at_init": False,
    "norm_before_residual": True,
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "x", "architectures": []}},
    "speculators_model_type": "eagle3",
    "speculators_version": "0.1.0.dev14",
    "target_hidden_size": None,
    "torch_dtype": "float16",
    "transformer_layer_config": LAYER | {"attention_bias": False, "head_dim": 4, "rope_scaling": None},
}
"""Config of a head of Red Hat."""
NEWER = SPECULATORS | {
    "architectures": ["Eagle3DraftModel"],
    "embed_requires_grad": False,
    "fc_norm": False,
    "norm_before_fc": True,
    "norm_output": True,
    KEY: [1, 3, 7],
    "transformer_layer_config": LAYER
    | {"model_type": "qwen3", "num_hidden_layers": 2, "sliding_window": None, "layer_types": ["full_attention"] * 2}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
}
NEWER["transformer_layer_config"] = {k: v for k, v in NEWER["transformer_layer_config"].items() if k != "rope_theta"}


def renamed(shapes: Shapes, prefix: str = "") -> Shapes:
    return {prefix + name.replace("midlayer.", "layers.0."): shape for name, shape in shapes.items()}


def own(shapes: Shapes) -> Shapes:
    return shapes | {"embed_tokens.weight": (32, 16)}


def second_layer() -> Shapes:
    """Return a plain layer, on inputs of one width."""
    layer = {name: shape for name, shape in shapes_of_eagle(HEAD, 2).items() if name.startswith("layers.1.")}
    return layer | {f"layers.{i}.self_attn.{name}.weight": (4,) for i in (0, 1) for name in ("q_norm", "k_norm")}


@pytest.fixture
def base(tmp_path: Path) -> BaseInput:
    return load_base(bare(tmp_path / "base", SMALL | {"model_type": "llama"}))


READ: dict[str, tuple[dict[str, Any], Shapes, dict[str, Any]]] = {
    "speculators": (
        SPECULATORS,
        own(renamed(shapes_of_eagle3())),
        {"layout": "speculators", "norm_before_residual": True, "own_embedding": True, "aux_layers": (2, 3, 4)},
    ),
    "speculators, newer": (
        NEWER,
        own(renamed(shapes_of_eagle3())) | second_layer() | {"input_norm.weight": (48,)},
        {"layout": "speculators", "num_layers": 2, "fc_norm": "joint", "norm_output": True, "aux_layers": (1, 3, 7)},
    ),
    "speculators, without the key": (
        {key: value for key, value in SPECULATORS.items() if key != "norm_before_residual"},
        own(renamed(shapes_of_eagle3())),
        {"norm_before_residual": True},
    ),
    "layers": (EAGLE3 | {KEY: [2, 3, 4]}, renamed(shapes_of_eagle3()), {"layout": "layers", "own_head": True}),
    "modelopt": (
        EAGLE3
        | {
            "eagle_config": {
                KEY: [2, 4, 7],
                "use_aux_hidden_state": True,
                "use_input_layernorm_in_first_layer": True,
                "use_last_layernorm": True,
                "use_mtp_layernorm": False,
                "next_layer_regular": True,
                "parallel_draft_step": 1,
                "parallel_draft_heads_num_layers": 1,
                "norm_before_fc": True,
            }
        },
        renamed({name: shape for name, shape in shapes_of_eagle3().items() if name != "t2d"})
        | {"input_norm.weight": (48,)},
        {"layout": "modelopt", "fc_norm": "joint", "aux_layers": (2, 4, 7)},
    ),
    "modelopt, without d2t and lm_head": (
        EAGLE3 | {"draft_vocab_size": 32, KEY: [2, 3, 4]},
        renamed({name: shape for name, shape in shapes_of_eagle3(vocab=32).items() if name != "lm_head.weight"}),
        {"layout": "layers", "base_head": True, "own_head": False, "maps_vocabulary": False},
    ),
    "nemo": (
        EAGLE3 | {"architectures": ["LlamaEagle3DraftModel"], "fc_norm": True, KEY: [2, 3]},
        renamed(
            shapes_of_eagle3() | {"fc.weight": (16, 32), "fc_norm.0.weight": (16,), "fc_norm.1.weight": (16,)}, "model."
        ),
        {"layout": "nemo", "fc_norm": "each", "norm_output": None, "aux_layers": (2, 3)},
    ),
    "EAGLE-3.1 of SpecForge": (
        EAGLE3 | {"fc_norm": True, "norm_output": True},
        shapes_of_eagle3() | {f"fc_norm.{i}.weight": (16,) for i in range(3)},
        {"layout": None, "fc_norm": "each", "norm_output": True},
    ),
    "norm_output of SpecForge": (EAGLE3 | {"norm_output": True}, shapes_of_eagle3(), {"norm_output": None}),
    "biases": (
        EAGLE3,
        shapes_of_eagle3()
        | {"fc.bias": (16,), "midlayer.self_attn.o_proj.bias": (16,), "midlayer.mlp.down_proj.bias": (16,)}
        | {f"midlayer.mlp.{name}.bias": (24,) for name in ("gate_proj", "up_proj")},
        {"fc_bias": True},
    ),
    "P-EAGLE of AWS": (
        EAGLE3 | {"ptd_token_id": 31, "parallel_drafting": True, "num_hidden_layers": 2},
        shapes_of_eagle3()
        | {name: shape for name, shape in second_layer().items() if "_norm." not in name}
        | {"mask_hidden": (1, 1, 48)},
        {"mask_token_id": 31, "num_layers": 2, "norm_before_residual": None},
    ),
    "P-EAGLE of speculators": (
        {key: value for key, value in SPECULATORS.items() if key != "norm_before_residual"}
        | {"architectures": ["PEagleDraftModel"], "speculators_model_type": "peagle", "mask_token_id": 30},
        own(renamed(shapes_of_eagle3())) | {"mask_hidden": (1, 1, 48)},
        {"mask_token_id": 30, "norm_before_residual": None, "layout": "speculators"},
    ),
    "a part of the vocabulary by another name": (
        {key: value for key, value in EAGLE3.items() if key != "draft_vocab_size"}
        | {"architectures": ["LlamaForCausalLM"], "truncated_vocab_size": 8},
        shapes_of_eagle3(),
        {"draft_vocab_size": 8, "maps_vocabulary": True},
    ),
    "vllm": (
        {"model_type": "eagle", "model": HEAD | {"eagle_fc_bias": True}},
        {f"model.{name}": shape for name, shape in shapes_of_eagle(HEAD).items()},
        {"kind": "eagle", "layout": "vllm", "fc_bias": True},
    ),
    "EAGLE-1 with a bias that its config denies": (
        HEAD | {"bias": False},
        shapes_of_eagle(HEAD),
        {"kind": "eagle", "fc_bias": True, "layout": None},
    ),
}
"""Config, tensors, and what is read, by layout."""


@pytest.mark.parametrize("name", READ)
def test_a_layout_is_read(tmp_path: Path, base: BaseInput, name: str) -> None:
    config, shapes, expected = READ[name]
    where = head(tmp_path / "head", config, shapes)
    read = load_draft(where, base)
    assert {field: getattr(read.draft, field) for field in expected} == expected
    assert {source.name: source.shape for source in read.roles.values()} == {
        tensor: shape for tensor, shape in shapes.items() if not tensor.endswith("t2d")
    }
    again = load_planned_draft(where / "config.json", base, read.draft)
    assert (again.draft, again.tensors_sha256) == (read.draft, read.tensors_sha256)
    assert {role: source.name for role, source in again.roles.items()} == {
        role: source.name for role, source in read.roles.items()
    }


def test_all_layouts_have_the_digest_of_the_authors(tmp_path: Path, base: BaseInput) -> None:
    ids = {KEY: [2, 3, 4]}
    shapes = shapes_of_eagle3()
    digests = {
        load_draft(head(tmp_path / str(number), EAGLE3 | ids, table), base).tensors_sha256
        for number, table in enumerate((shapes, renamed(shapes), renamed(shapes, "model.")))
    }
    assert len(digests) == 1


BARE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({key: value for key, value in EAGLE3.items() if key != "draft_vocab_size"}, {"kind": "eagle3"}),
    (HEAD | {"architectures": ["Eagle3LlamaForCausalLM"]}, {"kind": "eagle3", "draft_vocab_size": 32}),
    (HEAD | {"fc_norm": True, "norm_output": True}, {"kind": "eagle3", "fc_norm": "each"}),
    (SPECULATORS, {"kind": "eagle3", "layout": "speculators", "own_embedding": True}),
    (NEWER, {"kind": "eagle3", "fc_norm": "joint"}),
    (EAGLE3 | {"pard_token": 5}, {"mask_token_id": 5}),
    ({"model_type": "eagle", "truncated_vocab_size": 32, "model": HEAD}, {"kind": "eagle", "layout": "vllm"}),
    (HEAD | {"max_sequence_length": 2048, "_commit_hash": None}, {"kind": "eagle"}),
]


@pytest.mark.parametrize(("config", "expected"), BARE, ids=range(len(BARE)))
def test_the_kind_of_a_bare_config_is_that_of_its_architecture_and_keys(
    tmp_path: Path, base: BaseInput, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    draft = load_draft(bare(tmp_path / "head", config), base).draft
    assert {field: getattr(draft, field) for field in expected} == expected


def test_a_wide_layer_is_of_eagle3_whatever_its_config_says(tmp_path: Path, base: BaseInput) -> None:
    shapes = renamed(shapes_of_eagle3(vocab=32))
    where = head(tmp_path / "head", HEAD | {KEY: [2, 3, 4]}, shapes)
    assert load_draft(where, base).draft.kind == "eagle3"
    lost = {name: shape for name, shape in shapes.items() if name != "layers.0.hidden_norm.weight"}
    where = head(tmp_path / "lost", HEAD | {KEY: [2, 3, 4]}, lost)
    assert refused(CheckpointError, lambda: load_draft(where, base)) == (
        f"{where}: layers.0.hidden_norm.weight: missing, expected shape [16] by config.json"
    )


REFUSED: list[tuple[dict[str, Any], Shapes, str]] = [
    (HEAD | {"architectures": ["DFlashDraftModel"], "dflash_config": {"mask_token_id": 3}}, {}, "DFlash"),
    (HEAD | {"architectures": ["Qwen3DSparkModel"], "markov_rank": 256}, {}, "DSpark"),
    (HEAD, {"hidden_norm.weight": (16,), "markov_head.markov_w1.weight": (4, 4)}, "DSpark"),
    (HEAD, {"fc.weight": (16, 48), "prefix_gru.weight_ih_l0": (4, 4)}, "Domino"),
    (HEAD, {"fc.weight": (16, 48), "candidate_selector.predecessor_codebook": (4, 4)}, "DFlash2"),
    (SPECULATORS | {"speculators_model_type": "dflash"}, {}, "DFlash"),
    (SPECULATORS | {"speculators_model_type": "mtp"}, {}, "an MTP layer (multi-token prediction)"),
    (HEAD, {"model.layers.7.eh_proj.weight": (16, 32)}, "an MTP layer (multi-token prediction)"),
    ({"model_type": "medusa", "medusa_num_heads": 4}, {}, "Medusa"),
    ({"model_type": "gemma4_assistant"}, {}, "a Gemma-4 assistant"),
    (
        HEAD | {"architectures": ["Eagle3DeepseekV2ForCausalLM"]},
        {},
        "an EAGLE-3 head with latent attention (MLA)",
    ),
    (SPECULATORS | {"speculators_model_type": "eagle"}, {}, "speculators' EAGLE-1"),
]


@pytest.mark.parametrize(("config", "shapes", "name"), REFUSED, ids=range(len(REFUSED)))
def test_a_drafter_of_another_kind_is_refused_by_its_name(
    tmp_path: Path, base: BaseInput, config: dict[str, Any], shapes: Shapes, name: str
) -> None:
    where = bare(tmp_path / "head", config)
    if shapes:
        save_file({tensor: torch.zeros(shape) for tensor, shape in shapes.items()}, where.parent / SINGLE)
        where = where.parent
    message = refused(CheckpointError, lambda: load_draft(where, base))
    file = where / "config.json" if shapes else where
    assert message.startswith(f"{file}: {name}: this drafter is not computed here: it would need ")
    assert message.endswith("; expected a head of EAGLE-1, -2, -3 or P-EAGLE")


WRONG: list[tuple[dict[str, Any], str]] = [
    (SPECULATORS | {"transformer_layer_config": 4}, "transformer_layer_config: found 4, expected an object"),
    (
        SPECULATORS | {"transformer_layer_config": LAYER | {"vocab_size": 64}},
        "transformer_layer_config: vocab_size: found 64, expected 32, the base model's: "
        "the EAGLE head is for another base model",
    ),
    (
        SPECULATORS | {"transformer_layer_config": LAYER | {"sliding_window": 128}},
        "transformer_layer_config: sliding_window: found 128, expected null: "
        "attention over a sliding window is not computed here",
    ),
    (
        {"model_type": "eagle", "model": HEAD | {"x": 1}},
        "model: x: unknown key: not known here, and it may change what is computed",
    ),
]


@pytest.mark.parametrize(("config", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_with_where_it_is(
    tmp_path: Path, base: BaseInput, config: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path / "head", config)
    assert refused(ConfigError, lambda: load_draft(file, base)) == f"{file}: {message}"


def test_two_norms_before_fc_are_refused(tmp_path: Path, base: BaseInput) -> None:
    shapes = shapes_of_eagle3() | {"input_norm.weight": (48,), "fc_norm.0.weight": (16,)}
    where = head(tmp_path / "head", EAGLE3, shapes)
    assert refused(ConfigError, lambda: load_draft(where, base)) == (
        f"{where / 'config.json'}: fc_norm: found fc_norm.0.weight beside input_norm.weight, expected one of them"
    )
