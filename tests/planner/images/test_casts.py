"""Casts of weights: those of torch, bit for bit."""

import numpy as np
import pytest
import torch

from planner.images.casts import STORAGE, cast_into
from tests.planner.images.two_stages import TORCH

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def special_floats() -> torch.Tensor:
    """Return every bfloat16, its neighbours at the rounding ties, and random bits; no NaN."""
    high = torch.arange(1 << 16, dtype=torch.int64) << 16
    ties = torch.cat([high + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    noise = torch.randint(0, 1 << 32, (200_000,), generator=torch.Generator().manual_seed(0))
    bits = torch.cat([ties, noise])
    values = torch.from_numpy(bits.numpy().astype(np.uint32).view(np.float32))
    return values[~values.isnan()]


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("source", ["bfloat16", "float16", "float32"])
def test_casts_are_torchs_bit_for_bit(source: str, target: str) -> None:
    values = special_floats().to(TORCH[source])
    stored = values.view(torch.uint16).numpy() if source == "bfloat16" else values.numpy()
    out = np.empty((len(stored), 1), STORAGE[CODES[target]])
    cast_into(out, stored.reshape(-1, 1), CODES[source], CODES[target])
    expected = values.to(TORCH[target])
    bits = expected.view(torch.int32 if target == "float32" else torch.int16).numpy()
    assert np.array_equal(out.view(bits.dtype)[:, 0], bits)


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32"])
def test_casts_keep_nan(target: str) -> None:
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], "<u4").view("<f4")
    out = np.empty((4, 1), STORAGE[CODES[target]])
    cast_into(out, nans.reshape(4, 1), "F32", CODES[target])
    assert torch.from_numpy(out).view(TORCH[target]).isnan().all()
