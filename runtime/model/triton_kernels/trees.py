"""Draft trees on the device: ancestors, the walk along accepted nodes, the growth of a dynamic tree, its selection.

Letters as in ``runtime.decode.tree_growth``; one program has one sequence, or one node. P candidates of a tree.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plans.schema import Tree
from plans.step import tree_pool
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two
from runtime.model.triton_kernels.limits import LAST
from runtime.model.triton_kernels.top import COLUMNS, Blocks

LEAST = tl.constexpr(-0x80000000)
MOST_HELD = 8192
"""Candidates of blocks that a program holds in registers, of all rows of a level."""


def takes_blocks(width: int, top_k: int) -> bool:
    """Return whether a level of a tree, of logits of so many columns, is taken from the best of their blocks."""
    return power_of_two(top_k) * power_of_two(ceil_div(width, COLUMNS) * top_k) <= MOST_HELD


@triton.jit
def ancestors_kernel(parents, visible, nodes, levels, BLOCK: tl.constexpr):
    """Mark the ancestors of one node, and itself."""
    row = tl.program_id(0).to(tl.int64)
    column, first, node = tl.arange(0, BLOCK), row // nodes * nodes, row % nodes
    seen = column == node
    for _ in range(levels):
        node = tl.load(parents + first + node)
        seen = seen | (column == node)
    tl.store(visible + row * nodes + column, seen.to(tl.uint8), mask=column < nodes)


def ancestors(parents: Tensor, levels: int) -> Tensor:
    """Return [B, N, N] bool: the ancestors of each node of ``parents`` [B, N], and itself (``runtime.decode.tree``)."""
    batch, nodes = parents.shape
    assert parents.stride(1) == 1
    parents = parents.contiguous()
    visible = torch.empty(batch, nodes, nodes, dtype=torch.bool, device=parents.device)
    launch.start(
        ancestors_kernel, (batch * nodes,), parents, visible.view(torch.uint8), nodes, levels,
        BLOCK=power_of_two(nodes), warps=1,
    )  # fmt: skip
    return visible


@triton.jit
def walk_kernel(
    tokens, parents, chosen, accepted, path, following, tokens_stride, parents_stride, nodes, kept, BLOCK: tl.constexpr
):
    """Walk from the root of one tree to the child that was chosen, as far as there is one."""
    sequence = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = (column > 0) & (column < nodes)
    token = tl.load(tokens + sequence * tokens_stride + column, mask=inside, other=-1)
    parent = tl.load(parents + sequence * parents_stride + column, mask=inside, other=-1)
    node, length = sequence * 0, sequence * 0
    for number in range(kept):
        choice = tl.load(chosen + sequence * nodes + node)
        tl.store(path + sequence * kept + number, node)
        tl.store(following + sequence * kept + number, choice)
        child = tl.min(tl.where(inside & (parent == node) & (token == choice), column, LAST), 0)
        moves = (child != LAST) & (number + 1 < kept)
        node = tl.where(moves, child.to(tl.int64), node)
        length += moves.to(tl.int64)
    tl.store(accepted + sequence, length)


def walk(tokens: Tensor, parents: Tensor, chosen: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the accepted nodes behind the root [B], the path [B, A], and the tokens behind its nodes [B, A].

    ``tokens``, ``parents`` and ``chosen`` [B, N], ``kept`` = A, and the result as in ``runtime.decode.verify``.
    """
    batch, nodes = tokens.shape
    assert parents.shape == chosen.shape == tokens.shape
    assert tokens.stride(1) == parents.stride(1) == 1
    chosen = chosen.contiguous()
    accepted, (path, following) = tokens.new_empty(batch), tokens.new_empty(2, batch, kept)
    launch.start(
        walk_kernel, (batch,), tokens, parents, chosen, accepted, path, following, tokens.stride(0), parents.stride(0),
        nodes, kept, BLOCK=power_of_two(nodes), warps=1 if nodes <= 128 else 4,
    )  # fmt: skip
    return accepted, path, following


@triton.jit
def _best_of_blocks(
    values, columns, highs, totals, targets, tokens, scores, row, blocks, width, live,
    TOP: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, MAPS: tl.constexpr,
):  # fmt: skip
    """Write the best of ``row`` [ROWS, 1] among those of its blocks of columns, as ``top.best_kernel`` does."""
    block, candidate = tl.arange(0, BLOCKS)[None, :], tl.arange(0, WIDTH)[None, :]
    counted, inside = live & (block < blocks), live & (candidate < blocks * TOP)
    high = tl.load(highs + row * blocks + block, mask=counted, other=float("-inf"))
    total = tl.load(totals + row * blocks + block, mask=counted, other=0.0)
    most = tl.max(high, 1)[:, None]
    base = tl.where(live, most, 0.0)
    log_sum = base + tl.log(tl.where(live, tl.sum(total * tl.exp(high - base), 1)[:, None], 1.0))
    value = tl.load(values + row * (blocks * TOP) + candidate, mask=inside, other=float("-inf"))
    column = tl.load(columns + row * (blocks * TOP) + candidate, mask=inside, other=LAST)
    for number in range(TOP):
        highest = tl.max(value, 1)[:, None]
        first = tl.min(tl.where(value == highest, column, LAST), 1)[:, None]
        token = tl.minimum(first, width - 1).to(tl.int64)
        if MAPS:
            token = tl.load(targets + token, mask=live, other=0)
        tl.store(tokens + number, token, mask=live)
        tl.store(scores + number, highest - log_sum, mask=live)
        taken = column == first
        value, column = tl.where(taken, float("-inf"), value), tl.where(taken, LAST, column)


