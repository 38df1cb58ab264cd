"""Buffers of layers besides their KV, and of weights in codes: what attention and MLPs take for a forward.

Most are temporaries, named ``scratch.*``; ``plans.buffers`` says what that means, and has the letters.

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

from dataclasses import dataclass

from plans.attention_splits import partial_rows
from plans.buffer import Buffer, Term
from plans.caches import CacheShape, cache_shape
from plans.dtypes import BUFFER_BYTES, DTYPE_BYTES, KV_CODES, KV_SCALE_BYTES
from plans.kv import KvShare, query_heads
from plans.quantized import coded_columns, held_columns
from plans.schema import Attention, Mlp, Model, Options, WeightFormat
from plans.step import (
    CODED_PADDING,
    CODED_SCRATCH_ROWS,
    CONVERTED_ROWS,
    NORM_SUMS,
    SCORE_COLUMNS,
    forward_rows,
    partial_shape,
    rotary_rows,
    scores_shape,
)

ROUTER_VALUES = 4
"""Logits of a router for each row and expert, their softmax, its order and the weights that are picked."""
CHOICE_VALUES = 10
"""Values of a ``Router`` for each row and expert: those, pairs of a sigmoid, corrected scores, and scores of groups.

Its input in float32 is within what the experts take later."""
FUSED_ROWS = 32
"""Multiple to which the kernel of fused attention pads the rows of its log-sum-exp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """Sizes that the buffers of a device's layers have in common; ``prefix``: of their names."""

    options: Options
    prefix: str
    hidden: int
    rows: int
    step_rows: int
    """Most rows of a step."""
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


def bias_name(window: int | None) -> str:
    """Return the name of the mask of layers with such a window, or of those that attend to all positions."""
    return "bias" if window is None else f"bias.{window}"


def layer_buffers(
    common: Layers, attentions: tuple[Attention, ...], mlps: tuple[Mlp, ...], *, share: KvShare, mlp_units: int,
    tree: int,
) -> tuple[Buffer, ...]:  # fmt: skip
    """Return what layers need besides their KV: rotary table, masks, temporaries, copies for collectives.

    ``attentions``: of each window one; all have the same heads. ``tree``: rows of the cache before those of the
    sequence.
    """
    dtype, rows = common.options.dtype, common.rows
    caches = {attention.window: cache_shape(common.options, attention, share, 1, tree) for attention in attentions}
    attention = attentions[0]
    heads, dims = query_heads(attention, share), next(iter(caches.values()))[4]
    masks = _masked(common, share, heads, attention, caches) if common.has_masks(share) else ()
    # model.layers.Attention: 4 H are the normed input, twice as wide in the norm's float32, the output and the
    # residual; (h + k) D thrice: q k v, their rotated copy, and the heads' outputs; again where q and k are normed
    # 4 more of all these where norms are of a copy in float32: the copy and its result
    widened = 4 if common.widens else 0
    copies = (4 if attention.qk_norm else 3) + widened
    attention_width = (4 + widened) * common.hidden + copies * (heads + share.heads) * dims
    # model.ops.fused: normed input and residual, q k v, the kernel's output and its copy in order; of 16 bits on a CPU
    # an allowance of one output in float32 (a GPU's are `_splits`)
    wide = BUFFER_BYTES["float32"] // DTYPE_BYTES[dtype]
    accumulated = 0 if common.gpu or wide == 1 else wide * heads * dims
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
        buffer("scratch.attention", "buffers", (rows, max(attention_width, fused_width))),
        buffer("scratch.mlp", "buffers", (rows, mlp_width)),
        # what the router picks experts by: model.router.Router
        Buffer(name=f"{common.prefix}scratch.router", term="buffers", dtype="float32", shape=(values, rows, routed)),
        # as in the embedding: comm.groups.Group.all_reduce
        buffer("scratch.reduce", "comm", (rows, reduced)),
        # sums of squares of all query heads and of all keys, and as in scratch.reduce: model.layers.Attention
        Buffer(name=f"{common.prefix}scratch.squares", term="comm", dtype="float32", shape=(2, rows, squares)),
        *_query_factors(common),
        *_splits(common, heads, dims, max(shape[2] for shape in caches.values()) - tree),
        *_partial(common, share, heads, attention),
    )


def _splits(common: Layers, heads: int, dims: int, cache_rows: int) -> tuple[Buffer, ...]:
    """Return the partial results of a GPU's attention, with the logarithm of their weights, before they are merged."""
    rows = partial_rows(cache_rows, common.step_rows) if common.gpu else 0
    if rows == 0:
        return ()
    name, shape = f"{common.prefix}scratch.splits", (rows, heads, dims + 1)
    return (Buffer(name=name, term="buffers", dtype="float32", shape=shape),)


