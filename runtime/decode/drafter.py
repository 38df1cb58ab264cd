"""The drafter: an EAGLE head on one device's share, from accepted features to the next tree.

    draft    both of these; a head that drafts in parallel (P-EAGLE) makes one pass of them
    extend   run accepted (feature, token) pairs through the drafter; their KV stays
    grow     level by level: nodes -> drafter -> candidates -> the nodes that are fed next; their KV is written to the
             cache's tree rows, one level behind the other, and overwritten by the next tree

``head_layers`` has the layers of the kinds of EAGLE head; ``tree_growth`` selects the nodes of a tree.

Shapes: B sequences, b those of them that this device has in its cache, W rows of all of them, n of one, H hidden size
of the drafter, k top_k, A most rows kept at once.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from plans.attention_splits import splits_of
from plans.kv import kv_shares
from plans.places import is_padded
from plans.schema import Plan, Tree
from plans.slots import draft_slots, vocabulary_rows
from plans.step import accept_rows, draft_step_rows, draft_tree_rows, fed_rows, mask_rows
from runtime.comm.groups import Comm
from runtime.decode.head_layers import bind_head
from runtime.decode.messages import FeatureMessage, among
from runtime.decode.tree import Candidates
from runtime.decode.tree_growth import DynamicOnGpu, Growth, Level, growth_of
from runtime.image.buffers import Memory
from runtime.image.dtypes import DTYPES
from runtime.model import ops
from runtime.model.blocks import Binder, Embed, Slots
from runtime.model.layers import Rows, hide, rotary_at, rotary_tables
from runtime.model.mask import Mask, words_of
from runtime.model.split_kv import attend_of, cache_of, own_frequencies, reads_bias, shared


class Drafter:
    """One device's share of the EAGLE head, and the trees that it grows."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm, kinds: Iterable[tuple[int, Tree]]) -> None:
        """``kinds``: numbers of sequences that are drafted for together, and the trees then."""
        draft, placement, options = plan.draft, plan.draft_placement, plan.options
        assert draft is not None
        assert placement is not None
        assert comm.draft is not None
        self.group = comm.draft
        self._kept, self._batch, self._chunk = accept_rows(options), options.batch, options.prefill_chunk
        self._dtype, self._padded = DTYPES[options.dtype], is_padded(plan)
        index = comm.draft.index
        binder = Binder(slots=slots, group=comm.draft, hidden=draft.hidden_size)
        own = draft_slots(plan, placement.devices[index])
        assert own is not None
        self._share = share = kv_shares(placement, placement.kv_heads)[index]
        attended = attend_of(share, comm.draft_subgroup, memory, "draft.")
        self._head = bind_head(draft, binder, own, share, attended)
        base_embed, base_head = vocabulary_rows(plan, placement.devices[index])  # on the same devices, where shared
        embed = base_embed if placement.embed_rows is None else own.embed
        head = base_head if placement.head_rows is None else own.head
        self._embed: Embed = binder.embed(embed, placement.embed_rows or plan.embed.rows)
        self._lm_head = binder.lm_head(head, placement.head_rows or plan.head.rows)
        d2t = None if own.d2t is None else binder.tensor(own.d2t)
        self._targets = None if d2t is None else d2t + torch.arange(draft.draft_vocab_size, device=d2t.device)
        self._cache = cache_of([memory.buffer("draft.kv")], draft_tree_rows(draft, options), options.batch, share)
        if len(self._cache.sequences) == options.batch:
            self._head.run_whole(self._cache.layers)
        self._step_rows, self._device = draft_step_rows(draft, options), self._cache.lengths.device
        reads = reads_bias(share, self._cache.layers[0])
        self._bias = memory.buffer("draft.bias") if reads else None
        self._beams = memory.buffer("draft.beam") if reads else None
        table = own_frequencies(binder.tensor(own.rope), share)
        self._rotary = rotary_tables([table], memory.buffer("draft.rotary"), self._dtype)
        self._draft, self._hidden = draft, draft.hidden_size
        if own.mask_hidden is not None:
            self._mask_token = torch.full((1,), draft.mask_token_id or 0, device=self._device)
            self._mask_feature = self._head.feature(binder.tensor(own.mask_hidden).unsqueeze(0))  # [1, H]
        self._first_of = torch.arange(options.batch, device=self._device)
        self._growths = dict[tuple[Tree, int], Growth]()
        self._fed = dict[tuple[Tree, int], Tensor]()
        """By tree and number of own sequences: sequence and level of each row that is fed while trees grow, [rows, 2].
        """
        seen = torch.int32 if self._bias is None else self._dtype
        for places, tree in kinds:
            self._growths[tree, places] = growth_of(tree, places, seen, self._device, self._cache.tree_rows)
            held = len(self._cache.sequences)
            for count in (places,) if held == options.batch else range(1, held + 1):
                self._fed[tree, count] = self._fed_rows(tree, count)
        self._no_rows = Rows.none(self._rotary, self._bias)
        self.recorded = False
        """True: keep the candidates of the trees of each draft."""
        self.pool: Candidates | None = None
        """Those of the last draft; None where nothing is kept, and of other trees than dynamic ones."""

    def _fed_rows(self, tree: Tree, sequences: int) -> Tensor:
        fed = [(number, depth) for depth, rows in enumerate(fed_rows(tree)) for number in range(sequences)
               for _ in range(rows)]  # fmt: skip
        return torch.tensor(fed, dtype=torch.int64, device=self._device).view(-1, 2)

    def extend(self, message: FeatureMessage, first: int) -> Tensor:
        """Run the accepted pairs of sequences ``first`` and those behind it; return the outputs at the last [S, H].

        The outputs are the features of the roots. The KV of the pairs follows what is committed; nothing is committed.
        """
        count, width = message.tokens.shape
        rows = self._appended(range(first, first + count), width, message.accepted)
        hidden = self._run(message.tokens.flatten(), self._head.feature(message.features), None, rows)
        return hidden.index_select(0, message.accepted + self._first_of[:count] * width)

    def _appended(self, sequences: range, width: int, accepted: Tensor) -> Rows:
        """Return ``width`` rows of each of these sequences, behind what is committed of it."""
        cache = self._cache
        here, own = shared(sequences, cache.sequences)
        count = here.stop - here.start
        if not count:
            return self._no_rows
        start, window = cache.tree_rows, cache.window(max(width, self._kept), own)
        positions, written = cache.appended(width, accepted[here].unsqueeze(1), own)  # [b, n], [b * n]
        bias = None
        if self._bias is not None:
            bias = self._bias[: count * width].view(count, 1, width, self._bias.shape[1])[..., : window - start]
            hide(bias, cache.columns[: window - start] <= positions.view(count, 1, width, 1))
        return Rows(
            rotary=self._rotary_at(positions.flatten()),
            bias=bias,
            mask=self._mask(positions.flatten(), None, cache.lengths[own], appended=width, tree=0),
            sequences=own,
            seen=slice(start, window),
            tree=0,
            written=written,
            own=self._here(here, width),
        )

    def _rotary_at(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Return the rotary table, as ``Rows`` has it, at positions [W]."""
        return rotary_at(self._rotary, positions) if ops.is_cpu(positions) else self._rotary

    def _mask(
        self, positions: Tensor, ancestors: Tensor | None, lengths: Tensor, *, appended: int, tree: int
    ) -> Mask | None:
        """Return the mask of a forward on a GPU, None on a CPU; arguments as in ``Mask``."""
        cache = self._cache
        if ops.is_cpu(positions):
            return None
        hides_tree = self._share.axis == "context" and self._share.part > 0  # it is on every member, and counts once
        return Mask(
            positions=positions,
            ancestors=None if hides_tree else ancestors,
            lengths=lengths,
            appended=appended,
            tree=tree,
            start=cache.tree_rows,
            window=None,
            part=cache.part,
            parts=cache.parts,
            splits=splits_of(cache.rows - cache.tree_rows, len(positions), self._step_rows),
            counters=cache.counters,
        )

    def _here(self, own: slice, width: int) -> slice | None:
        """Return the rows of a forward that belong to the device's own sequences; None where it has all sequences."""
        return slice(own.start * width, own.stop * width) if len(self._cache.sequences) < self._batch else None

    def draft(
        self,
        message: FeatureMessage | None,
        joined: dict[int, Tensor],
        roots: Tensor,
        pending: Tensor,
        places: tuple[slice, slice],
        tree: Tree | None,
    ) -> tuple[Tensor, Tensor]:
        """Extend by the accepted pairs of a step, where it has some, and draft; return trees as ``grow`` does.

        ``joined``: by number among the S sequences, the output at the last pair of a prompt [H], which was run before.
        ``roots`` and ``pending`` as in ``grow``. ``places``: of the pairs, and of all S sequences, the former among
        them. ``tree``: of the trees that are grown; None: they are their roots.
        """
        extended, drafted = places
        if tree is not None and mask_rows(self._draft, tree):
            return self._draft_at_once(message, joined, roots, pending, places, tree)
        if message is not None and not self._padded:
            message = message.shortened()
        hidden = None if message is None else self.extend(message, extended.start)
        if tree is None:
            return roots.unsqueeze(1), torch.zeros_like(roots).unsqueeze(1)
        if hidden is None or extended != drafted:
            own = hidden
            hidden = torch.zeros(len(roots), self._hidden, dtype=self._dtype, device=roots.device)
            if own is not None:
                hidden[extended.start - drafted.start :][: len(own)].copy_(own)
        for number, feature in joined.items():
            hidden[number].copy_(feature)
        return self.grow(hidden, roots, pending, drafted.start, tree)

    def _draft_at_once(
        self,
        message: FeatureMessage | None,
        joined: dict[int, Tensor],
        roots: Tensor,
        pending: Tensor,
        places: tuple[slice, slice],
        tree: Tree,
    ) -> tuple[Tensor, Tensor]:
        """Draft a chain in one pass, over the accepted pairs and behind them masks for the tokens to be drafted.

        The output at the last pair gives the first token, that at the i-th mask the one after i further tokens. A mask
        sees the pairs, the masks before it and itself; its KV is overwritten in the next step. M masks.
        """
        count, masks = len(roots), mask_rows(self._draft, tree)
        tokens, feature = self._mask_token.expand(count, masks), self._mask_feature.expand(count, masks, -1)
        width, accepted = 0, None
        if message is not None:
            width = message.tokens.shape[1]
            own = self._head.feature(message.features).view(len(message.tokens), width, -1)
            accepted, pairs, own = (among(part, *places) for part in (message.accepted, message.tokens, own))
            tokens, feature = torch.cat([pairs, tokens], 1), torch.cat([own, feature], 1)
        rows = self._masked(places[1], masks, width, accepted, pending)
        outputs = self._run(tokens.flatten(), feature.reshape(count * (width + masks), -1), None, rows)
        outputs = outputs.view(count, width + masks, -1)
        read = torch.empty(count, 1 + masks, self._hidden, dtype=self._dtype, device=roots.device)
        read[:, 1:].copy_(outputs[:, width:])
        if accepted is None:
            read[:, 0].zero_()
        else:
            read[:, 0].copy_(outputs[self._first_of[:count], accepted])
        for number, output in joined.items():
            read[number, 0].copy_(output)
        drafted, _ = self._candidates(read.flatten(0, 1), tree)
        parents = (torch.arange(2 + masks, device=roots.device) - 1).clamp_(min=0)
        return torch.cat([roots.unsqueeze(1), drafted.view(count, -1)], 1), parents.expand(count, -1)

    def _masked(self, places: slice, masks: int, width: int, accepted: Tensor | None, pending: Tensor) -> Rows:
        """Return ``width`` rows of the sequences of these places behind what is committed of them, then their masks."""
        cache = self._cache
        here, own = shared(range(places.start, places.stop), cache.sequences)
        count, n = here.stop - here.start, width + masks
        if not count:
            return self._no_rows
        end = cache.lengths[own] + pending[here].unsqueeze(1)  # [b, 1]
        number = torch.arange(masks, device=end.device)
        positions, written = end + number, cache.tree_index(1, masks, own)  # [b, M]
        start, window, pairs = cache.tree_rows, cache.window(max(width, self._kept), own), None
        if accepted is not None:
            pairs, appended = cache.appended(width, accepted[here].unsqueeze(1), own)  # [b, n], [b * n]
            positions = torch.cat([pairs, positions], 1)
            written = torch.cat([appended.view(count, width), written], 1)
        bias = ancestors = None
        if self._bias is not None:
            bias = self._bias[: count * n].view(count, n, self._bias.shape[1])
            self._fill_masked(bias, end, number, pairs, width, start, window)
            bias = bias[..., :window].unsqueeze(1)
        else:
            visible = torch.zeros(n, start, dtype=torch.bool, device=end.device)
            visible[width:, 1:] = number <= number.unsqueeze(1)
            ancestors = words_of(visible).repeat(count, 1)
        return Rows(
            rotary=self._rotary_at(positions.flatten()),
            bias=bias,
            sequences=own,
            seen=slice(0, window),
            tree=start,
            written=written.flatten(),
            own=self._here(here, n),
            mask=self._mask(positions.flatten(), ancestors, end, appended=0, tree=start),
        )

    def _fill_masked(
        self, bias: Tensor, end: Tensor, number: Tensor, pairs: Tensor | None, width: int, start: int, window: int
    ) -> None:
        """Show pairs, at positions ``pairs`` [b, n], those up to their own; masks those before ``end`` [b, 1], and the
        masks before them.
        """
        columns = self._cache.columns[: window - start]
        bias[..., :start].fill_(float("-inf"))
        if self._share.axis != "context" or not self._share.part:  # else the masks are on every member, and count once
            hide(bias[:, width:, 1:start], number <= number.unsqueeze(1))
        hide(bias[:, width:, start:window], columns < end.unsqueeze(2))
        if pairs is not None:
            hide(bias[:, :width, start:window], columns <= pairs.unsqueeze(2))

    def grow(self, feature: Tensor, roots: Tensor, pending: Tensor, first: int, tree: Tree) -> tuple[Tensor, Tensor]:
        """Grow trees from the outputs of ``extend`` [S, H] and root tokens [S]; return tokens and parents [S, N].

        ``pending`` [S]: pairs that ``extend`` ran and that are not committed yet. ``first``: as in ``extend``.
        """
        growth, sequences = self._growths[tree, len(roots)], range(first, first + len(roots))
        growth.recorded = self.recorded
        here, own = shared(sequences, self._cache.sequences)
        end = self._cache.lengths[own] + pending[here].unsqueeze(1)  # [b, 1]
        beams = None
        if self._beams is not None:
            beams = self._beams[: len(roots) * max((1, *fed_rows(tree)))].view(len(roots), -1, self._beams.shape[1])
        window, positions = self._start(end, own, tree, beams)
        rotary = self._rotary_at(positions)
        hidden, level = feature, self._next(growth, roots, None, feature, tree)
        while level is not None:
            hidden = self._feed(level, hidden, self._beam(level, rotary, positions, end, window, here, own, beams))
            level = self._next(growth, roots, level, hidden, tree)
        trees, self.pool = growth.finish(), growth.pool
        return trees

    def commit(self, accepted: Tensor, first: int) -> None:
        """Make pairs that were run part of each sequence from ``first`` on: ``accepted`` [S] + 1."""
        here, own = shared(range(first, first + len(accepted)), self._cache.sequences)
        self._cache.commit(accepted[here].unsqueeze(1), own)

    def know(self, rows: list[int], first: int) -> None:
        """Note on the host how many pairs became part of each of these sequences."""
        here, own = shared(range(first, first + len(rows)), self._cache.sequences)
        self._cache.know(rows[here], own)

    def commit_one(self, sequence: int, rows: int) -> None:
        """Make ``rows`` pairs that were run part of one sequence."""
        if sequence in self._cache.sequences:
            self._cache.commit_one(self._cache.sequences.index(sequence), rows)

    def restart(self, sequence: int, source: int, length: int) -> None:
        """Let a sequence begin anew with the first ``length`` committed positions of ``source``; it may be itself."""
        own = self._cache.sequences
        if sequence in own:
            self._cache.restart(own.index(sequence), own.index(source), length)

    def exchange(self, a: int, b: int) -> None:
        """Exchange two sequences; the copies of a chunk of rows are bounded by `draft.scratch.attention`."""
        self._cache.exchange(a, b, self._chunk)

    def _next(self, growth: Growth, roots: Tensor, level: Level | None, hidden: Tensor, tree: Tree) -> Level | None:
        """Grow trees by the candidates of a level's outputs, or of those of the roots; return the next level."""
        if isinstance(growth, DynamicOnGpu):
            blocks = self._lm_head.blocks(self._head.read(hidden), tree.top_k)
            if blocks is not None:
                return growth.of_blocks(roots, level, blocks, self._targets)
        tokens, scores = self._candidates(hidden, tree)
        return growth.start(roots, tokens, scores) if level is None else growth.grow(level, tokens, scores)

    def _candidates(self, hidden: Tensor, tree: Tree) -> tuple[Tensor, Tensor]:
        """Return the k best tokens (ids of the base) after each row, and their log-probabilities [W, k]."""
        tokens, scores = self._lm_head.top(self._head.read(hidden), tree.top_k)
        return (tokens if self._targets is None else self._targets.take(tokens)), scores

    def _start(self, end: Tensor, own: slice, tree: Tree, beams: Tensor | None) -> tuple[int, Tensor]:
        """Let all nodes see the sequence up to ``end`` [b, 1]; return the window, and the positions of all levels.

        ``beams`` [S, most nodes of a level, T]: masks of a level, to which each adds its tree rows; None: on a GPU.
        """
        cache, count = self._cache, own.stop - own.start
        if not count:
            return 0, end.flatten()
        fed, window = self._fed[tree, count], cache.window(self._kept, own)
        if beams is not None:
            seen = cache.columns[: window - cache.tree_rows] < end.unsqueeze(2)
            hide(beams[:count, :, cache.tree_rows : window], seen)
        return window, end.flatten()[fed[:, 0]] + fed[:, 1]

    def _beam(
        self, level: Level, rotary: tuple[Tensor, ...], positions: Tensor, end: Tensor, window: int, here: slice,
        own: slice, beams: Tensor | None,
    ) -> Rows:  # fmt: skip
        """Return the nodes of a level as rows, whose KV is written to the level's rows of the cache."""
        cache, written, (batch, rows) = self._cache, level.cache_rows, level.parents.shape
        count = here.stop - here.start
        if not count:
            return self._no_rows
        fed, seen = slice(written.start * count, written.stop * count), level.seen.expand(batch, -1, -1)[here]
        bias = ancestors = None
        if beams is None:
            ancestors = seen.flatten(0, 1)
        else:
            bias = beams[:count, :rows]
            if self._share.axis == "context" and self._share.part:
                bias[..., : cache.tree_rows].fill_(float("-inf"))  # the tree is on every member, and counts once
            else:
                bias[..., : cache.tree_rows].copy_(seen)
            bias = bias[..., :window].unsqueeze(1)
        mask = self._mask(positions[fed], ancestors, end, appended=0, tree=cache.tree_rows)
        return Rows(
            rotary=tuple(table[:, fed] for table in rotary) if mask is None else rotary,
            bias=bias,
            sequences=own,
            seen=slice(0, window),
            tree=cache.tree_rows,
            written=written,
            own=self._here(here, rows),
            mask=mask,
        )

    def _feed(self, level: Level, hidden: Tensor, rows: Rows) -> Tensor:
        """Run a pass over the nodes of a level, with their parents' outputs [W, H] as features; return its outputs."""
        return self._run(level.tokens.flatten(), hidden, level.parents.flatten(), rows)

    def _run(self, tokens: Tensor, feature: Tensor, parents: Tensor | None, rows: Rows) -> Tensor:
        """Run a pass over pairs of features, or their rows ``parents`` [W], and tokens [W]; return its outputs."""
        table, caches = self._embed.plain, self._cache.layers
        if table is not None:
            return self._head.behind(*self._head.joined(tokens, table, feature, parents), caches, rows)
        feature = feature if parents is None else feature.index_select(0, parents)
        return self._head(self._embed(tokens, self._dtype), feature, caches, rows)
