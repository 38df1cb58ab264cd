"""The arithmetic of one transformer layer on one device's share.

B sequences of this device, n rows of each in this forward, W = B * n, t rows of the KV cache it looks at, H hidden
size, D head dim (of a share along ``head_dim`` its dims), k KV heads of this device, h its query heads, m its MLP
channels, E experts, e of them for a row. Weights are bound transposed, as views of the image; nothing is copied.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from runtime.comm.groups import Group
from runtime.model import ops
from runtime.model.kvcache import moved

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""q [B, h, n, D], k and v [B, k, t, D], bias [B, 1, n, t] -> [W, the columns that o has]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What the layers of one forward share."""

    rotary: Tensor
    """[2, W, 1, D]: cosines, and sines with the sign that a swap of halves needs."""
    bias: Tensor
    """[B, 1, n, t]: 0 where a row sees a row of the cache, -inf elsewhere."""
    sequences: slice
    """The B sequences, of those in the cache."""
    seen: slice
    """The t rows of each sequence."""
    tree: int
    """How many of them are a tree's: the first, of what comes behind all others."""
    written: slice | Tensor
    """The rows that keys and values go to: n of each sequence, or W of all sequences' rows."""
    here: slice | None
    """The W rows among those of the forward; None: they are all of them. Others' rows are zeros in the sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """Root mean square norm."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return ops.norm(x, self.weight, self.eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """x @ weight.T + bias, with the weight already transposed: [in, out]."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return ops.product(x, self.weight, None if self.bias is None else self.bias.unsqueeze(0))

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to ``residual``."""
        out = ops.product(x, self.weight, residual)
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Grouped-query attention over a static cache; the group's sum makes it whole."""

    qkv: Linear
    o: Linear
    heads: int
    kv_heads: int
    head_dim: int
    group: Group
    attend: Attend
    q_norm: Norm | None
    """[D], of each head of q before it is rotated."""
    k_norm: Norm | None

    def __call__(self, x: Tensor, residual: Tensor, cache: Tensor, rows: Rows) -> Tensor:
        """``x`` [rows, H] (2H in eagle3), ``cache`` [B, T, 2k, D] -> residual + attention [rows, H]."""
        if rows.here is None:
            return reduced(self.o, self._attended(x, cache, rows), residual, self.group)
        out = residual.clone() if self.group.leads else torch.zeros_like(residual)
        if rows.here.stop > rows.here.start:
            mine = out[rows.here]
            mine.copy_(self.o.onto(mine, self._attended(x[rows.here], cache, rows)))
        if self.group.leads and self.o.bias is not None:
            _bias_elsewhere(out, rows.here, self.o.bias)
        self.group.all_reduce(out)
        return out

    def _attended(self, x: Tensor, cache: Tensor, rows: Rows) -> Tensor:
        """``x`` [W, H] -> [W, the columns that o has]."""
        h, k = self.heads, self.kv_heads
        qkv = self.qkv(x).view(x.shape[0], h + 2 * k, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            for norm, some in ((self.q_norm, qkv[:, :h]), (self.k_norm, qkv[:, h : h + k])):
                some.copy_(norm(some.flatten(0, 1)).view(some.shape))
        if self.attend is attend and ops.attends(qkv, cache):
            first = rows.sequences.start
            return ops.attend(qkv, h, cache, rows.rotary, rows.bias, rows.seen.start, rows.tree, rows.written, first)
        rotate(qkv[:, : h + k], rows.rotary)
        store(cache, qkv[:, h:], rows)
        seen = cache[rows.sequences, rows.seen].to(x.dtype).transpose(1, 2)  # [B, 2k, t, D]
        sequences, _, n, _ = rows.bias.shape
        q = qkv[:, :h].view(sequences, n, h, self.head_dim).transpose(1, 2)
        return self.attend(q, seen[:, :k], seen[:, k:], rows.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMlp:
    """down(silu(gate(x)) * up(x)); a device without channels only joins the sum."""

    gate_up: Linear | None
    down: Linear | None
    group: Group
    down_bias: Tensor | None
    """Of a leader without channels: the bias is there, the weights are not."""

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """``x`` [W, H] -> residual + MLP [W, H]."""
        if self.gate_up is None or self.down is None:
            mine = residual.clone() if self.group.leads else torch.zeros_like(residual)
            if self.down_bias is not None:
                mine.add_(self.down_bias)
            self.group.all_reduce(mine)
            return mine
        return reduced(self.down, ops.gated(self.gate_up(x)), residual, self.group)


def rotate(x: Tensor, rotary: Tensor) -> None:
    """Half-split rotary embedding of ``x`` [W, heads, D], in place: x * cos + swap(x) * (-sin, sin)."""
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    x.mul_(rotary[0]).addcmul_(swapped, rotary[1])


def rotary_table(inv_freq: Tensor, positions: int, dtype: torch.dtype) -> Tensor:
    """[2, P, D]: cosines and signed sines of every position, from frequencies [D/2] in float32."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=inv_freq.device), inv_freq)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)]).to(dtype)


def rotary_at(table: Tensor, positions: Tensor) -> Tensor:
    """[2, W, 1, D]: the table's entries at positions [W]; those of padding may lie behind its end."""
    return table.index_select(1, positions.clamp(max=table.shape[1] - 1)).unsqueeze(2)


def store(cache: Tensor, kv: Tensor, rows: Rows) -> None:
    """Write keys and values ``kv`` [W, 2k, D] to the rows of ``cache`` [B, T, 2k, D] that they are for.

    In a dtype of less range than theirs the largest values stand for those beyond.
    """
    if cache.dtype != kv.dtype:
        most = torch.finfo(cache.dtype).max
        kv = (kv.clamp(-most, most) if most < torch.finfo(kv.dtype).max else kv).to(cache.dtype)
    if isinstance(rows.written, slice):
        place = cache[rows.sequences, rows.written]
        place.copy_(kv.view(place.shape))
    else:
        moved(cache).flatten(0, 1).index_copy_(0, rows.written, moved(kv))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of whole heads to the whole cache; the shapes are those of ``Attend``."""
    grouped = q.shape[1] != k.shape[1]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
    return out.transpose(1, 2).reshape(q.shape[0] * q.shape[2], -1)


def reduced(linear: Linear, x: Tensor, residual: Tensor, group: Group) -> Tensor:
    """residual + linear(x), summed over the group; only the leader brings the residual, as it does the bias."""
    out = linear.onto(residual, x) if group.leads else linear(x)
    group.all_reduce(out)
    return out


def _bias_elsewhere(out: Tensor, here: slice, bias: Tensor) -> None:
    """Add the bias to the rows that are not ``here``; their members have none."""
    out[: here.start].add_(bias)
    out[here.stop :].add_(bias)


def hide(bias: Tensor, visible: Tensor) -> None:
    """Fill ``bias`` with 0 where ``visible`` (broadcast to it) and -inf elsewhere."""
    bias.zero_().masked_fill_(visible.logical_not(), float("-inf"))
