"""The packing of the ancestors of a tree's nodes into words (``runtime.model.mask``)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.mask import WORD
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two


@triton.jit
def pack_kernel(visible, lengths, ancestors, positions, nodes, columns, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Pack the columns that one row sees into words, and add their number to its sequence's length."""
    row = tl.program_id(0)
    bit, word = tl.arange(0, 32), tl.arange(0, BLOCK)[:, None]
    column = word * 32 + bit[None, :]
    seen = tl.load(visible + row * columns + column, mask=column < columns, other=0).to(tl.int32)
    number = tl.arange(0, BLOCK)
    tl.store(ancestors + row * WORDS + number, tl.sum(seen << bit[None, :], 1), mask=number < WORDS)
    tl.store(positions + row, tl.load(lengths + row // nodes) + tl.sum(tl.sum(seen, 1), 0) - 1)


def packed(visible: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return words of ``visible`` [b, n, c] bool, [b * n, words] int32, and the positions of its rows [b * n] int64.

    A row's position is ``lengths`` [b, 1] of its sequence, and one less than the number of columns that it sees: of a
    tree, whose nodes see themselves and their ancestors, one for each level above it.
    """
    batch, nodes, columns = visible.shape
    words = ceil_div(columns, WORD)
    assert visible.is_contiguous()
    assert lengths.shape == (batch, 1)
    ancestors = torch.empty(batch * nodes, words, dtype=torch.int32, device=visible.device)
    positions = torch.empty(batch * nodes, dtype=torch.int64, device=visible.device)
    launch.start(
        pack_kernel, (batch * nodes,), visible.view(torch.uint8), lengths, ancestors, positions, nodes, columns,
        WORDS=words, BLOCK=power_of_two(words), warps=1,
    )  # fmt: skip
    return ancestors, positions
