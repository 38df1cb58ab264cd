"""Quantities with units: parsing and formatting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InventoryError
from planner.hardware import units
from planner.hardware.units import BANDWIDTH, DURATION, RATE, SIZE, Quantity


@pytest.mark.parametrize(
    ("quantity", "text", "value"),
    [
        (SIZE, "24 GiB", 24 << 30),
        (SIZE, "24GiB", 24 << 30),
        (SIZE, " 80 GB ", 80 * 10**9),
        (SIZE, "1.5 KiB", 1536),
        (SIZE, "0.1 B", 0),
        (SIZE, "79.15 GiB", 84_986_665_369),
        (SIZE, 4096, 4096),
        (BANDWIDTH, "25 Gbit/s", 3_125_000_000),
        (BANDWIDTH, "40 GB/s", 40 * 10**9),
        (BANDWIDTH, "3.35 TB/s", 3_350 * 10**9),
        (DURATION, "20 us", 20_000),
        (DURATION, "20 µs", 20_000),
        (DURATION, "0.5 ms", 500_000),
        (RATE, "312 TFLOP/s", 312 * 10**12),
        (RATE, "19.5 TFLOP/s", 19_500 * 10**9),
    ],
)
def test_a_quantity_is_an_integer_in_base_units(quantity: Quantity, text: object, value: int) -> None:
    assert units.parse(quantity, text, "here") == value


@pytest.mark.parametrize(
    ("quantity", "data", "message"),
    [
        (SIZE, "24", "here: found '24' without a unit, expected a quantity like 24 GiB"),
        (SIZE, 24.0, "here: found 24.0 without a unit, expected a quantity like 24 GiB"),
        (SIZE, True, "here: found True, expected a quantity like 24 GiB"),
        (SIZE, None, "here: found None, expected a quantity like 24 GiB"),
        (SIZE, -1, "here: found -1, expected a quantity from 0 to 1024 TiB"),
        (SIZE, "-1 GiB", "here: found '-1 GiB', which is negative, expected a quantity like 24 GiB"),
        (
            SIZE,
            "24 Gib",
            "here: found '24 Gib' with unit Gib, expected one of B, kB, MB, GB, TB, KB, KiB, MiB, GiB, TiB",
        ),
        (SIZE, "9999999999 TiB", "here: found 9999999999 TiB, expected a quantity from 0 to 1024 TiB"),
        (SIZE, "9223372036854775807 B", "here: found 9223372036854775807 B, expected a quantity from 0 to 1024 TiB"),
        (DURATION, "99999999 s", "here: found 99999999 s, expected a quantity from 0 to 100 s"),
        (BANDWIDTH, "99999999999 GB/s", "here: found 99999999999 GB/s, expected a quantity from 0 to 2^63 - 1 B/s"),
        (SIZE, "a lot", "here: found 'a lot', expected a quantity like 24 GiB"),
        (BANDWIDTH, 40, "here: found 40 without a unit, expected a quantity like 25 Gbit/s or 40 GB/s"),
        (DURATION, 20, "here: found 20 without a unit, expected a quantity like 20 us"),
        (DURATION, "20 GB/s", "here: found '20 GB/s' with unit GB/s, expected one of s, ms, us, µs, ns"),
        (
            RATE,
            "312 TFLOPS",
            "here: found '312 TFLOPS' with unit TFLOPS, "
            "expected one of FLOP/s, kFLOP/s, MFLOP/s, GFLOP/s, TFLOP/s, PFLOP/s",
        ),
    ],
)
def test_invalid_quantities_are_refused(quantity: Quantity, data: object, message: str) -> None:
    with pytest.raises(InventoryError) as caught:
        units.parse(quantity, data, "here")
    assert str(caught.value) == message


@given(st.sampled_from([SIZE, BANDWIDTH, DURATION, RATE]), st.integers(0, units.MAX_VALUE))
def test_written_text_reads_back(quantity: Quantity, value: int) -> None:
    value = min(value, quantity.most)
    assert units.parse(quantity, units.render(quantity, value), "here") == value
