"""Layers that a CPU runs as one kernel each; as two, attention and MLP, where devices sum their shares in between.

What a layer has of its own, weights and KV cache, is written down once, when it is bound; what the layers of a forward
have in common, once for a forward. Layers of few rows that follow each other are one call. Letters as in ``layers``.
The scratch of a forward is kept for the next; it is bounded by `scratch.attention` and `scratch.mlp` in
plans/layer_buffers.py.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plans.quantized import coded_columns
from runtime.model import ops
from runtime.model.blocks import Eagle3Layer
from runtime.model.blocks import Layer as LayerBlock
from runtime.model.kernels.arguments import CODED_ROWS, EPSILON_UNIT, Codes, Forward, Layer, attend_floats
from runtime.model.kernels.processor import multiplies_tiles
from runtime.model.kv_codes import stored_dims
from runtime.model.layers import WHOLE, GatedMlp, Norm, Rows
from runtime.model.weights import Beside, Coded

ALIGN = 64
"""Bytes of which the parts of the scratch begin at a multiple: a line of the processor's cache."""
KEPT = 8
"""Scratch is kept for forwards of fewer rows while it is at most so many times what they need."""
NORMED_ROWS = 8
"""Most rows whose norm every thread computes for itself, so that none waits for another."""
TOGETHER_WORK = 1 << 30
"""Multiply-adds up to which layers that follow each other are one call of the kernel: a fraction of a second, behind
which progress is reported. Behind each call the caches have the weights, and the interpreter waits for the memory."""
_pack_layer, _forward_words = struct.Struct(f"{len(Layer._fields)}q").pack, struct.Struct(f"{len(Forward._fields)}q")
_codes_words = struct.Struct(f"{len(Codes._fields)}q")
_forward = partial(Forward.__new__, Forward)  # as in ``ops``


Block = LayerBlock | Eagle3Layer
"""A layer of a model, of which several may follow each other, or the one of an EAGLE-3 head."""


def are_whole(layers: Sequence[Block], caches: Sequence[Tensor]) -> bool:
    """Return whether ``WholeLayers`` applies: on a CPU, whole heads, a cache of the activations' dtype or of 8 bits.

    MLPs are gated by silu, and this device has channels of them; only q, k and v have biases, and one format, as gate
    and up have. Norms are of inputs, and of heads one by one, without an offset. An EAGLE-3 head has one layer.
    """
    if len(layers) > 1 and any(isinstance(block, Eagle3Layer) for block in layers):
        return False
    return bool(layers) and all(_is_whole(block, cache) for block, cache in zip(layers, caches, strict=True))


