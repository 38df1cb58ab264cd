"""Which rows and columns of a tensor a share is: what layout cuts out, and what differences count."""

from dataclasses import dataclass

from plans.kv import KvShare
from plans.schema import Attention

Range = tuple[int, int]
"""Start and stop."""
Ranges = tuple[Range, ...]
"""Disjoint and ascending: what they select lies side by side, without what is between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRanges:
    """Rows of q, k and v, and columns of o, of a share of the KV heads."""

    q: Ranges
    k: Ranges
    v: Ranges
    o: Ranges


def length(ranges: Ranges) -> int:
    """How much the ranges select."""
    return sum(stop - start for start, stop in ranges)


def common(a: Ranges, b: Ranges) -> int:
    """How much both select."""
    return sum(max(0, min(a1, b1) - max(a0, b0)) for a0, a1 in a for b0, b1 in b)


def scaled(span: Range, factor: int) -> Range:
    """A range counted in pieces, in what each piece has ``factor`` of."""
    return span[0] * factor, span[1] * factor


def share_range(shares: tuple[int, ...], member: int) -> Range:
    """The contiguous range of one member: what the members before it have comes first."""
    start = sum(shares[:member])
    return start, start + shares[member]


def attention_ranges(attention: Attention, first: int, share: KvShare) -> AttentionRanges:
    """What a device has of the projections: of KV heads from ``first``, each with its query heads."""
    dim = attention.head_dim
    kv = first, first + share.heads
    queries = _query_heads(attention, kv, share)
    rotated, values = _rotary_dims(share, dim), _value_dims(share, dim)
    columns = _of_heads(queries, dim, values)
    if share.axis == "context":
        columns = (_slice(columns[0], share),)
    return AttentionRanges(
        q=_of_heads(queries, dim, rotated), k=_of_heads((kv,), dim, rotated), v=_of_heads((kv,), dim, values), o=columns
    )


def _query_heads(attention: Attention, kv: Range, share: KvShare) -> Ranges:
    """Those of the KV heads; where a subgroup repeats these, a part of those of each."""
    each = attention.num_heads // attention.num_kv_heads
    if share.axis != "heads" or share.parts == 1:
        return (scaled(kv, each),)
    return tuple(_slice(scaled((head, head + 1), each), share) for head in range(*kv))


def _rotary_dims(share: KvShare, dim: int) -> Ranges:
    """Dims of a query or key head that a device has: pairs j and j + D/2 stay together."""
    if share.axis != "head_dim" or share.parts == 1:
        return ((0, dim),)
    start, stop = _slice((0, dim // 2), share)
    return (start, stop), (start + dim // 2, stop + dim // 2)


def _value_dims(share: KvShare, dim: int) -> Ranges:
    return (_slice((0, dim), share),) if share.axis == "head_dim" else ((0, dim),)


def _slice(span: Range, share: KvShare) -> Range:
    """The part of a device of a range that its subgroup divides."""
    start, total = span[0], span[1] - span[0]
    return start + share.part * total // share.parts, start + (share.part + 1) * total // share.parts


def _of_heads(heads: Ranges, dim: int, dims: Ranges) -> Ranges:
    """Those dims of each head, in rows or columns of a projection; whole heads lie side by side."""
    if dims == ((0, dim),):
        return tuple(scaled(span, dim) for span in heads)
    every = (head for span in heads for head in range(*span))
    return tuple((head * dim + start, head * dim + stop) for head in every for start, stop in dims)
