"""KV cache of the layers of one window, and the mask over its rows, for each forward.

A row at position p sees the positions up to its own; with a window of w those above p - w. Letters as in ``layers``.
The masks are buffers; temporaries are bounded by `scratch.bias`, `scratch.positions` and `scratch.index` in
plans/buffers.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plans.attention_splits import splits_of
from plans.kv import KvShare
from plans.schema import Options
from plans.step import verify_rows
from runtime.model import ops
from runtime.model.kvcache import KvCache
from runtime.model.layers import Rows, hide
from runtime.model.mask import Mask


class View:
    """Cache and mask of the layers of one window on one device."""

    def __init__(
        self, cache: KvCache, bias: Tensor | None, window: int | None, share: KvShare, options: Options, *,
        divided: bool,
    ) -> None:  # fmt: skip
        """``bias`` [R, T]: buffer of the mask; None: nothing reads one (``split_kv.reads_bias``).

        ``options``: of the plan. ``divided``: other devices have some of the sequences.
        """
        self.cache, self._bias, self._window, self._divided = cache, bias, window, divided
        self._options = options
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
        bias = oldest = mask = None
        if self._bias is not None:
            bias, oldest = self._bias_of_chunk(self._bias[:width, : stop - start], positions, last)
        if not ops.is_cpu(positions):
            mask = self._mask(positions.flatten(), None, cache.lengths[own], appended=last + 1, tree=0)
        return Rows(
            rotary=tuple(rotary),
            query_factors=query_factors,
            bias=bias,
            sequences=own,
            seen=slice(start, stop),
            tree=0,
            written=cache.append(width, torch.full((1, 1), last, device=positions.device), own),
            oldest=oldest,
            own=slice(0, width) if self._divided else None,
            mask=mask,
        )

    def _bias_of_chunk(self, bias: Tensor, positions: Tensor, last: int) -> tuple[Tensor, Tensor | None]:
        """Fill ``bias`` [width, t]; return it [1, 1, width, t], and ``Rows.oldest``."""
        cache, asking = self.cache, positions.view(-1, 1)
        if self._window is None:
            hide(bias, cache.columns[: bias.shape[1]] <= asking)
            return bias[None, None], None
        asking = asking.clamp(max=asking[last])  # padding sees what the last row does: never nothing
        end = positions[:, last : last + 1] + 1
        self._hide(bias, self._held(end, bias.shape[1]), asking)
        return bias[None, None], cache.oldest(end, 0)

    def _mask(self, positions: Tensor, ancestors: Tensor | None, lengths: Tensor, *, appended: int, tree: int) -> Mask:
        """Return the mask of a forward on a GPU; arguments as in ``Mask``."""
        cache = self.cache
        return Mask(
            positions=positions,
            ancestors=None if self._hides_tree else ancestors,
            lengths=lengths,
            appended=appended,
            tree=tree,
            start=cache.tree_rows,
            window=self._window,
            part=cache.part,
            parts=cache.parts,
            splits=splits_of(cache.rows - cache.tree_rows, len(positions), verify_rows(self._options)),
            counters=cache.counters,
        )

    def trees(
        self, rotary: Sequence[Tensor], query_factors: Tensor | None, visible: Tensor, here: slice, own: slice,
        packed: tuple[Tensor, Tensor] | None,
    ) -> Rows:  # fmt: skip
        """Return the rows of trees behind what is committed of sequences ``own``, the ``here`` of a forward.

        ``visible`` [b, N, N]: each node's ancestors and itself. ``packed``: on a GPU its words, and positions of nodes.
        """
        cache, (count, nodes, _) = self.cache, visible.shape
        lengths, tree, stop = cache.lengths[own], cache.tree(nodes), cache.window(0, own)
        oldest = bias = mask = asking = None
        depths = None if self._window is None else visible.sum(2)  # one more than a node's depth
        if self._window is not None and depths is not None and nodes > self._window:
            visible = visible & (depths.unsqueeze(1) > (depths - self._window).unsqueeze(2))
        if packed is not None:
            words, positions = packed
            if self._window is not None and nodes > self._window:
                words, _ = ops.packed(visible, lengths)
            mask = self._mask(positions, words, lengths, appended=0, tree=nodes)
        if self._bias is not None:
            bias = self._bias[: count * nodes].view(count, nodes, -1)[:, :, : stop - tree.start]  # [b, N, t]
            asking = None if depths is None else (depths + (lengths - 1)).flatten()  # positions of the nodes
            oldest = self._bias_of_trees(bias, visible, asking, lengths)
            bias = bias.unsqueeze(1)
        return Rows(
            rotary=tuple(rotary),
            query_factors=query_factors,
            bias=bias,
            sequences=own,
            seen=slice(tree.start, stop),
            tree=nodes,
            written=tree,
            oldest=oldest,
            positions=asking,
            ring=0 if asking is None else cache.rows - cache.tree_rows,
            own=slice(here.start * nodes, here.stop * nodes) if self._divided else None,
            mask=mask,
        )

    def _bias_of_trees(self, bias: Tensor, visible: Tensor, asking: Tensor | None, lengths: Tensor) -> Tensor | None:
        """Fill ``bias`` [b, N, t]; return ``Rows.oldest``. ``asking`` [b * N]: positions of nodes, of windows."""
        cache, nodes = self.cache, visible.shape[1]
        sequence, oldest = bias[:, :, nodes:], None
        if asking is None:
            hide(sequence, cache.columns[: sequence.shape[2]] < lengths.unsqueeze(2))
        else:
            held = self._held(lengths, sequence.shape[2]).unsqueeze(1)
            self._hide(sequence, held, asking.view(-1, nodes, 1))
            oldest = cache.oldest(lengths, nodes)
        if self._hides_tree:
            bias[:, :, :nodes].fill_(float("-inf"))
        else:
            hide(bias[:, :, :nodes], visible)
        return oldest

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
