"""Bring an EAGLE head to the layout of its authors: where its keys are, and what its tensors are called.

| layout | config | tensors |
|---|---|---|
| (none recorded) | flat: SafeAILab/EAGLE, SpecForge, AngelSlim | `midlayer.`, then `layers.1.` |
| layers | flat | `layers.0.` in EAGLE-3 too |
| speculators | layers in `transformer_layer_config` | `layers.0.` |
| modelopt | flat, more keys in `eagle_config` | `layers.0.` |
| nemo | flat, architecture LlamaEagle3DraftModel | `model.` before all names |
| vllm | `{"model_type": "eagle", "model": {...}}` of EAGLE-1 | `model.` before all names |

Everything behind this module sees the first of these alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from planner.checkpoints.checkpoint import Checkpoint
from planner.checkpoints.header import TensorInfo
from planner.errors import CheckpointError
from planner.families.config import Keys, words
from planner.families.other_drafters import other_drafter
from planner.families.records import Roles, Source
from plans.format import quote
from plans.schema import HeadLayout

HeadKind = Literal["eagle", "eagle3"]

MODELOPT_KEYS = (
    "use_input_layernorm_in_first_layer",
    "use_last_layernorm",
    "use_mtp_layernorm",
    "next_layer_regular",
    "parallel_draft_step",
    "parallel_draft_heads_num_layers",
)
"""Keys of ``eagle_config`` that ModelOpt alone writes."""
_EAGLE3_ARCHITECTURES = ("Eagle3", "PEagle", "Peagle")
"""Parts of the names of architectures of EAGLE-3: LlamaForCausalLMEagle3, Eagle3DraftModel, Eagle3Speculator, ..."""
_EAGLE3_KEYS = words(
    "draft_vocab_size truncated_vocab_size eagle_config eagle_aux_hidden_state_layer_ids fc_norm"
) | words("norm_before_residual norm_before_fc parallel_drafting mask_token_id ptd_token_id pard_token")
_OUTER_HARMLESS = words("truncated_vocab_size")
"""Keys beside ``model`` in vLLM's wrapper that change nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """An EAGLE head as its checkpoint has it, by the names of its authors."""

    kind: HeadKind
    layout: HeadLayout | None
    keys: Keys
    """Keys of the head."""
    layer: Keys
    """Keys of its layers; the same object unless they are in an object of their own."""
    tensors: Mapping[str, TensorInfo] | None
    """Tensors by the authors' names; None for a bare config."""
    names: Mapping[str, str]
    """Names in the checkpoint by the authors' names."""

    def has(self, name: str) -> bool:
        """Return True where the checkpoint has a tensor."""
        return self.tensors is not None and name in self.tensors

    def source(self, source: Source) -> Source:
        """Return a tensor by its name and shape in the checkpoint, or by those of the layout where it has none."""
        found = None if self.tensors is None else self.tensors.get(source.name)
        shape = source.shape
        if found is not None and len(shape) == 1 and found.shape == (1,) * (len(found.shape) - 1) + shape:
            shape = found.shape  # a vector with dimensions of 1 before it
        return Source(name=self.names.get(source.name) or self._named(source.name), shape=shape)

    def _named(self, name: str) -> str:
        if self.kind == "eagle3" and self.layout is not None:
            name = name.replace("midlayer.", "layers.0.", 1)
        return f"model.{name}" if self.layout in ("nemo", "vllm") else name


