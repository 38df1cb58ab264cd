"""What a family says about a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planner.checkpoints.checkpoint import Checkpoint
from planner.families.rope import Rope
from plans.schema import Draft, Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A tensor of the checkpoint, by the name and shape that the family derives."""

    name: str
    shape: tuple[int, ...]


Roles = dict[str, Source]
"""Role, in the words of the blocks and before anything is fused (``layers.3.q.weight``), to the tensor that plays it.
A role is present exactly when the checkpoint has the tensor. A tied ``head.weight`` names the embedding's tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A config, read: ``ignored`` are tensors that a checkpoint may have and nothing here needs."""

    rope: Rope
    max_positions: int
    """``max_position_embeddings``: what the model was trained for; nothing enforces it."""
    roles: Roles
    ignored: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseReading(Reading):
    """The config of a base model, read."""

    model: Model


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftReading(Reading):
    """The config of an EAGLE head, read."""

    draft: Draft


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftFacts:
    """What the tensors of a head tell and its config does not; a plan keeps them for re-planning from the config."""

    kind: Literal["eagle", "eagle3"]
    own_embedding: bool
    maps_vocabulary: bool
    qkv_bias: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseInput:
    """A base model, ready to be planned and, unless it is a bare config, compiled."""

    model: Model
    rope: Rope
    roles: Roles
    checkpoint: Checkpoint
    max_positions: int
    config_sha256: str
    tensors_sha256: str
    """Of the derived table, one line ``name:d0,d1`` per tensor, sorted: the same for a bare config."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftInput:
    """An EAGLE head, ready to be planned and, unless it is a bare config, compiled."""

    draft: Draft
    rope: Rope
    roles: Roles
    checkpoint: Checkpoint
    max_positions: int
    config_sha256: str
    tensors_sha256: str
