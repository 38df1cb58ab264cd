"""Everything besides weights that lies in a device's memory: the table that is counted offline and allocated at start.

Two kinds of entries. Buffers outlive an operation: the runtime allocates each under its name before the first token
(``runtime.image.buffers``). Entries named ``scratch.*`` bound the temporaries of operations and are never allocated as
such; each names the code that it bounds, and tests/contract/test_memory.py measures that code. All sizes are functions
of the plan alone, and none shrinks when a share grows.

Letters: B batch, C prefill chunk, N tree nodes with the root, A most nodes kept by one step, R rows of one forward (a
chunk of one prompt, or the trees of all sequences), T rows of a KV cache, H hidden size, D head dim, k KV heads of the
device, h its query heads, V' its rows of a vocabulary table, m members of a subgroup.

Messages inside a subgroup, beside the all-reduces of the stage:

    heads     none: a member has its KV heads whole, and h is its part of their query heads
    context   a member attends to its rows of the cache. All-gather of the partial outputs with their log-sum-exp, in
              float32 [R, h, D + 1] from each of the m; merged, a member goes on with its slice of the columns of o.
              The tree's rows are on every member, so accepted rows are kept without a message
    head_dim  a member multiplies its dims of queries and keys. All-reduce of the scores, in float32
    batch     none: a member has all rows and works on those of its sequences; the others' are zeros in the all-reduce

By context and head_dim attention goes through the cache SCORE_COLUMNS rows at a time, in float32: the scores
[R, h, columns], their exponentials beside them, the running maximum and sum, and two outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from plans.dtypes import BUFFER_BYTES, DTYPE_BYTES, KV_DTYPE_BYTES, KV_SCALE_BYTES, cached_width
from plans.graphs import POOL, divides_heads
from plans.kv import KvShare, kv_share, query_heads
from plans.quantized import coded_columns, draft_embed_format, draft_head_format, held_columns
from plans.rotary import tables
from plans.schema import Attention, Draft, Mlp, Model, Options, Plan, Stage, WeightFormat
from plans.shared_memory import outbox_bytes, sharing
from plans.step import (
    ALIGN_BYTES,
    BEST_WORDS,
    CODED_PADDING,
    CODED_SCRATCH_ROWS,
    CONVERTED_ROWS,
    NORM_SUMS,
    ROW_ALIGN,
    SCORE_COLUMNS,
    accept_rows,
    cache_positions,
    candidate_words,
    carry_planes,
    draft_rows,
    draft_tree_rows,
    forward_rows,
    layer_class,
    message_words,
    partial_shape,
    pool_rows,
    prefill_features,
    read_rows,
    rotary_rows,
    round_up,
    scores_shape,
    step_features,
    step_options,
    steps,
    tree_rows,
    verify_rows,
)

FLOAT32_BYTES = BUFFER_BYTES["float32"]
ROUTER_VALUES = 4
"""Logits of a router for each row and expert, their softmax, its order and the weights that are picked."""
CHOICE_VALUES = 10
"""Values of a ``Router`` for each row and expert: those, pairs of a sigmoid, corrected scores, and scores of groups.

Its input in float32 is within what the experts take later."""
FUSED_ROWS = 32
"""Multiple to which the kernel of fused attention pads the rows of its log-sum-exp."""

ATTENTION_SCRATCH = "scratch.attention"
OUTBOX = "outbox"
"""Name of the buffer that lies in the memory which ranks share."""

Term = Literal["kv", "draft_kv", "buffers", "comm"]
TERMS: tuple[Term, ...] = get_args(Term)
"""Terms of ``schema.MEMORY_TERMS`` that this table counts; the others are weights (``plans.slots``)."""


CacheShape = tuple[int, int, int, int, int]
"""Layers, B, T, 2k, D."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """One allocation: its name within the device, the memory term it belongs to, and its shape."""

    name: str
    term: Term
    dtype: str
    shape: tuple[int, ...]

    @property
    def scratch(self) -> bool:
        """True where the entry bounds temporaries and is not allocated."""
        return "scratch." in self.name

    @property
    def nbytes(self) -> int:
        """Bytes, rounded up to the allocator's granule."""
        return round_up(math.prod(self.shape) * BUFFER_BYTES[self.dtype], ALIGN_BYTES)


