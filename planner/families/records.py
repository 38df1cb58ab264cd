"""Records that a family returns: a config as it was read, and a checkpoint that is ready to be planned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planner.checkpoints.checkpoint import Checkpoint
from planner.families.rope import Rope
from planner.quantized import Part, Stored
from plans.schema import Draft, HeadLayout, Inputs, Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Columns of a tensor that are the rows of a role: row r of the role is column ``first + step * r``."""

    first: int
    step: int
    width: int
    """Rows of the tensor that are the columns of the role; 1 where the role is a vector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A tensor of the checkpoint, by the name and shape that the family derives, or some of its rows."""

    name: str
    shape: tuple[int, ...]
    """Shape of the whole tensor; of several matrices packed in one, rows are counted through all of them."""
    first: int = 0
    """First row of the tensor that belongs to the role, where it packs those of several roles."""
    columns: Columns | None = None
    """The role is transposed in the tensor, or a part of each of its rows; None: rows are rows."""
    stored: Stored | None = None
    """The layer whose weight is quantized: ``name`` is that of the layer and of a part of it, no tensor's."""
    part: Part = "codes"
    """With ``stored``: the part of it."""
    sorted_as: Stored | None = None
    """Layer whose columns read the role's rows, which have the order of these (``Stored.sorts``); None: their own."""


Roles = dict[str, Source]
"""Tensor of each role. A role is a weight as the blocks name it, before anything is fused: ``layers.3.q.weight``. It is
present exactly when the checkpoint has the tensor; a tied ``head.weight`` names the embedding's tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A config, read by its family."""

    ropes: tuple[Rope, ...]
    """Rotary embedding of each layer."""
    max_positions: int
    """``max_position_embeddings``: the context that the model was trained for; nothing enforces it."""
    roles: Roles
    ignored: Mapping[str, tuple[int, ...]]
    """Shapes of tensors that a checkpoint may have and nothing needs, by name."""
    ignored_prefixes: tuple[str, ...] = ()
    """Prefixes of the names of tensors that belong to another part of the model, such as that for images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseReading(Reading):
    """The config of a base model."""

    model: Model


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftReading(Reading):
    """The config of an EAGLE head."""

    draft: Draft


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftFacts:
    """Facts of an EAGLE head that its tensors tell and its config does not.

    A plan records them, so that it can be planned again from the config alone.
    """

    kind: Literal["eagle", "eagle3"]
    layout: HeadLayout | None
    """Layout in which it is published; None: that of the authors of EAGLE."""
    own_embedding: bool
    """The head has ``embed_tokens.weight``; otherwise it uses the base model's embedding."""
    own_head: bool
    """The head has ``lm_head.weight``; otherwise it uses the base model's, as EAGLE-1 always does."""
    maps_vocabulary: bool
    """The head has ``d2t``: its vocabulary is a part of the base model's."""
    fc_bias: bool
    qkv_bias: bool
    """q, k and v have biases."""
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Heads of q and k are normed."""
    fc_norm: Literal["joint", "each"] | None
    """The head has ``input_norm.weight`` (joint) or ``fc_norm.0.weight``, a norm for each aux layer."""
    masked: bool
    """The head has ``mask_hidden``: it drafts in parallel (P-EAGLE)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A checkpoint that was read with its family: ready to be planned and, unless it is a bare config, compiled."""

    ropes: tuple[Rope, ...]
    """Rotary embedding of each layer."""
    roles: Roles
    checkpoint: Checkpoint
    max_positions: int
    """``max_position_embeddings``."""
    config_sha256: str
    """SHA-256 of ``config.json``."""
    tensors_sha256: str
    """Digest of the derived tensors (``tensors.table_sha256``): a bare config has the same."""
    notes: tuple[str, ...] = ()
    """Words for a person: what the config asks for and what is done instead; no reason to refuse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseInput(Input):
    """A base model."""

    model: Model
    plain: "BaseInput | None" = None
    """The model as its checkpoint has it, where its weights are rounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftInput(Input):
    """An EAGLE head."""

    draft: Draft


def inputs_of(base: BaseInput, draft: DraftInput | None) -> Inputs:
    """Return the digests by which a plan names its checkpoints."""
    return Inputs(
        base_config_sha256=base.config_sha256,
        base_tensors_sha256=base.tensors_sha256,
        draft_config_sha256=draft.config_sha256 if draft else None,
        draft_tensors_sha256=draft.tensors_sha256 if draft else None,
    )
