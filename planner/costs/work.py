"""Work of one pass in one layer or table: bytes that are read, operations, and messages within a group.

Letters: R rows of a pass (tree nodes of all sequences), T rows of a KV cache, H hidden size, D head dim, k KV heads of
a share, h their query heads, m members of a subgroup, w = h * D.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from planner.costs.coded import gate_up_order_bytes, order_bytes, read_bytes, rows_bytes
from planner.costs.roofline import SCORE_DIM_FLOPS, Tier, all_gather_ns, all_reduce_ns, share_ps, touched_bytes
from planner.integers import PS_PER_NS, ceil_div
from plans.kv import KvShare, part_range, query_heads
from plans.quantized import held_columns, share_format
from plans.schema import Attention, Device, Mlp, WeightFormat
from plans.step import (
    merges_itself,
    partial_shape,
    score_blocks,
    scores_shape,
)

FLOAT32_BYTES = 4
"""Partial results of attention are added up in float32."""


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
    queries, keys_or_values = wide, share.heads * attention.head_dim
    rows, keys = sizes.rows, sizes.kv_rows
    if share.axis == "context":
        keys = ceil_div(keys, share.parts)
        start, stop = part_range(wide, share)
        out = stop - start
    elif share.axis == "head_dim":
        queries, keys_or_values = queries // share.parts, keys_or_values // share.parts
        wide //= share.parts
        out = wide
    elif share.axis == "batch":
        rows = sizes.rows // sizes.batch * ceil_div(sizes.batch, share.parts)
        out = wide
    else:
        out = wide
    whole, of_o = attention.num_heads * attention.head_dim, attention.o_format
    form, out = of_o and share_format(of_o, out, whole), held_columns(of_o, out, whole)
    parameters = (queries + 2 * keys_or_values) * sizes.inputs + out * sizes.hidden
    forms, sizes_of = attention.formats, {"q": queries, "k": keys_or_values, "v": keys_or_values}
    weights = rows_bytes([(forms[name], rows_of) for name, rows_of in sizes_of.items()], sizes.inputs, sizes.width)
    weights += read_bytes(form, sizes.hidden, out, sizes.width)
    split = ("q",) if attention.qkv_formats is None else ("q", "k", "v")
    weights += sum(order_bytes(forms[name], sizes.inputs) for name in split) + order_bytes(form, out)
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
    gate_up = rows_bytes([(mlp.formats[name], channels) for name in ("gate", "up")], hidden, width)
    return gate_up + read_bytes(mlp.down_format, hidden, channels, width) if channels else 0


def router_work(mlp: Mlp, hidden: int, width: int, rows: int) -> Work:
    """Return the work of a layer's router and of the shared expert's gate, which each device computes whole, and of the
    order of columns of gate and up.
    """
    ordered = gate_up_order_bytes(mlp, hidden)
    if mlp.kind != "moe":
        return Work(traffic_bytes=ordered, flops=0)
    ordered = touched_bytes(ordered, mlp.num_experts, mlp.experts_per_token, rows) + bool(mlp.shared_size) * ordered
    gate, product = bool(mlp.shared_gate) * hidden, mlp.num_experts * hidden
    wide = FLOAT32_BYTES if mlp.router is not None and mlp.router.float32 else width
    return Work(traffic_bytes=gate * width + product * wide + ordered, flops=2 * rows * (gate + product))


def rows_work(form: WeightFormat | None, hidden: int, width: int, table_rows: int, rows: int) -> Work:
    """Return the work of logits of so many rows of a vocabulary table."""
    return Work(traffic_bytes=read_bytes(form, table_rows, hidden, width), flops=2 * rows * hidden * table_rows)
