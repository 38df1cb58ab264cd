"""KV cache of the layers of one window, and the mask over its rows, for each forward.

A row at position p sees the positions up to its own; with a window of w those above p - w. Letters as in ``layers``.
The masks are buffers; temporaries are bounded by `scratch.bias`, `scratch.positions` and `scratch.index` in
plans/buffers.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plans.kv import KvShare
from runtime.model.kvcache import KvCache
from runtime.model.layers import Rows, hide


class View:
    """Cache and mask of the layers of one window on one device."""

    def __init__(self, cache: KvCache, bias: Tensor, window: int | None, share: KvShare, *, divided: bool) -> None:
        """``bias`` [R, T]: buffer of the mask. ``divided``: other devices have some of the sequences."""
        self.cache, self._bias, self._window, self._divided = cache, bias, window, divided
        self._hides_tree = share.axis == "context" and share.part > 0
        """Every member of a subgroup has the tree's rows; the first attends to them."""

    def none(self, rotary: Sequence[Tensor]) -> Rows:
        """Return no rows; ``rotary``: the rotary tables."""
        return Rows.none(rotary, self._bias)

    def chunk(
        self, rotary: Sequence[Tensor], query_factors: Tensor | None, positions: Tensor, last: int, own: slice
    ) -> Rows:
        """Return the rows of a chunk, behind what is committed of one sequence; rows behind ``last`` are padding.

        ``rotary`` and ``query_factors`` as in ``Rows``; ``positions`` [1, width].
        """
        cache, width = self.cache, positions.shape[1]
        start, stop = cache.tree_rows, cache.window(width, own)
        bias = self._bias[:width, : stop - start]  # [width, t]
        asking = positions.view(width, 1)
        if self._window is None:
            hide(bias, cache.columns[: stop - start] <= asking)
            oldest = None
        else:
            asking = asking.clamp(max=asking[last])  # padding sees what the last row does: never nothing
            end = positions[:, last : last + 1] + 1
            self._hide(bias, self._held(end, stop - start), asking)
            oldest = cache.oldest(end, 0)
        return Rows(
            rotary=tuple(rotary),
            query_factors=query_factors,
            bias=bias[None, None],
            sequences=own,
            seen=slice(start, stop),
            tree=0,
            written=cache.append(width, torch.full((1, 1), last, device=bias.device), own),
            oldest=oldest,
            own=slice(0, width) if self._divided else None,
        )

    def trees(
        self, rotary: Sequence[Tensor], query_factors: Tensor | None, mask: Tensor, here: slice, own: slice
    ) -> Rows:
        """Return the rows of trees behind what is committed of sequences ``own``, the ``here`` of a forward.

        ``mask`` [b, N, N]: each node's ancestors and itself.
        """
        cache, (count, nodes, _) = self.cache, mask.shape
        lengths, tree, stop = cache.lengths[own], cache.tree(nodes), cache.window(0, own)
        bias = self._bias[: count * nodes].view(count, nodes, -1)[:, :, : stop - tree.start]  # [b, N, t]
        sequence, oldest = bias[:, :, nodes:], None
        if self._window is None:
            hide(sequence, cache.columns[: stop - tree.stop] < lengths.unsqueeze(2))
        else:
            depths = mask.sum(2)  # one more than a node's depth
            asking = (depths + (lengths - 1)).unsqueeze(2)
            self._hide(sequence, self._held(lengths, stop - tree.stop).unsqueeze(1), asking)
            oldest = cache.oldest(lengths, nodes)
            if nodes > self._window:
                mask = mask & (depths.unsqueeze(1) > (depths - self._window).unsqueeze(2))
        if self._hides_tree:
            bias[:, :, :nodes].fill_(float("-inf"))
        else:
            hide(bias[:, :, :nodes], mask)
        return Rows(
            rotary=tuple(rotary),
            query_factors=query_factors,
            bias=bias.unsqueeze(1),
            sequences=own,
            seen=slice(tree.start, stop),
            tree=nodes,
            written=tree,
            oldest=oldest,
            own=slice(here.start * nodes, here.stop * nodes) if self._divided else None,
        )

    def _held(self, end: Tensor, rows: int) -> Tensor:
        """Return [b, rows]: the position in each row behind the tree's, -inf, as it were, in one that has none."""
        held = self.cache.held(end, rows)
        return held.masked_fill_(held < 0, torch.iinfo(torch.int64).min // 2)

    def _hide(self, bias: Tensor, held: Tensor, asking: Tensor) -> None:
        """Show each row at a position ``asking`` its window of the positions ``held``."""
        assert self._window is not None
        hidden = held > asking
        hidden |= held <= asking - self._window
        bias.zero_().masked_fill_(hidden, float("-inf"))
