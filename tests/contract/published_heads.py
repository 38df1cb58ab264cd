"""Untrained heads in the layouts and forms in which they are published, which often agree with ``write_agreeing_base``.

The tensors of a head in the layout of the authors of EAGLE are renamed, and what a form adds is put beside them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.contract.agreeing import (
    DRAFT_HEAD_DIM,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    write_agreeing_head,
)

Tensors = dict[str, torch.Tensor]
IDS = "eagle_aux_hidden_state_layer_ids"
MODELOPT = {"use_aux_hidden_state": True, "use_last_layernorm": True, "next_layer_regular": True}
MASK_TOKEN = 95


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of head: what is written, and what that means, for the reference."""

    taps: tuple[int, ...]
    meaning: dict[str, Any]
    """Flags of ``ReferenceForm``."""
    keys: dict[str, Any]
    """Keys of the config, beside those of a flat head."""
    prefix: str = "layers.0."
    layers: int = 1
    nested: bool = False
    more: Callable[[Tensors, "Form"], Tensors] = lambda tensors, form: {}
    """Tensors that are added."""
    lost: tuple[str, ...] = ()
    """Tensors that are left out."""


def _joint(tensors: Tensors, form: Form) -> Tensors:
    return {"input_norm.weight": _near_one(HIDDEN * len(form.taps), 1)}


def _each(tensors: Tensors, form: Form) -> Tensors:
    return {f"fc_norm.{number}.weight": _near_one(HIDDEN, number) for number in range(len(form.taps))}


def _embedding(tensors: Tensors, form: Form) -> Tensors:
    return {"embed_tokens.weight": tensors["base.embedding"] + 0.02 * _noise((VOCABULARY, HIDDEN), 5)}


def _plain_layers(tensors: Tensors, form: Form) -> Tensors:
    """Return layers behind the first, on inputs of one width."""
    more = {}
    for number in range(1, form.layers):
        for name, tensor in tensors.items():
            if name.startswith("midlayer.") and "hidden_norm" not in name:
                narrow = any(part in name for part in ("q_proj", "k_proj", "v_proj"))
                shape = (tensor.shape[0], HIDDEN) if narrow else tuple(tensor.shape)
                own = _near_one(HIDDEN, number) if tensor.dim() == 1 else 0.04 * _noise(shape, number)
                more[name.replace("midlayer.", f"layers.{number}.")] = own
    return more


def _head_norms(tensors: Tensors, form: Form) -> Tensors:
    names = ["midlayer.", *(f"layers.{number}." for number in range(1, form.layers))]
    return {
        f"{name}self_attn.{norm}.weight": 2 * _near_one(DRAFT_HEAD_DIM, 3)
        for name in names
        for norm in ("q_norm", "k_norm")
    }


def _biases(tensors: Tensors, form: Form) -> Tensors:
    linear = [name for name in tensors if "_proj.weight" in name or name == "fc.weight"]
    return {
        name.replace(".weight", ".bias"): 0.05 * _noise(tuple(tensors[name].shape[:1]), number)
        for number, name in enumerate(sorted(linear))
    }


def _masks(tensors: Tensors, form: Form) -> Tensors:
    return {"mask_hidden": _noise((1, 1, HIDDEN * len(form.taps)), 9)}


def _all(*parts: Callable[[Tensors, Form], Tensors]) -> Callable[[Tensors, Form], Tensors]:
    return lambda tensors, form: {name: value for part in parts for name, value in part(tensors, form).items()}


