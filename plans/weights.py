"""What each device of a plan has of each tensor: rows and columns, from the plan alone.

The same slots as in the images (planner.layout), without their order and alignment.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from plans.kv import KvShare, first_head, kv_shares
from plans.ranges import AttentionRanges, Range, Ranges, attention_ranges, common, length, scaled, share_range
from plans.schema import (
    DTYPE_BYTES,
    Attention,
    Draft,
    DraftPlacement,
    DType,
    Inputs,
    Mlp,
    Model,
    Plan,
    Stage,
    VocabSplit,
)
from plans.step import feature_width, layer_class


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A rectangle of one tensor on one device; of a vector the rows."""

    device: str
    tensor: str
    rows: Ranges
    cols: Ranges
    value_bytes: int
    """Of one value, of as many tensors as are divided alike."""
    draft: bool

    @property
    def nbytes(self) -> int:
        return length(self.rows) * length(self.cols) * self.value_bytes

    def more(self, before: "Held | None") -> int:
        """Bytes that are not in what the device had of the same tensor."""
        kept = common(self.rows, before.rows) * common(self.cols, before.cols) * self.value_bytes if before else 0
        return self.nbytes - kept


def had(plan: Plan, model: Model, draft: Draft | None, dtype: DType, inputs: Inputs) -> dict[tuple[str, str], Held]:
    """By device and tensor, what of these weights the devices of ``plan`` have: nothing of others."""
    base = plan.model == model and plan.options.dtype == dtype
    base = base and plan.inputs.base_tensors_sha256 == inputs.base_tensors_sha256
    head = base and plan.draft == draft and plan.inputs.draft_tensors_sha256 == inputs.draft_tensors_sha256
    return {(item.device, item.tensor): item for item in held(plan) if (head if item.draft else base)}