@triton.jit
def grow_kernel(
    tokens, scores, values, columns, highs, totals, targets, beam_scores, beam_numbers, beam_seen, pool_tokens,
    pool_scores, pool_parents, next_tokens, next_scores, next_numbers, next_parents, next_seen, candidates, pool_size,
    offset, first_row, rows, blocks, width,
    TOP: tl.constexpr, WORDS: tl.constexpr, WORD_BLOCK: tl.constexpr, STARTS: tl.constexpr, ENDS: tl.constexpr,
    BLOCK: tl.constexpr, OF_BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    MAPS: tl.constexpr,
):  # fmt: skip
    """Add the candidates of one sequence's level to its pool, and select the beam that is fed next."""
    sequence = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BLOCK)
    inside = number < candidates
    if OF_BLOCKS:
        level_row = tl.arange(0, ROWS)[:, None]
        own = sequence * pool_size + offset + level_row * TOP
        _best_of_blocks(
            values, columns, highs, totals, targets, pool_tokens + own, pool_scores + own, sequence * rows + level_row,
            blocks, width, level_row < rows, TOP, ROWS, BLOCKS, WIDTH, MAPS,
        )  # fmt: skip
        tl.debug_barrier()  # other threads of the program read what these wrote
        tokens, scores, base = pool_tokens, pool_scores, sequence * pool_size + offset
    else:
        base = sequence * candidates
    token = tl.load(tokens + base + number, mask=inside, other=0)
    score = tl.load(scores + base + number, mask=inside, other=float("-inf"))
    if OF_BLOCKS:
        tl.debug_barrier()
    parent = tl.full([BLOCK], -1, tl.int64)
    if not STARTS:
        above = sequence * TOP + number // TOP
        score += tl.load(beam_scores + above, mask=inside, other=0.0)  # of whole paths
        parent = tl.load(beam_numbers + above, mask=inside, other=0)
    at = sequence * pool_size + offset + number
    tl.store(pool_tokens + at, token, mask=inside)
    tl.store(pool_scores + at, score, mask=inside)
    tl.store(pool_parents + at, parent, mask=inside)
    if not ENDS:
        word = tl.arange(0, WORD_BLOCK)
        left = tl.where(inside, number, LAST)
        for place in range(TOP):
            if STARTS:  # candidates come in their order
                best = place
            else:
                best = tl.min(tl.where(score == tl.max(score, 0), left, LAST), 0)
                best = tl.minimum(best, candidates - 1)  # what is not a number is above nothing
            is_best = number == best
            target = sequence * TOP + place
            tl.store(next_tokens + target, tl.sum(tl.where(is_best, token, 0), 0))
            tl.store(next_scores + target, tl.sum(tl.where(is_best, score, 0.0), 0))
            tl.store(next_numbers + target, (offset + best).to(tl.int64))
            row = first_row + place
            seen = tl.where(word == row // 32, 1 << (row % 32), 0)
            origin = sequence
            if not STARTS:
                origin = sequence * TOP + best // TOP
                seen = seen | tl.load(beam_seen + origin * WORDS + word, mask=word < WORDS, other=0)
            tl.store(next_parents + target, origin)
            tl.store(next_seen + target * WORDS + word, seen, mask=word < WORDS)
            score = tl.where(is_best, float("-inf"), score)
            left = tl.where(is_best, LAST, left)


@triton.jit
def _order(scores):
    """Return int32 numbers in the order of float32 scores; of equal ones the same."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def select_kernel(
    roots, pool_tokens, pool_scores, pool_parents, tokens, parents, candidates, nodes, BLOCK: tl.constexpr
):  # fmt: skip
    """Select the best candidates of one sequence, of equal ones the first, in the pool's order behind the root."""
    sequence = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BLOCK)
    inside = number < candidates
    at = sequence * candidates + number
    score = tl.load(pool_scores + at, mask=inside, other=float("-inf"))
    token = tl.load(pool_tokens + at, mask=inside, other=0)
    parent = tl.load(pool_parents + at, mask=inside, other=-1).to(tl.int32)
    wanted = nodes - 1
    rank = tl.where(inside, _order(score), LEAST)
    # the highest limit that so many candidates reach, bit by bit
    limit = tl.where(tl.sum((inside & (rank >= 0)).to(tl.int32), 0) >= wanted, 0, LEAST)
    for step in range(31):
        higher = limit + (1 << (30 - step))
        limit = tl.where(tl.sum((inside & (rank >= higher)).to(tl.int32), 0) >= wanted, higher, limit)
    above = inside & (rank > limit)
    equal = inside & (rank == limit)
    spare = wanted - tl.sum(above.to(tl.int32), 0)
    chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= spare))
    node = tl.cumsum(chosen.to(tl.int32), 0)  # of a chosen one its number in the tree
    link = tl.where(parent < 0, 0, tl.gather(node, tl.maximum(parent, 0), 0))
    first = sequence * nodes
    tl.store(tokens + first + node, token, mask=chosen)
    tl.store(parents + first + node, link.to(tl.int64), mask=chosen)
    tl.store(tokens + first, tl.load(roots + sequence))
    tl.store(parents + first, sequence * 0)


