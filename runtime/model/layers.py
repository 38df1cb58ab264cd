"""The arithmetic of one transformer layer on one device's share.

Letters of shapes, here and in the other modules of this package:

    B  sequences of this device in a forward     T  rows of a sequence in the KV cache
    n  rows of each sequence in a forward        t  cache rows that a forward attends to, a window of T
    W  rows of a forward, B * n                  N  nodes of a tree, where n is a tree
    H  hidden size                               D  head dim; of a share by `head_dim` its dims
    h  query heads of this device                k  KV heads of this device
    m  MLP channels of this device               E  experts, e of them for each row
    V  vocabulary; v  rows of the lm_head of this device

Weights are bound transposed, as views of the image; nothing is copied. The temporaries of an attention are bounded by
`scratch.attention` and `scratch.bias` in plans/layer_buffers.py, with a cache of another dtype also by
`scratch.stored`, `scratch.kv`, `scratch.merge` and `scratch.weights`; those of an MLP by `scratch.mlp`, and what
members without layers of their own bring to a sum by `scratch.reduce`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.schema import Activation, QueryScaling
from plans.step import CONVERTED_ROWS, SCORE_COLUMNS, converted_blocks
from runtime.comm.groups import Group
from runtime.model import ops
from runtime.model.kv_codes import MOST_CODE, encoded
from runtime.model.kvcache import as_movable
from runtime.model.mask import Mask
from runtime.model.scores import PLAIN, Scores, streamed
from runtime.model.weights import Beside, Coded, product, product_onto

ByBias = Callable[[Tensor, Tensor, Tensor, Tensor, Scores], Tensor]
"""q [B, h, n, D], k and v [B, k, t, D] in the cache's dtype, bias [B, 1, n, t] -> [W, columns of this device's o]."""
ByMask = Callable[[Tensor, int, Tensor, int, Mask, Scores], Tensor]
"""Rotated qkv [W, h + 2k, D], h, cache [B, T, 2k, D], its first sequence that takes part, mask -> as ``ByBias``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attend:
    """Attention of a device's share of the KV cache."""

    by_bias: ByBias
    by_mask: ByMask | None
    """On a GPU; None: there, too, by a bias, as devices add up their scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of one forward: their positions, what they see, and where they are written; the same for all layers of a
    window.
    """

    rotary: tuple[Tensor, ...]
    """[2, W, 1, D] of each rotary table: cosines, and sines with the sign that a swap of halves needs; with a mask
    [2, P, D], of all positions."""
    bias: Tensor | None
    """[B, 1, n, t]: 0 where a row sees a row of the cache, -inf elsewhere; None: there is only a mask."""
    sequences: slice
    """The B sequences, among those in the cache."""
    seen: slice
    """The t cache rows of each sequence."""
    tree: int
    """Number of tree rows among the t; they come first, before those of the sequence."""
    written: slice | Tensor
    """Cache rows of the new keys and values: n rows of each sequence, or W among all sequences' rows."""
    own: slice | None
    """The W rows among those of the forward; None: all of them. A device adds zeros for the others to a sum."""
    query_factors: Tensor | None = None
    """[W, 1, 1]: factor of the queries of each row, with a mask [P], of each position; None: 1."""
    oldest: Tensor | None = None
    """[B] int64: the column from which on the positions of a sequence follow one another, around the columns behind the
    tree's; None: they begin there."""
    positions: Tensor | None = None
    """[W] int64: of rows of trees, where there is ``oldest``."""
    ring: int = 0
    """Rows of the cache around which positions go, where there are ``positions``."""
    mask: Mask | None = None
    """What rows see, as a GPU reads it; None: on a CPU."""

    @classmethod
    def none(cls, rotary: Sequence[Tensor], bias: Tensor | None) -> "Rows":
        """Return no rows: those of sequences on other devices. Any ``rotary`` [2, P, D] and ``bias`` [N, t] do."""
        return cls(
            rotary=tuple(table[:, :0].unsqueeze(2) for table in rotary),
            bias=None if bias is None else bias[:0].view(0, 1, 0, bias.shape[1]),
            sequences=slice(0, 0),
            seen=slice(0, 0),
            tree=0,
            written=slice(0, 0),
            own=slice(0, 0),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """RMS norm: x / sqrt(mean(x ** 2) + eps) * weight, or * (1 + weight) in float32."""

    weight: Tensor
    eps: float
    offset: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return ops.norm(x, self.weight, self.eps, offset=self.offset)

    def into(self, out: Tensor, x: Tensor) -> None:
        """Fill ``out`` [W, H], whose rows may be apart, with the norm of ``x`` on a GPU."""
        ops.norm_into(out, x, self.weight, self.eps, offset=self.offset)

    @property
    def parameters(self) -> ops.RowNorm:
        """Weight, eps and offset."""
        return self.weight, self.eps, self.offset


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The output of attention or MLP on its way to the residual, where more is done than to add it."""

    norm: Norm | None
    multiplier: float | None

    def __call__(self, out: Tensor, residual: Tensor, following: Norm | None = None) -> tuple[Tensor, Tensor | None]:
        """Return residual + norm(out) * multiplier [W, H], and on a GPU the norm ``following`` of it; both arguments
        may be overwritten.
        """
        if not ops.is_cpu(out):
            norms = [None if norm is None else norm.parameters for norm in (self.norm, following)]
            return residual, ops.add_in_place(residual, out, norms[0], self.multiplier, norms[1])
        if self.norm is not None:
            norm = self.norm
            return ops.normed_onto(
                residual, out, norm.weight, norm.eps, offset=norm.offset, multiplier=self.multiplier
            ), None
        if self.multiplier is not None:
            out.mul_(self.multiplier)
        return out.add_(residual), None


ADDED = Output(norm=None, multiplier=None)
"""An output that is added as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A linear layer x @ weight + bias; the weight [in, out] is the transpose of its slot, in codes, or several."""

    weight: Tensor | Coded | Beside
    bias: Tensor | None

    @property
    def values(self) -> Tensor:
        """The weight of a layer that is not in codes."""
        assert isinstance(self.weight, Tensor)
        return self.weight

    def __call__(self, x: Tensor) -> Tensor:
        return product(x, self.weight, None if self.bias is None else self.bias.unsqueeze(0))

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        """Return act(gate) * up [W, m] of outputs that are gates, then ups; with a bias and codes on a GPU, too."""
        if isinstance(self.weight, Coded) and not ops.is_cpu(x):
            products, bias = ops.on_gpu("products"), None if self.bias is None else self.bias.unsqueeze(0)
            out: Tensor = products.product(x, self.weight, bias, products.Gate(activation=activation))
            return out
        return ops.gated(self(x), activation)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual + x @ weight + bias; the residual may be overwritten."""
        out = product_onto(residual, x, self.weight)
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Grouped-query attention over a static cache, for a share of the KV heads; the group sums the shares."""

    qkv: Linear
    o: Linear
    query_heads: int
    kv_heads: int
    head_dim: int
    group: Group
    attend: Attend
    q_norm: Norm | None
    """Norm of each query head [D] before it is rotated."""
    k_norm: Norm | None
    """Norm of each key [D] before it is rotated."""
    table: int = 0
    """Number of the rotary table."""
    scores: Scores = PLAIN
    normed_heads: tuple[int, int] | None = None
    """Query heads and KV heads of all devices, where they are normed together, h * D weights and k * D here."""

    def __call__(self, x: Tensor, residual: Tensor | None, cache: Tensor, rows: Rows) -> Tensor:
        """Return residual + attention [W, H], of ``x`` [W, H] (2H in eagle3) and ``cache`` [B, T, 2k, D].

        ``residual`` None: 0, with ``x`` [W, H]. Where this device has only some of the sequences, both have the rows of
        all of them.
        """
        if rows.own is None:
            return reduced(self.o, self._attended(x, cache, rows), residual, self.group)
        out = own_part(residual, x, self.group)
        if rows.own.stop > rows.own.start:
            mine = out[rows.own]
            mine.copy_(self.o.onto(mine, self._attended(x[rows.own], cache, rows)))
        if self.group.leads and self.o.bias is not None:
            _bias_elsewhere(out, rows.own, self.o.bias)
        self.group.all_reduce(out)
        return out

    def _attended(self, x: Tensor, cache: Tensor, rows: Rows) -> Tensor:
        """Return the attention before o [W, columns of o], of ``x`` [W, H]."""
        h, k = self.query_heads, self.kv_heads
        qkv = self.qkv(x).view(x.shape[0], h + 2 * k, self.head_dim)  # [W, h + 2k, D]
        in_kernel = rows.mask is not None and self.group.handle is None  # with the rotation
        if self.normed_heads is not None and not in_kernel:
            self._norm_together(qkv)
        first, rotary = rows.sequences.start, rows.rotary[self.table]
        if rows.mask is not None:
            ops.rotate_and_store(
                qkv, h, cache, rotary, rows.mask, rows.written, first, self._head_norms(), rows.query_factors
            )
            if self.attend.by_mask is not None:
                return self.attend.by_mask(qkv, h, cache, first, rows.mask, self.scores)
        else:
            self._norm_and_scale(qkv, rows)
            if self.attend is WHOLE and ops.attends(qkv, cache):
                assert rows.bias is not None
                return ops.attend(
                    qkv, h, cache, rotary, rows.bias, rows.seen.start, rows.tree, rows.written, first, rows.oldest,
                    self.scores.factors, self.scores.sinks, rows.positions, rows.ring,
                )  # fmt: skip
            rotate(qkv[:, : h + k], rotary)
            store(cache, qkv[:, h:], rows)
        assert rows.bias is not None
        seen = cache[rows.sequences, rows.seen].transpose(1, 2)  # [B, 2k, t, D]
        sequences, _, n, _ = rows.bias.shape
        q = qkv[:, :h].view(sequences, n, h, self.head_dim).transpose(1, 2)  # [B, h, n, D]
        return self.attend.by_bias(q, seen[:, :k], seen[:, k:], rows.bias, self.scores)

    def _head_norms(self) -> tuple[Tensor, Tensor, float, bool] | None:
        """Return weights, eps and offset of the norms of heads; None: there are none, or devices have added them up."""
        divided = self.normed_heads is not None and self.group.handle is not None
        if divided or self.q_norm is None or self.k_norm is None:
            return None
        return self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, self.q_norm.offset

    def _norm_and_scale(self, qkv: Tensor, rows: Rows) -> None:
        """Norm queries and keys head by head, and multiply queries with their factors, in place."""
        h, k = self.query_heads, self.kv_heads
        if self.normed_heads is None and self.q_norm is not None and self.k_norm is not None:
            for norm, heads in ((self.q_norm, qkv[:, :h]), (self.k_norm, qkv[:, h : h + k])):
                heads.copy_(norm(heads.flatten(0, 1)).view(heads.shape))
        if rows.query_factors is not None:
            qkv[:, :h].mul_(rows.query_factors)

    def _norm_together(self, qkv: Tensor) -> None:
        """Norm all query heads together, and all key heads, in place; devices add up the squares of theirs."""
        assert self.q_norm is not None
        assert self.k_norm is not None
        assert self.normed_heads is not None
        h, k = self.query_heads, self.kv_heads
        pairs = (self.q_norm, qkv[:, :h].flatten(1)), (self.k_norm, qkv[:, h : h + k].flatten(1))  # views [W, h * D]
        if self.group.handle is None:
            for norm, heads in pairs:
                heads.copy_(norm(heads))
            return
        sums = torch.stack([heads.float().square().sum(1) for _, heads in pairs], 1)  # [W, 2]
        self.group.all_reduce(sums)
        for number, (norm, heads) in enumerate(pairs):
            mean = sums[:, number : number + 1] / (self.normed_heads[number] * self.head_dim)
            heads.copy_(heads.float().mul_((mean + norm.eps).rsqrt_()).mul_(norm.weight.float()))


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMlp:
    """A gated MLP, down(act(gate(x)) * up(x)); a device without channels only takes part in the sum."""

    gate_up: Linear | None
    down: Linear | None
    group: Group
    down_bias: Tensor | None
    """Bias of a leader that has no channels and hence no ``down``; None elsewhere."""
    activation: Activation = "silu"

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return residual + MLP [W, H], of ``x`` [W, H]; ``residual`` None: 0."""
        if self.gate_up is None or self.down is None:
            mine = own_part(residual, x, self.group)
            if self.down_bias is not None:
                mine.add_(self.down_bias)
            self.group.all_reduce(mine)
            return mine
        return reduced(self.down, self.gate_up.gated(x, self.activation), residual, self.group)

    def own(self, x: Tensor) -> Tensor:
        """Return what this device's channels add to the MLP [W, H]."""
        assert self.gate_up is not None
        assert self.down is not None
        return self.down(self.gate_up.gated(x, self.activation))


def rotate(x: Tensor, rotary: Tensor) -> None:
    """Apply the half-split rotary embedding to ``x`` [W, heads, D] in place: x * cos + swap(x) * (-sin, sin)."""
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    x.mul_(rotary[0]).addcmul_(swapped, rotary[1])


def rotary_table(inv_freq: Tensor, positions: int, dtype: torch.dtype) -> Tensor:
    """Return [2, P, D]: cosines and signed sines of positions 0 … P - 1.

    ``inv_freq``: frequencies [D/2] in float32, or [2, D/2] with the factors of cosines and sines.
    """
    frequencies = inv_freq if inv_freq.dim() == 1 else inv_freq[0]
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=inv_freq.device), frequencies)  # [P, D/2]
    cos, sin = angles.cos(), angles.sin()
    if inv_freq.dim() == 2:
        cos, sin = cos * inv_freq[1], sin * inv_freq[1]
    return torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)]).to(dtype)


