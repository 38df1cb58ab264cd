"""Growth of draft trees: selection of the candidates that the drafter is fed next, and of those that become nodes.

    start    the candidates of the root's output -> the level that is fed next
    grow     the candidates of a level's outputs -> the level that is fed next, None behind the last one
    finish   tokens and parents of the trees

While drafts are recorded, ``pool`` has the candidates of the last trees that were finished.

``Dynamic`` is the tree of EAGLE-2 and -3: of each level's candidates the k best by path probability, the beam, are fed,
and the best of all candidates are the tree; ``DynamicOnGpu`` has one kernel a level. ``Static`` is the tree of EAGLE-1:
the plan gives its shape. Shapes do not depend on what is drafted: B sequences, f nodes of a level, k candidates of a
node, R cache rows of a growing tree, N nodes. The temporaries of growth, candidates of all levels and their selection,
are bounded by `draft.scratch.pool` in plans/buffers.py.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from plans.schema import Tree
from plans.step import fed_rows
from runtime.decode.tree import Candidates, best, select
from runtime.model import ops
from runtime.model.mask import WORD, words_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Nodes that are fed to the drafter together."""

    depth: int
    """Levels of drafted nodes above this one."""
    tokens: Tensor
    """[B, f]"""
    parents: Tensor
    """[B, f]: row of each parent's output, among all rows of the previous level."""
    seen: Tensor
    """[B or 1, f, R]: 0 where a node sees a row of the growing tree, -inf elsewhere; or, where they are asked for, bits
    in words of int32 [B or 1, f, words] (``mask.Mask``)."""
    cache_rows: slice
    """The rows of the drafter's cache that their keys and values are written to."""


class Growth(Protocol):
    """The growth of the trees of a batch, used again for every step."""

    top_k: int
    """k"""
    recorded: bool
    """True: keep the candidates of finished trees."""
    pool: Candidates | None
    """Those of the last ones; None where nothing is kept, and of static trees."""

    def start(self, roots: Tensor, tokens: Tensor, scores: Tensor) -> Level | None:
        """Begin trees of ``roots`` [B] with their candidates, tokens and log-probabilities [B, k]; return a level."""
        ...

    def grow(self, level: Level, tokens: Tensor, scores: Tensor) -> Level | None:
        """Take the candidates of a level's nodes [B * f, k]; return the next level."""
        ...

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return tokens and parents [B, N]."""
        ...


def growth_of(tree: Tree, batch: int, dtype: torch.dtype, device: torch.device, rows: int) -> Growth:
    """Return the growth of so many trees; ``rows``: R. ``dtype``: of what levels see; int32: words of bits."""
    if tree.paths is None and dtype == torch.int32:
        return DynamicOnGpu(tree, batch, device, rows)
    if tree.paths is None:
        return Dynamic(tree, batch, dtype, device, rows)
    return Static(tree.paths, tree, batch, dtype, device, rows)


def _seen(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what nodes see, ``visible`` [..., R] bool, as ``Level.seen`` has it."""
    if dtype == torch.int32:
        return words_of(visible)
    hidden = torch.full(visible.shape, float("-inf"), dtype=dtype, device=visible.device)
    return hidden.masked_fill_(visible, 0.0)


