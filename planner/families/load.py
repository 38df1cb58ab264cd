"""Load base models: find the family, read the config with its module, check the tensors.

The table below is the only place that lists families; a module is imported when a config names it.
"""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from planner.checkpoints.checkpoint import Checkpoint, read_checkpoint
from planner.checkpoints.formats import quantizer_settings, refuse_quantized, refuse_quantized_tensors
from planner.checkpoints.header import TensorInfo
from planner.checkpoints.summary import Summary, describe
from planner.errors import CheckpointError
from planner.families.coded import coded_notes, with_codes
from planner.families.config import Keys, saved_dtype
from planner.families.records import BaseInput, BaseReading
from planner.families.refused import REASONS
from planner.families.rounded import rounded
from planner.families.spellings import OWN
from planner.families.tensors import as_stored, check_tensors, table_sha256
from planner.families.wrappers import QUANTIZER_KEYS, WRAPPERS, as_wrapped, spellings, text_part
from planner.quantized import METHODS, Recipe, ScaleDType, kv_scales, read_recipe
from plans.dtypes import HEADER_NAMES
from plans.format import quote
from plans.schema import Model, RoundedWeights

FAMILIES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "granite": "GraniteForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
}
"""Architecture of each family, by ``model_type``, which is also the name of its module here, with ``read(keys)``."""

SCALES = (".scales", ".weight_scale", ".weight_scale_inv")
"""Ends of the names of scales in a quantized checkpoint."""


def load_base(path: Path, weights: RoundedWeights | None = None, planned: Model | None = None) -> BaseInput:
    """Read a base model from a directory or a bare config; raise ConfigError or CheckpointError.

    ``weights``: format to which those of its layers are rounded. ``planned``: the model as a plan of it has it, which
    has what headers tell and a bare config does not, the dtypes of scales.
    """
    base = _load_base(path, planned)
    return base if weights is None else rounded(base, weights)


def _load_base(path: Path, planned: Model | None) -> BaseInput:
    checkpoint = read_checkpoint(path)
    _refuse_drafter(checkpoint)
    keys = Keys(checkpoint.config, str(checkpoint.config_file))
    family = _family(keys)
    recipe = _recipe(checkpoint, keys)
    wrapper, notes = WRAPPERS.get(family), keys.notes
    if wrapper is not None:
        part = text_part(wrapper, keys, checkpoint.config)
        family, keys, notes = part.family, part.keys, [*notes, part.note]
    reading: BaseReading = importlib.import_module(f"planner.families.{family}").read(keys)
    ways = [OWN] if wrapper is None else spellings(wrapper, reading.roles, checkpoint.tensors or ())
    if recipe is not None:
        where, tensors = str(checkpoint.config_file), checkpoint.tensors
        others = () if wrapper is None else wrapper.vision
        reading = with_codes(reading, recipe, where, tensors, _scales(checkpoint), planned, ways, others)
        notes = [*notes, *coded_notes(reading.model)]
    tensors_sha256 = table_sha256(reading.roles)
    if wrapper is not None:
        reading = as_wrapped(wrapper, reading, ways[0])
    if checkpoint.tensors is not None:
        reading = replace(reading, roles=as_stored(reading.roles, checkpoint.tensors))
        if quantizer_settings(checkpoint.config, checkpoint.config_file, METHODS) is not None:
            reading = _beside_kv_scales(reading, checkpoint.tensors)
        check_tensors(checkpoint, checkpoint.tensors, reading)
    return BaseInput(
        model=reading.model,
        notes=tuple(dict.fromkeys([*notes, *keys.notes])),
        ropes=reading.ropes,
        roles=reading.roles,
        checkpoint=checkpoint,
        max_positions=reading.max_positions,
        config_sha256=hashlib.sha256(checkpoint.config_bytes).hexdigest(),
        tensors_sha256=tensors_sha256,
    )