def rotary_tables(slots: Sequence[Tensor], buffer: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Fill ``buffer`` [2 * tables, P, D] with the tables of these slots; return its views [2, P, D]."""
    views = tuple(buffer.unflatten(0, (len(slots), 2)).unbind())
    for view, slot in zip(views, slots, strict=True):
        view.copy_(rotary_table(slot, buffer.shape[1], dtype))
    return views


def rotary_at(tables: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, ...]:
    """Return [2, W, 1, D] of each table: its entries at positions [W]; those of padding may lie behind its end."""
    return tuple(table.index_select(1, positions.clamp(max=table.shape[1] - 1)).unsqueeze(2) for table in tables)


def query_factors(scaling: QueryScaling, positions: int) -> Tensor:
    """Return the factors of queries [P] of positions 0 … P - 1, in float32."""
    steps = torch.arange(positions).div(scaling.positions, rounding_mode="floor").float()
    return 1 + scaling.beta * torch.log(1 + steps)


def store(cache: Tensor, kv: Tensor, rows: Rows) -> None:
    """Write keys and values ``kv`` [W, 2k, D] to ``rows.written`` of ``cache`` [B, T, 2k, D].

    Values beyond the range of the cache's dtype are clamped to it; those of 8 bits have codes (``kv_codes``).
    """
    if cache.dtype in MOST_CODE:
        kv = encoded(kv, cache.dtype)
    elif cache.dtype != kv.dtype:
        most = torch.finfo(cache.dtype).max
        kv = (kv.clamp(-most, most) if most < torch.finfo(kv.dtype).max else kv).to(cache.dtype)
    if isinstance(rows.written, slice):
        target = cache[rows.sequences, rows.written]  # [B, n, 2k, D]
        target.copy_(kv.view(target.shape))
    else:
        as_movable(cache).flatten(0, 1).index_copy_(0, rows.written, as_movable(kv))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Scores = PLAIN) -> Tensor:
    """Attend with whole heads to all positions; arguments and result as in ``ByBias``."""
    if scores.softcap is not None:
        out = _capped(q, k, v, bias, scores)
    elif k.dtype == q.dtype:
        weights = None if scores.sinks is None else q.new_empty(q.shape[:3], dtype=torch.float32)
        out = ops.fused(q, k, v, bias, weights, scores.scale)
        if weights is not None:
            out = out.mul_(scores.beside_sinks(weights).transpose(1, 2).unsqueeze(-1))
    else:
        out = converted(q, k, v, bias, scores)
    return out.flatten(0, 1).flatten(1)


def attend_by_mask(
    qkv: Tensor, query_heads: int, cache: Tensor, first: int, mask: Mask, scores: Scores = PLAIN
) -> Tensor:
    """Attend with whole heads to all positions on a GPU; arguments and result as in ``ByMask``."""
    scale = qkv.shape[2] ** -0.5 if scores.scale is None else scores.scale
    return ops.attend_by_mask(qkv, query_heads, cache, first, mask, scale, scores.softcap, scores.sinks)


WHOLE = Attend(by_bias=attend, by_mask=attend_by_mask)
"""Attention of a device that has whole heads and all positions of its sequences."""


def _capped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Scores) -> Tensor:
    """Attend with capped scores, which no fused kernel has: [B, n, h, D]."""
    batch, heads, n, _ = q.shape
    buffer = q.new_empty(batch * heads * n * min(k.shape[2], SCORE_COLUMNS), dtype=torch.float32)
    out, weight = streamed(q, k, v, bias, scores, buffer, None)
    if scores.sinks is not None:
        out.mul_(scores.beside_sinks(weight).unsqueeze(-1))
    return out.transpose(1, 2).to(q.dtype)


def converted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Scores = PLAIN) -> Tensor:
    """Attend to a cache of another dtype, CONVERTED_ROWS of its rows at a time: [B, n, h, D].

    Each block of rows is converted and attended to alone. With its output o and the log-sum-exp s of its scores, -inf
    where a row sees nothing of it, the result is the sum of o * exp(s) over blocks, divided by the sum of exp(s).
    """
    batch, heads, n, dims = q.shape
    blocks = converted_blocks(k.shape[2])
    if len(blocks) == 1 and scores.sinks is None:
        return ops.fused(q, k.to(q.dtype), v.to(q.dtype), bias, None, scores.scale)
    out = torch.zeros((batch, n, heads, dims), dtype=torch.float32, device=q.device)
    total = torch.full((batch, heads, n), float("-inf"), dtype=torch.float32, device=q.device)
    rows = min(k.shape[2], CONVERTED_ROWS)
    key_block, value_block = q.new_empty((2, batch, k.shape[1], rows, dims))
    for block in blocks:
        rows = block.stop - block.start
        keys, values = key_block[:, :, :rows].copy_(k[:, :, block]), value_block[:, :, :rows].copy_(v[:, :, block])
        mask, weights = bias[..., block], torch.empty_like(total)
        part = ops.fused(q, keys, values, mask, weights, scores.scale)
        weights.masked_fill_(mask.amax(-1) == float("-inf"), float("-inf"))
        merged = torch.logaddexp(total, weights)
        base = merged.clamp(min=torch.finfo(torch.float32).min)  # a row that sees nothing is not inf - inf
        kept, added = ((x - base).exp_().transpose(1, 2).unsqueeze(-1) for x in (total, weights))  # [B, n, h, 1]
        out.mul_(kept).add_(part * added)
        total = merged
    if scores.sinks is not None:
        out.mul_(scores.beside_sinks(total).transpose(1, 2).unsqueeze(-1))
    return out.to(q.dtype)


def own_part(residual: Tensor | None, like: Tensor, group: Group) -> Tensor:
    """Return what a device brings to a sum onto the residual before its share: the leader a copy of it, others 0."""
    if residual is None:
        return torch.zeros_like(like)
    return residual.clone() if group.leads else torch.zeros_like(residual)


def reduced(linear: Linear, x: Tensor, residual: Tensor | None, group: Group) -> Tensor:
    """Return residual + linear(x), summed over the group; only the leader adds the residual, and has the bias."""
    out = linear.onto(residual, x) if group.leads and residual is not None else linear(x)
    group.all_reduce(out)
    return out


def _bias_elsewhere(out: Tensor, own: slice, bias: Tensor) -> None:
    """Add the bias to the rows of other members, which do not have it."""
    out[: own.start].add_(bias)
    out[own.stop :].add_(bias)


def hide(bias: Tensor, visible: Tensor) -> None:
    """Fill ``bias`` with 0 where ``visible`` (broadcast to it) and -inf elsewhere."""
    bias.zero_().masked_fill_(visible.logical_not(), float("-inf"))