class Pool:
    """Candidates of growing trees, level by level, and the beam that is fed next; for one draft."""

    def __init__(self, batch: int, tree: Tree, words: int, device: torch.device) -> None:
        """``words``: of int32, with a bit for each cache row of a growing tree."""
        self._batch, self._top_k, self._depth, self._words = batch, tree.top_k, tree.depth, words
        size = tree_pool(tree)
        self.tokens, self.parents = torch.empty(2, batch, size, dtype=torch.int64, device=device)
        """[B, P]: ids of the base model, and the parent's number in the pool, -1 for the root."""
        self.scores = torch.empty(batch, size, dtype=torch.float32, device=device)
        """[B, P]: log-probability of the path from the root."""
        self._scores: Tensor | None = None
        self._numbers: Tensor | None = None
        self._seen: Tensor | None = None

    def add(
        self, level: int, found: tuple[Tensor, Tensor] | Blocks, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Add the candidates of a level [B * f, k], 0 for the root's; return the beam: the k best, of equal ones the
        first.

        ``found``: their tokens and log-probabilities, or those of the blocks of logits, whose columns are ``targets``
        [V] of the base, or its tokens.

        That is their tokens, the rows of their parents among those of the level above [B, k], and the bits of the rows
        that they see, their own and their ancestors', [B, k, words]; None behind the last level.
        """
        k, starts, ends = self._top_k, level == 0, level == self._depth
        fed, candidates = (1, k) if starts else (k, k * k)
        blocks = found if isinstance(found, Blocks) else None
        if blocks is not None:
            assert blocks.values.shape == (self._batch * fed, blocks.count, k)
            tokens = scores = None
        else:
            assert isinstance(found, tuple)
            tokens, scores = found
            assert tokens.shape == scores.shape == (self._batch * fed, k)
            assert tokens.is_contiguous()
            assert scores.is_contiguous()
        beam, numbers, rows = self.tokens.new_empty(3, self._batch, k)
        beam_scores = self.scores.new_empty(self._batch, k)
        seen = torch.empty(self._batch, k, self._words, dtype=torch.int32, device=self.tokens.device)
        operands = (None,) * 4 if blocks is None else (blocks.values, blocks.columns, blocks.highs, blocks.totals)
        count, width = (0, 0) if blocks is None else (blocks.count, blocks.width)
        launch.start(
            grow_kernel, (self._batch,), self.tokens if tokens is None else tokens, scores, *operands, targets,
            self._scores, self._numbers, self._seen, self.tokens, self.scores, self.parents, beam, beam_scores, numbers,
            rows, seen, candidates, self.tokens.shape[1], 0 if starts else k + (level - 1) * k * k, level * k, fed,
            count, width, TOP=k, WORDS=self._words, WORD_BLOCK=power_of_two(self._words), STARTS=starts, ENDS=ends,
            BLOCK=power_of_two(candidates), OF_BLOCKS=blocks is not None, ROWS=power_of_two(fed),
            BLOCKS=power_of_two(count), WIDTH=power_of_two(count * k), MAPS=targets is not None,
            warps=(8 if fed * count * k > 4096 else 4) if blocks is not None or candidates > 256 else 1,
        )  # fmt: skip
        self._scores, self._numbers, self._seen = beam_scores, numbers, seen
        return None if ends else (beam, rows, seen)

    def select(self, roots: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        """Return tokens and parents [B, nodes] of the trees, as ``runtime.decode.tree.select`` does."""
        candidates = self.tokens.shape[1]
        assert 0 < nodes <= 1 + candidates
        tokens, parents = self.tokens.new_empty(2, self._batch, nodes)
        launch.start(
            select_kernel, (self._batch,), roots.contiguous(), self.tokens, self.scores, self.parents, tokens, parents,
            candidates, nodes, BLOCK=power_of_two(candidates), warps=4,
        )  # fmt: skip
        return tokens, parents
