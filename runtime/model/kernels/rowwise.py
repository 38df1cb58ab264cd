"""Kernels that work row by row: RMS norm and gated activation. A thread computes whole rows."""

from typing import Any

import numpy as np

from runtime.model.kernels.arguments import EPSILON_UNIT, Gated, Norm
from runtime.model.kernels.elements import F, arguments_of, elements, exp, itemsize, put, wide
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import thread, threads

norm_arguments, gated_arguments = arguments_of(Norm), arguments_of(Gated)


def norm(data: Any) -> None:
    """Divide each row by its root mean square and multiply it by a weight; arguments: ``Norm``."""
    a = norm_arguments(data)
    for row in range(np.int64(thread()), a.rows, np.int64(threads())):
        norm_row(data, a.x + row * a.x_stride, a.weight, a.epsilon, a.out + row * a.out_stride, a.inputs)


@subroutine(apart=True)
def norm_row(data: Any, row: Any, weight: Any, epsilon: Any, result: Any, inputs: Any) -> None:
    """Write x / sqrt(mean(x ** 2) + epsilon) * weight of one row, which may be written in place."""
    x, scales, out, total = elements(data, row), elements(data, weight), elements(data, result), F(0)
    for i in range(inputs):
        total += wide(x[i]) * wide(x[i])
    scale = F(1) / np.sqrt(total / F(inputs) + F(epsilon) * F(EPSILON_UNIT))
    for i in range(inputs):
        put(out, i, wide(x[i]) * scale * wide(scales[i]))


def gated(data: Any) -> None:
    """Compute act(gate) * up of each row; arguments: ``Gated``."""
    a = gated_arguments(data)
    for row in range(np.int64(thread()), a.rows, np.int64(threads())):
        gate = a.x + row * a.x_stride
        up, out = gate + a.channels * itemsize(data), a.out + row * a.out_stride
        if a.gelu:
            gelu_row(data, gate, up, out, a.channels)
        else:
            gate_row(data, gate, up, out, a.channels)


@subroutine(apart=True)
def gate_row(data: Any, gates: Any, ups: Any, results: Any, channels: Any) -> None:
    """Write silu(gate) * up of some channels of one row."""
    gate, up, out = elements(data, gates), elements(data, ups), elements(data, results)
    for i in range(channels):
        value = wide(gate[i])
        put(out, i, value / (F(1) + exp(-value)) * wide(up[i]))


@subroutine(apart=True)
def gelu_row(data: Any, gates: Any, ups: Any, results: Any, channels: Any) -> None:
    """Write gelu(gate) * up of some channels of one row.

    x / 2 * (1 + tanh(u)) = x / (1 + exp(-2u)), with u = sqrt(2 / pi) * (x + 0.044715 x ** 3).
    """
    gate, up, out = elements(data, gates), elements(data, ups), elements(data, results)
    for i in range(channels):
        value = wide(gate[i])
        doubled = F(1.5957691216057308) * (value + F(0.044715) * value * value * value)
        put(out, i, value / (F(1) + exp(-doubled)) * wide(up[i]))
