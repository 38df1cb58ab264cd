"""Fixed times of a CPU beside its layers, which follow from the overhead of a layer where they are not given."""

from collections.abc import Sequence
from itertools import pairwise

from plans.schema import Device, ScoreTime, Together

ROW_VALUES = 1024
"""Values of a hidden state of which ``MeasuredRates.row_ns`` is the time."""
SCORES = 1024
"""Scores of attention of which ``ScoreTime.ns`` is the time."""
CPU_PASS_BLOCKS = 3
"""Fixed work of a drafter's pass on a CPU besides its layers, in blocks, where it was not measured."""


def pass_ns(rates: Device | Together) -> int:
    """Return the fixed time of a drafter's pass besides its layers."""
    return CPU_PASS_BLOCKS * rates.overhead_ns if rates.pass_ns is None else rates.pass_ns


def table_ns(rates: Device | Together) -> int:
    """Return the fixed time of the embedding, and of the lm_head."""
    return rates.overhead_ns if rates.table_ns is None else rates.table_ns


def rows_ns(rates: Device | Together, values: int) -> int:
    """Return the time of the rows of a layer, of so many values of hidden states in all, besides their work."""
    return 0 if rates.measured is None else -(-rates.measured.row_ns * values // ROW_VALUES)


def tree_ns(rates: Device | Together) -> int:
    """Return what a step with a tree takes longer besides its rows."""
    return 0 if rates.measured is None else rates.measured.tree_ns


def stage_ns(rates: Device | Together) -> int:
    """Return the fixed time of a stage besides its layers."""
    return 0 if rates.measured is None else rates.measured.stage_ns or 0


def scores_ps(times: Sequence[ScoreTime], scores: int, head_dim: int) -> int:
    """Return the time of so many scores of heads with these dims, rounded up.

    Between two dims that were measured it is in proportion, with fewer than those the least, and with more it grows as
    the dims do.
    """
    first, last = times[0], times[-1]
    ns, parts = first.ns, 1
    if head_dim > last.head_dim:
        ns, parts = last.ns * head_dim, last.head_dim
    for one, other in pairwise(times):
        if one.head_dim < head_dim <= other.head_dim:
            parts = other.head_dim - one.head_dim
            ns = one.ns * (other.head_dim - head_dim) + other.ns * (head_dim - one.head_dim)
    return -(-scores * ns * 1000 // (SCORES * parts))


def fixed_times(rates: Device | Together) -> tuple[tuple[str, int | None, int], ...]:
    """Return of each fixed time, of a layer, a pass, a table, a row, a tree and a stage, its name, its field and the
    time that counts.
    """
    row_ns = None if rates.measured is None else rates.measured.row_ns
    return (
        ("row", row_ns, row_ns or 0),
        ("tree", None if rates.measured is None else rates.measured.tree_ns, tree_ns(rates)),
        ("stage", None if rates.measured is None else rates.measured.stage_ns, stage_ns(rates)),
        ("overhead", rates.overhead_ns, rates.overhead_ns),
        ("pass", rates.pass_ns, pass_ns(rates)),
        ("table", rates.table_ns, table_ns(rates)),
    )