def scan(path: Path) -> Summary:
    """Summarise the headers of a checkpoint, or the tensors that the bare config of a base model implies."""
    checkpoint = read_checkpoint(path, pickles=True)
    if checkpoint.tensors is not None:
        return describe({name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()})
    base = load_base(path)
    dtype = HEADER_NAMES.get(str(saved_dtype(checkpoint.config)), "F32")
    tensors = {source.name: (dtype, source.shape) for source in base.roles.values() if source.stored is None}
    stored = (source.stored for source in base.roles.values() if source.stored is not None)
    for expected in (tensor for layer in stored for tensor in layer.tensors.values()):
        tensors[expected.name] = min(expected.dtypes), expected.shapes[0]
    return describe(tensors)


# ---- base models ----


def _recipe(checkpoint: Checkpoint, keys: Keys) -> Recipe | None:
    """Return which layers are quantized, None of plain weights; raise ConfigError or CheckpointError."""
    found = quantizer_settings(checkpoint.config, checkpoint.config_file, METHODS)
    if found is None:
        refuse_quantized(checkpoint.config, checkpoint.config_file, checkpoint.tensors)
        return None
    settings, where = found
    for name in QUANTIZER_KEYS:
        keys.get(name)
    recipe = read_recipe(settings, where)
    if recipe is None:
        refuse_quantized_tensors(checkpoint.config_file, checkpoint.tensors)
    return recipe


def _beside_kv_scales(reading: BaseReading, tensors: Mapping[str, TensorInfo]) -> BaseReading:
    """Return a reading that lets scales of a KV cache be there, one of all or of each head: its dtype is the plan's."""
    modules = {
        source.name.removesuffix(".weight") if source.stored is None else source.stored.module
        for source in reading.roles.values()
    }
    attention = reading.model.layers[0].attention
    allowed = {(), (1,)}
    for heads in (attention.num_heads, attention.num_kv_heads):
        allowed |= {(heads,), (heads, 1, 1)}
    found = {name: tensors[name].shape for module in modules for name in kv_scales(module) if name in tensors}
    known = {name: shape if shape in allowed else (1,) for name, shape in found.items()}
    return replace(reading, ignored={**reading.ignored, **known})


def _scales(checkpoint: Checkpoint) -> ScaleDType:
    """Return the dtype of scales of which the headers do not tell it: that of the first, or of other weights."""
    known = {header: dtype for dtype, header in HEADER_NAMES.items() if dtype in get_args(ScaleDType)}
    tensors = (checkpoint.tensors or {}).items()
    found = (known[info.dtype] for name, info in tensors if name.endswith(SCALES) and info.dtype in known)
    dtype = next(found, saved_dtype(checkpoint.config))
    return next((other for other in get_args(ScaleDType) if other == dtype), "float16")


def _refuse_drafter(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for an EAGLE head; the key or tensor that would be refused does not say what is wrong."""
    tensors, config = checkpoint.tensors, checkpoint.config
    by_config = "draft_vocab_size" in config or "transformer_layer_config" in config
    drafter = "fc.weight" in tensors or "model.fc.weight" in tensors if tensors else by_config
    if drafter:
        raise CheckpointError(
            f"{checkpoint.config_file}: an EAGLE head, expected a base model: give it as --draft, and as --model the "
            "model that it was trained for"
        )


def _family(keys: Keys) -> str:
    """Return the family or wrapper: ``model_type``, or that of the one architecture of a config without it.

    Raise ConfigError for any other.
    """
    known = dict(FAMILIES) | {name: wrapper.architecture for name, wrapper in WRAPPERS.items()}
    architectures = keys.get("architectures", [])
    named = next((name for name, architecture in known.items() if architectures == [architecture]), "")
    family = keys.get("model_type", named)
    if not isinstance(family, str) or family not in known:
        value = keys.get("model_type", architectures)
        reason = f": {REASONS[family]}" if isinstance(family, str) and family in REASONS else ""
        raise keys.fail("model_type", f"found {quote(value)}{reason}, expected one of {', '.join(known)}")
    if architectures not in ([], [known[family]]):
        raise keys.fail("architectures", f"found {quote(architectures)}, expected {[known[family]]!r}")
    return family
