"""Rates of a device of the demo: what products with its weights reach on one thread of this processor, within seconds.

`planner inventory --measure` measures more, in a minute, and plain weights alone. The planner takes a product to be
limited by its bytes or by its operations: the rate of operations is taken where rows begin to cost, so that a tree is
chosen by what its rows cost here.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from planner.efficiency import BANDWIDTH_EFFICIENCY, FLOPS_EFFICIENCY, nominal
from plans.quantized import ROUNDED
from plans.schema import RoundedWeights
from runtime.model.weights import Coded, product

OUTPUTS, INPUTS = 1536, 640
"""Nearly the shape of a projection of SmolLM2's MLP, which has 576 inputs: groups of 128 end with these."""
TOTAL_BYTES = 64 << 20
"""Bytes of the weights that are read in turn."""
ROWS = (2, 3, 4, 6, 8, 16, 32, 64)
LONGER = 1.3
"""Rows begin to cost where a product takes so many times as long as one of a row."""
TURNS = 3
STEP = 1.1
"""Rates are rounded to powers of it, so that noise does not make every plan another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rates as an inventory has them, of which predicted times count a part (:mod:`planner.efficiency`)."""

    bytes_per_s: int
    flops_per_s: int


def measured(weights: RoundedWeights | None) -> Rates:
    """Return the rates of products with plain bfloat16 weights, or with rounded ones."""
    one = weight(weights)
    nbytes = one.nbytes if isinstance(one, torch.Tensor) else one.codes.nbytes + one.scales.nbytes
    every = [weight(weights) for _ in range(TOTAL_BYTES // nbytes)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return rates_of(lambda rows: seconds(every, rows) / len(every), nbytes)
    finally:
        torch.set_num_threads(threads)


def weight(weights: RoundedWeights | None) -> torch.Tensor | Coded:
    """Return a weight [INPUTS, OUTPUTS] of bfloat16, or of codes."""
    if weights is None:
        return torch.ones(OUTPUTS, INPUTS, dtype=torch.bfloat16).t()
    form = ROUNDED[weights]
    codes = torch.ones(OUTPUTS, INPUTS // (2 if form.code == "int4" else 1), dtype=torch.uint8)
    scales = torch.ones(OUTPUTS, INPUTS // form.group if form.group else 1, dtype=getattr(torch, form.scale))
    if form.code.startswith("float8"):
        codes = codes.view(getattr(torch, form.code))
    return Coded(form=form, codes=codes, scales=scales, zeros=None, inputs=INPUTS)


def seconds(every: list[torch.Tensor | Coded], rows: int) -> float:
    """Return the least time of some turns of one product with each weight."""
    x, took = torch.ones(rows, INPUTS, dtype=torch.bfloat16), []
    product(x, every[0])  # compiles
    for _ in range(TURNS):
        began = time.perf_counter()
        for own in every:
            product(x, own)
        took.append(time.perf_counter() - began)
    return min(took)


def rates_of(seconds_of: Callable[[int], float], nbytes: int) -> Rates:
    """Return the rates by the time of a product of so many rows, with a weight of ``nbytes``."""
    one = seconds_of(1)
    for rows in ROWS:
        several = seconds_of(rows)
        if several >= LONGER * one:
            break
    flops = 2 * OUTPUTS * INPUTS * rows
    return Rates(
        bytes_per_s=nominal(_rounded(nbytes / one), BANDWIDTH_EFFICIENCY),
        flops_per_s=nominal(_rounded(flops / several), FLOPS_EFFICIENCY),
    )


def _rounded(rate: float) -> int:
    return round(STEP ** round(math.log(rate, STEP)))
