"""Matching the names of physical devices with those of the plan."""

import pytest

from runtime.processes.machine import is_named


@pytest.mark.parametrize(
    ("name", "expected", "same"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("NVIDIA A100-SXM4-80GB", "A10", False),
        ("NVIDIA A10", "A10", True),
        ("NVIDIA A10G", "A10", False),
        ("NVIDIA L40S", "L40", False),
        ("NVIDIA L4", "L4", True),
        ("NVIDIA H200", "H20", False),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", True),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4080", False),
        ("Tesla V100-SXM2-32GB", "V100", True),
        ("anything", "", True),
    ],
)
def test_names_are_whole_words(name: str, expected: str, same: bool) -> None:
    assert is_named(name, expected) == same