def _is_whole(block: Block, cache: Tensor) -> bool:
    own, mlp = block.attention, block.mlp
    if block.mlp_norm is None or (isinstance(block, LayerBlock) and block.attention_output is not None):
        return False
    if not ops.attends(block.mlp_norm.weight, cache) or own.attend is not WHOLE or own.o.bias is not None:
        return False
    norms = (_attention_norm(block), own.q_norm, own.k_norm, block.mlp_norm)
    if own.normed_heads is not None or any(norm is not None and norm.offset for norm in norms):
        return False
    if not isinstance(mlp, GatedMlp) or mlp.gate_up is None or mlp.down is None or mlp.activation != "silu":
        return False
    if isinstance(own.qkv.weight, Beside) or isinstance(mlp.gate_up.weight, Beside):
        return False
    return mlp.gate_up.bias is None and mlp.down.bias is None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bound:
    """A layer with its KV cache; ``kernels``: the words of its calls, after each of which the devices sum."""

    block: Block
    cache: Tensor
    kernels: tuple[bytes, ...]
    codes: ctypes.Array[ctypes.c_int64]
    """Words of its matrices in codes, to which ``kernels`` point."""
    weights: int
    """Number of its weights: multiply-adds of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Division:
    """The parts of the scratch in forwards of one number of rows."""

    columns: int
    """Most columns that are attended to."""
    parts: dict[str, Tensor]
    at: dict[str, int]
    """Address of each part."""
    hidden: Tensor
    """[W, H]: the residual before the attention, and the result of a layer."""
    sums: tuple[Callable[[], None], ...]
    """All-reduces behind the kernels of a layer: of the residual between attention and MLP, and of the last."""


class WholeLayers:
    """Layers of one device that run one after the other on the same rows."""

    def __init__(self, layers: Sequence[Block], caches: Sequence[Tensor]) -> None:
        """``caches``: by layer [B, T, 2k, D]."""
        assert are_whole(layers, caches)
        own = layers[0].attention
        assert layers[0].mlp_norm is not None
        self._dtype, self._hidden, self._group = layers[0].mlp_norm.weight.dtype, own.o.weight.shape[1], own.group
        words = ctypes.c_int64 * len(Forward._fields)
        self._words = {table: words() for table in sorted({block.attention.table for block in layers})}
        """Words of a forward for the layers of each rotary table."""
        self._layers = []
        for block, cache in zip(layers, caches, strict=True):
            forward = ctypes.addressof(self._words[block.attention.table])
            self._layers.append(_bound(block, cache, forward, self._group.handle is None))
        assert len({(cache.dtype, cache.shape[:2] + cache.shape[3:]) for cache in caches}) == 1  # KV heads may differ
        self._width = max(_scratch_width(block) for block in layers)
        self._inputs = max(
            coded_columns(weight.held_columns) if isinstance(weight, Coded) else weight.shape[0]
            for block in layers
            for weight in _matrices(block).values()
        )
        self._coded = any(isinstance(weight, Coded) for block in layers for weight in _matrices(block).values())
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._divisions: dict[tuple[int, int], _Division] = {}
        """Of the scratch, by rows and threads of a forward: a drafter runs other numbers of rows in turn."""
        self._calls: dict[tuple[int, int], tuple[bytes, list[ctypes.Array[ctypes.c_int64]]]] = {}
        """Words of the first of some layers that are one call, and of those that follow it; by first and last + 1."""
        self._own: _Division | None = None
        """That of the forward which was begun."""
        self._rows: Rows | None = None
        self._x: Tensor | None = None

    def begin(self, hidden: Tensor, rows: Rows, x: Tensor | None = None) -> Tensor:
        """Begin a forward of ``rows``, all of this device; return the residual [W, H], which its layers overwrite.

        ``x`` [W, 2H], contiguous: the input of the attention in an EAGLE-3 head.
        """
        assert rows.bias is not None
        (width, _), (sequences, _, n, columns), threads = hidden.shape, rows.bias.shape, torch.get_num_threads()
        cache, size = self._layers[0].cache, self._dtype.itemsize
        head_dim, start, first = self._layers[0].block.attention.head_dim, rows.seen.start, rows.sequences.start
        # the kernel computes every address from these sizes, and those of weights, which ``_bound`` compares
        assert rows.own is None
        inputs = width * self._layers[0].block.attention.qkv.weight.shape[0]  # that the first attention reads
        assert x is None if inputs == hidden.numel() else x is not None and x.numel() == inputs and x.is_contiguous()
        assert hidden.shape[1] == self._hidden
        rotary = {table: rows.rotary[table] for table in self._words}
        assert all(table.shape == (2, width, 1, head_dim) for table in rotary.values())
        assert sequences * n == width
        assert first + sequences <= cache.shape[0]
        assert start + columns <= cache.shape[1]
        assert rows.tree <= columns
        written = rows.written
        assert n == written.stop - written.start if isinstance(written, slice) else written.shape[0] == width
        assert rows.oldest is None or rows.oldest.shape == (sequences,)
        assert rows.oldest is None or not rows.tree or (rows.ring > 0 and rows.positions is not None)
        assert rows.positions is None or (rows.positions.shape == (width,) and rows.positions.is_contiguous())
        widens, per_thread = ops.widens(self._dtype, width) or self._coded, width <= NORMED_ROWS
        packs = multiplies_tiles(self._dtype) and per_thread
        widened_rows = (width * threads if packs else ops.packed_rows(width, self._dtype)) if widens else 0
        own = self._divisions.get((width, threads))
        if own is not None and own.columns < columns:
            own = None  # so that nothing keeps the old scratch
        if own is None:
            normed = width * (threads if per_thread else 1)
            own = self._divisions[width, threads] = self._divide(
                columns,
                hidden=width * self._hidden * size,
                between=width * self._hidden * size,
                normed=normed * self._hidden * size,
                inner=width * self._width * size,
                widened=widened_rows * (self._inputs + ops.PADDING) * 4,
                values=threads * CODED_ROWS * (self._inputs + ops.PADDING) * 4 if self._coded else 0,
                scores=threads * attend_floats(head_dim, columns) * 4,
            )
        at, self._own = own.at, own
        for number, words in self._words.items():
            table = rotary[number]
            forward = _forward(
                rows=width, rows_per_sequence=n, hidden_size=self._hidden, hidden=at["hidden"], between=at["between"],
                adds=self._group.leads, x=at["hidden"] if x is None else x.data_ptr(), normed=at["normed"],
                normed_per_thread=per_thread, inner=at["inner"],
                widened=at["widened"] if widens else 0, widened_stride=4 * (self._inputs + ops.PADDING),
                widened_per_thread=packs,
                values=at["values"] if self._coded else 0, values_stride=4 * (self._inputs + ops.PADDING),
                coded=ops.coded_address(self._dtype) if self._coded else 0,
                attend_8_bits=ops.attend_8_bits_address(self._dtype, cache.dtype),
                cosines=table.data_ptr(), sines_offset=size * table.stride(0),
                first_sequence=first, first_seen=start,
                written_index=0 if isinstance(written, slice) else written.data_ptr(),
                first_written=written.start if isinstance(written, slice) else 0,
                columns=columns, tree_columns=rows.tree, oldest=0 if rows.oldest is None else rows.oldest.data_ptr(),
                positions=0 if rows.positions is None else rows.positions.data_ptr(), ring=rows.ring,
                bias=rows.bias.data_ptr(),
                bias_sequence_stride=size * rows.bias.stride(0), bias_row_stride=size * rows.bias.stride(2),
                scratch=at["scores"],
            )  # fmt: skip
            _forward_words.pack_into(words, 0, *forward)
        self._rows, self._x = rows, own.hidden if x is None else x  # what the layers read
        return own.hidden.copy_(hidden)

    def run(self, number: int) -> Tensor:
        """Run a layer on the residual of ``begin``; return it."""
        assert self._own is not None
        bound, hidden = self._layers[number], self._own.hidden
        work = hidden.shape[0] * bound.weights
        for kernel, add_up in zip(bound.kernels, self._own.sums[-len(bound.kernels) :], strict=True):
            ops._run_layer(self._dtype, work, kernel)
            add_up()
        return hidden

    def run_more(self, number: int, end: int) -> int:
        """Run a layer, and those behind it before ``end`` that make one call with it; return the next one's number."""
        assert self._own is not None
        bound, rows = self._layers[number], self._own.hidden.shape[0]
        last = min(end, number + TOGETHER_WORK // (rows * bound.weights))
        if last < number + 2 or len(bound.kernels) > 1:
            self.run(number)
            return number + 1
        call = self._calls.get((number, last))
        if call is None:
            call = self._calls[number, last] = _joined([bound.kernels[0] for bound in self._layers[number:last]])
        ops._run_layer(self._dtype, rows * bound.weights, call[0])
        return last

    def operands(self, number: int) -> dict[str, Tensor]:
        """Return the tensors that a layer reads and writes, by their names in ``Layer`` and ``Forward``."""
        assert self._own is not None
        assert self._rows is not None
        assert self._x is not None
        assert self._rows.bias is not None
        block, rows = self._layers[number].block, self._rows
        named = {name: tensor for name, tensor in _tensors(block).items() if tensor is not None}
        for name, matrix in _matrices(block).items():
            named |= {name: matrix} if isinstance(matrix, Tensor) else _coded_operands(name, matrix)
        indices = {} if isinstance(rows.written, slice) else {"written_index": rows.written}
        indices |= {} if rows.oldest is None else {"oldest": rows.oldest}
        indices |= {} if rows.positions is None else {"positions": rows.positions}
        own = {
            "rotary": rows.rotary[block.attention.table],
            "bias": self._rows.bias,
            "cache": self._layers[number].cache,
            "x": self._x,
        }
        return named | indices | own | self._own.parts

    def _divide(self, columns: int, **sizes: int) -> _Division:
        """Divide the scratch into parts of so many bytes each, for a forward that attends to so many columns.

        Its memory is made anew where it is too small, or much larger than this forward needs.
        """
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name] = end
            end += -(-size // ALIGN) * ALIGN
        if not end <= self._scratch.nbytes <= KEPT * end:
            self._own = self._x = None
            self._divisions.clear()
            self._scratch = torch.empty(0, dtype=torch.uint8)  # the old one is freed before there is another
            self._scratch = torch.empty(end, dtype=torch.uint8)
        parts = {name: self._scratch[start : start + sizes[name]] for name, start in starts.items()}
        hidden, between = (parts[name].view(self._dtype).view(-1, self._hidden) for name in ("hidden", "between"))
        return _Division(
            columns=columns,
            parts=parts,
            at={name: part.data_ptr() for name, part in parts.items()},
            hidden=hidden,
            sums=(self._group.sum_of(between), self._group.sum_of(hidden)),
        )


def _bound(block: Block, cache: Tensor, forward: int, alone: bool) -> _Bound:
    """Bind a layer; ``forward``: address of the words of the forward; ``alone``: no other device has a share of it."""
    own, tensors, matrices = block.attention, _tensors(block), _matrices(block)
    inputs, heads, channels = own.qkv.weight.shape[0], own.query_heads, _channels(block)
    assert block.mlp_norm is not None
    hidden, dtype = own.o.weight.shape[1], block.mlp_norm.weight.dtype
    size = dtype.itemsize
    expected = {
        "attention_norm": (inputs,), "qkv": (inputs, (heads + 2 * own.kv_heads) * own.head_dim),
        "qkv_bias": ((heads + 2 * own.kv_heads) * own.head_dim,), "q_norm": (own.head_dim,), "k_norm": (own.head_dim,),
        "sinks": (heads,), "factors": (2,),
        "o": (heads * own.head_dim, hidden), "mlp_norm": (hidden,), "gate_up": (hidden, 2 * channels),
        "down": (channels, hidden),
    }  # fmt: skip
    for name, matrix in matrices.items():
        assert matrix.shape == expected[name]
        assert isinstance(matrix, Coded) or (matrix.dtype == dtype and matrix.is_cpu)
    for name, tensor in tensors.items():
        kind = torch.float32 if name == "factors" else dtype
        assert tensor is None or (tensor.shape == expected[name] and tensor.dtype == kind and tensor.is_cpu)
    assert (inputs, heads % own.kv_heads) == (2 * hidden if isinstance(block, Eagle3Layer) else hidden, 0)
    assert cache.dtype in (dtype, *ops.ATTEND_8_BITS)
    assert cache.shape[2:] == (2 * own.kv_heads, stored_dims(cache.dtype, own.head_dim))
    assert (own.q_norm is None) == (own.k_norm is None)
    at = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    codes = (ctypes.c_int64 * (len(Codes._fields) * len(matrices)))()
    words = {}
    for number, (name, matrix) in enumerate(matrices.items()):
        if isinstance(matrix, Coded):
            place = ctypes.sizeof(ctypes.c_int64) * len(Codes._fields) * number
            _codes_words.pack_into(codes, place, *matrix.words())
            words[name] = (0, 0, ctypes.addressof(codes) + place)
        else:
            words[name] = (matrix.data_ptr(), size * matrix.stride(1), 0)
    (qkv, qkv_stride, qkv_codes), (o, o_stride, o_codes) = words["qkv"], words["o"]
    (gate_up, gate_up_stride, gate_up_codes), (down, down_stride, down_codes) = words["gate_up"], words["down"]
    attends = Layer(
        forward=forward, attends=1, inputs=inputs, attention_norm=at["attention_norm"],
        attention_epsilon=_units(_attention_norm(block)), qkv=qkv, qkv_stride=qkv_stride, qkv_codes=qkv_codes,
        qkv_bias=at["qkv_bias"], q_norm=at["q_norm"], k_norm=at["k_norm"], head_epsilon=_units(own.q_norm), o=o,
        o_stride=o_stride, o_codes=o_codes, query_heads=heads, kv_heads=own.kv_heads, head_dim=own.head_dim,
        factors=at["factors"], sinks=at["sinks"], cache=cache.data_ptr(),
        sequence_stride=cache.itemsize * cache.stride(0), row_stride=cache.itemsize * cache.stride(1),
        feeds=0, mlp_norm=0, mlp_epsilon=0, gate_up=0, gate_up_stride=0, gate_up_codes=0, channels=0, down=0,
        down_stride=0, down_codes=0, following=0,
    )  # fmt: skip
    whole = attends._replace(
        feeds=1, mlp_norm=at["mlp_norm"], mlp_epsilon=_units(block.mlp_norm), gate_up=gate_up,
        gate_up_stride=gate_up_stride, gate_up_codes=gate_up_codes, channels=channels, down=down,
        down_stride=down_stride, down_codes=down_codes,
    )  # fmt: skip
    kernels = (whole,) if alone else (attends, whole._replace(attends=0))
    weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
    return _Bound(
        block=block,
        cache=cache,
        kernels=tuple(_pack_layer(*kernel) for kernel in kernels),
        codes=codes,
        weights=weights,
    )


def _joined(kernels: Sequence[bytes]) -> tuple[bytes, list[ctypes.Array[ctypes.c_int64]]]:
    """Return the words of the first of some layers, and those of the others, each of which follows the one before."""
    words, kept, following = ctypes.c_int64 * len(Layer._fields), list[ctypes.Array[ctypes.c_int64]](), 0
    for kernel in reversed(kernels[1:]):
        kept.append(words.from_buffer_copy(kernel))
        kept[-1][Layer._fields.index("following")] = following
        following = ctypes.addressof(kept[-1])
    first = words.from_buffer_copy(kernels[0])
    first[Layer._fields.index("following")] = following
    return bytes(first), kept


def _tensors(block: Block) -> dict[str, Tensor | None]:
    """Return the weights of a layer but its matrices, by their names in ``Layer``."""
    own = block.attention
    assert block.mlp_norm is not None
    norm = _attention_norm(block)
    return {
        "attention_norm": None if norm is None else norm.weight, "qkv_bias": own.qkv.bias,
        "q_norm": None if own.q_norm is None else own.q_norm.weight,
        "k_norm": None if own.k_norm is None else own.k_norm.weight,
        "sinks": own.scores.sinks, "factors": own.scores.factors, "mlp_norm": block.mlp_norm.weight,
    }  # fmt: skip


def _matrices(block: Block) -> dict[str, Tensor | Coded]:
    """Return the matrices [in, out] of a layer by their names in ``Layer``."""
    own, mlp = block.attention, block.mlp
    assert isinstance(mlp, GatedMlp)
    assert mlp.gate_up is not None
    assert mlp.down is not None
    linear = {"qkv": own.qkv.weight, "o": own.o.weight, "gate_up": mlp.gate_up.weight, "down": mlp.down.weight}
    return {name: weight for name, weight in linear.items() if not isinstance(weight, Beside)}


def _coded_operands(name: str, matrix: Coded) -> dict[str, Tensor]:
    """Return the tensors of a matrix in codes by their names in ``Layer`` and ``Codes``."""
    others = {f"{name}.zeros": matrix.zeros, f"{name}.order": matrix.order}
    present = {name: tensor for name, tensor in others.items() if tensor is not None}
    return {f"{name}.codes": matrix.codes, f"{name}.scales": matrix.scales} | present


def _attention_norm(block: Block) -> Norm | None:
    """Return the norm before the attention that is part of the kernel."""
    return block.attention_norm if isinstance(block, LayerBlock) else None


def _units(norm: Norm | None) -> int:
    return 0 if norm is None else round(norm.eps / EPSILON_UNIT)


def _channels(block: Block) -> int:
    mlp = block.mlp
    assert isinstance(mlp, GatedMlp)
    assert mlp.down is not None
    return mlp.down.weight.shape[0]


def _scratch_width(block: Block) -> int:
    """Return the values of a row within a layer: q, k, v and the heads' outputs, or gate, up and their product."""
    own = block.attention
    return max(own.qkv.weight.shape[1] + own.o.weight.shape[0], 3 * _channels(block))