def open_head(checkpoint: Checkpoint, planned: HeadLayout | None = None) -> Head:
    """Recognise kind and layout of an EAGLE head; raise ConfigError or CheckpointError for what is none.

    ``planned``: layout that a plan has recorded, for a bare config that does not tell.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    names = {name.removeprefix("model."): name for name in tensors or ()}
    other = other_drafter(config, names)
    if other is not None:
        raise CheckpointError(
            f"{checkpoint.config_file}: {other.name}: this drafter is not computed here: it would need {other.needed}; "
            "expected a head of EAGLE-1, -2, -3 or P-EAGLE"
        )
    keys, layer = _keys_of(checkpoint)
    if tensors is None:
        kind = _kind_of_config(config)
        layout = _layout(config, kind, None) if planned is None else planned
        return Head(kind=kind, layout=layout, keys=keys, layer=layer, tensors=None, names={})
    kind = _kind_of_tensors(checkpoint, {name: tensors[actual] for name, actual in names.items()})
    if kind == "eagle3":
        names = {name.replace("layers.0.", "midlayer.", 1) if name.startswith("layers.0.") else name: actual
                 for name, actual in names.items()}  # fmt: skip
    return Head(
        kind=kind,
        layout=_layout(config, kind, tensors),
        keys=keys,
        layer=layer,
        tensors={name: tensors[actual] for name, actual in names.items()},
        names=names,
    )


def renamed(
    head: Head, roles: Roles, ignored: Mapping[str, tuple[int, ...]]
) -> tuple[Roles, dict[str, tuple[int, ...]]]:
    """Return roles and ignored tensors by their names in the checkpoint."""
    mine = {role: head.source(source) for role, source in roles.items()}
    others = (head.source(Source(name=name, shape=shape)) for name, shape in ignored.items())
    return mine, {source.name: source.shape for source in others}


def _keys_of(checkpoint: Checkpoint) -> tuple[Keys, Keys]:
    """Return the keys of the head and those of its layers."""
    config, where = checkpoint.config, str(checkpoint.config_file)
    outer = Keys(config, where)
    for name in ("transformer_layer_config", "model"):
        if name == "model" and config.get("model_type") != "eagle":
            continue
        inner = config.get(name)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise outer.fail(name, f"found {quote(inner)}, expected an object")
        keys = Keys(inner, f"{where}: {name}")
        outer.get(name)
        if name == "transformer_layer_config":
            return outer, keys
        outer.finish(_OUTER_HARMLESS)
        return keys, keys
    return outer, outer


def _kind_of_config(config: Mapping[str, Any]) -> HeadKind:
    """Return the kind that a bare config implies: by its architecture, or by a key that only EAGLE-3 has."""
    if config.get("model_type") == "eagle":
        return "eagle"
    architectures = config.get("architectures")
    named = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if any(part in name for part in _EAGLE3_ARCHITECTURES for name in named):
        return "eagle3"
    if config.get("speculators_model_type") in ("eagle3", "peagle"):
        return "eagle3"
    return "eagle3" if any(config.get(key) is not None for key in _EAGLE3_KEYS) else "eagle"


def _kind_of_tensors(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> HeadKind:
    """Return the kind of an EAGLE head by its tensors, never by the name of a file or directory.

    In EAGLE-3 q, k and v of the first layer are computed from an embedding beside a hidden state, each normed.
    """
    query, norm = (tensors.get(f"layers.0.{name}.weight") for name in ("self_attn.q_proj", "post_attention_layernorm"))
    wide = query is not None and norm is not None and query.shape[1:] == (2 * prod(norm.shape),)
    if wide or "layers.0.hidden_norm.weight" in tensors or any(name.startswith("midlayer.") for name in tensors):
        return "eagle3"
    if "d2t" in tensors:
        return "eagle3"
    bare_layers = any(name.startswith("layers.0.") for name in checkpoint.tensors or ())
    if "fc.weight" in tensors or bare_layers:
        return "eagle"
    some = ", ".join(sorted(checkpoint.tensors or ())[:3])
    raise CheckpointError(
        f"{checkpoint.directory}: not an EAGLE head: found {some} and others, "
        "expected fc.weight with midlayer.* or layers.* (EAGLE-3), or with layers.* (EAGLE-1, -2)"
    )


def _layout(config: Mapping[str, Any], kind: HeadKind, tensors: Mapping[str, TensorInfo] | None) -> HeadLayout | None:
    if "transformer_layer_config" in config or "speculators_model_type" in config:
        return "speculators"
    if config.get("model_type") == "eagle":
        return "vllm"
    architectures = config.get("architectures")
    if any(name.startswith("model.") for name in tensors or ()) or architectures == ["LlamaEagle3DraftModel"]:
        return "nemo"
    if kind == "eagle":
        return None
    if _writes_modelopt(config):
        return "modelopt"
    return "layers" if any(name.startswith("layers.0.") for name in tensors or ()) else None


def _writes_modelopt(config: Mapping[str, Any]) -> bool:
    """Return True for a config with keys that ModelOpt alone writes."""
    inner = config.get("eagle_config")
    return isinstance(inner, dict) and any(key in inner for key in MODELOPT_KEYS)