def kv_bytes(options: Options, attention: Attention, share: KvShare) -> int:
    """Return the bytes of KV of one base layer for a share; linear in its KV heads."""
    return _cache_bytes(options, attention, share, tree_rows(options))


def draft_kv_bytes(options: Options, draft: Draft, share: KvShare) -> int:
    """Return the bytes of KV of all layers of the drafter for a share; linear in its KV heads."""
    return draft.num_layers * _cache_bytes(options, draft.attention, share, draft_tree_rows(draft, options))


def stage_buffers(
    model: Model, draft: Draft | None, options: Options, *, share: KvShare, mlp_units: int, group_size: int, gpu: bool
) -> tuple[Buffer, ...]:
    """Return the buffers of a device with layers; the shares are the largest over its layers."""
    rows, hidden = forward_rows(options), model.hidden_size
    attentions = tuple({layers.attention.window: layers.attention for layers in model.layers}.values())
    mlps = tuple(layers.mlp for layers in model.layers)
    common = _Common(
        options=options,
        prefix="",
        hidden=hidden,
        rows=rows,
        group_size=group_size,
        gpu=gpu,
        tables=len(tables(model)),
        widens=bool(model.norm_offset),
        scales_queries=model.query_scaling is not None,
    )
    return (
        *_rank_buffers(options),
        _carry("carry", model, draft, options),
        *_layer_buffers(common, attentions, mlps, share=share, mlp_units=mlp_units, tree=tree_rows(options)),
        *_codes(model, options, share, mlp_units),
    )


def embed_buffers(model: Model, options: Options, *, group_size: int, hop: bool, leads: bool) -> tuple[Buffer, ...]:
    """Return the buffers of a device of the embedding's group.

    ``hop``: the first stage is on other devices; without one the rows are looked up into what the first layer works on,
    and there are no buffers. ``leads``: the device sends the hidden states.
    """
    if not hop:
        return ()
    rows, hidden, dtype = forward_rows(options), model.hidden_size, options.dtype
    reduced = hidden if group_size > 1 else 0
    sent = (Buffer(name="embed.hidden", term="comm", dtype=dtype, shape=(rows, hidden)),) if leads else ()
    return (
        *_rank_buffers(options),
        *sent,
        # looked-up rows, and those without the rows of others: model.blocks.Embed
        Buffer(name="embed.scratch.rows", term="buffers", dtype=dtype, shape=(2, rows, hidden)),
        *_values("embed.", model.embed_format, rows, hidden),
        # the copy of a collective's library, or of a staged message: comm.groups.Group.all_reduce
        Buffer(name="embed.scratch.reduce", term="comm", dtype=dtype, shape=(rows, reduced)),
    )


def lm_head_buffers(
    model: Model,
    draft: Draft | None,
    options: Options,
    *,
    rows: int,
    group_size: int,
    receives: bool,
    leads: bool,
    gpu: bool,
) -> tuple[Buffer, ...]:
    """Return the buffers of a device with ``rows`` rows of the lm_head.

    ``receives``: the device is sent the hidden states and features of the last stage, as it is not that stage's leader
    and the stage is on other devices. ``leads``: it sends the features to the drafter.
    """
    nodes, forward, hidden = verify_rows(options), forward_rows(options), model.hidden_size
    received = (*_rank_buffers(options), _carry("head.carry", model, draft, options)) if receives else ()
    sent = (_feature_buffer(model, draft, options),) if draft is not None and leads else ()
    return (
        *received,
        *sent,
        *_logits(options, nodes, rows, gpu),
        # output of the final norm, and its float32 temporary: model.base.BaseLmHead
        Buffer(name="scratch.normed", term="buffers", dtype="float32", shape=(2, forward, hidden)),
        *_coded_table("", model.head_format, hidden, nodes),
        # best logit and token of each row, of this device and of all: model.blocks.LmHead.best, model.draw.draw
        Buffer(name="scratch.best", term="comm", dtype="float64", shape=(1 + group_size, nodes, BEST_WORDS)),
    )


