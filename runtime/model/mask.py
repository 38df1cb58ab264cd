"""What the rows of a forward see of a KV cache, as kernels on a GPU read it; a CPU has a bias (``layers.Rows``).

A row sees those rows of the tree whose bits it has, and the positions of its sequence up to its own, of a window of w
those above its own - w, as far as the sequence has them: below ``lengths + appended``. Letters as in ``layers``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32
"""Bits of a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mask:
    """What rows see; the same for all layers of a window."""

    positions: Tensor
    """[W] int64: position of each row."""
    ancestors: Tensor | None
    """[W, words] int32: bit c of a row's words is set where it sees row c of the tree; None: no row does."""
    lengths: Tensor
    """[B, 1] int64: committed positions of each sequence."""
    appended: int
    """Positions behind these that rows see, as far as they are not behind their own."""
    tree: int
    """Number of tree rows, which come right before those of the sequence."""
    start: int
    """Cache row of the first row behind the tree's."""
    window: int | None
    """Positions that a row sees, with its own, in a cache that is a ring; None: all, in a cache that is none."""
    part: int
    parts: int
    """The cache has every parts-th position, from ``part`` on."""
    splits: int
    """Parts of the cache that are attended to at once, and merged."""
    counters: Tensor | None = None
    """int32 [B * k], zeros: splits that are written, of each KV head of a sequence; None: of a cache of one split."""


def words_of(visible: Tensor) -> Tensor:
    """Return ``visible`` [..., c] bool as words [..., words] int32; made when a plan is bound, by many operations."""
    words = -(-visible.shape[-1] // WORD)
    bits = torch.nn.functional.pad(visible, (0, words * WORD - visible.shape[-1])).unflatten(-1, (words, WORD))
    words_as_long: Tensor = (bits.long() << torch.arange(WORD, device=visible.device)).sum(-1)
    return words_as_long.to(torch.int32)
