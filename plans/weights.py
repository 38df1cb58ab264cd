"""What each device of a plan has of each tensor: rows and columns, from the plan alone.

The same slots as in the images (planner.layout), without their order and alignment.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from plans.buffers import feature_width, first_head, kv_shares, layer_class, whole_heads
from plans.ranges import AttentionRanges, Ranges, attention_ranges, length, scaled, share_range
from plans.schema import DTYPE_BYTES, Attention, Draft, Mlp, Model, Plan, Stage


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


def held(plan: Plan) -> Iterator[Held]:
    """Every tensor that a device has, or has a part of; those of no rows or columns are left out."""
    model, width = plan.model, DTYPE_BYTES[plan.options.dtype]
    everything = [*_tables(plan, width), *_draft(plan, width)]
    for stage in plan.stages:
        for member, device in enumerate(stage.devices):
            every = _Maker(device=device, prefix="", width=width, draft=False)
            everything += [every.rope(model.layers[0].attention), *_stage(every, model, stage, member)]
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


def _tables(plan: Plan, width: int) -> Iterator[Held]:
    hidden = ((0, plan.model.hidden_size),)
    for name, split in (("embed.weight", plan.embed), ("head.weight", plan.head)):
        for member, device in enumerate(split.devices):
            make = _Maker(device=device, prefix="", width=width, draft=False)
            yield make.matrix(name, (share_range(split.rows, member),), hidden)
            if split is plan.head:
                yield make.vector("norm.weight", plan.model.hidden_size)


def _stage(make: _Maker, model: Model, stage: Stage, member: int) -> Iterator[Held]:
    layer, hidden, leader = stage.first_layer, model.hidden_size, member == 0
    for run in stage.runs:
        first, share = first_head(stage, run.kv_heads, member), kv_shares(stage, run.kv_heads)[member]
        for _ in range(run.num_layers):
            found, here = layer_class(model, layer), make.at(f"layers.{layer}.")
            yield here.vector("attention_norm.weight", hidden)
            had = attention_ranges(found.attention, first, share)
            yield from _attention(here, hidden, hidden, found.attention, had, leader)
            yield from _mlp(here, hidden, found.mlp, share_range(run.mlp_units, member), leader)
            layer += 1


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


def _mlp(make: _Maker, hidden: int, mlp: Mlp, units: tuple[int, int], leader: bool) -> Iterator[Held]:
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


def _draft(plan: Plan, width: int) -> Iterator[Held]:
    draft, place = plan.draft, plan.draft_placement
    if draft is None or place is None:
        return
    hidden = draft.hidden_size
    for member, device in enumerate(place.devices):
        make = _Maker(device=device, prefix="draft.", width=width, draft=True)
        yield from _draft_whole(make, plan.model, draft)
        share = whole_heads(place.kv_heads[member])
        had = attention_ranges(draft.attention, sum(place.kv_heads[:member]), share)
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
