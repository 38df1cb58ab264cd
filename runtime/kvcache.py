"""The static KV cache of one device: a place for the tree, then the sequence.

    row  0            N - n      N             N + length                T
         ├──────────────┼────────┼─────────────┼─────────────────────────┤
         │ unused       │ tree   │ committed   │ free                    │
         └──────────────┴────────┴─────────────┴─────────────────────────┘
           row 0 takes    verify    keep(path) moves accepted tree rows to
           padding        writes    the end of what is committed

The tree's rows never move, so that a verify writes where it always writes; nothing is cleared, since masks hide what
is not owned. Rows that are computed only to keep a shape (padding of a chunk, the unaccepted part of a path) are
written to row 0, which nobody reads then.

Letters: n rows of this tree, N most rows of a tree, T rows in all, A most rows kept at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WINDOWS = 16
"""A forward attends to the first w rows, w being one of at most so many lengths: a handful of shapes, all planned."""
GRANULE = 64


class KvCache:
    """Keys and values of all layers of one device; ``length`` rows of the sequence are committed."""

    def __init__(self, runs: Sequence[Tensor], tree_rows: int) -> None:
        """``runs``: per run of layers [layers, batch, T, 2k, D], keys before values; zeroed by the caller."""
        self._runs = [run[:, 0] for run in runs]
        self.layers = [layer for run in self._runs for layer in run.unbind(0)]
        self.tree_rows = tree_rows
        self.rows = runs[0].shape[2]
        self.length = 0
        self._step = max(GRANULE, -(-self.rows // (WINDOWS * GRANULE)) * GRANULE)
        self.columns = torch.arange(self.rows, device=runs[0].device)
        self._zero = torch.zeros((), dtype=torch.int64, device=runs[0].device)

    def window(self, appended: int) -> int:
        """Rows a forward must look at so as to see the sequence and ``appended`` rows more."""
        end = min(self.tree_rows + self.length + appended, self.rows)
        return min(-(-end // self._step) * self._step, self.rows)

    def tree(self, nodes: int) -> slice:
        """Where a tree of so many nodes is written: right before the sequence."""
        return slice(self.tree_rows - nodes, self.tree_rows)

    def append(self, width: int, last: int | Tensor) -> Tensor:
        """Rows [width] after the sequence for rows 0 … last of a forward; the padding behind goes to row 0."""
        number = self.columns[:width]
        rows = number + (self.tree_rows + self.length)
        return torch.where((number <= last) & (rows < self.rows), rows, self._zero)

    def keep(self, path: Tensor, accepted: int, nodes: int) -> None:
        """Commit the root and ``accepted`` nodes of a tree: ``path`` [A] are their node numbers, root first."""
        source = path + (self.tree_rows - nodes)
        target = self.append(path.shape[0], accepted)
        for run in self._runs:
            run.index_copy_(1, target, run.index_select(1, source))
        self.commit(accepted + 1)

    def commit(self, rows: int) -> None:
        """Rows written behind the sequence become part of it."""
        self.length += rows

    def truncate(self, length: int) -> None:
        """Forget the sequence from row ``length`` on."""
        assert 0 <= length <= self.length
        self.length = length
