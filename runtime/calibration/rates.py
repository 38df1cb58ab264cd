"""Products of 1, 8 and 60 rows over weights that no cache holds, in the dtypes of plans."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from runtime.image.dtypes import DTYPES
from runtime.model import ops

ROWS = (1, 8, 60)
"""Rows of plain decoding, of a small tree, and of EAGLE's default tree."""
NAMES = ("bfloat16", "float16", "float32")
INPUTS, OUTPUTS = 2048, 16384
"""Weights of 64 MiB and more: several times the caches of two cores."""
LONG_PARTS = 4
"""Products of the most rows are of one such part of the weights: arithmetic limits them, not memory."""
REPEATS = 3
"""Times of each product in a round; the least of them counts."""

Span = tuple[int, int]
"""Begin and end in ns, by the clock that all processes of a machine have."""


class Products:
    """Weights of every dtype, and the rows that they are multiplied with."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        values = torch.rand(OUTPUTS, INPUTS, generator=generator)
        self._weights: dict[str, Tensor] = {}
        self._rows: dict[tuple[str, int], Tensor] = {}
        for name in NAMES:
            ops.prepare_products(DTYPES[name])
            self._weights[name] = values.to(DTYPES[name]).t()
            for rows in ROWS:
                self._rows[name, rows] = torch.randn(rows, INPUTS, generator=generator).to(DTYPES[name])

    @property
    def values(self) -> dict[int, int]:
        """Weights of a product, by rows."""
        return {rows: INPUTS * self._outputs(rows) for rows in ROWS}

    def _outputs(self, rows: int) -> int:
        return OUTPUTS // LONG_PARTS if rows == max(ROWS) else OUTPUTS

    def samples(self, ready: Callable[[], object], repeats: int = REPEATS) -> dict[str, dict[int, list[Span]]]:
        """Return so many spans by dtype and rows, taken in turns; ``ready``: called before each."""
        times: dict[str, dict[int, list[Span]]] = {name: {rows: [] for rows in ROWS} for name in NAMES}
        for _ in range(repeats):
            for name, rows in self._rows:
                ready()
                began = time.perf_counter_ns()
                ops.product(self._rows[name, rows], self._weights[name][:, : self._outputs(rows)])
                times[name][rows].append((began, time.perf_counter_ns()))
        return times
