"""Fixed times of a CPU beside its layers, which follow from the overhead of a layer where they are not given."""

from plans.schema import Device, Together

ROW_VALUES = 1024
"""Values of a hidden state of which ``MeasuredRates.row_ns`` is the time."""
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


def fixed_times(rates: Device | Together) -> tuple[tuple[str, int | None, int], ...]:
    """Return the name of each fixed time, of a layer, a pass, a table, a row and a tree, its field and the time that
    counts.
    """
    row_ns = None if rates.measured is None else rates.measured.row_ns
    return (
        ("row", row_ns, row_ns or 0),
        ("tree", None if rates.measured is None else rates.measured.tree_ns, tree_ns(rates)),
        ("overhead", rates.overhead_ns, rates.overhead_ns),
        ("pass", rates.pass_ns, pass_ns(rates)),
        ("table", rates.table_ns, table_ns(rates)),
    )
