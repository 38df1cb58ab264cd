"""Cost of a share of the model on one device: bytes of weights, KV and buffers, and its work (``costs.work``)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

from planner.costs import memory
from planner.costs.fixed_work import CAPTURED, Kernels
from planner.costs.work import Pass, Work, attention_work, router_work, rows_work, unit_work
from planner.integers import ceil_div
from plans import slot_bytes
from plans.buffer import Buffer
from plans.buffers import draft_buffers, embed_buffers, lm_head_buffers, stage_buffers, with_graph_pool
from plans.caches import draft_kv_bytes, kv_bytes
from plans.dtypes import DTYPE_BYTES
from plans.kv import KvShare
from plans.quantized import draft_embed_format, draft_head_format
from plans.schema import Attention, Device, Draft, DType, LayerClass, Mlp, Model, Options, WeightFormat
from plans.step import (
    accept_rows,
    draft_kv_rows,
    fed_rows,
    kv_rows,
    layer_class,
    mask_rows,
    verify_rows,
)


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
