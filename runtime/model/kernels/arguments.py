"""Arguments of the kernels: one table of names for each kernel, which ``ops`` fills in and the kernel unpacks.

An argument is an int64: an address, a stride in bytes, or a count. A matrix is an address and the stride of its rows.
"""

from typing import NamedTuple

EPSILON_UNIT = 2.0**-60
"""Unit of a norm's epsilon, which a kernel takes as a whole number."""
ITEMS = 4
"""Items, query heads of rows, that attend to a KV head together; a thread has scratch for so many."""


class Product(NamedTuple):
    """out [rows, outputs] = x [rows, inputs] @ weight [outputs, inputs].T + added."""

    x: int
    x_stride: int
    weight: int
    weight_stride: int
    added: int
    """[rows, outputs], or [1, outputs] with stride 0; address 0: nothing is added."""
    added_stride: int
    out: int
    out_stride: int
    rows: int
    inputs: int
    outputs: int
    widened: int
    """Scratch for x as float32 [rows, inputs], one for the team or one per thread; address 0: x is float32."""
    widened_stride: int
    widened_per_thread: int
    """1: each thread has its own scratch and waits for no other."""


class GroupedProduct(NamedTuple):
    """out [rows, outputs]: row r = row row_index[r] of x @ weights [groups, outputs, inputs] [group of r].T."""

    x: int
    x_stride: int
    row_index: int
    """int64 [rows]; address 0: row r of out is computed from row r of x."""
    weights: int
    group_stride: int
    weight_stride: int
    """Stride of the rows of one group's weight."""
    ends: int
    """int64 [groups]: the rows of group g are ends[g - 1] … ends[g] - 1."""
    out: int
    out_stride: int
    rows: int
    groups: int
    inputs: int
    outputs: int
    widened: int
    """Scratch for the rows of x in the order of ``row_index``, as float32 [rows, inputs]; 0: x is read where it is."""
    widened_stride: int


class Norm(NamedTuple):
    """out [rows, inputs] = x / sqrt(mean(x ** 2) + epsilon) * weight [inputs]."""

    x: int
    x_stride: int
    weight: int
    epsilon: int
    """In multiples of EPSILON_UNIT."""
    out: int
    out_stride: int
    rows: int
    inputs: int


class Gated(NamedTuple):
    """out [rows, channels] = silu(gate) * up; a row of x is [gates, ups], 2 * channels."""

    x: int
    x_stride: int
    out: int
    out_stride: int
    rows: int
    channels: int


class Top(NamedTuple):
    """The ``top_k`` highest of each row of logits [rows, columns], best first."""

    logits: int
    logits_stride: int
    best: int
    """int64 [rows, top_k]: columns of the highest logits."""
    scores: int
    """float32 [rows, top_k]: their log-softmax."""
    rows: int
    columns: int
    top_k: int


class Attend(NamedTuple):
    """Attention of B sequences, n rows each: W = B * n rows. h query heads, k KV heads of D dims, t cache rows.

    A cache row is [2k, D]: the keys of its k KV heads, then their values.
    """

    qkv: int
    """[W, h + 2k, D]: queries, keys, values; queries and keys are rotated in place."""
    cosines: int
    """[W, D]"""
    sines_offset: int
    """Bytes from cosines to sines [W, D]."""
    rows: int
    """W"""
    rows_per_sequence: int
    """n"""
    query_heads: int
    kv_heads: int
    head_dim: int
    seen: int
    """The first of the t cache rows that are attended to, of the first sequence."""
    sequence_stride: int
    row_stride: int
    """Stride of cache rows."""
    all_rows: int
    """Cache row 0 of the first sequence in the cache, from which ``written_index`` counts."""
    written_index: int
    """int64 [W]: the cache row that each row is written to, among those of all sequences; 0: see ``written``."""
    written: int
    """The cache row that the first row is written to; the n rows of a sequence lie one behind the other."""
    columns: int
    """t"""
    tree_columns: int
    """Number of tree rows; they are the first of the t cache rows."""
    bias: int
    """[B, n, t], added to the scores."""
    bias_sequence_stride: int
    bias_row_stride: int
    out: int
    """[W, h, D], contiguous."""
    scratch: int
    """float32 [threads, ITEMS, 2 * D + t]."""
