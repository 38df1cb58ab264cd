"""Loading EAGLE heads: the kind derived from the tensors, every key, and the tensors of the official layouts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from planner.checkpoints.checkpoint import SINGLE
from planner.errors import CheckpointError, ConfigError
from planner.families import BaseInput, DraftFacts, facts_of, load_base, load_draft
from tests.planner.tiny_checkpoints import SMALL, bare, refused, saved

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
    """Return the tensors of the reference implementation, written out."""
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


FACTS: dict[str, Any] = {
    "kind": "eagle3",
    "layout": None,
    "own_embedding": False,
    "own_head": True,
    "maps_vocabulary": True,
    "fc_bias": False,
    "qkv_bias": False,
    "o_bias": False,
    "mlp_bias": False,
    "qk_norm": False,
    "fc_norm": None,
    "masked": False,
}
"""Facts of an ordinary EAGLE-3 head."""
EAGLE1: dict[str, Any] = {"kind": "eagle", "own_head": False, "maps_vocabulary": False, "fc_bias": True}
NAMED: dict[str, Any] = {"eagle_aux_hidden_state_layer_ids": [2, 3, 4]}


def head(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    bare(path, config)
    dtypes = {"d2t": torch.int64, "t2d": torch.bool}
    types = {name: dtypes.get(name.removeprefix("model."), torch.float16) for name in shapes}
    tensors = {name: torch.zeros(shape, dtype=types[name]) for name, shape in shapes.items()}
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
    assert draft.ropes[0].theta == 500000.0
    again = load_draft(where / "config.json", base, facts_of(draft.draft))
    assert (again.draft, again.roles, again.tensors_sha256) == (draft.draft, draft.roles, draft.tensors_sha256)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("maps", [False, True])
def test_the_head_of_eagle3(tmp_path: Path, base: BaseInput, own: bool, maps: bool) -> None:
    vocab = 8 if maps else 32
    shapes = shapes_of_eagle3(vocab=vocab) | ({"embed_tokens.weight": (32, 16)} if own else {})
    where = head(tmp_path / "head", EAGLE3 | {"draft_vocab_size": vocab} | ({} if maps else NAMED), shapes)
    draft = load_draft(where, base)
    read = {source.name: source.shape for source in draft.roles.values()}
    assert read == {name: shape for name, shape in shapes.items() if name != "t2d"}
    assert draft.draft.aux_layers == (2, 3, 4)
    assert facts_of(draft.draft) == DraftFacts(**FACTS | {"own_embedding": own, "maps_vocabulary": maps})
    again = load_draft(where / "config.json", base, facts_of(draft.draft))
    assert (again.draft, again.roles, again.tensors_sha256) == (draft.draft, draft.roles, draft.tensors_sha256)


def test_the_kind_of_a_bare_config_follows_from_its_keys(tmp_path: Path, base: BaseInput) -> None:
    eagle = load_draft(bare(tmp_path / "eagle3-by-name", HEAD), base).draft
    assert facts_of(eagle) == DraftFacts(**FACTS | EAGLE1)
    eagle3 = load_draft(bare(tmp_path / "eagle-by-name", EAGLE3), base).draft
    assert facts_of(eagle3) == DraftFacts(**FACTS)
    own = load_draft(bare(tmp_path / "c", EAGLE3 | {"target_hidden_size": 16}), base).draft
    assert own.own_embedding


def test_a_head_of_another_width_needs_its_own_embedding(tmp_path: Path, base: BaseInput) -> None:
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
        "the EAGLE head is for another base model"
    )


def test_biases_of_q_k_and_v_are_derived_from_the_tensors(tmp_path: Path, base: BaseInput) -> None:
    eagle3 = shapes_of_eagle3()
    eagle3 |= {f"midlayer.self_attn.{name}.bias": (8,) for name in ("k_proj", "v_proj")}
    eagle3["midlayer.self_attn.q_proj.bias"] = (16,)
    for number, (config, shapes) in enumerate(
        [(HEAD, shapes_of_eagle(HEAD | {"qkv_bias": True})), (EAGLE3, eagle3)], start=1
    ):
        where = head(tmp_path / str(number), config, shapes)
        draft = load_draft(where, base).draft
        assert (draft.attention.qkv_bias, draft.attention.o_bias) == (True, False)
        assert load_draft(where / "config.json", base, facts_of(draft)).draft == draft
        denied = head(tmp_path / f"{number}-denied", config | {"qkv_bias": False, "attention_bias": False}, shapes)
        assert load_draft(denied, base).draft == draft
        plain = {name: shape for name, shape in shapes.items() if not name.endswith("_proj.bias")}
        claimed = head(tmp_path / f"{number}-claimed", config | {"qkv_bias": True}, plain)
        assert refused(ConfigError, lambda path=claimed: load_draft(path, base)) == (
            f"{claimed / 'config.json'}: qkv_bias: found True, expected False: the head has no bias of q, k and v"
        )


WINDOW_OFF: dict[str, Any] = {"sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28}
OFFICIAL: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", HEAD | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "qkv_bias": True} | WINDOW_OFF),
    ("mixtral", HEAD | {"num_key_value_heads": 4, "sliding_window": None}),
    ("mixtral", HEAD | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}),
    ("mistral", EAGLE3 | {"head_dim": 8, "sliding_window": None, "rope_theta": 100000000.0}),
    ("qwen2", EAGLE3 | {"attention_bias": False} | WINDOW_OFF),
    ("qwen3", EAGLE3 | {"head_dim": 10, "attention_bias": False, "tie_word_embeddings": True} | WINDOW_OFF),
    ("qwen3", EAGLE3 | {"model_type": "qwen3", "head_dim": 10, "attention_bias": False}),
    (
        "qwen3_moe",
        EAGLE3
        | {"head_dim": 8, "intermediate_size": 96, "attention_bias": False}
        | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 5], "use_aux_hidden_state": True}},
    ),
]
"""Configs of published EAGLE heads, by family: from the authors of EAGLE, and from SpecForge and SGLang."""


@pytest.mark.parametrize(("family", "config"), OFFICIAL, ids=[family for family, _ in OFFICIAL])
def test_the_published_heads_of_each_family(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    base = load_base(saved(tmp_path / "base", family))
    draft = load_draft(bare(tmp_path / "head", config), base).draft
    assert (draft.mlp.kind, draft.mlp.intermediate_size) == ("gated", config["intermediate_size"])
    assert draft.attention.num_kv_heads == config["num_key_value_heads"]
    assert draft.attention.head_dim == config.get("head_dim", 4)
    assert draft.attention.qkv_bias == config.get("qkv_bias", False)
    assert not draft.attention.qk_norm


def test_a_head_with_experts_is_refused(tmp_path: Path, base: BaseInput) -> None:
    shapes = shapes_of_eagle3() | {"midlayer.mlp.experts.0.up_proj.weight": (12, 16)}
    where = head(tmp_path / "head", EAGLE3 | {"model_type": "qwen3_moe", "num_experts": 1}, shapes)
    assert refused(CheckpointError, lambda: load_draft(where, base)) == (
        f"{where}: midlayer.mlp.experts.0.up_proj.weight: surplus, of shape [12, 16]: "
        "nothing that config.json describes has it"
    )


HEADS: list[tuple[dict[str, Any], str]] = [
    (
        EAGLE3 | {"hidden_size": 32},
        "hidden_size: found 32, expected 16, the base model's hidden_size: the EAGLE head is for another base model",
    ),
    (
        HEAD | {"hidden_size": 32},
        "hidden_size: found 32, expected 16, the base model's hidden_size: the EAGLE head is for another base model",
    ),
    (
        EAGLE3 | {"vocab_size": 64},
        "vocab_size: found 64, expected 32, the base model's: the EAGLE head is for another base model",
    ),
    (
        HEAD | {"vocab_size": 64},
        "vocab_size: found 64, expected 32, the base model's: the EAGLE head is for another base model",
    ),
    (
        EAGLE3 | {"draft_vocab_size": 33},
        "draft_vocab_size: found 33, expected at most 32, the base model's vocab_size",
    ),
    (
        EAGLE3 | {"model_type": "gpt2"},
        "model_type: found 'gpt2', expected one of llama, mistral, qwen2, qwen3, mixtral, qwen3_moe",
    ),
    (
        HEAD | {"target_hidden_size": 32},
        "target_hidden_size: found 32, expected 16, hidden_size: fc joins the two",
    ),
    (
        EAGLE3 | {"residual_multiplier": 0.5},
        "residual_multiplier: unknown key: not known here, and it may change what is computed",
    ),
    (
        EAGLE3 | {"norm_output": False},
        "norm_output: found False, expected True or nothing: by it SpecForge means a head without a norm before the "
        "lm_head, which is not computed here",
    ),
    (
        EAGLE3 | {"draft_vocab_size": 8, "truncated_vocab_size": 16},
        "truncated_vocab_size: found 16, expected 8 as in draft_vocab_size",
    ),
    (
        EAGLE3 | {"mask_token_id": 32},
        "mask_token_id: found 32, expected a token id from 0 to 31",
    ),
    (
        EAGLE3 | {"mask_token_id": 31, "pard_token": 30},
        "mask_token_id: found {'mask_token_id': 31, 'pard_token': 30}, expected one token",
    ),
    (EAGLE3 | {"logit_scale": -1.0}, "logit_scale: found -1.0, expected a number from 1e-06 to 1e+06"),
    (
        EAGLE3 | {"eagle_config": {"parallel_draft_step": 4}},
        "eagle_config: parallel_draft_step: found 4, expected 1: another form of head is not computed here",
    ),
    (
        EAGLE3 | {"eagle_config": {"use_mtp_layernorm": True}},
        "eagle_config: use_mtp_layernorm: found True, expected False: another form of head is not computed here",
    ),
]


@pytest.mark.parametrize(("config", "message"), HEADS, ids=[message.partition(":")[0] for _, message in HEADS])
def test_a_head_that_does_not_fit_is_refused(
    tmp_path: Path, base: BaseInput, config: dict[str, Any], message: str
) -> None:
    file = bare(tmp_path / "head", config)
    assert refused(ConfigError, lambda: load_draft(file, base)) == f"{file}: {message}"


def test_the_tensors_of_a_head_are_the_derived_ones(tmp_path: Path, base: BaseInput) -> None:
    shapes = shapes_of_eagle3()
    cases: list[tuple[dict[str, tuple[int, ...]], str]] = [
        (
            shapes | {"fc.weight": (16, 32)},
            "fc.weight: found shape [16, 32], expected [16, 48] by config.json",
        ),
        (
            shapes | {"fc.scale": (16,)},
            "fc.scale: surplus, of shape [16]: nothing that config.json describes has it",
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
    whole = EAGLE3 | {"draft_vocab_size": 32}
    facts = DraftFacts(**FACTS)
    where = bare(tmp_path / "b", whole)
    assert refused(ConfigError, lambda: load_draft(where, base, facts)) == (
        f"{where}: draft_vocab_size: found 32, the whole vocabulary, expected no d2t: ids are direct"
    )


def test_maps_of_the_whole_vocabulary_are_not_needed(tmp_path: Path, base: BaseInput) -> None:
    """The reference implementation drops such maps before it loads a head, for example Vicuna's."""
    shapes = shapes_of_eagle3(vocab=32)
    where = head(tmp_path / "a", EAGLE3 | {"draft_vocab_size": 32}, shapes | {"d2t": (32,), "t2d": (32,)})
    draft = load_draft(where, base)
    assert {source.name: source.shape for source in draft.roles.values()} == shapes
    assert not draft.draft.maps_vocabulary
    again = load_draft(where / "config.json", base, facts_of(draft.draft))
    assert (again.draft, again.tensors_sha256) == (draft.draft, draft.tensors_sha256)


def test_a_checkpoint_that_is_no_eagle_head_is_refused(tmp_path: Path, base: BaseInput) -> None:
    where = saved(tmp_path / "model")
    assert refused(CheckpointError, lambda: load_draft(where, base)) == (
        f"{where}: not an EAGLE head: found lm_head.weight, model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight and others, "
        "expected fc.weight with midlayer.* or layers.* (EAGLE-3), or with layers.* (EAGLE-1, -2)"
    )


def test_another_head_than_the_planned_one_is_refused(tmp_path: Path, base: BaseInput) -> None:
    where = head(tmp_path / "head", EAGLE3, shapes_of_eagle3())
    facts = DraftFacts(**FACTS | {"own_embedding": True, "layout": "speculators"})
    assert refused(CheckpointError, lambda: load_draft(where, base, facts)) == (
        f"{where}: found an EAGLE head of another form than the planned one "
        "(layout None, own_embedding False, planned layout speculators, own_embedding True): give the planned head"
    )