FORMS: dict[str, Form] = {
    "speculators of today": Form(
        taps=(1, 4, 6),
        nested=True,
        keys={
            "speculators_model_type": "eagle3",
            "architectures": ["Eagle3DraftModel"],
            "norm_before_residual": True,
            "norm_before_fc": True,
            "norm_output": True,
            IDS: [1, 4, 6],
        },
        meaning={"norm_before_residual": True, "norm_output": True},
        more=_all(_joint, _embedding, _head_norms),
    ),
    "EAGLE-3.1 of SpecForge": Form(
        taps=(2, LAYERS // 2, LAYERS - 3),
        prefix="midlayer.",
        keys={"architectures": ["LlamaForCausalLMEagle3"], "fc_norm": True, "norm_output": True},
        meaning={"norm_output": True},
        more=_each,
    ),
    "qwen3 layers of speculators": Form(
        taps=(2, LAYERS),
        nested=True,
        layers=2,
        keys={"speculators_model_type": "eagle3", IDS: [2, LAYERS]},
        meaning={"norm_before_residual": True},
        more=_all(_plain_layers, _head_norms),
    ),
    "ModelOpt without tables": Form(
        taps=(2, 3, 5, 6),
        keys={"draft_vocab_size": VOCABULARY, "logit_scale": 0.5, "eagle_config": MODELOPT | {IDS: [2, 3, 5, 6]}},
        meaning={"logit_scale": 0.5},
        more=_biases,
        lost=("d2t", "t2d", "lm_head.weight"),
    ),
    "YaRN of ModelOpt": Form(
        taps=(2, 4, 7),
        keys={
            "eagle_config": MODELOPT | {IDS: [2, 4, 7]},
            "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16},
        },
        meaning={},
    ),
    "ModelOpt without layers of the base": Form(
        taps=(),
        keys={"eagle_config": MODELOPT | {"use_aux_hidden_state": False, IDS: []}},
        meaning={},
        lost=("fc.weight",),
    ),
    "P-EAGLE of AWS": Form(
        taps=(2, 4, 5),
        prefix="midlayer.",
        layers=2,
        keys={"ptd_token_id": MASK_TOKEN, "parallel_drafting": True, IDS: [2, 4, 5]},
        meaning={"mask_token_id": MASK_TOKEN},
        more=_all(_plain_layers, _masks),
    ),
    "P-EAGLE of speculators": Form(
        taps=(1, 7),
        nested=True,
        layers=1,
        keys={
            "speculators_model_type": "peagle",
            "mask_token_id": MASK_TOKEN,
            "norm_before_residual": True,
            "fc_norm": True,
            IDS: [1, 7],
        },
        meaning={"mask_token_id": MASK_TOKEN, "norm_before_residual": True},
        more=_all(_each, _masks, _embedding),
    ),
}
"""Forms by name; together they have every layout of EAGLE-3 and everything that a head may compute."""


def write_published(directory: Path, base: Path, form: Form) -> dict[str, Any]:
    """Write a head for an agreeing base; return what the reference must be told of it."""
    write_agreeing_head(directory, base, kind="eagle3", noise=0.03)
    tensors, config = load_file(directory / "model.safetensors"), json.loads((directory / "config.json").read_text())
    embedding = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    fc = 0.03 * 0.2 * _noise((HIDDEN, HIDDEN * len(form.taps)), 4)
    fc[:, :HIDDEN] += torch.eye(HIDDEN)[:, : fc.shape[1]]
    tensors["fc.weight"] = fc
    tensors |= form.more(tensors | {"base.embedding": embedding}, form)
    named = {name.replace("midlayer.", form.prefix): value for name, value in tensors.items() if name not in form.lost}
    save_file({name: value.contiguous() for name, value in named.items()}, directory / "model.safetensors")
    inner = {name: value for name, value in config.items() if name != "draft_vocab_size"}
    inner |= {"num_hidden_layers": form.layers}
    outer = {"draft_vocab_size": config["draft_vocab_size"]} | form.keys
    whole = outer | {"transformer_layer_config": inner} if form.nested else inner | outer
    (directory / "config.json").write_text(json.dumps(whole))
    frequencies, scale = _rotary(inner | {"rope_scaling": form.keys.get("rope_scaling")})
    return form.meaning | {
        "boundaries": form.taps,
        "head_dim": DRAFT_HEAD_DIM,
        "frequencies": frequencies,
        "rope_scale": scale,
        "eps": config["rms_norm_eps"],
    }


def _rotary(config: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Return the inverse frequencies, and the factor of cosines and sines, of transformers' Llama."""
    rotary = LlamaRotaryEmbedding(LlamaConfig(**config))
    return rotary.inv_freq, rotary.attention_scaling


def _noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _near_one(size: int, seed: int) -> torch.Tensor:
    return 1 + 0.2 * _noise((size,), 100 + seed)
