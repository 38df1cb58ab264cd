"""Fixed times of a CPU beside its layers, which follow from the overhead of a layer where they are not given."""

from plans.schema import Device, Together

CPU_PASS_BLOCKS = 3
"""Fixed work of a drafter's pass on a CPU besides its layers, in blocks, where it was not measured."""


def pass_ns(rates: Device | Together) -> int:
    """Return the fixed time of a drafter's pass besides its layers."""
    return CPU_PASS_BLOCKS * rates.overhead_ns if rates.pass_ns is None else rates.pass_ns


def table_ns(rates: Device | Together) -> int:
    """Return the fixed time of the embedding, and of the lm_head."""
    return rates.overhead_ns if rates.table_ns is None else rates.table_ns


def fixed_times(rates: Device | Together) -> tuple[tuple[str, int | None, int], ...]:
    """Return the name of each fixed time, of a layer, a pass and a table, its field and the time that counts."""
    return (
        ("overhead", rates.overhead_ns, rates.overhead_ns),
        ("pass", rates.pass_ns, pass_ns(rates)),
        ("table", rates.table_ns, table_ns(rates)),
    )