class Dynamic:
    """Dynamic trees: beams of the k best candidates of each level; the tree is the best of the pool."""

    def __init__(self, tree: Tree, batch: int, dtype: torch.dtype, device: torch.device, rows: int) -> None:
        self.top_k, self._depth, self._nodes, self._batch = tree.top_k, tree.depth, tree.total_token, batch
        self.recorded = False
        self.pool: Candidates | None = None
        k = tree.top_k
        self._roots = self._beam = torch.empty(0)  # root tokens [B], scores of the last beam [B, k]
        self._tokens, self._scores, self._fed = list[Tensor](), list[Tensor](), list[Tensor]()
        # of each level: candidates' tokens and scores [B, k] or [B, k * k], and the beam's numbers in the pool [B, k]
        self._numbers = torch.arange(k, device=device).expand(batch, -1)
        self._root_parents = torch.full((batch, k), -1, dtype=torch.int64, device=device)
        self._sequence = torch.arange(batch, device=device).unsqueeze(1)
        own = torch.eye(tree.depth * k, rows, dtype=torch.bool, device=device).view(tree.depth, k, rows)
        self._own = _seen(own, dtype)  # each node sees its own row
        self._none = torch.full((1, 1, rows), float("-inf"), dtype=dtype, device=device).expand(batch, k, -1)

    def start(self, roots: Tensor, tokens: Tensor, scores: Tensor) -> Level | None:
        self._roots, self._tokens, self._scores, self._fed = roots, [tokens], [scores], []
        if not self._depth:
            return None
        return self._feed(0, self._numbers, tokens, scores, self._sequence.expand(-1, self.top_k), self._none)

    def grow(self, level: Level, tokens: Tensor, scores: Tensor) -> Level | None:
        k, number = self.top_k, level.depth
        tokens = tokens.view(self._batch, k * k)
        scores = (scores.view(self._batch, k, k) + self._beam.unsqueeze(2)).view(self._batch, k * k)  # of whole paths
        self._tokens.append(tokens)
        self._scores.append(scores)
        if number + 1 == self._depth:
            return None
        chosen = best(scores, k)  # [B, k]: numbers among the level's candidates
        above = chosen // k  # [B, k]: numbers of the parents in the beam
        return self._feed(
            number + 1,
            chosen + (k + number * k * k),
            tokens.gather(1, chosen),
            scores.gather(1, chosen),
            above + self._sequence * k,
            level.seen.gather(1, above.unsqueeze(2).expand(-1, -1, level.seen.shape[2])),
        )

    def finish(self) -> tuple[Tensor, Tensor]:
        above = [numbers.unsqueeze(2).expand(-1, -1, self.top_k).flatten(1) for numbers in self._fed]
        pool = Candidates(
            tokens=torch.cat(self._tokens, 1),
            scores=torch.cat(self._scores, 1),
            parents=torch.cat([self._root_parents, *above], 1),
        )
        self.pool = pool if self.recorded else None
        return select(pool, self._roots, self._nodes)

    def _feed(
        self, number: int, numbers: Tensor, tokens: Tensor, scores: Tensor, parents: Tensor, seen: Tensor
    ) -> Level:
        """Return the beam, ``numbers`` in the pool, as a level: a node sees what its parent saw, and itself."""
        self._fed.append(numbers)
        self._beam = scores
        return Level(
            depth=number,
            tokens=tokens,
            parents=parents,
            seen=torch.maximum(seen, self._own[number]),
            cache_rows=slice(number * self.top_k, (number + 1) * self.top_k),
        )


