"""Everything besides weights that lies in a device's memory: the table that is counted offline and allocated at start.

Two kinds of entries: what outlives an operation, which the runtime allocates under this name before the first token,
and ``scratch.*``, which bounds the temporaries of the operations and is never allocated as such. All sizes are
functions of the plan alone, and none shrinks when a share grows.

Letters: B batch, C prefill chunk, N tree nodes with the root, A most nodes kept by one step, R rows of one forward,
T rows of a KV cache, H hidden size, D head dim, k KV heads of the device, h its query heads, F width of a feature.
"""

import math
from dataclasses import dataclass
from typing import Literal

from plans.schema import KV_DTYPE_BYTES, Attention, Draft, LayerClass, Mlp, Model, Options, Plan

Term = Literal["kv", "draft_kv", "buffers", "comm"]
TERMS: tuple[Term, ...] = ("kv", "draft_kv", "buffers", "comm")

ALIGN_BYTES = 256
ROW_ALIGN = 64
"""KV rows come in this multiple: the cache of one head of any width is then a multiple of ALIGN_BYTES."""

MAX_AUX_FEATURES = 3
"""Target features of an eagle3 head; an eagle head has one."""

_BYTES = {**KV_DTYPE_BYTES, "int64": 8, "float64": 8, "uint8": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """One allocation: its name within the device, the memory term it belongs to, and its shape."""

    name: str
    term: Term
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes, rounded up to the allocator's granule."""
        return _align(math.prod(self.shape) * _BYTES[self.dtype], ALIGN_BYTES)


def tree_rows(options: Options) -> int:
    """N: rows of one verify; 1 in plain decoding."""
    return options.tree.total_token if options.tree else 1


def tree_depth(options: Options) -> int:
    """Drafted levels: the most tokens one step can accept."""
    return options.tree.depth + 1 if options.tree else 0


def accept_rows(options: Options) -> int:
    """A: the root and the most accepted nodes of one step."""
    return min(tree_depth(options) + 1, tree_rows(options))


def beam_rows(options: Options) -> int:
    """Rows of one pass of the head while the tree grows."""
    return options.tree.top_k if options.tree else 0


def forward_rows(options: Options) -> int:
    """R of the base: a prefill chunk or a tree, whichever is longer."""
    return max(options.prefill_chunk, tree_rows(options))


def draft_rows(options: Options) -> int:
    """R of the head: a prefill chunk, the rows of an accepted path, or a beam."""
    return max(options.prefill_chunk, accept_rows(options), beam_rows(options))


def pool_rows(options: Options) -> int:
    """Candidates of one dynamic tree."""
    return options.tree.top_k * (1 + options.tree.depth * options.tree.top_k) if options.tree else 0


def kv_rows(options: Options) -> int:
    """T of a base layer: the tree, then the sequence."""
    return _align(tree_rows(options) + options.context, ROW_ALIGN)


def draft_tree_rows(options: Options) -> int:
    """KV rows of the growing tree: one beam per level that is fed back; at least one, which takes padding."""
    return max(1, options.tree.depth * options.tree.top_k) if options.tree else 1


def draft_kv_rows(options: Options) -> int:
    """T of a layer of the head: the levels of the growing tree, then the sequence."""
    return _align(draft_tree_rows(options) + options.context, ROW_ALIGN)


def rotary_rows(options: Options) -> int:
    """Positions that can occur: those of the context, and of a tree at its end."""
    return options.context + tree_depth(options) + 1


def message_words(options: Options) -> int:
    """Words of the message of a step: accepted length, kept rows, tokens and parents of the next tree."""
    return 1 + accept_rows(options) + 2 * tree_rows(options)


def feature_words(options: Options, rows: int) -> int:
    """Words before the features of so many rows: how many rows count, a token per row, the kept rows; 256-aligned."""
    return _align(8 * (1 + rows + accept_rows(options)), ALIGN_BYTES) // 8


def feature_width(model: Model, draft: Draft) -> int:
    """F: values of the target feature of one position."""
    return model.hidden_size * (len(draft.aux_layers) if draft.kind == "eagle3" else 1)


def layer_class(model: Model, layer: int) -> LayerClass:
    """The class of a layer, by its global index."""
    for found in model.layers:
        if layer < found.num_layers:
            return found
        layer -= found.num_layers
    raise AssertionError("no such layer")


def kv_bytes(options: Options, attention: Attention, kv_heads: int) -> int:
    """KV of one base layer for so many KV heads; linear in them."""
    return _cache_bytes(options, attention, kv_heads, kv_rows(options))


def draft_kv_bytes(options: Options, draft: Draft, kv_heads: int) -> int:
    """KV of all layers of the head for so many KV heads; linear in them."""
    return draft.num_layers * _cache_bytes(options, draft.attention, kv_heads, draft_kv_rows(options))


def stage_buffers(
    model: Model, draft: Draft | None, options: Options, *, kv_heads: int, mlp_units: int, group_size: int
) -> tuple[Buffer, ...]:
    """Buffers of a device with layers; the shares are the largest over its layers."""
    rows, hidden = forward_rows(options), model.hidden_size
    aux = len(draft.aux_layers) if draft is not None and draft.kind == "eagle3" else 0
    attention = max((layers.attention for layers in model.layers), key=lambda a: a.num_heads * a.head_dim)
    mlps = tuple(layers.mlp for layers in model.layers)
    common = _Common(options=options, prefix="", hidden=hidden, rows=rows, group_size=group_size)
    return (
        Buffer(name="carry", term="buffers", dtype=options.dtype, shape=(1 + aux, rows, hidden)),
        Buffer(name="index", term="buffers", dtype="int64", shape=(4, rows)),
        Buffer(name="message", term="comm", dtype="int64", shape=(message_words(options),)),
        *_layer_buffers(common, attention, mlps, kv_heads=kv_heads, mlp_units=mlp_units, kv=kv_rows(options)),
    )


def head_buffers(model: Model, options: Options, *, rows: int, group_size: int) -> tuple[Buffer, ...]:
    """Buffers of a device of the last stage with so many rows of the lm_head."""
    nodes, forward, hidden = tree_rows(options), forward_rows(options), model.hidden_size
    buffers = [
        Buffer(name="scratch.head", term="buffers", dtype="float32", shape=(2, nodes, rows)),
        Buffer(name="scratch.normed", term="buffers", dtype="float32", shape=(2, forward, hidden)),
        Buffer(name="best", term="comm", dtype="float64", shape=(1 + group_size, nodes, 2)),
    ]
    if options.tree is not None:
        buffers.append(_feature_buffer("features", options, MAX_AUX_FEATURES * hidden))
    return tuple(buffers)


def draft_buffers(
    model: Model,
    draft: Draft,
    options: Options,
    *,
    kv_heads: int,
    mlp_units: int,
    embed_rows: int,
    head_rows: int,
    group_size: int,
) -> tuple[Buffer, ...]:
    """Buffers of a device with a share of the EAGLE head; a looked-up row is whole, whatever the rows of the table."""
    assert embed_rows >= 0
    rows, beam, hidden = draft_rows(options), beam_rows(options), draft.hidden_size
    common = _Common(options=options, prefix="draft.", hidden=hidden, rows=rows, group_size=group_size)
    kv = draft_kv_rows(options)
    return (
        _feature_buffer("draft.features", options, feature_width(model, draft)),
        Buffer(name="draft.message", term="comm", dtype="int64", shape=(message_words(options),)),
        Buffer(name="draft.candidates", term="comm", dtype="float64", shape=(1 + group_size, beam, 2 * beam + 2)),
        Buffer(name="draft.beam", term="buffers", dtype=options.dtype, shape=(beam, kv)),
        Buffer(name="draft.scratch.pool", term="buffers", dtype="int64", shape=(12, pool_rows(options))),
        Buffer(name="draft.scratch.head", term="buffers", dtype="float32", shape=(3, beam, head_rows)),
        Buffer(name="draft.scratch.embed", term="buffers", dtype=options.dtype, shape=(rows, hidden)),
        Buffer(name="draft.scratch.input", term="buffers", dtype=options.dtype, shape=(4, rows, hidden)),
        *_layer_buffers(common, draft.attention, (draft.mlp,), kv_heads=kv_heads, mlp_units=mlp_units, kv=kv),
    )


def device_buffers(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    """All buffers of one device of a plan."""
    return (*_base_of(plan, device_id), *_draft_of(plan, device_id))


def device_terms(plan: Plan, device_id: str) -> dict[Term, int]:
    """Bytes of one device of a plan, term by term."""
    buffers = device_buffers(plan, device_id)
    return {term: sum(buffer.nbytes for buffer in buffers if buffer.term == term) for term in TERMS}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Common:
    options: Options
    prefix: str
    hidden: int
    rows: int
    group_size: int


def _layer_buffers(
    common: _Common, attention: Attention, mlps: tuple[Mlp, ...], *, kv_heads: int, mlp_units: int, kv: int
) -> tuple[Buffer, ...]:
    """What running layers needs besides their KV: rotary table, mask, temporaries, the collective's copy."""
    dtype, rows = common.options.dtype, common.rows
    heads = kv_heads * attention.num_heads // attention.num_kv_heads
    # normed input twice (float32 inside the norm counts double), q k v, their rotated copy, output, residual
    copies = 4 if attention.qk_norm else 3
    attention_width = 4 * common.hidden + copies * (heads + kv_heads) * attention.head_dim
    mlp_width = 4 * common.hidden + max(_mlp_width(mlp, common.hidden, mlp_units) for mlp in mlps)
    routed = max((mlp.num_experts for mlp in mlps if mlp.kind == "moe"), default=0)
    reduced = common.hidden if common.group_size > 1 else 0

    def buffer(name: str, term: Term, shape: tuple[int, ...]) -> Buffer:
        return Buffer(name=common.prefix + name, term=term, dtype=dtype, shape=shape)

    return (
        buffer("rotary", "buffers", (2, rotary_rows(common.options), attention.head_dim)),
        buffer("bias", "buffers", (rows, kv)),
        buffer("scratch.bias", "buffers", (rows, kv)),
        buffer("scratch.attention", "buffers", (rows, attention_width)),
        buffer("scratch.mlp", "buffers", (rows, mlp_width)),
        # logits of the router, their softmax, its order and the weights that are left
        Buffer(name=f"{common.prefix}scratch.router", term="buffers", dtype="float32", shape=(4, rows, routed)),
        buffer("scratch.reduce", "comm", (rows, reduced)),
    )


def _mlp_width(mlp: Mlp, hidden: int, units: int) -> int:
    """Values of a row's temporaries: gate, up and their product; of experts also the row's copy and result.

    ``units`` may be those of another, finer MLP of the model: no share is more than the whole.
    """
    channels = min(units * mlp.unit, mlp.intermediate_size)
    if mlp.kind == "moe":
        return mlp.experts_per_token * (2 * hidden + 3 * channels)
    return 3 * channels


def _feature_buffer(name: str, options: Options, width: int) -> Buffer:
    """The message to the head: words, then per row a feature."""
    rows = draft_rows(options)
    nbytes = 8 * feature_words(options, rows) + rows * width * _BYTES[options.dtype]
    return Buffer(name=name, term="comm", dtype="uint8", shape=(nbytes,))


def _base_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    for stage in plan.stages:
        if device_id in stage.devices:
            break
    else:
        return ()
    share, size = stage.devices.index(device_id), len(stage.devices)
    first, buffers = stage.first_layer, []
    for run in stage.runs:
        attention = layer_class(plan.model, first).attention
        shape = _cache_shape(plan.options, attention, run.kv_heads[share], run.num_layers, kv_rows(plan.options))
        buffers.append(Buffer(name=f"kv.{first}", term="kv", dtype=plan.options.kv_dtype, shape=shape))
        first += run.num_layers
    buffers += stage_buffers(
        plan.model,
        plan.draft,
        plan.options,
        kv_heads=max(run.kv_heads[share] for run in stage.runs),
        mlp_units=max(run.mlp_units[share] for run in stage.runs),
        group_size=size,
    )
    if stage is plan.stages[-1]:
        buffers += head_buffers(plan.model, plan.options, rows=plan.head.rows[share], group_size=size)
    return tuple(buffers)


def _draft_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    place, draft, options = plan.draft_placement, plan.draft, plan.options
    if place is None or draft is None or device_id not in place.devices:
        return ()
    share = place.devices.index(device_id)
    heads = place.kv_heads[share]
    shape = _cache_shape(options, draft.attention, heads, draft.num_layers, draft_kv_rows(options))
    return (
        Buffer(name="draft.kv", term="draft_kv", dtype=options.kv_dtype, shape=shape),
        *draft_buffers(
            plan.model,
            draft,
            options,
            kv_heads=heads,
            mlp_units=place.mlp_units[share],
            embed_rows=(place.embed_rows or plan.embed.rows)[share],
            head_rows=(place.head_rows or plan.head.rows)[share],
            group_size=len(place.devices),
        ),
    )


def _cache_shape(
    options: Options, attention: Attention, kv_heads: int, num_layers: int, rows: int
) -> tuple[int, int, int, int, int]:
    """Layers, B, T, 2k (keys, then values), D."""
    return (num_layers, options.batch, rows, 2 * kv_heads, attention.head_dim)


def _cache_bytes(options: Options, attention: Attention, kv_heads: int, rows: int) -> int:
    return math.prod(_cache_shape(options, attention, kv_heads, 1, rows)) * _BYTES[options.kv_dtype]


def _align(value: int, granule: int) -> int:
    return -(-value // granule) * granule
