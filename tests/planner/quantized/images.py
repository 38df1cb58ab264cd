"""The values of a layer in the layout of images, as plans/FORMAT.md describes it."""

import numpy as np
import torch
from torch import Tensor

from planner.quantized import Stored
from planner.quantized.codes import Array
from plans.schema import WeightFormat

BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def values(stored: Stored, codes: Array, scales: Array, zeros: Array | None) -> Tensor:
    """Return the weights [out, in] in float32 of whole parts."""
    return matrix(stored.form, stored.out, stored.columns, codes, scales, zeros)


def matrix(form: WeightFormat, out: int, columns: int, codes: Array, scales: Array, zeros: Array | None) -> Tensor:
    """Return the values [out, in] in float32 of a matrix of a format."""
    raw = torch.from_numpy(np.array(codes))
    if form.code in ("int4", "float4_e2m1"):
        unpacked = torch.empty((out, columns), dtype=torch.uint8)
        for column in range(columns):
            block, place = divmod(column, 32)
            byte = raw[:, 16 * block + place % 16]
            unpacked[:, column] = byte & 15 if place < 16 else byte >> 4
        raw = unpacked
    group = form.group or columns
    kind = BITS[form.scale]
    factors = torch.from_numpy(np.array(scales)).view(kind).float()
    factors = factors.repeat_interleave(group, 1)[:, :columns]
    if form.code == "float8_e4m3fn":
        return raw.view(torch.float8_e4m3fn).float() * factors
    half = 8 if form.code == "int4" else 128
    points = torch.full((out, columns), half)
    if zeros is not None:
        points = torch.from_numpy(np.array(zeros)).int().repeat_interleave(group, 1)[:, :columns]
    return (raw.int() - points).float() * factors
