"""Rows and columns of the tensors that a share consists of."""

from dataclasses import dataclass

from plans.kv import KvShare, part_range
from plans.schema import Attention

Range = tuple[int, int]
"""Start and stop."""
Ranges = tuple[Range, ...]
"""Disjoint and ascending; the selected rows or columns are stored side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRanges:
    """Rows of q, k and v, and columns of o, of a share of the KV heads; and its query heads."""

    heads: Ranges
    q: Ranges
    k: Ranges
    v: Ranges
    o: Ranges


def length(ranges: Ranges) -> int:
    """Return how many rows or columns the ranges select."""
    return sum(stop - start for start, stop in ranges)


def common(a: Ranges, b: Ranges) -> int:
    """Return how many rows or columns both select."""
    return sum(max(0, min(a1, b1) - max(a0, b0)) for a0, a1 in a for b0, b1 in b)


def scaled(span: Range, factor: int) -> Range:
    """Return a range of units as a range of rows, ``factor`` per unit."""
    return span[0] * factor, span[1] * factor


def share_range(shares: tuple[int, ...], member: int) -> Range:
    """Return the contiguous range of one member; the shares of the members before it come first."""
    start = sum(shares[:member])
    return start, start + shares[member]


def attention_ranges(attention: Attention, first: int, share: KvShare) -> AttentionRanges:
    """Return rows of q, k and v, and columns of o, of a share of the KV heads from ``first`` and their query heads."""
    dim = attention.head_dim
    kv = first, first + share.heads
    queries = _query_heads(attention, kv, share)
    rotated, values = _rotary_dims(share, dim), _value_dims(share, dim)
    columns = _of_heads(queries, dim, values)
    if share.axis == "context":
        columns = (_slice(columns[0], share),)
    return AttentionRanges(
        heads=queries,
        q=_of_heads(queries, dim, rotated),
        k=_of_heads((kv,), dim, rotated),
        v=_of_heads((kv,), dim, values),
        o=columns,
    )


def _query_heads(attention: Attention, kv: Range, share: KvShare) -> Ranges:
    """Return the query heads of KV heads; where a subgroup repeats these, the member's part of those of each."""
    group = attention.num_heads // attention.num_kv_heads
    if share.axis != "heads" or share.parts == 1:
        return (scaled(kv, group),)
    return tuple(_slice(scaled((head, head + 1), group), share) for head in range(*kv))


def _rotary_dims(share: KvShare, dim: int) -> Ranges:
    """Return the dims of a query or key head on a device; the rotary pair j and j + D/2 stays together."""
    if share.axis != "head_dim" or share.parts == 1:
        return ((0, dim),)
    start, stop = _slice((0, dim // 2), share)
    return (start, stop), (start + dim // 2, stop + dim // 2)


def _value_dims(share: KvShare, dim: int) -> Ranges:
    return (_slice((0, dim), share),) if share.axis == "head_dim" else ((0, dim),)


def _slice(span: Range, share: KvShare) -> Range:
    """Return a member's part of a range that its subgroup divides."""
    start, stop = part_range(span[1] - span[0], share)
    return span[0] + start, span[0] + stop


def _of_heads(heads: Ranges, dim: int, dims: Ranges) -> Ranges:
    """Return rows or columns of a projection with these dims of each head; whole heads are one range."""
    if dims == ((0, dim),):
        return tuple(scaled(span, dim) for span in heads)
    numbers = (number for span in heads for number in range(*span))
    return tuple((number * dim + start, number * dim + stop) for number in numbers for start, stop in dims)
