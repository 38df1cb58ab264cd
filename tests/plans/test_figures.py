"""Figures as text: bytes, durations and rates."""

import pytest

from plans.format import format_bandwidth, format_bytes, format_flops, format_ns, format_s


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (52_428, "52428 B"), (52_429, "0.1 MiB"), (12 << 20, "12.0 MiB"), (3 << 29, "1.5 GiB")],
)
def test_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


def test_durations_and_rates() -> None:
    assert [format_ns(ns) for ns in (950, 12_000, 999_999, 1_500_000)] == ["0.9 us", "12.0 us", "1000.0 us", "1.5 ms"]
    assert format_s(15.06) == "15.1 s"
    assert format_bandwidth(3_350_000_000_000) == "3350.0 GB/s"
    assert format_flops(989_000_000_000_000) == "989.00 TFLOP/s"
