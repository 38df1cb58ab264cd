"""The static KV cache of one device: of each sequence a place for the tree, then what is committed.

    row  0            N - n      N             N + length                T
         ├──────────────┼────────┼─────────────┼─────────────────────────┤
         │ unused       │ tree   │ committed   │ free                    │
         └──────────────┴────────┴─────────────┴─────────────────────────┘
           row 0 takes    verify    keep(path) moves accepted tree rows to
           padding        writes    the end of what is committed

The tree's rows never move, so that a verify writes where it always writes; nothing is cleared, since masks hide what
is not owned. Rows that are computed only to keep a shape (padding of a chunk, the unaccepted part of a path, what a
sequence that has ended would add) are written to row 0, which nobody reads then.

Where a subgroup divides the cache by ``context``, position p is in row N + p // parts of member p % parts, and the
tree is on all of them: each keeps of an accepted path what is its own. By ``batch`` a member has some of the sequences.

Letters: B sequences of this device, n rows of this tree, N most rows of a tree, T rows of a sequence, A most rows kept
at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WINDOWS = 16
"""A forward attends to the first w rows, w being one of at most so many lengths: a handful of shapes, all planned."""
GRANULE = 64


class KvCache:
    """Keys and values of all layers of one device, and how many positions of each sequence are committed."""

    def __init__(
        self,
        runs: Sequence[Tensor],
        tree_rows: int,
        *,
        sequences: range | None = None,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """``runs``: per run of layers [layers, B, T, 2k, D], keys before values; zeroed by the caller.

        ``sequences``: the numbers of those that are here, by default all; ``part`` of ``parts`` by context.
        """
        self.layers = [layer for run in runs for layer in run.unbind(0)]
        self.sequences = range(runs[0].shape[1]) if sequences is None else sequences
        self.tree_rows, self.rows = tree_rows, runs[0].shape[2]
        self._flat = [moved(run).flatten(1, 2) for run in runs]
        self._part, self._parts = part, parts
        self._step = max(GRANULE, -(-self.rows // (WINDOWS * GRANULE)) * GRANULE)
        device, count = runs[0].device, len(self.sequences)
        self.columns = torch.arange(self.rows, device=device) * parts + part
        """Positions in the rows behind the tree's."""
        self._number = torch.arange(self.rows * parts, device=device)
        self._first_row = (torch.arange(count, device=device) * self.rows).unsqueeze(1)
        self.lengths = torch.zeros(count, 1, dtype=torch.int64, device=device)
        """[B, 1]: committed positions."""
        self._known = [0] * count
        self._zero = torch.zeros((), dtype=torch.int64, device=device)

    def window(self, appended: int) -> int:
        """Rows a forward must look at so as to see every sequence and ``appended`` positions more."""
        end = self.tree_rows + -(-(max(self._known) + appended) // self._parts)
        return min(-(-end // self._step) * self._step, self.rows)

    def tree(self, nodes: int) -> slice:
        """Where a tree of so many nodes is written: right before the sequence."""
        return slice(self.tree_rows - nodes, self.tree_rows)

    def positions(self, width: int, own: slice) -> Tensor:
        """[b, width]: the positions behind what is committed of the device's own sequences b."""
        return self._number[:width] + self.lengths[own]

    def append(self, width: int, last: Tensor, own: slice) -> Tensor:
        """Rows [b * width] behind the own sequences b, of all sequences' rows, for rows 0 … ``last`` [b, 1] of each.

        What lies behind the last goes to row 0, as does what another member has.
        """
        position = self.positions(width, own)
        rows = position // self._parts + self.tree_rows if self._parts > 1 else position + self.tree_rows
        counts = (self._number[:width] <= last) & (rows < self.rows)
        if self._parts > 1:
            counts &= position % self._parts == self._part
        return torch.where(counts, rows, self._zero).add_(self._first_row[own]).flatten()

    def keep(self, path: Tensor, accepted: Tensor, nodes: int, kept: Sequence[int]) -> None:
        """Commit the root and the accepted nodes of each tree: ``path`` [B, A] are their node numbers, root first.

        ``accepted`` [B, 1]: -1 where nothing is kept, as of a sequence that has ended; ``kept``: one more, on the host.
        """
        source = (path + (self.tree_rows - nodes)).add_(self._first_row).flatten()
        target = self.append(path.shape[1], accepted, slice(None))
        for run in self._flat:
            run.index_copy_(1, target, run.index_select(1, source))
        self.commit(kept)

    def commit(self, rows: Sequence[int]) -> None:
        """So many rows that were written behind each sequence become part of it."""
        self._known = [length + more for length, more in zip(self._known, rows, strict=True)]
        self.lengths.copy_(torch.tensor(self._known).unsqueeze(1))

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget each sequence from a length on."""
        assert all(0 <= length <= known for length, known in zip(lengths, self._known, strict=True))
        self.commit([length - known for length, known in zip(lengths, self._known, strict=True)])


def moved(cache: Tensor) -> Tensor:
    """The same memory in a dtype whose values torch can move: it moves none of 8-bit floats."""
    return cache.view(torch.uint8) if cache.itemsize == 1 else cache
