"""Load EAGLE heads: recognise kind and layout, read the config with the kind's module, check the tensors."""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from planner.checkpoints.checkpoint import read_checkpoint
from planner.checkpoints.formats import refuse_quantized
from planner.errors import CheckpointError
from planner.families.aux_layers import AuxLayers
from planner.families.config import words
from planner.families.head_layouts import Head, open_head, renamed
from planner.families.records import BaseInput, DraftFacts, DraftInput, DraftReading
from planner.families.tensors import check_tensors, table_sha256
from plans.format import quote
from plans.schema import Draft, Model

DRAFTERS: Mapping[str, str] = {
    "eagle": "planner.families.eagle",
    "eagle3": "planner.families.eagle3",
}
"""Module of each kind of EAGLE head, with ``read(head, base, facts, asked)``."""
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
"""Values of ``model_type`` in published heads, all of which are small Llamas."""


def load_draft(
    path: Path,
    base: BaseInput,
    facts: DraftFacts | None = None,
    *,
    recorded: AuxLayers | None = None,
    aux_layers: tuple[int, ...] | None = None,
) -> DraftInput:
    """Read an EAGLE head for ``base`` from a directory or a bare config; raise ConfigError or CheckpointError.

    ``facts``: facts that a plan has recorded because a bare config does not tell them; the tensors must agree.
    ``recorded``: aux layers that a plan has recorded. ``aux_layers``: those that an option names.
    """
    checkpoint = read_checkpoint(path, pickles=True)
    refuse_quantized(checkpoint.config, checkpoint.config_file, checkpoint.tensors)
    head = open_head(checkpoint, None if facts is None else facts.layout)
    named = head.layer.get("model_type", "llama")
    if named not in MODEL_TYPES:  # a value of any type
        raise head.layer.fail("model_type", f"found {quote(named)}, expected one of {', '.join(MODEL_TYPES)}")
    if aux_layers is not None:
        recorded = AuxLayers(layers=aux_layers, source="option")
    reading: DraftReading = importlib.import_module(DRAFTERS[head.kind]).read(
        head, base.model, _facts(head, base.model, facts, str(checkpoint.directory)), recorded
    )
    sha256 = table_sha256(reading.roles)
    roles, ignored = renamed(head, reading.roles, reading.ignored)
    reading = replace(reading, roles=roles, ignored=ignored)
    if checkpoint.tensors is not None:
        check_tensors(checkpoint, checkpoint.tensors, reading)
    return DraftInput(
        draft=reading.draft,
        notes=tuple(dict.fromkeys([*head.keys.notes, *head.layer.notes])),
        ropes=reading.ropes,
        roles=reading.roles,
        checkpoint=checkpoint,
        max_positions=reading.max_positions,
        config_sha256=hashlib.sha256(checkpoint.config_bytes).hexdigest(),
        tensors_sha256=sha256,
    )


def load_planned_draft(path: Path, base: BaseInput, draft: Draft) -> DraftInput:
    """Read the EAGLE head that a plan has recorded, from its tensors or from its bare config."""
    recorded = None if draft.kind == "eagle" else AuxLayers(layers=draft.aux_layers, source=draft.aux_layers_from)
    return load_draft(path, base, facts_of(draft), recorded=recorded)


def facts_of(draft: Draft) -> DraftFacts:
    """Return the facts that a plan has recorded of its EAGLE head."""
    return DraftFacts(
        kind=draft.kind,
        layout=draft.layout,
        own_embedding=draft.own_embedding,
        own_head=draft.own_head,
        maps_vocabulary=draft.maps_vocabulary,
        fc_bias=draft.fc_bias,
        qkv_bias=draft.attention.qkv_bias,
        o_bias=draft.attention.o_bias,
        mlp_bias=draft.mlp.bias,
        qk_norm=draft.attention.qk_norm,
        fc_norm=draft.fc_norm,
        masked=draft.mask_token_id is not None,
    )


def _facts(head: Head, base: Model, planned: DraftFacts | None, where: str) -> DraftFacts:
    """Return the facts that the tensors tell; for a bare config the planned ones, or those that it implies."""
    if head.tensors is None:
        return planned or _implied_facts(head, base)
    facts = _facts_of_tensors(head, base)
    if planned is not None and planned != facts:
        differ = [field.name for field in fields(facts) if getattr(facts, field.name) != getattr(planned, field.name)]
        found, expected = (", ".join(f"{name} {getattr(these, name)}" for name in differ) for these in (facts, planned))
        raise CheckpointError(
            f"{where}: found an EAGLE head of another form than the planned one ({found}, planned {expected}): "
            "give the planned head"
        )
    return facts


def _facts_of_tensors(head: Head, base: Model) -> DraftFacts:
    layer = "midlayer" if head.kind == "eagle3" else "layers.0"
    joint, each = head.has("input_norm.weight"), head.has("fc_norm.0.weight")
    if joint and each:
        raise head.keys.fail("fc_norm", "found fc_norm.0.weight beside input_norm.weight, expected one of them")
    return DraftFacts(
        kind=head.kind,
        layout=head.layout,
        own_embedding=head.has("embed_tokens.weight"),
        own_head=head.kind == "eagle3" and head.has("lm_head.weight"),
        # Some heads carry a map of the whole vocabulary to itself; it is not read, as token ids are the same.
        maps_vocabulary=head.has("d2t") and head.keys.get("draft_vocab_size") != base.vocab_size,
        fc_bias=head.has("fc.bias"),
        qkv_bias=head.has(f"{layer}.self_attn.q_proj.bias"),
        o_bias=head.has(f"{layer}.self_attn.o_proj.bias"),
        mlp_bias=head.has(f"{layer}.mlp.gate_proj.bias"),
        qk_norm=head.has(f"{layer}.self_attn.q_norm.weight"),
        fc_norm="joint" if joint else "each" if each else None,
        masked=head.has("mask_hidden"),
    )


def _implied_facts(head: Head, base: Model) -> DraftFacts:
    """Return the facts that a bare config implies, by the conventions of published EAGLE heads."""
    keys, layer, eagle3 = head.keys, head.layer, head.kind == "eagle3"
    inner = keys.get("eagle_config", {})
    speculators, vocab = head.layout == "speculators", keys.get("draft_vocab_size", keys.get("truncated_vocab_size"))
    joint = keys.boolean("norm_before_fc", False) or (isinstance(inner, dict) and inner.get("norm_before_fc") is True)
    masks = words("mask_token_id ptd_token_id pard_token")
    return DraftFacts(
        kind=head.kind,
        layout=head.layout,
        own_embedding=speculators or keys.has("target_hidden_size"),
        own_head=eagle3,
        maps_vocabulary=eagle3 and (vocab is not None or speculators) and vocab != base.vocab_size,
        fc_bias=False if eagle3 else keys.boolean("bias", keys.boolean("eagle_fc_bias", True)),
        qkv_bias=layer.boolean("qkv_bias", layer.boolean("attention_bias", False)),
        o_bias=layer.boolean("attention_bias", False),
        mlp_bias=layer.boolean("mlp_bias", False),
        qk_norm=speculators and layer.get("model_type") == "qwen3",
        fc_norm="joint" if joint else "each" if keys.boolean("fc_norm", False) else None,
        masked=keys.boolean("parallel_drafting", any(keys.has(name) for name in masks)),
    )