def held(plan: Plan) -> Iterator[Held]:
    """Every tensor that a device has, or has a part of; those of no rows or columns are left out."""
    model, dtype = plan.model, plan.options.dtype
    everything = [*table("embed", model, plan.embed, dtype), *table("head", model, plan.head, dtype)]
    if plan.draft is not None and plan.draft_placement is not None:
        everything += draft_head(model, plan.draft, plan.draft_placement, dtype)
    for stage in plan.stages:
        for member, device in enumerate(stage.devices):
            everything += [stage_table(model, device), *_stage(model, stage, member, dtype)]
    yield from (item for item in everything if item.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    device: str
    prefix: str
    width: int
    draft: bool

    def matrix(self, name: str, rows: Ranges, cols: Ranges, copies: int = 1) -> Held:
        return Held(
            device=self.device,
            tensor=self.prefix + name,
            rows=rows,
            cols=cols,
            value_bytes=self.width * copies,
            draft=self.draft,
        )

    def vector(self, name: str, size: int) -> Held:
        return self.matrix(name, ((0, size),), ((0, 1),))

    def rope(self, attention: Attention) -> Held:
        """Frequencies, in float32."""
        return dataclasses.replace(self.vector("rope.inv_freq", attention.head_dim // 2), value_bytes=4)

    def at(self, prefix: str) -> "_Maker":
        return dataclasses.replace(self, prefix=self.prefix + prefix)


def table(name: str, model: Model, split: VocabSplit, dtype: DType) -> Iterator[Held]:
    """Rows of ``embed`` or ``head``; the final norm is whole on each device of the lm_head."""
    for member, device in enumerate(split.devices):
        make = _Maker(device=device, prefix="", width=DTYPE_BYTES[dtype], draft=False)
        yield make.matrix(f"{name}.weight", (share_range(split.rows, member),), ((0, model.hidden_size),))
        if name == "head":
            yield make.vector("norm.weight", model.hidden_size)


def stage_table(model: Model, device: str) -> Held:
    """What a device of any stage has once."""
    return _Maker(device=device, prefix="", width=0, draft=False).rope(model.layers[0].attention)


def _stage(model: Model, stage: Stage, member: int, dtype: DType) -> Iterator[Held]:
    layer, device = stage.first_layer, stage.devices[member]
    for run in stage.runs:
        first, share = first_head(stage, run.kv_heads, member), kv_shares(stage, run.kv_heads)[member]
        units = share_range(run.mlp_units, member)
        for _ in range(run.num_layers):
            yield from layer_share(model, layer, device, first, share, units, member == 0, dtype)
            layer += 1


def layer_share(
    model: Model, layer: int, device: str, first: int, share: KvShare, units: Range, leader: bool, dtype: DType
) -> Iterator[Held]:
    """Of one layer: KV heads from ``first``, and a range of MLP units."""
    make = _Maker(device=device, prefix=f"layers.{layer}.", width=DTYPE_BYTES[dtype], draft=False)
    found, hidden = layer_class(model, layer), model.hidden_size
    yield make.vector("attention_norm.weight", hidden)
    had = attention_ranges(found.attention, first, share)
    yield from _attention(make, hidden, hidden, found.attention, had, leader)
    yield from _mlp(make, hidden, found.mlp, units, leader)


def _attention(
    make: _Maker, hidden: int, inputs: int, attention: Attention, had: AttentionRanges, leader: bool
) -> Iterator[Held]:
    for name, rows in (("q", had.q), ("k", had.k), ("v", had.v)):
        yield make.matrix(f"{name}.weight", rows, ((0, inputs),))
        if attention.qkv_bias:
            yield make.matrix(f"{name}.bias", rows, ((0, 1),))
    yield make.matrix("o.weight", ((0, hidden),), had.o)
    if attention.qk_norm:
        yield make.vector("q_norm.weight", attention.head_dim)
        yield make.vector("k_norm.weight", attention.head_dim)
    if attention.o_bias and leader:
        yield make.vector("o.bias", hidden)


def _mlp(make: _Maker, hidden: int, mlp: Mlp, units: Range, leader: bool) -> Iterator[Held]:
    """Gate, up and down, of every expert where there are several; they are divided alike."""
    span, copies = (scaled(units, mlp.unit),), mlp.num_experts
    yield make.vector("mlp_norm.weight", hidden)
    if mlp.kind == "moe":
        yield make.matrix("router.weight", ((0, mlp.num_experts),), ((0, hidden),))
    yield make.matrix("gate_up_down.weight", span, ((0, hidden),), 3 * copies)
    if mlp.bias:
        yield make.matrix("gate_up.bias", span, ((0, 1),), 2 * copies)
    if mlp.bias and leader:
        yield make.vector("down.bias", hidden)


def draft_head(model: Model, draft: Draft, place: DraftPlacement, dtype: DType) -> Iterator[Held]:
    """The EAGLE head."""
    hidden = draft.hidden_size
    for member, device in enumerate(place.devices):
        make = _Maker(device=device, prefix="draft.", width=DTYPE_BYTES[dtype], draft=True)
        yield from _draft_whole(make, model, draft)
        first, share = first_head(place, place.kv_heads, member), kv_shares(place, place.kv_heads)[member]
        had = attention_ranges(draft.attention, first, share)
        inputs = 2 * hidden if draft.kind == "eagle3" else hidden
        for layer in range(draft.num_layers):
            here = make.at(f"layers.{layer}.")
            yield from _attention(here, hidden, inputs, draft.attention, had, member == 0)
            yield from _mlp(here, hidden, draft.mlp, share_range(place.mlp_units, member), member == 0)
        for name, rows in (("embed.weight", place.embed_rows), ("head.weight", place.head_rows)):
            if rows is not None:
                yield make.matrix(name, (share_range(rows, member),), ((0, hidden),))


def _draft_whole(make: _Maker, model: Model, draft: Draft) -> Iterator[Held]:
    """What each device of the group has whole."""
    hidden, eagle3 = draft.hidden_size, draft.kind == "eagle3"
    features = feature_width(model, draft) if eagle3 else 2 * hidden
    yield make.rope(draft.attention)
    yield make.matrix("fc.weight", ((0, hidden),), ((0, features),))
    if draft.fc_bias:
        yield make.vector("fc.bias", hidden)
    own = [f"layers.{layer}.attention_norm" for layer in range(1, draft.num_layers)]
    for name in ["layers.0.input_norm", "layers.0.hidden_norm", "norm"] if eagle3 else own:
        yield make.vector(f"{name}.weight", hidden)
    if draft.maps_vocabulary:
        yield dataclasses.replace(make.vector("d2t", draft.draft_vocab_size), value_bytes=8)
