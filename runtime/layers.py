"""The arithmetic of one transformer layer on one device's share.

W rows of this forward, t rows of the KV cache it looks at, H hidden size, D head dim, k KV heads of this device, h its
query heads, m its MLP channels. Weights are bound transposed, as views of the image; nothing is copied.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from runtime.comm import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What the layers of one forward share."""

    rotary: Tensor
    """[2, W, 1, D]: cosines, and sines with the sign that a swap of halves needs."""
    bias: Tensor
    """[W, t]: 0 where a row sees a row of the cache, -inf elsewhere."""
    seen: slice
    """The t rows of the cache."""
    written: slice | Tensor
    """The W rows of the cache that keys and values go to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """Root mean square norm."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """x @ weight.T + bias, with the weight already transposed: [in, out]."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to ``residual``."""
        out = torch.addmm(residual, x, self.weight)
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
    q_norm: Norm | None
    """[D], of each head of q before it is rotated."""
    k_norm: Norm | None

    def __call__(self, x: Tensor, residual: Tensor, cache: Tensor, rows: Rows) -> Tensor:
        """``x`` [W, H] (2H in eagle3), ``cache`` [T, 2k, D] -> residual + attention [W, H]."""
        h, k = self.heads, self.kv_heads
        qkv = self.qkv(x).view(x.shape[0], h + 2 * k, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            qkv[:, :h].copy_(self.q_norm(qkv[:, :h]))
            qkv[:, h : h + k].copy_(self.k_norm(qkv[:, h : h + k]))
        rotate(qkv[:, : h + k], rows.rotary)
        if isinstance(rows.written, slice):
            cache[rows.written].copy_(qkv[:, h:])
        else:
            cache.index_copy_(0, rows.written, qkv[:, h:])
        seen = cache[rows.seen].transpose(0, 1).unsqueeze(0)  # [1, 2k, t, D]
        attended = attend(qkv[:, :h].transpose(0, 1).unsqueeze(0), seen[:, :k], seen[:, k:], rows.bias)
        return reduced(self.o, attended, residual, self.group)


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
        gate, up = self.gate_up(x).chunk(2, dim=1)
        return reduced(self.down, functional.silu(gate).mul_(up), residual, self.group)


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


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """``q`` [1, h, W, D], ``k`` and ``v`` [1, k, t, D], ``bias`` [W, t] -> [W, h * D]."""
    grouped = q.shape[1] != k.shape[1]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None], enable_gqa=grouped)
    return out.squeeze(0).transpose(0, 1).reshape(q.shape[2], -1)


def reduced(linear: Linear, x: Tensor, residual: Tensor, group: Group) -> Tensor:
    """residual + linear(x), summed over the group; only the leader brings the residual, as it does the bias."""
    out = linear.onto(residual, x) if group.leads else linear(x)
    group.all_reduce(out)
    return out


def hide(bias: Tensor, visible: Tensor) -> None:
    """Fill ``bias`` with 0 where ``visible`` (broadcast to it) and -inf elsewhere."""
    bias.zero_().masked_fill_(visible.logical_not(), float("-inf"))
