"""The static KV cache of one device: for each sequence the rows of a tree, then the rows of the sequence.

    row  0            N - n      N             N + length                T
         ├──────────────┼────────┼─────────────┼─────────────────────────┤
         │ unused       │ tree   │ committed   │ free                    │
         └──────────────┴────────┴─────────────┴─────────────────────────┘
           row 0 takes    verify    keep(path) moves accepted tree rows to
           padding        writes    the end of what is committed

The tree's rows never move, so that every verify writes to the same rows. Nothing is cleared: masks hide the rows that
hold no position. Rows that are computed only to keep a shape (padding of a chunk, the unaccepted part of a path, those
of a sequence that has ended) are written to row 0, which no mask shows at that time.

A cache of fewer rows than the context has positions, that of layers with a window, is a ring of R = T - N rows:
position p is in row N + p % R, in place of p - R, which no row that comes sees any more.

Where a subgroup divides the cache by ``context``, position p is in row N + p // parts % R of member p % parts, and all
members have the tree: each commits those accepted rows whose positions are its own. By ``batch`` a member has some of
the sequences.

Temporaries, numbers of rows and positions, are bounded by `scratch.index` in plans/buffers.py. Letters as in
``layers``; here n is the rows of a tree, N the most rows of any tree, A the most rows kept at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plans.kv import WINDOWS
from runtime.model import ops

GRANULE = 64
"""Multiple of which every length of a window is."""


class KvCache:
    """Keys and values of all layers of one device, and the number of committed positions of each sequence."""

    def __init__(
        self,
        runs: Sequence[Tensor],
        tree_rows: int,
        *,
        sequences: range | None = None,
        part: int = 0,
        parts: int = 1,
        wraps: bool = False,
    ) -> None:
        """``runs``: by run of layers [layers, B, T, 2k, D], keys before values; zeroed by the caller.

        ``sequences``: numbers of this device's sequences, by default all. ``part`` of ``parts``: of a cache divided by
        context. ``wraps``: it is a ring; otherwise no position is behind its last row.
        """
        self.layers = [layer for run in runs for layer in run.unbind(0)]
        self.sequences = range(runs[0].shape[1]) if sequences is None else sequences
        self.tree_rows, self.rows = tree_rows, runs[0].shape[2]
        self._flat = [as_movable(run).flatten(1, 2) for run in runs]  # [layers, B * T, 2k, D]
        self.part, self.parts = part, parts
        self._ring, self._wraps = self.rows - tree_rows, wraps
        self._step = max(GRANULE, -(-self.rows // (WINDOWS * GRANULE)) * GRANULE)
        device, count = runs[0].device, len(self.sequences)
        self.columns = torch.arange(self.rows, device=device) * parts + part
        """[T]: position of each row behind the tree's."""
        self._number = torch.arange(self.rows * parts, device=device)
        self._first_row = (torch.arange(count, device=device) * self.rows).unsqueeze(1)
        self.lengths = torch.zeros(count, 1, dtype=torch.int64, device=device)
        """[B, 1]: committed positions. Nothing is copied from the host to keep it up to date, nor read from it."""
        self._known = [0] * count  # ``lengths`` on the host
        self._zero = torch.zeros((), dtype=torch.int64, device=device)
        heads = count * max(run.shape[3] for run in runs) // 2
        self.counters = None if ops.is_cpu(runs[0]) else torch.zeros(heads, dtype=torch.int32, device=device)
        """[B * k]: of kernels that attend (``mask.Mask``)."""

    def window(self, appended: int, own: slice) -> int:
        """Return the rows that a forward must attend to so as to see sequences b and ``appended`` positions more."""
        end = self.tree_rows + -(-(max(self._known[own]) + appended) // self.parts)
        return min(-(-end // self._step) * self._step, self.rows)

    def tree(self, nodes: int) -> slice:
        """Return the rows of a tree of ``nodes`` nodes: the last of the tree rows, right before the sequence."""
        return slice(self.tree_rows - nodes, self.tree_rows)

    def positions(self, width: int, own: slice) -> Tensor:
        """Return [b, width]: the next positions of the device's own sequences b."""
        return self._number[:width] + self.lengths[own]

    def held(self, end: Tensor, rows: int) -> Tensor:
        """Return [b, rows]: the last position in each row behind the tree's, below 0 in one that has had none yet.

        ``end`` [b, 1]: number of positions of sequences b, those that a forward appends among them.
        """
        last = (end - 1 - self.part) // self.parts if self.parts > 1 else end - 1  # of this member's own, from 0
        turns = (last - self._number[:rows]).remainder_(self._ring)
        return turns.neg_().add_(last).mul_(self.parts).add_(self.part)

    def oldest(self, end: Tensor, tree: int) -> Tensor:
        """Return [b]: the column with the first of the positions that sequences b still have, behind ``tree`` columns.

        The others follow in order, around the ring. ``end`` as in ``held``; not of a cache divided by context.
        """
        return torch.where(end > self._ring, end % self._ring, self._zero).flatten() + tree

    def append(self, width: int, last: Tensor, own: slice) -> Tensor:
        """Return the cache rows [b * width], among all sequences' rows, of the next ``width`` positions of sequences b.

        ``last`` [b, 1]: rows behind it are padding and go to row 0, as do positions of other members.
        """
        return self.appended(width, last, own)[1]

    def appended(self, width: int, last: Tensor, own: slice) -> tuple[Tensor, Tensor]:
        """Return the next positions [b, width] of sequences b, and their rows as ``append`` does."""
        if not ops.is_cpu(last):
            both: tuple[Tensor, Tensor] = ops.on_gpu("caches").append(
                self.lengths[own], last, width, **self._places(own)
            )
            return both
        position = self.positions(width, own)
        rows = position // self.parts if self.parts > 1 else position
        rows = (rows % self._ring if self._wraps else rows) + self.tree_rows
        counts = (self._number[:width] <= last) & (rows < self.rows)
        if self.parts > 1:
            counts &= position % self.parts == self.part
        return position, torch.where(counts, rows, self._zero).add_(self._first_row[own]).flatten()

    def _places(self, own: slice) -> dict[str, Any]:
        """Return where positions of sequences ``own`` lie, as ``triton_kernels.caches`` takes it."""
        return {
            "first": own.start, "tree_rows": self.tree_rows, "cache_rows": self.rows, "part": self.part,
            "parts": self.parts, "wraps": self._wraps,
        }  # fmt: skip

    def tree_index(self, first: int, count: int, own: slice) -> Tensor:
        """Return [b, count]: tree rows ``first`` and behind it of sequences b, among all sequences' rows."""
        return self._number[first : first + count] + self._first_row[own]

    def keep(self, path: Tensor, accepted: Tensor, nodes: int, own: slice) -> None:
        """Commit the root and the accepted nodes of each tree of ``nodes`` nodes: copy their rows behind the sequence.

        ``path`` [b, A]: node numbers, root first. ``accepted`` [b, 1]: accepted nodes behind the root, -1 where nothing
        is kept, as in a sequence that has ended. The host notes it later (``know``).
        """
        if not ops.is_cpu(path):
            for run in self._flat:
                ops.on_gpu("caches").keep(run, self.lengths[own], path, accepted, nodes=nodes, **self._places(own))
            self.commit(accepted, own)
            return
        path = path[:, : int(accepted.max()) + 1]  # the host may read: what no sequence keeps is not copied
        source = (path + (self.tree_rows - nodes)).add_(self._first_row[own]).flatten()
        target = self.append(path.shape[1], accepted, own)
        for run in self._flat:
            run.index_copy_(1, target, run.index_select(1, source))
        self.commit(accepted, own)

    def commit(self, accepted: Tensor, own: slice) -> None:
        """Make rows that were written behind sequences b part of them; arguments as in ``keep``."""
        if ops.is_cpu(accepted):
            self.lengths[own].add_(accepted + 1)
        else:
            ops.on_gpu("caches").advance(self.lengths[own], accepted)

    def know(self, rows: Sequence[int], own: slice) -> None:
        """Note on the host how many rows were committed to each of sequences b: accepted + 1."""
        self._known[own] = [length + more for length, more in zip(self._known[own], rows, strict=True)]

    def commit_one(self, number: int, rows: int) -> None:
        """Make ``rows`` rows that were written behind one sequence part of it."""
        self._known[number] += rows
        self.lengths[number].add_(rows)

    def restart(self, number: int, source: int, length: int) -> None:
        """Let a sequence begin anew with the first ``length`` positions of ``source``, which may be itself.

        A ring must still have those of them that a row at position ``length`` sees (``decode.sequences``).
        """
        assert 0 <= length <= self._known[source], "only what is committed is kept"
        if source != number and length:
            count = min(-(-length // self.parts), self._ring)
            starts = [n * self.rows + self.tree_rows for n in (number, source)]
            for run in self._flat:
                target, kept = (run[:, start : start + count] for start in starts)
                target.copy_(kept)
        self._known[number] = length
        self.lengths[number].fill_(length)

    def exchange(self, a: int, b: int, block: int) -> None:
        """Exchange two sequences, ``block`` rows of a layer at a time."""
        end = min(-(-max(self._known[a], self._known[b]) // self.parts), self._ring)
        first, second = (number * self.rows + self.tree_rows for number in (a, b))
        for run in self._flat:
            for layer in run:
                for row in range(0, end, block):
                    count = min(block, end - row)
                    one, other = layer[first + row :][:count], layer[second + row :][:count]
                    kept = one.clone()
                    one.copy_(other)
                    other.copy_(kept)
        self._known[a], self._known[b] = self._known[b], self._known[a]
        kept = self.lengths[a].clone()
        self.lengths[a].copy_(self.lengths[b])
        self.lengths[b].copy_(kept)


def as_movable(cache: Tensor) -> Tensor:
    """Return the same memory in a dtype that torch can copy by index: for 8-bit floats it cannot."""
    return cache.view(torch.uint8) if cache.itemsize == 1 else cache