def draft_buffers(
    model: Model,
    draft: Draft,
    options: Options,
    *,
    share: KvShare,
    mlp_units: int,
    head_rows: int,
    group_size: int,
    gpu: bool,
) -> tuple[Buffer, ...]:
    """Return the buffers of a device with a share of the drafter, ``head_rows`` of the lm_head among it."""
    assert options.tree is not None, "a draft comes with a tree"
    rows, beam, hidden = draft_rows(draft, options), read_rows(draft, options), draft.hidden_size
    words, pool = candidate_words(draft, options), pool_rows(options)
    common = _Common(options=options, prefix="draft.", hidden=hidden, rows=rows, group_size=group_size, gpu=gpu)
    tree, normed = draft_tree_rows(draft, options), 0 if draft.fc_norm is None else draft.fc_width
    seen = _cache_shape(options, draft.attention, share, 1, tree)[2]
    return (
        _message_buffer(options),
        _feature_buffer(model, draft, options),
        # candidates of each row, of this device and of all: model.blocks.LmHead.top
        Buffer(name="draft.scratch.candidates", term="comm", dtype="float64", shape=(1 + group_size, words)),
        *(
            (Buffer(name="draft.beam", term="buffers", dtype=options.dtype, shape=(beam, seen)),)
            if common.has_masks(share)
            else ()
        ),
        # tokens, scores and parents of the pool, their concatenation, and the sort of the scores:
        # decode.tree_growth.Dynamic.finish, decode.tree.select
        Buffer(name="draft.scratch.pool", term="buffers", dtype="int64", shape=(12, pool)),
        # logits, and on a CPU their copy in float32, and its exponentials: model.blocks.LmHead.top
        Buffer(
            name="draft.scratch.head",
            term="buffers",
            dtype=options.dtype if gpu else "float32",
            shape=(1 if gpu else 3, beam, head_rows),
        ),
        *_coded_table("draft.", draft_head_format(model, draft), hidden, beam),
        # looked-up rows, whole whatever rows of the table the device has: model.blocks.Embed
        Buffer(name="draft.scratch.embed", term="buffers", dtype=options.dtype, shape=(rows, hidden)),
        *_values("draft.", draft_embed_format(model, draft), rows, hidden),
        # fc's input and output, or the two normed halves side by side: decode.head_layers, model.blocks.Eagle3Layer
        Buffer(name="draft.scratch.input", term="buffers", dtype=options.dtype, shape=(4, rows, hidden)),
        # the normed target feature, of each layer and side by side, and the norm's float32: decode.head_layers
        Buffer(name="draft.scratch.features", term="buffers", dtype="float32", shape=(3, rows, normed)),
        *_layer_buffers(common, (draft.attention,), (draft.mlp,), share=share, mlp_units=mlp_units, tree=tree),
    )