class DynamicOnGpu:
    """Dynamic trees on a GPU, where nodes see bits: each level is one kernel, and so is the selection of the nodes."""

    def __init__(self, tree: Tree, batch: int, device: torch.device, rows: int) -> None:
        self.top_k, self._tree, self._batch, self._device = tree.top_k, tree, batch, device
        self.recorded = False
        self.pool: Candidates | None = None
        self._words = -(-rows // WORD)

    def start(self, roots: Tensor, tokens: Tensor, scores: Tensor) -> Level | None:
        self._begin(roots)
        return self._add(0, (tokens, scores), None)

    def grow(self, level: Level, tokens: Tensor, scores: Tensor) -> Level | None:
        return self._add(level.depth + 1, (tokens, scores), None)

    def of_blocks(self, roots: Tensor, level: Level | None, blocks: Any, targets: Tensor | None) -> Level | None:
        """Take the candidates of a level's nodes, or of ``roots``, from the best of each block of their logits.

        ``blocks``: ``triton_kernels.top.Blocks``. ``targets`` [V]: the base's tokens of the columns; None: the columns.
        """
        if level is None:
            self._begin(roots)
        return self._add(0 if level is None else level.depth + 1, blocks, targets)

    def _begin(self, roots: Tensor) -> None:
        self._roots = roots
        self._grown = ops.on_gpu("trees").Pool(self._batch, self._tree, self._words, self._device)

    def finish(self) -> tuple[Tensor, Tensor]:
        grown = self._grown
        self.pool = (
            Candidates(tokens=grown.tokens, scores=grown.scores, parents=grown.parents) if self.recorded else None
        )
        trees: tuple[Tensor, Tensor] = grown.select(self._roots, self._tree.total_token)
        return trees

    def _add(self, number: int, found: Any, targets: Tensor | None) -> Level | None:
        beam = self._grown.add(number, found, targets)
        if beam is None:
            return None
        tokens, parents, seen = beam
        rows = slice(number * self.top_k, (number + 1) * self.top_k)
        return Level(depth=number, tokens=tokens, parents=parents, seen=seen, cache_rows=rows)


class Static:
    """Static trees: the nodes of ``paths``, child ranks from the root; those with children are fed."""

    def __init__(
        self,
        paths: tuple[tuple[int, ...], ...],
        tree: Tree,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        cache_rows: int,
    ) -> None:
        self.top_k, self._batch, self._tokens = tree.top_k, batch, list[Tensor]()
        self.recorded = False
        self.pool: Candidates | None = None
        inner = {path[:-1] for path in paths}
        levels = [[path for path in paths if len(path) == length + 1] for length in range(tree.depth + 1)]
        root: list[tuple[int, ...]] = [()]
        fed = [root, *([path for path in level if path in inner] for level in levels[:-1])]
        self._starts = [sum(fed_rows(tree)[:number]) for number in range(tree.depth)]
        rows = [path for level in fed[1:] for path in level]

        def indices(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int64, device=device)

        # of each level, which of the candidates of the nodes that were fed become nodes
        self._picked = [
            indices([above.index(path[:-1]) * tree.top_k + path[-1] for path in level])
            for above, level in zip(fed, levels, strict=True)
        ]
        # of each level but the last, which of its nodes are fed
        self._fed = [
            indices([level.index(path) for path in nodes]) for level, nodes in zip(levels[:-1], fed[1:], strict=True)
        ]
        # of each level that is fed, the row of each node's parent among the outputs of the previous level [B, f]
        sequence = torch.arange(batch, device=device).unsqueeze(1)
        self._parents = [
            indices([above.index(path[:-1]) for path in nodes]) + sequence * len(above)
            for above, nodes in pairwise(fed)
        ]
        # of each level that is fed, the fed nodes that a node sees: itself and its ancestors
        self._seen = []
        for nodes in fed[1:]:
            visible = torch.zeros((1, len(nodes), cache_rows), dtype=torch.bool, device=device)
            own = [[path[: len(row)] == row for row in rows] for path in nodes]
            visible[..., : len(rows)] = torch.tensor([own], dtype=torch.bool, device=device)
            self._seen.append(_seen(visible, dtype))
        # parents of the finished tree [B, N]
        numbers = {path: number for number, path in enumerate([(), *paths])}
        self._links = indices([0, *(numbers[path[:-1]] for path in paths)]).expand(batch, -1)

    def start(self, roots: Tensor, tokens: Tensor, scores: Tensor) -> Level | None:
        self._tokens = [roots.unsqueeze(1)]
        return self._level(0, tokens)

    def grow(self, level: Level, tokens: Tensor, scores: Tensor) -> Level | None:
        return self._level(level.depth + 1, tokens)

    def finish(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._tokens, 1), self._links

    def _level(self, number: int, candidates: Tensor) -> Level | None:
        """Select the nodes of a level from the candidates of what was fed; return those that are fed next."""
        nodes = candidates.view(self._batch, -1).index_select(1, self._picked[number])  # [B, nodes of the level]
        self._tokens.append(nodes)
        if number == len(self._fed):
            return None
        start, parents = self._starts[number], self._parents[number]
        return Level(
            depth=number,
            tokens=nodes.index_select(1, self._fed[number]),
            parents=parents,
            seen=self._seen[number],
            cache_rows=slice(start, start + parents.shape[1]),
        )
