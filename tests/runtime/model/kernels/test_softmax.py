"""The softmax of a row, a vector at a time, against float64."""

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import cfunc
from numba.core import types

from runtime.model.kernels.elements import ELEMENTS, LANES, arguments_of, floats, numbers
from runtime.model.kernels.softmax import LEAST, UNIT, add_bias, to_weights


class Row(NamedTuple):
    """Addresses of scores and bias, of the number of vectors, and of the maximum and the sum that are returned."""

    scores: int
    bias: int
    vectors: int
    high: int
    total: int


load_row = arguments_of(Row)


def add(data):  # type: ignore[no-untyped-def]
    """Add the bias, with a scale of 1/4, to the scores and a maximum."""
    a = load_row(data)
    floats(a.high)[0] = add_bias(data, a.scores, a.bias, a.vectors, np.float32(0.25), floats(a.high)[0])


def weigh(data):  # type: ignore[no-untyped-def]
    """Replace scores by weights."""
    a = load_row(data)
    numbers(a.total)[0] = to_weights(a.scores, a.vectors, floats(a.high)[0])


def run(kernel: Any, scores: np.ndarray[Any, Any], bias: torch.Tensor, high: float) -> tuple[float, int]:
    """Run a kernel on scores, in place; return the maximum and the sum."""
    compiled = cfunc(types.void(types.CPointer(ELEMENTS[bias.dtype])))(kernel)
    highest, total = np.array([high], np.float32), np.zeros(1, np.int64)
    row = Row(
        scores=scores.ctypes.data, bias=bias.data_ptr(), vectors=scores.size // LANES,
        high=highest.ctypes.data, total=total.ctypes.data,
    )  # fmt: skip
    words = np.array(row, np.int64)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)(words.ctypes.data)
    return float(highest[0]), int(total[0])


def test_exponentials_are_within_their_bound() -> None:
    """Of a million numbers from 0 down, of small ones, and of those that are 0 in float32."""
    x = np.concatenate([np.linspace(LEAST, 0, 1 << 20), -np.logspace(-30, 0, 1 << 12)]).astype(np.float32)
    weights = x.copy()
    _, total = run(weigh, weights, torch.zeros(1), 0.0)
    exact = np.exp(x.astype(np.float64))
    places = np.abs(weights - exact) / np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert places.max() <= 1.1
    assert abs(total / UNIT / exact.sum() - 1) < 1e-7
    none = np.resize(np.array([-np.inf, -3e38, -1e6, np.nextafter(np.float32(LEAST), np.float32(-90))], np.float32), 32)
    assert run(weigh, none, torch.zeros(1), 0.0)[1] == 0
    assert not none.any()


def test_not_a_number_stays() -> None:
    scores = np.zeros(2 * LANES, np.float32)
    scores[3] = np.nan
    run(weigh, scores, torch.zeros(1), 0.0)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3]


def test_scale_bias_and_maximum() -> None:
    """In each dtype of activations; a maximum that is known before counts, too."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scores = np.random.default_rng(3).standard_normal(6 * LANES).astype(np.float32)
        bias = torch.linspace(-3, 2, scores.size).to(dtype)
        bias[5::7] = float("-inf")
        expected = torch.from_numpy(scores).double() * 0.25 + bias.double()
        for known in (float("-inf"), 7.0):
            added = scores.copy()
            high, _ = run(add, added, bias, known)
            torch.testing.assert_close(torch.from_numpy(added), expected.float(), rtol=2**-23, atol=2**-23)
            assert high == max(added.max(), known)
