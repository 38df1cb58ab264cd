"""Cost of a share of the model on one device: bytes of weights, KV and buffers, and predicted time.

Letters: R rows of a pass (tree nodes of all sequences), T rows of a KV cache, H hidden size, D head dim, k KV heads of
a share, h their query heads, m members of a subgroup, w = h * D.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from math import prod

from planner.costs import memory
from planner.costs.coded import order_bytes, read_bytes
from planner.costs.fixed_work import CAPTURED, Kernels
from planner.costs.roofline import SCORE_DIM_FLOPS, Tier, all_gather_ns, all_reduce_ns, share_ps, touched_bytes
from planner.integers import PS_PER_NS, ceil_div
from plans import slot_bytes
from plans.buffer import Buffer
from plans.buffers import draft_buffers, embed_buffers, lm_head_buffers, stage_buffers, with_graph_pool
from plans.caches import draft_kv_bytes, kv_bytes
from plans.dtypes import DTYPE_BYTES
from plans.kv import KvShare, part_range, query_heads
from plans.quantized import draft_embed_format, draft_head_format, held_columns, share_format
from plans.schema import Attention, Device, Draft, DType, LayerClass, Mlp, Model, Options, WeightFormat
from plans.step import (
    accept_rows,
    draft_kv_rows,
    fed_rows,
    kv_rows,
    layer_class,
    mask_rows,
    merges_itself,
    partial_shape,
    score_blocks,
    scores_shape,
    verify_rows,
)

FLOAT32_BYTES = 4
"""Partial results of attention are added up in float32."""


def kinds_of(model: Model) -> tuple[LayerClass, ...]:
    """Return one class of each kind of layer, in order of first occurrence."""
    kinds: dict[tuple[Attention, Mlp], LayerClass] = {}
    for layers in model.layers:
        kinds.setdefault((layers.attention, layers.mlp), layers)
    return tuple(kinds.values())


def sequence_of(model: Model) -> tuple[tuple[int, int], ...]:
    """Return runs of (kind, number of layers) in the order of execution."""
    kinds = [(layers.attention, layers.mlp) for layers in kinds_of(model)]
    classes = [layer_class(model, layer) for layer in range(model.num_layers)]
    numbers = (kinds.index((layers.attention, layers.mlp)) for layers in classes)
    return tuple((kind, len(list(run))) for kind, run in groupby(numbers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Memory traffic and arithmetic of a share in one pass."""

    traffic_bytes: int
    flops: int
    scores: int = 0
    """Scores of attention: rows times positions times query heads, each with work of its own on a CPU."""
    head_dim: int = 0
    """Dims of a head that each score is of; ``flops`` has SCORE_DIM_FLOPS operations for each."""

    def ns(self, device: Device) -> int:
        return ceil_div(self.ps(device), PS_PER_NS)

    def ps(self, device: Device) -> int:
        return share_ps(device, self.traffic_bytes, self.flops, self.scores, self.head_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """Sizes of one pass over layers."""

    rows: int
    """R."""
    batch: int
    """Sequences that the rows are of, equally many each."""
    kv_rows: int
    """T."""
    inputs: int
    """Width of what q, k and v are computed from."""
    hidden: int
    width: int
    """Bytes of a weight."""

    def merges(self, attention: Attention) -> bool:
        """Return True where a kernel of its own merges the splits of the cache (``Kernels.layer_ns``)."""
        return not merges_itself(self.rows // self.batch, attention.num_heads // attention.num_kv_heads)


def attention_work(attention: Attention, sizes: Pass, share: KvShare, cache_bytes: int) -> Work:
    """Return the work of a share of attention: its slices of q, k, v and o, and its KV cache.

    heads: k and v whole, 1/m of q and o, and the whole cache. context: q, k and v whole, T/m rows of the cache, a slice
    of o's columns. head_dim: 1/m of everything. batch: all weights for the rows of ceil(B/m) sequences.
    """
    heads = query_heads(attention, share)
    wide = heads * attention.head_dim
    qkv = (heads + 2 * share.heads) * attention.head_dim * sizes.inputs
    rows, keys = sizes.rows, sizes.kv_rows
    if share.axis == "context":
        keys = ceil_div(keys, share.parts)
        start, stop = part_range(wide, share)
        out = stop - start
    elif share.axis == "head_dim":
        qkv, wide = qkv // share.parts, wide // share.parts
        out = wide
    elif share.axis == "batch":
        rows = sizes.rows // sizes.batch * ceil_div(sizes.batch, share.parts)
        out = wide
    else:
        out = wide
    whole, of_o = attention.num_heads * attention.head_dim, attention.o_format
    form, out = of_o and share_format(of_o, out, whole), held_columns(of_o, out, whole)
    parameters = qkv + out * sizes.hidden
    weights = read_bytes(attention.qkv_format, qkv // sizes.inputs, sizes.inputs, sizes.width)
    weights += read_bytes(form, sizes.hidden, out, sizes.width)
    weights += order_bytes(attention.qkv_format, sizes.inputs) + order_bytes(form, out)
    return Work(
        traffic_bytes=weights + cache_bytes,
        flops=2 * rows * parameters + SCORE_DIM_FLOPS * rows * keys * wide,
        scores=rows * keys * heads,
        head_dim=wide // heads if heads else 0,
    )


def exchange_ns(attention: Attention, sizes: Pass, share: KvShare, tiers: Callable[[int], Sequence[Tier]]) -> int:
    """Return the time of a subgroup's messages before o: by context partial outputs with weights, by head_dim scores.

    ``tiers`` returns the links of the subgroup for a message of so many bytes.
    """
    rows, heads = sizes.rows, query_heads(attention, share)
    if share.parts == 1 or share.axis in ("heads", "batch"):
        return 0
    if share.axis == "context":
        message = FLOAT32_BYTES * prod(partial_shape(rows, heads, attention.head_dim))
        return all_gather_ns(tiers(message), message)
    messages = [(FLOAT32_BYTES * prod(scores_shape(rows, heads, w)), n) for w, n in _score_widths(sizes.kv_rows)]
    return sum(times * all_reduce_ns(tiers(message), message) for message, times in messages)


@cache
def _score_widths(kv_rows: int) -> tuple[tuple[int, int], ...]:
    """Return the widths of the blocks of scores, each with the number of such blocks."""
    return tuple(Counter(block.stop - block.start for block in score_blocks(kv_rows)).items())


def unit_work(mlp: Mlp, hidden: int, width: int, rows: int) -> Work:
    """Return the work of one MLP unit: traffic of the experts that some row picks and of the shared one, arithmetic of
    those of every row.
    """
    parameters, shared = 3 * hidden * mlp.unit, 3 * hidden * mlp.shared_unit
    expert, every = (_channels_bytes(mlp, hidden, width, channels) for channels in (mlp.unit, mlp.shared_unit))
    return Work(
        traffic_bytes=touched_bytes(expert, mlp.num_experts, mlp.experts_per_token, rows) + every,
        flops=2 * rows * (mlp.experts_per_token * parameters + shared),
    )


def _channels_bytes(mlp: Mlp, hidden: int, width: int, channels: int) -> int:
    """Return the bytes that are read of so many channels of an MLP."""
    gate_up = read_bytes(mlp.gate_up_format, 2 * channels, hidden, width)
    return gate_up + read_bytes(mlp.down_format, hidden, channels, width) if channels else 0


def router_work(mlp: Mlp, hidden: int, width: int, rows: int) -> Work:
    """Return the work of a layer's router and of the shared expert's gate, which each device computes whole, and of the
    order of columns of gate and up.
    """
    ordered = order_bytes(mlp.gate_up_format, hidden)
    if mlp.kind != "moe":
        return Work(traffic_bytes=ordered, flops=0)
    ordered = touched_bytes(ordered, mlp.num_experts, mlp.experts_per_token, rows) + bool(mlp.shared_size) * ordered
    gate, product = bool(mlp.shared_gate) * hidden, mlp.num_experts * hidden
    wide = FLOAT32_BYTES if mlp.router is not None and mlp.router.float32 else width
    return Work(traffic_bytes=gate * width + product * wide + ordered, flops=2 * rows * (gate + product))


def rows_work(form: WeightFormat | None, hidden: int, width: int, table_rows: int, rows: int) -> Work:
    """Return the work of logits of so many rows of a vocabulary table."""
    return Work(traffic_bytes=read_bytes(form, table_rows, hidden, width), flops=2 * rows * hidden * table_rows)


def _captured(share: KvShare, gpu: bool) -> bool:
    """Return True for a share whose steps may be captured (``plans.graphs``)."""
    return gpu and share.axis != "head_dim"


def _buffers(
    buffers_of: Callable[[Options], tuple[Buffer, ...]], options: Options, captured: bool
) -> tuple[Buffer, ...]:
    """Return the buffers of a part, and those of its captured steps."""
    return with_graph_pool(buffers_of, options) if captured else buffers_of(options)


@dataclass(frozen=True, kw_only=True)
class BaseShares:
    """Shares of the base model."""

    model: Model
    draft: Draft | None
    options: Options
    kernels: Kernels = CAPTURED

    @cached_property
    def kinds(self) -> tuple[LayerClass, ...]:
        return kinds_of(self.model)

    @cached_property
    def verify_pass(self) -> Pass:
        """Sizes of a verify, of layers that attend to all positions."""
        return self.pass_of(None)

    def pass_of(self, window: int | None) -> Pass:
        """Return the sizes of a verify, of layers with such a window."""
        return Pass(
            rows=verify_rows(self.options),
            batch=self.options.batch,
            kv_rows=kv_rows(self.options, window),
            inputs=self.model.hidden_size,
            hidden=self.model.hidden_size,
            width=DTYPE_BYTES[self.options.dtype],
        )

    @cached_property
    def attention(self) -> Callable[[int, KvShare], Work]:
        """Work of attention in a layer of a kind, for a share."""

        def work(kind: int, share: KvShare) -> Work:
            attention = self.kinds[kind].attention
            sizes = self.pass_of(attention.window)
            return attention_work(attention, sizes, share, kv_bytes(self.options, attention, share))

        return cache(work)

    @cached_property
    def attention_bytes(self) -> Callable[[int, KvShare, bool], int]:
        """Bytes of a layer of a kind: attention, KV, and the whole part of its MLP; the leader has some biases."""

        def count(kind: int, share: KvShare, leader: bool) -> int:
            layers, dtype = self.kinds[kind], self.options.dtype
            weights = slot_bytes.attention_bytes(self.model, dtype, layers, share, leader)
            whole = memory.layer_mlp(self.model, dtype, layers, leader).fixed
            return weights + whole + kv_bytes(self.options, layers.attention, share)

        return cache(count)

    def unit(self, kind: int) -> Work:
        """Return the work of one MLP unit in a layer of a kind."""
        sizes = self.verify_pass
        return unit_work(self.kinds[kind].mlp, self.model.hidden_size, sizes.width, sizes.rows)

    @cached_property
    def router(self) -> Callable[[int], Work]:
        """Work of the router in a layer of a kind; none without experts."""
        model, sizes = self.model, self.verify_pass
        return cache(lambda kind: router_work(self.kinds[kind].mlp, model.hidden_size, sizes.width, sizes.rows))

    def unit_bytes(self, kind: int) -> int:
        """Return the bytes of one MLP unit of a layer of a kind."""
        return memory.layer_mlp(self.model, self.options.dtype, self.kinds[kind], True).slope

    @cached_property
    def stage_bytes(self) -> Callable[[KvShare, int, bool], int]:
        """Bytes that a device of a stage has once, for the largest share that it can have and the size of the stage.

        Also for whether it is a GPU.
        """

        def count(share: KvShare, group_size: int, gpu: bool) -> int:
            units = max(layers.mlp.units for layers in self.kinds)

            def buffers(options: Options) -> tuple[Buffer, ...]:
                return stage_buffers(
                    self.model, self.draft, options, share=share, mlp_units=units, group_size=group_size, gpu=gpu
                )

            return slot_bytes.rope_bytes(self.model) + memory.total(
                _buffers(buffers, self.options, _captured(share, gpu))
            )

        return cache(count)

    # ---- tables: as if what they receive from, or send to, were on other devices ----

    @cached_property
    def embed_table(self) -> memory.Affine:
        """Rows of the embedding table."""
        return self._table(slot_bytes.embed_bytes, self.model.embed_format)

    @cached_property
    def embed_bytes(self) -> Callable[[int, bool], int]:
        """Bytes of a device with rows of the embedding, without these, in a group of this size.

        Also for whether it is a GPU.
        """

        def count(group_size: int, gpu: bool) -> int:
            def buffers(own: Options) -> tuple[Buffer, ...]:
                return embed_buffers(self.model, own, group_size=group_size, hop=True, leads=True)

            return self.embed_table.fixed + memory.total(_buffers(buffers, self.options, gpu))

        return cache(count)

    @cached_property
    def head_table(self) -> memory.Affine:
        """Rows of the lm_head."""
        return self._table(slot_bytes.lm_head_bytes, self.model.head_format)

    def _table(self, nbytes: Callable[[Model, DType, int], int], form: WeightFormat | None) -> memory.Affine:
        """Return the bound of the rows of a vocabulary table; ``nbytes``: those of a number of rows, exactly."""
        model, dtype = self.model, self.options.dtype
        return memory.table(lambda n: nbytes(model, dtype, n), model.vocab_size, model.hidden_size, dtype, form)

    @cached_property
    def head_bytes(self) -> Callable[[int, bool], memory.Affine]:
        """Bytes of a device with rows of the lm_head, without these but with their logits, in a group of this size.

        Also for whether it is a GPU.
        """
        model, options = self.model, self.options

        def count(group_size: int, gpu: bool) -> memory.Affine:
            def buffers(own: Options, rows: int) -> tuple[Buffer, ...]:
                return lm_head_buffers(
                    model,
                    self.draft,
                    own,
                    rows=rows,
                    group_size=group_size,
                    receives=True,
                    leads=True,
                    gpu=gpu,
                )

            fixed = self.head_table.fixed + slot_bytes.norm_bytes(model, options.dtype)
            return memory.with_rows(
                fixed, lambda rows: _buffers(lambda own: buffers(own, rows), options, gpu), model.vocab_size
            )

        return cache(count)

    def rows(self, table_rows: int) -> Work:
        """Return the work of the logits of so many rows of the lm_head, in one verify."""
        model, sizes = self.model, self.verify_pass
        return rows_work(model.head_format, model.hidden_size, sizes.width, table_rows, sizes.rows)


@dataclass(frozen=True, kw_only=True)
class DraftShares:
    """Shares of the drafter."""

    model: Model
    draft: Draft
    options: Options
    kernels: Kernels = CAPTURED

    @cached_property
    def passes(self) -> tuple[tuple[Pass, int], ...]:
        """Passes of a step and how often each is made: over the accepted rows, then over the rows fed back.

        Where levels are drafted in parallel there is one, over the accepted rows and the masks behind them. Without a
        tree there is the first, over the rows of a plain step.
        """
        tree, batch, hidden = self.options.tree, self.options.batch, self.draft.hidden_size
        first = Pass(
            rows=batch * (accept_rows(self.options) + mask_rows(self.draft, self.options.tree)),
            batch=batch,
            kv_rows=draft_kv_rows(self.draft, self.options),
            inputs=self.draft.attention_width(0),
            hidden=hidden,
            width=DTYPE_BYTES[self.options.dtype],
        )
        fed = () if tree is None or self.draft.mask_token_id is not None else fed_rows(tree)
        every = ((dataclasses.replace(first, rows=batch * rows), fed.count(rows)) for rows in dict.fromkeys(fed))
        return (first, 1), *every

    @cached_property
    def read_rows(self) -> tuple[int, ...]:
        """Rows that the lm_head reads in each of the passes: of the first the output at the root, and the masks.

        None without a tree.
        """
        (_, *again), batch = self.passes, self.options.batch
        if self.options.tree is None:
            return (0,)
        return (batch * (1 + mask_rows(self.draft, self.options.tree)), *(sizes.rows for sizes, _ in again))

    @cached_property
    def attention(self) -> Callable[[int, KvShare], Work]:
        """Work of attention in all layers of a pass, by its number, and of ``fc``, which is whole on each device."""

        def work(number: int, share: KvShare) -> Work:
            draft, (sizes, _) = self.draft, self.passes[number]
            kv = ceil_div(draft_kv_bytes(self.options, draft, share), draft.num_layers)
            widths = (draft.attention_width(layer) for layer in range(draft.num_layers))
            forwards = [dataclasses.replace(sizes, inputs=width) for width in widths]
            layers = [attention_work(draft.attention, forward, share, kv) for forward in forwards]
            fc = draft.fc_width * draft.hidden_size if number == 0 or draft.kind == "eagle" else 0
            return Work(
                traffic_bytes=sum(layer.traffic_bytes for layer in layers) + fc * sizes.width,
                flops=sum(layer.flops for layer in layers) + 2 * sizes.rows * fc,
                scores=sum(layer.scores for layer in layers),
                head_dim=layers[0].head_dim,
            )

        return cache(work)

    @property
    def unit_bytes(self) -> int:
        """Bytes of one MLP unit of every layer."""
        return memory.draft_mlp(self.draft, self.options.dtype, True).slope

    @property
    def divided_bytes(self) -> int:
        """Bytes of the MLPs and of the lm_head that a pass reads, of all their units and rows."""
        draft, width, rows = self.draft, DTYPE_BYTES[self.options.dtype], self.passes[0][0].rows
        units = draft.num_layers * draft.mlp.units * unit_work(draft.mlp, draft.hidden_size, width, rows).traffic_bytes
        form, vocabulary = draft_head_format(self.model, draft), draft.draft_vocab_size
        return units + rows_work(form, draft.hidden_size, width, vocabulary, rows).traffic_bytes

    def unit_ps(self, device: Device) -> int:
        """Return the time of one MLP unit of every layer, in all passes of a step."""
        draft, width = self.draft, DTYPE_BYTES[self.options.dtype]
        works = ((unit_work(draft.mlp, draft.hidden_size, width, sizes.rows), n) for sizes, n in self.passes)
        return draft.num_layers * sum(n * work.ps(device) for work, n in works)

    def rows_ps(self, device: Device, table_rows: int) -> int:
        """Return the time of the logits of so many rows of the lm_head, in all passes of a step."""
        width = DTYPE_BYTES[self.options.dtype]
        times = zip(self.read_rows, (times for _, times in self.passes), strict=True)
        form, hidden = draft_head_format(self.model, self.draft), self.draft.hidden_size
        return sum(n * rows_work(form, hidden, width, table_rows, rows).ps(device) for rows, n in times if rows)

    @cached_property
    def bytes(self) -> Callable[[KvShare, bool, int, bool], int]:
        """Bytes of a device with a share of the KV heads in a group of this size, without units and vocabulary rows.

        The last argument: it is a GPU.
        """

        def count(share: KvShare, leader: bool, group_size: int, gpu: bool) -> int:
            weights = slot_bytes.draft_attention_bytes(self.draft, self.options.dtype, share, leader)
            cached = draft_kv_bytes(self.options, self.draft, share)
            own = self._buffer_bytes(dataclasses.replace(share, part=0), group_size, gpu)  # the same for all parts
            return weights + self._whole_bytes(leader) + own + cached

        return cache(count)

    @cached_property
    def _whole_bytes(self) -> Callable[[bool], int]:
        """Bytes that each device has of everything but attention, without units and rows; the leader some biases."""
        draft, dtype = self.draft, self.options.dtype

        def count(leader: bool) -> int:
            tables = self.embed.fixed + self.head.fixed
            return memory.draft_mlp(draft, dtype, leader).fixed + slot_bytes.draft_fixed_bytes(draft, dtype) + tables

        return cache(count)

    @cached_property
    def _buffer_bytes(self) -> Callable[[KvShare, int, bool], int]:
        """Bytes of the buffers of a device; arguments as of ``bytes``."""
        draft = self.draft

        def count(share: KvShare, group_size: int, gpu: bool) -> int:
            def buffers(options: Options) -> tuple[Buffer, ...]:
                return draft_buffers(
                    self.model,
                    draft,
                    options,
                    share=share,
                    mlp_units=draft.mlp.units,
                    head_rows=draft.draft_vocab_size,
                    group_size=group_size,
                    gpu=gpu,
                )

            return memory.total(_buffers(buffers, self.options, _captured(share, gpu)))

        return cache(count)

    @cached_property
    def embed(self) -> memory.Affine:
        model, draft, dtype = self.model, self.draft, self.options.dtype
        return memory.table(
            lambda n: slot_bytes.draft_embed_bytes(model, draft, dtype, n),
            model.vocab_size,
            draft.hidden_size,
            dtype,
            draft_embed_format(model, draft),
        )

    @cached_property
    def head(self) -> memory.Affine:
        model, draft, dtype = self.model, self.draft, self.options.dtype
        return memory.table(
            lambda n: slot_bytes.draft_lm_head_bytes(model, draft, dtype, n),
            draft.draft_vocab_size,
            draft.hidden_size,
            dtype,
            draft_head_format(model, draft),
        )
