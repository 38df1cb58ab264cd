"""Load base models and EAGLE heads: find the family, read the config with its module, check the tensors.

The tables below are the only place that lists families and kinds; a module is imported when a config names it.
"""

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from planner.checkpoints.checkpoint import Checkpoint, read_checkpoint
from planner.checkpoints.formats import refuse_quantized
from planner.checkpoints.header import TensorInfo
from planner.checkpoints.summary import Summary, describe
from planner.errors import CheckpointError
from planner.families.config import Keys, saved_dtype
from planner.families.records import BaseInput, BaseReading, DraftFacts, DraftInput, DraftReading
from planner.families.refused import REASONS
from planner.families.tensors import check_tensors, table_sha256
from planner.families.wrappers import WRAPPERS, as_wrapped, text_part
from plans.dtypes import HEADER_NAMES
from plans.format import quote
from plans.schema import Draft

FAMILIES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Architecture of each family, by ``model_type``, which is also the name of its module here, with ``read(keys)``."""

DRAFTERS: Mapping[str, str] = {
    "eagle": "planner.families.eagle",
    "eagle3": "planner.families.eagle3",
}
"""Module of each kind of EAGLE head, with ``read(keys, base, facts)``."""


def load_base(path: Path) -> BaseInput:
    """Read a base model from a directory or a bare config; raise ConfigError or CheckpointError."""
    checkpoint = read_checkpoint(path)
    _refuse_drafter(checkpoint)
    keys = Keys(checkpoint.config, str(checkpoint.config_file))
    family = _family(keys)
    refuse_quantized(checkpoint.config, checkpoint.config_file, checkpoint.tensors)
    wrapper, notes = WRAPPERS.get(family), keys.notes
    if wrapper is not None:
        part = text_part(wrapper, keys, checkpoint.config)
        family, keys, notes = part.family, part.keys, [*notes, part.note]
    reading: BaseReading = importlib.import_module(f"planner.families.{family}").read(keys)
    tensors_sha256 = table_sha256(reading.roles)
    if wrapper is not None:
        reading = as_wrapped(wrapper, reading, checkpoint.tensors or ())
    if checkpoint.tensors is not None:
        check_tensors(checkpoint, checkpoint.tensors, reading)
    return BaseInput(
        model=reading.model,
        notes=tuple(dict.fromkeys([*notes, *keys.notes])),
        rope=reading.rope,
        roles=reading.roles,
        checkpoint=checkpoint,
        max_positions=reading.max_positions,
        config_sha256=hashlib.sha256(checkpoint.config_bytes).hexdigest(),
        tensors_sha256=tensors_sha256,
    )


def load_draft(path: Path, base: BaseInput, facts: DraftFacts | None = None) -> DraftInput:
    """Read an EAGLE head for ``base`` from a directory or a bare config; raise ConfigError or CheckpointError.

    ``facts``: facts that a plan has recorded because a bare config does not tell them; the tensors must agree.
    """
    checkpoint = read_checkpoint(path, pickles=True)
    keys = Keys(checkpoint.config, str(checkpoint.config_file))
    if keys.get("model_type", "llama") not in tuple(FAMILIES):  # a value of any type
        raise keys.fail("model_type", f"found {quote(keys.get('model_type'))}, expected one of {', '.join(FAMILIES)}")
    refuse_quantized(checkpoint.config, checkpoint.config_file, checkpoint.tensors)
    facts = _facts(checkpoint, keys, base, facts)
    reading: DraftReading = importlib.import_module(DRAFTERS[facts.kind]).read(keys, base.model, facts)
    if checkpoint.tensors is not None:
        check_tensors(checkpoint, checkpoint.tensors, reading)
    return DraftInput(
        draft=reading.draft,
        notes=tuple(keys.notes),
        rope=reading.rope,
        roles=reading.roles,
        checkpoint=checkpoint,
        max_positions=reading.max_positions,
        config_sha256=hashlib.sha256(checkpoint.config_bytes).hexdigest(),
        tensors_sha256=table_sha256(reading.roles),
    )


def facts_of(draft: Draft) -> DraftFacts:
    """Return the facts that a plan has recorded of its EAGLE head."""
    return DraftFacts(
        kind=draft.kind,
        own_embedding=draft.own_embedding,
        maps_vocabulary=draft.maps_vocabulary,
        qkv_bias=draft.attention.qkv_bias,
    )


def scan(path: Path) -> Summary:
    """Summarise the headers of a checkpoint, or the tensors that the bare config of a base model implies."""
    checkpoint = read_checkpoint(path, pickles=True)
    if checkpoint.tensors is not None:
        return describe({name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()})
    base = load_base(path)
    dtype = HEADER_NAMES.get(str(saved_dtype(checkpoint.config)), "F32")
    return describe({source.name: (dtype, source.shape) for source in base.roles.values()})


# ---- base models ----


def _refuse_drafter(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for an EAGLE head; the key or tensor that would be refused does not say what is wrong."""
    tensors = checkpoint.tensors
    drafter = "fc.weight" in tensors if tensors else "draft_vocab_size" in checkpoint.config
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


# ---- EAGLE heads ----


def _facts(checkpoint: Checkpoint, keys: Keys, base: BaseInput, planned: DraftFacts | None) -> DraftFacts:
    """Return the facts that the tensors tell; for a bare config the planned ones, or those that it implies."""
    if checkpoint.tensors is None:
        return planned or _implied_facts(keys, base)
    facts = DraftFacts(
        kind=_kind(checkpoint, checkpoint.tensors),
        own_embedding="embed_tokens.weight" in checkpoint.tensors,
        # Some heads carry a map of the whole vocabulary to itself; it is not read, as token ids are the same.
        maps_vocabulary="d2t" in checkpoint.tensors and keys.get("draft_vocab_size") != base.model.vocab_size,
        qkv_bias=any(name.endswith("self_attn.q_proj.bias") for name in checkpoint.tensors),
    )
    if planned is not None and planned != facts:
        raise CheckpointError(
            f"{checkpoint.directory}: found {_facts_text(facts)}, "
            f"but {_facts_text(planned)} was planned: give the planned head"
        )
    return facts


def _facts_text(facts: DraftFacts) -> str:
    own = "with" if facts.own_embedding else "without"
    maps = "with" if facts.maps_vocabulary else "without"
    biases = "with" if facts.qkv_bias else "without"
    return f"an {facts.kind} head {own} embed_tokens, {maps} d2t, {biases} biases of q, k and v"


def _implied_facts(keys: Keys, base: BaseInput) -> DraftFacts:
    """Return the facts that a bare config implies, by the conventions of published EAGLE heads."""
    vocab = keys.get("draft_vocab_size")
    return DraftFacts(
        kind="eagle" if vocab is None else "eagle3",
        own_embedding=keys.has("target_hidden_size"),
        maps_vocabulary=vocab is not None and vocab != base.model.vocab_size,
        qkv_bias=keys.boolean("qkv_bias", False),
    )


def _kind(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> Literal["eagle", "eagle3"]:
    """Return the kind of an EAGLE head by its tensors, never by the name of a file or directory."""
    if "d2t" in tensors or any(name.startswith("midlayer.") for name in tensors):
        return "eagle3"
    if "fc.weight" in tensors or any(name.startswith("layers.0.") for name in tensors):
        return "eagle"
    some = ", ".join(sorted(tensors)[:3])
    raise CheckpointError(
        f"{checkpoint.directory}: not an EAGLE head: found {some} and others, "
        "expected fc.weight with midlayer.* (EAGLE-3) or with layers.* (EAGLE-1, -2)"
    )
