"""Write layers as each quantizer does, and dequantise them: loops over the published layouts, in plain Python.

Nothing here is shared with the planner. ``Layer.values`` are the weights [out, in] in float32 that the formula of the
format gives for what is stored.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

AWQ_HALVES = (0, 2, 4, 6, 1, 3, 5, 7)
FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of e2m1 without a sign."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A stored layer: tensors by the last part of their names, and its values."""

    tensors: dict[str, Tensor]
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Codes without a sign [out, in], zero points [out, groups] and scales [out, groups]."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    group: int
    groups: Tensor | None = None
    """Group of each column; None: neighbours."""

    @classmethod
    def random(
        cls, seed: int, out: int, columns: int, *, bits: int, group: int, dtype: torch.dtype, shuffled: bool = False
    ) -> "Codes":
        rng = torch.Generator().manual_seed(seed)
        count = columns // group
        return cls(
            codes=torch.randint(0, 1 << bits, (out, columns), generator=rng),
            zeros=torch.randint(1, 1 << bits, (out, count), generator=rng),
            scales=(torch.rand((out, count), generator=rng) + 0.5).to(dtype),
            group=group,
            groups=shuffled_groups(seed, columns, group) if shuffled else None,
        )

    @property
    def of_columns(self) -> Tensor:
        """Group of each column."""
        return torch.arange(self.codes.shape[1]) // self.group if self.groups is None else self.groups

    @property
    def values(self) -> Tensor:
        return (self.codes - self.zeros[:, self.of_columns]).float() * self.scales.float()[:, self.of_columns]


def shuffled_groups(seed: int, columns: int, group: int) -> Tensor:
    """Return the group of each column, of an order that a calibration may give."""
    return (torch.arange(columns) // group)[torch.randperm(columns, generator=torch.Generator().manual_seed(seed))]


def words(codes: Tensor, bits: int) -> Tensor:
    """Pack codes [n, m] along the rows' columns, the first in the lowest bits; the last word is filled with zeros."""
    per_word = 32 // bits
    rows = []
    for row in codes.tolist():
        row += [0] * (-len(row) % per_word)
        rows.append([sum(code << (bits * i) for i, code in enumerate(row[at : at + per_word]))
                     for at in range(0, len(row), per_word)])  # fmt: skip
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


def gptq(codes: Codes, bits: int, stored_zero: int) -> Layer:
    """GPTQ: everything transposed; zero points are stored less ``stored_zero``."""
    return Layer(
        tensors={
            "qweight": words(codes.codes, bits).t().contiguous(),
            "qzeros": words((codes.zeros - stored_zero).t().contiguous(), bits),
            "scales": codes.scales.t().contiguous(),
            "g_idx": codes.of_columns.int(),
        },
        values=codes.values,
    )


def awq(codes: Codes) -> Layer:
    """AWQ gemm: [in, out / 8] words, whose half bytes hold columns 0, 2, 4, 6, 1, 3, 5, 7."""

    def shuffled(table: Tensor) -> Tensor:
        order = [8 * at + half for at in range(table.shape[1] // 8) for half in AWQ_HALVES]
        return words(table[:, order], 4)

    return Layer(
        tensors={
            "qweight": shuffled(codes.codes.t().contiguous()),
            "qzeros": shuffled(codes.zeros.t().contiguous()),
            "scales": codes.scales.t().contiguous(),
        },
        values=codes.values,
    )


def blocks(
    seed: int, out: int, columns: int, *, rows: int, group: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return float8 weights, scales of blocks of rows x group, and their values."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn((out, columns), generator=rng).mul_(40).to(torch.float8_e4m3fn)
    scales = (torch.rand((-(-out // rows), -(-columns // group)), generator=rng) + 0.1).to(dtype)
    whole = scales.float().repeat_interleave(rows, 0)[:out].repeat_interleave(group, 1)[:, :columns]
    return weight, scales, weight.float() * whole