def device_buffers(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    """Return all buffers of one device of a plan; those that several parts need (``message``, …) are there once."""
    if plan.device(device_id).kind == "cpu" or divides_heads(plan):
        return _parts_of(plan, device_id)
    return with_graph_pool(lambda options: _parts_of(replace(plan, options=options), device_id), plan.options)


def with_graph_pool(buffers_of: Callable[[Options], tuple[Buffer, ...]], options: Options) -> tuple[Buffer, ...]:
    """Return buffers and the pool of the captured steps of a GPU: the temporaries of runtime.decode.graphs.

    ``buffers_of``: all buffers of a device, or of one part of it, by options. The pool of a device is at most the sum
    of those of its parts. However few rows attend, they do in as many splits as take the memory of the most rows of any
    forward (``runtime.model.mask.splits_of``).
    """
    buffers, of_steps = buffers_of(options), buffers_of(replace(options, prefill_chunk=1))
    attending = [buffer for buffer in buffers if buffer.name.endswith(ATTENTION_SCRATCH)]
    others = [buffer for buffer in of_steps if buffer.scratch and not buffer.name.endswith(ATTENTION_SCRATCH)]
    temporaries = sum(buffer.nbytes for buffer in (*attending, *others))
    return *buffers, Buffer(name=POOL, term="buffers", dtype="uint8", shape=(temporaries,))


def _logits(options: Options, nodes: int, rows: int, gpu: bool) -> tuple[Buffer, ...]:
    """Return the temporaries of choosing tokens by logits: the kernels of a GPU read these and write no others."""
    if gpu:
        return (Buffer(name="scratch.head", term="buffers", dtype=options.dtype, shape=(nodes, rows)),)
    return (
        # logits, and their copy in float32: model.blocks.LmHead.best, LmHead.draw
        Buffer(name="scratch.head", term="buffers", dtype="float32", shape=(2, nodes, rows)),
        # sampling noise of the A positions that a step may add, and 6 temporaries of making it for one of them:
        # model.draw.exponential
        Buffer(name="scratch.noise", term="buffers", dtype="float64", shape=(6 + accept_rows(options), rows)),
    )


def _parts_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    parts = (
        *_stage_of(plan, device_id),
        *_embed_of(plan, device_id),
        *_head_of(plan, device_id),
        *_draft_of(plan, device_id),
        *_outbox_of(plan, device_id),
    )
    table: dict[str, Buffer] = {}
    for buffer in parts:
        assert table.setdefault(buffer.name, buffer) == buffer, f"two buffers {buffer.name} that differ"
    return tuple(table.values())


def device_terms(plan: Plan, device_id: str) -> dict[Term, int]:
    """Return the bytes of one device of a plan, term by term."""
    buffers = device_buffers(plan, device_id)
    return {term: sum(buffer.nbytes for buffer in buffers if buffer.term == term) for term in TERMS}


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedLayers:
    """Layers of one run that have one window: their KV is one buffer."""

    layers: tuple[int, ...]
    """Their global indices, ascending."""
    attention: Attention
    """Of the first; the others' differs in no size."""
    kv_heads: tuple[int, ...]
    """KV heads of the run, per device of the stage."""

    @property
    def name(self) -> str:
        """Name of the buffer."""
        return f"kv.{self.layers[0]}"


def caches_of(model: Model, stage: Stage) -> tuple[CachedLayers, ...]:
    """Return the KV buffers of a stage, in the order of their first layers."""
    first, caches = stage.first_layer, []
    for run in stage.runs:
        of_window: dict[int | None, list[int]] = {}
        for layer in range(first, first + run.num_layers):
            of_window.setdefault(layer_class(model, layer).attention.window, []).append(layer)
        for layers in of_window.values():
            attention = layer_class(model, layers[0]).attention
            caches.append(CachedLayers(layers=tuple(layers), attention=attention, kv_heads=run.kv_heads))
        first += run.num_layers
    return tuple(caches)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Common:
    """Sizes that the buffers of a device's layers have in common; ``prefix``: of their names."""

    options: Options
    prefix: str
    hidden: int
    rows: int
    group_size: int
    gpu: bool
    tables: int = 1
    """Rotary tables."""
    widens: bool = False
    """Norms are computed from a copy in float32."""
    scales_queries: bool = False
    """Queries have a factor by their positions."""

    def has_masks(self, share: KvShare) -> bool:
        """Return True where attention reads masks and takes scores through memory: ``model.split_kv.reads_bias``.

        The kernel of a GPU has ancestors as bits, and widens a cache of another dtype in registers.
        """
        return not self.gpu or share.axis == "head_dim"


def _rank_buffers(options: Options) -> tuple[Buffer, ...]:
    """Return what every part of the base model has: a prompt's chunk, indices of rows, and the message of the step."""
    return (
        Buffer(name="chunk", term="buffers", dtype="int64", shape=(options.prefill_chunk,)),
        # token ids, positions and cache rows of a forward: model.blocks.Embed, model.base, model.kvcache
        Buffer(name="scratch.index", term="buffers", dtype="int64", shape=(4, forward_rows(options))),
        _message_buffer(options),
    )


def _message_buffer(options: Options) -> Buffer:
    """Return the buffer of the step message, which every device has (``runtime.decode.messages.Channel``)."""
    return Buffer(name="message", term="comm", dtype="int64", shape=(message_words(options),))


def _carry(name: str, model: Model, draft: Draft | None, options: Options) -> Buffer:
    """Return the buffer of the hidden states and the captured features (``runtime.model.base.Carry``)."""
    shape = (carry_planes(draft), forward_rows(options), model.hidden_size)
    return Buffer(name=name, term="buffers", dtype=options.dtype, shape=shape)


def bias_name(window: int | None) -> str:
    """Return the name of the mask of layers with such a window, or of those that attend to all positions."""
    return "bias" if window is None else f"bias.{window}"


def _layer_buffers(
    common: _Common, attentions: tuple[Attention, ...], mlps: tuple[Mlp, ...], *, share: KvShare, mlp_units: int,
    tree: int,
) -> tuple[Buffer, ...]:  # fmt: skip
    """Return what layers need besides their KV: rotary table, masks, temporaries, copies for collectives.

    ``attentions``: of each window one; all have the same heads. ``tree``: rows of the cache before those of the
    sequence.
    """
    dtype, rows = common.options.dtype, common.rows
    caches = {attention.window: _cache_shape(common.options, attention, share, 1, tree) for attention in attentions}
    attention = attentions[0]
    heads, dims = query_heads(attention, share), next(iter(caches.values()))[4]
    masks = _masked(common, share, heads, attention, caches) if common.has_masks(share) else ()
    # model.layers.Attention: 4 H are the normed input, twice as wide in the norm's float32, the output and the
    # residual; (h + k) D thrice: q k v, their rotated copy, and the heads' outputs; again where q and k are normed
    # 4 more of all these where norms are of a copy in float32: the copy and its result
    widened = 4 if common.widens else 0
    copies = (4 if attention.qk_norm else 3) + widened
    attention_width = (4 + widened) * common.hidden + copies * (heads + share.heads) * dims
    # model.ops.fused: normed input and residual, q k v, the kernel's output and its copy in order; on a GPU the splits
    # of mask.splits_of in float32 before they are merged, of 16 bits as many values as `accumulated`
    accumulated = 0 if dtype == "float32" else FLOAT32_BYTES // DTYPE_BYTES[dtype] * heads * dims
    fused_width = 2 * common.hidden + (3 * heads + 2 * share.heads) * dims + accumulated
    # model.layers.GatedMlp, model.experts.Experts: 4 H as in attention
    mlp_width = (4 + widened) * common.hidden + max(_mlp_width(mlp, common, mlp_units) for mlp in mlps)
    routed = max((mlp.num_experts for mlp in mlps if mlp.kind == "moe"), default=0)
    values = CHOICE_VALUES if any(mlp.router is not None for mlp in mlps) else ROUTER_VALUES
    reduced = common.hidden if common.group_size > 1 else 0
    squares = NORM_SUMS if attention.qk_norm_whole else 0

    def buffer(name: str, term: Term, shape: tuple[int, ...]) -> Buffer:
        return Buffer(name=common.prefix + name, term=term, dtype=dtype, shape=shape)

    return (
        buffer("rotary", "buffers", (2 * common.tables, rotary_rows(common.options), dims)),
        *masks,
        buffer(ATTENTION_SCRATCH, "buffers", (rows, max(attention_width, fused_width))),
        buffer("scratch.mlp", "buffers", (rows, mlp_width)),
        # what the router picks experts by: model.router.Router
        Buffer(name=f"{common.prefix}scratch.router", term="buffers", dtype="float32", shape=(values, rows, routed)),
        # as in the embedding: comm.groups.Group.all_reduce
        buffer("scratch.reduce", "comm", (rows, reduced)),
        # sums of squares of all query heads and of all keys, and as in scratch.reduce: model.layers.Attention
        Buffer(name=f"{common.prefix}scratch.squares", term="comm", dtype="float32", shape=(2, rows, squares)),
        *_query_factors(common),
        *_partial(common, share, heads, attention),
    )


def _masked(
    common: _Common, share: KvShare, heads: int, attention: Attention, caches: dict[int | None, CacheShape]
) -> tuple[Buffer, ...]:
    """Return masks, and what attention that reads them takes; ``caches``: shape of a layer's cache, by window."""
    cache = max(caches.values(), key=lambda shape: shape[2])
    _, sequences, seen, _, _ = cache
    dtype, prefix, rows = common.options.dtype, common.prefix, common.rows
    # of windows: the position in each row of the cache, and a temporary of finding it: model.views.View
    windowed = 2 if any(window is not None for window in caches) else 0

    def buffer(name: str, shape: tuple[int, ...]) -> Buffer:
        return Buffer(name=prefix + name, term="buffers", dtype=dtype, shape=shape)

    return (
        *(buffer(bias_name(window), (rows, shape[2])) for window, shape in caches.items()),
        # the comparison of positions that hides rows, and its cast: model.layers.hide
        buffer("scratch.bias", (rows, seen)),
        Buffer(name=f"{prefix}scratch.positions", term="buffers", dtype="int64", shape=(windowed, sequences, seen)),
        *_sinks(common, attention, heads),
        *_converted(common, share, heads, cache),
        *_streamed(common, share, heads, attention, cache),
    )


def _partial(common: _Common, share: KvShare, heads: int, attention: Attention) -> tuple[Buffer, ...]:
    """Return the messages of a subgroup by ``context``: model.split_kv.ByContext."""
    if share.parts == 1 or share.axis != "context":
        return ()
    shape = (1 + share.parts, *partial_shape(common.rows, heads, attention.head_dim))
    return (Buffer(name=f"{common.prefix}partial", term="comm", dtype="float32", shape=shape),)


def _query_factors(common: _Common) -> tuple[Buffer, ...]:
    """Return the factors of queries, of all positions and of those of a forward: model.base.BaseStage."""
    if not common.scales_queries:
        return ()
    dtype, positions = common.options.dtype, rotary_rows(common.options)
    return (
        Buffer(name=f"{common.prefix}queries", term="buffers", dtype=dtype, shape=(positions,)),
        Buffer(name=f"{common.prefix}scratch.queries", term="buffers", dtype=dtype, shape=(common.rows,)),
    )


def _codes(model: Model, options: Options, share: KvShare, mlp_units: int) -> tuple[Buffer, ...]:
    """Return scratch of products with quantized weights: model.weights.coded.

    It has rows of a weight that are float32 at once, of up to 50 threads, and the rows that a product reads in the
    order of codes; where activations are of 16 bits, those are part of `scratch.attention` and `scratch.mlp`.
    """
    read = [0]
    for attention, mlp in ((layers.attention, layers.mlp) for layers in model.layers):
        if attention.qkv_format is not None or mlp.gate_up_format is not None:
            read.append(model.hidden_size)
        if attention.o_format is not None:
            whole = attention.num_heads * attention.head_dim
            own = query_heads(attention, share) * attention.head_dim
            read.append(held_columns(attention.o_format, own, whole))
        if mlp.down_format is not None:
            units = min(mlp_units, mlp.units)
            read += [units * mlp.unit, units * mlp.shared_unit]
    if max(read) == 0:
        return ()
    rows = CODED_SCRATCH_ROWS + (forward_rows(options) if options.dtype == "float32" else 0)
    shape = (rows, coded_columns(max(read)) + CODED_PADDING)
    return (Buffer(name="scratch.codes", term="buffers", dtype="float32", shape=shape),)


def _coded_table(prefix: str, form: WeightFormat | None, hidden: int, rows: int) -> tuple[Buffer, ...]:
    """Return scratch of logits of so many rows from an lm_head in codes, as in ``_codes``, with all rows in float32."""
    if form is None:
        return ()
    shape = (CODED_SCRATCH_ROWS + rows, coded_columns(hidden) + CODED_PADDING)
    return (Buffer(name=f"{prefix}scratch.head.codes", term="buffers", dtype="float32", shape=shape),)


def _values(prefix: str, form: WeightFormat | None, rows: int, hidden: int) -> tuple[Buffer, ...]:
    """Return looked-up rows of an embedding in codes, with what they become in float32: model.weights.look_up."""
    if form is None:
        return ()
    return (Buffer(name=f"{prefix}scratch.values", term="buffers", dtype="float32", shape=(2, rows, hidden)),)


def _sinks(common: _Common, attention: Attention, heads: int) -> tuple[Buffer, ...]:
    """Return the log-sum-exp of scores and the part of the softmax that is not theirs, of layers with sinks.

    They are those of model.scores.Scores.
    """
    if not attention.sinks:
        return ()
    shape = (4, common.rows, heads)
    return (Buffer(name=f"{common.prefix}scratch.sinks", term="buffers", dtype="float32", shape=shape),)


def _converted(common: _Common, share: KvShare, heads: int, cache: tuple[int, ...]) -> tuple[Buffer, ...]:
    """Return the temporaries of a layer's cache that is kept in another dtype than activations.

    ``cache``: shape of the cache of one layer.
    """
    options, rows, prefix = common.options, common.rows, common.prefix
    if options.kv_dtype == options.dtype:
        return ()
    _, sequences, seen, both, dims = cache
    if options.kv_dtype == "int8":
        if share.parts == 1 or share.axis in ("heads", "batch"):
            return ()  # kernels read and write codes in registers
        # keys and values that are written, in float32, their codes and scales: model.kv_codes.encoded
        shape = (rows, both, 2 * dims + KV_SCALE_BYTES)
        return (Buffer(name=f"{prefix}scratch.stored", term="buffers", dtype="float32", shape=shape),)
    # keys and values that are written, clamped: model.layers.store
    stored = Buffer(name=f"{prefix}scratch.stored", term="buffers", dtype=options.dtype, shape=(rows, both, dims))
    if share.parts > 1 and share.axis in ("context", "head_dim"):
        return (stored,)  # model.scores.streamed converts to float32: scratch.columns
    # a block of keys and values in the dtype of activations; the sum of blocks and a weighted block; the log-sum-exp of
    # a block's scores, which the kernel pads to 32 rows, and six more of its shape: model.layers.converted
    block = sequences, min(seen, CONVERTED_ROWS), both, dims
    weights = 7 * rows + FUSED_ROWS * sequences
    return (
        stored,
        Buffer(name=f"{prefix}scratch.kv", term="buffers", dtype=options.dtype, shape=block),
        Buffer(name=f"{prefix}scratch.merge", term="buffers", dtype="float32", shape=(2 * rows, heads, dims)),
        Buffer(name=f"{prefix}scratch.weights", term="buffers", dtype="float32", shape=(weights, heads)),
    )


def _mlp_width(mlp: Mlp, common: _Common, units: int) -> int:
    """Return the values of a row's temporaries: gate, up and their product; of experts also the row's copy and result.

    Each row is there with every expert that is picked for it; gate and up once more where they have biases. ``units``
    may be those of another, finer MLP of the model: no share is more than the whole.
    """
    channels, hidden = min(units * mlp.unit, mlp.intermediate_size), common.hidden
    if mlp.kind != "moe":
        return 3 * channels
    shared = 3 * min(units, mlp.units) * mlp.shared_unit + hidden if mlp.shared_size else 0
    return shared + mlp.experts_per_token * (2 * hidden + (4 if mlp.bias else 3) * channels)


def _streamed(
    common: _Common, share: KvShare, heads: int, attention: Attention, cache: tuple[int, ...]
) -> tuple[Buffer, ...]:
    """Return the buffers of attention block by block: the messages inside a subgroup, or capped scores.

    ``cache``: shape of the cache of one layer.
    """
    alone = share.parts == 1 or share.axis in ("heads", "batch")
    if alone and attention.softcap is None:
        return ()
    _, sequences, seen, both, dims = cache
    columns, rows, parts = min(seen, SCORE_COLUMNS), common.rows, share.parts

    def buffer(name: str, term: Term, *shape: int) -> Buffer:
        return Buffer(name=common.prefix + name, term=term, dtype="float32", shape=shape)

    # model.scores.streamed: exponentials, the running maximum and sum twice each, and queries and two outputs;
    # the keys and values of as many rows of the cache in float32
    streamed = (
        buffer("scratch.scores", "buffers", rows, heads, columns + 4 + 3 * dims),
        buffer("scratch.columns", "buffers", sequences, columns, both, dims),
    )
    if alone:
        return (buffer("scratch.capped", "buffers", *scores_shape(rows, heads, columns)), *streamed)
    scores = buffer("scores", "comm", *scores_shape(rows, heads, columns))
    if share.axis == "head_dim":
        return (scores, *streamed)
    return (scores, buffer("scratch.merged", "buffers", parts, rows, heads, attention.head_dim), *streamed)


def _feature_buffer(model: Model, draft: Draft, options: Options) -> Buffer:
    """Return the buffer of the message to the drafter: of a step or of a prefill chunk, whichever is longer."""
    sizes = (step_options(options, sequences, tree) for sequences, tree in steps(options))
    layouts = *(step_features(model, draft, size) for size in sizes), prefill_features(model, draft, options)
    return Buffer(name="features", term="comm", dtype="uint8", shape=(max(layout.nbytes for layout in layouts),))


def _stage_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    stage = next((stage for stage in plan.stages if device_id in stage.devices), None)
    if stage is None:
        return ()
    member, options = stage.devices.index(device_id), plan.options
    shares = [kv_share(stage, run.kv_heads, member) for run in stage.runs]
    buffers = []
    for cached in caches_of(plan.model, stage):
        share = kv_share(stage, cached.kv_heads, member)
        shape = _stored_shape(options, cached.attention, share, len(cached.layers), tree_rows(options))
        buffers.append(Buffer(name=cached.name, term="kv", dtype=options.kv_dtype, shape=shape))
    buffers += stage_buffers(
        plan.model,
        plan.draft,
        options,
        share=max(shares, key=lambda share: share.heads),
        mlp_units=max(run.mlp_units[member] for run in stage.runs),
        group_size=len(stage.devices),
        gpu=plan.device(device_id).kind == "cuda",
    )
    return tuple(buffers)


def _embed_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    devices = plan.embed.devices
    if device_id not in devices:
        return ()
    return embed_buffers(
        plan.model,
        plan.options,
        group_size=len(devices),
        hop=devices != plan.stages[0].devices,
        leads=device_id == devices[0],
    )


def _head_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    devices, last = plan.head.devices, plan.stages[-1].devices
    if device_id not in devices:
        return ()
    return lm_head_buffers(
        plan.model,
        plan.draft,
        plan.options,
        rows=plan.head.rows[devices.index(device_id)],
        group_size=len(devices),
        receives=devices != last and device_id != last[0],
        leads=device_id == devices[0],
        gpu=plan.device(device_id).kind == "cuda",
    )


def _draft_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    placement, draft, options = plan.draft_placement, plan.draft, plan.options
    if placement is None or draft is None or device_id not in placement.devices:
        return ()
    member = placement.devices.index(device_id)
    share = kv_share(placement, placement.kv_heads, member)
    shape = _stored_shape(options, draft.attention, share, draft.num_layers, draft_tree_rows(draft, options))
    return (
        Buffer(name="draft.kv", term="draft_kv", dtype=options.kv_dtype, shape=shape),
        *draft_buffers(
            plan.model,
            draft,
            options,
            share=share,
            mlp_units=placement.mlp_units[member],
            head_rows=(placement.head_rows or plan.head.rows)[member],
            group_size=len(placement.devices),
            gpu=plan.device(device_id).kind == "cuda",
        ),
    )


def _outbox_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    """Return the buffer of messages through shared memory; that of a GPU's process is not in the GPU's memory."""
    ranks = sharing(plan, device_id) if plan.device(device_id).kind == "cpu" else ()
    if not ranks:
        return ()
    return (Buffer(name=OUTBOX, term="comm", dtype="uint8", shape=(outbox_bytes(len(ranks)),)),)


def _cache_shape(options: Options, attention: Attention, share: KvShare, num_layers: int, tree: int) -> CacheShape:
    """Return layers, B, T, 2k (keys, then values), D; one of B, T, D is divided over a subgroup, by ``heads`` none.

    Of T those of the sequence are divided, not the ``tree`` rows before them.
    """
    sequences, dims, parts = options.batch, attention.head_dim, share.parts
    positions = cache_positions(options, attention.window)
    if share.axis == "batch":
        sequences = -(-sequences // parts)
    elif share.axis == "context":
        positions = -(-positions // parts)
    elif share.axis == "head_dim":
        assert dims % (2 * parts) == 0, "a part of a head is whole rotary pairs"
        dims //= parts
    return (num_layers, sequences, round_up(tree + positions, ROW_ALIGN), 2 * share.heads, dims)


def _stored_shape(options: Options, attention: Attention, share: KvShare, num_layers: int, tree: int) -> CacheShape:
    """Return the shape of a cache as it is stored: of int8 with a scale behind the codes of each head."""
    layers, sequences, rows, both, dims = _cache_shape(options, attention, share, num_layers, tree)
    return (layers, sequences, rows, both, cached_width(options.kv_dtype, dims))


def _cache_bytes(options: Options, attention: Attention, share: KvShare, tree: int) -> int:
    return math.prod(_stored_shape(options, attention, share, 1, tree)) * KV_DTYPE_BYTES[options.kv_dtype]