def _masked(
    common: Layers, share: KvShare, heads: int, attention: Attention, caches: dict[int | None, CacheShape]
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


def _partial(common: Layers, share: KvShare, heads: int, attention: Attention) -> tuple[Buffer, ...]:
    """Return the messages of a subgroup by ``context``: model.split_kv.ByContext."""
    if share.parts == 1 or share.axis != "context":
        return ()
    shape = (1 + share.parts, *partial_shape(common.rows, heads, attention.head_dim))
    return (Buffer(name=f"{common.prefix}partial", term="comm", dtype="float32", shape=shape),)


def _query_factors(common: Layers) -> tuple[Buffer, ...]:
    """Return the factors of queries, of all positions and of those of a forward: model.base.BaseStage."""
    if not common.scales_queries:
        return ()
    dtype, positions = common.options.dtype, rotary_rows(common.options)
    return (
        Buffer(name=f"{common.prefix}queries", term="buffers", dtype=dtype, shape=(positions,)),
        Buffer(name=f"{common.prefix}scratch.queries", term="buffers", dtype=dtype, shape=(common.rows,)),
    )


def coded_products(model: Model, options: Options, share: KvShare, mlp_units: int) -> tuple[Buffer, ...]:
    """Return scratch of products with quantized weights: model.weights.coded.

    It has rows of a weight that are float32 at once, of up to 50 threads, and the rows that a product reads in the
    order of codes; where activations are of 16 bits, those are part of `scratch.attention` and `scratch.mlp`.
    """
    read = [0]
    for attention, mlp in ((layers.attention, layers.mlp) for layers in model.layers):
        forms = attention.formats | mlp.formats
        if any(forms[name] is not None for name in ("q", "k", "v", "gate", "up")):
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


def coded_table(prefix: str, form: WeightFormat | None, hidden: int, rows: int) -> tuple[Buffer, ...]:
    """Return scratch of logits of so many rows from an lm_head in codes, as in ``coded_products``, all in float32."""
    if form is None:
        return ()
    shape = (CODED_SCRATCH_ROWS + rows, coded_columns(hidden) + CODED_PADDING)
    return (Buffer(name=f"{prefix}scratch.head.codes", term="buffers", dtype="float32", shape=shape),)


def values_of_codes(prefix: str, form: WeightFormat | None, rows: int, hidden: int) -> tuple[Buffer, ...]:
    """Return looked-up rows of an embedding in codes, with what they become in float32: model.weights.look_up."""
    if form is None:
        return ()
    return (Buffer(name=f"{prefix}scratch.values", term="buffers", dtype="float32", shape=(2, rows, hidden)),)


def _sinks(common: Layers, attention: Attention, heads: int) -> tuple[Buffer, ...]:
    """Return the log-sum-exp of scores and the part of the softmax that is not theirs, of layers with sinks.

    They are those of model.scores.Scores.
    """
    if not attention.sinks:
        return ()
    shape = (4, common.rows, heads)
    return (Buffer(name=f"{common.prefix}scratch.sinks", term="buffers", dtype="float32", shape=shape),)


def _converted(common: Layers, share: KvShare, heads: int, cache: tuple[int, ...]) -> tuple[Buffer, ...]:
    """Return the temporaries of a layer's cache that is kept in another dtype than activations.

    ``cache``: shape of the cache of one layer.
    """
    options, rows, prefix = common.options, common.rows, common.prefix
    if options.kv_dtype == options.dtype:
        return ()
    _, sequences, seen, both, dims = cache
    whole = share.parts == 1 or share.axis in ("heads", "batch")
    if options.kv_dtype in KV_CODES:
        if whole:
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


def _mlp_width(mlp: Mlp, common: Layers, units: int) -> int:
    """Return the values of a row's temporaries: gate, up and their product; of experts also the row's copy and result.

    Gate and up of formats of their own are copied side by side.

    Each row is there with every expert that is picked for it; gate and up once more where they have biases. ``units``
    may be those of another, finer MLP of the model: no share is more than the whole.
    """
    channels, hidden = min(units * mlp.unit, mlp.intermediate_size), common.hidden
    if mlp.kind != "moe":
        return (3 if mlp.gate_up_formats is None else 4) * channels
    shared = 3 * min(units, mlp.units) * mlp.shared_unit + hidden if mlp.shared_size else 0
    return shared + mlp.experts_per_token * (2 * hidden + (4 if mlp.bias else 3) * channels)


def _streamed(
    common: Layers, share: KvShare, heads: int, attention: Attention, cache: tuple[int, ...]
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
