"""Speculative decoding on one rank: the loop draft, verify, accept, commit, with one message a step.

    verifier (leader of the lm_head)      drafter's group             all ranks
    ────────────────────────────────      ───────────────────────     ─────────────────────────
    verify: base forward over the trees
    accept: base's choice after each
      node; path of nodes that agree
      ── feature message ─────────────►   draft: extend by the path,
                                          grow the next trees
                                            ── step message ──────►   commit: keep the path's rows

All ranks run this, each with the parts that the plan gave it. The prefill drafts the first trees, so a step begins with
verify and drafts for the next one.

**p and q.** p(x) is the base's probability of token x after a node, processed by temperature, top-k and top-p; greedy
decoding is p = 1 for the argmax. q(x) is the drafter's probability of x. Speculative sampling accepts a token x drawn
from q with probability min(1, p(x) / q(x)), and on rejection draws from p without what was rejected. An EAGLE tree
holds the drafter's most probable tokens, which are not drawn: they are certain, q(x) = 1, so child x of an accepted
node is accepted with probability p(x). One draw from p per node decides for all of its children and gives the bonus
token at the same time (``verify`` has the proof). q only decides which tokens are in the tree. The output has exactly
the distribution of plain decoding.

**KV cache rows** of one sequence during a step; L committed positions, N nodes of the tree, c the accepted ones:

               base                                       drafter
               tree rows       sequence rows              tree rows       sequence rows
    begin      ·               0 … L-1                    ·               0 … L-1
    verify     N nodes         0 … L-1
    draft                                                 grown levels    0 … L-1, then L … L+c (extend)
    commit     ·               0 … L+c                    ·               0 … L+c

Base and drafter move to L + 1 + c together: the root and c accepted nodes. In the base their rows are copied from the
tree rows behind the sequence (``kvcache`` draws it); in the drafter ``extend`` has computed them there already, from
the base's features instead of its own. The bonus token is the next root; its row is computed by the next verify.

**Places.** The batch has B places, each with a sequence that begins and ends independently of the others:

    free ── begin ──► prompt ── prefill, chunk by chunk ──► joining ── step ──► active ── end ──► free

A prompt's chunk is run between two steps of the others. The step after its last chunk drafts its first tree together
with the next trees of the others, so that joining costs nothing but the chunks; from then on it takes part in verify.
Where no place is active a step verifies nothing. Every rank calls the same in the same order.

A step computes the first S places. Before it, places are exchanged, with all that is in their caches, so that the
active ones are the first and the joining ones follow; so the caller's number of a place stays, and where it lies
changes. S is the number of these places; with a GPU in the plan the next power of two, so that there are few shapes.
Those that are not active keep their rows in every shape and commit nothing. Where a KV cache is divided by batch
nothing is exchanged, and a step computes the places from the first of these to the last.

**Trees.** Which tree is drafted follows from the number of running sequences, active or joining (``plans.step``). The
next step verifies it, whatever ended in between. A tree may be its root alone: a plain step, in which the drafter
extends by the features of the token and draws nothing, so that its cache is whole when it drafts again.

**Ahead.** Where GPUs alone run a plan, a step that is replayed may be launched before its caller has looked at what the
one before gives (``go_ahead``): the host makes texts and looks for ends while the GPU goes on. The next step is then
that one. It gives nothing to a sequence that has ended since, of whose caches it has written rows behind those that are
recorded; one that joins does so a step later. Where nothing is decoded any more nobody reads it.

Shapes: B places, S of them in a step, N nodes of a tree, A most nodes of a path, H hidden size, a captured features of
a row.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial

import torch
from torch import Tensor

from plans.graphs import captures, goes_ahead
from plans.places import is_movable, is_padded, places
from plans.schema import Plan, Tree
from plans.step import accept_rows, least_kept_positions, tree_for, written_rows
from runtime.comm.groups import Comm
from runtime.decode.choice import Samplings, choose_in_trees
from runtime.decode.graphs import Capture, Graphs, Shape
from runtime.decode.messages import Message, Notice, among, nothing
from runtime.decode.parts import Accepted, parts_of
from runtime.decode.pool import Pool, pools
from runtime.decode.prefill import Prefill, Prompt, Root
from runtime.decode.sequences import Sequences, swap
from runtime.decode.tree import ancestors
from runtime.decode.verify import forced, walk
from runtime.decode.work import Mode, Taken, Work
from runtime.image.buffers import Memory
from runtime.model.base import Forward
from runtime.model.blocks import Slots
from runtime.sampling import Sampling


class Stepper:
    """Decoder of one rank: runs its share of a plan, place by place in prefill, all places together in a step."""

    def __init__(
        self,
        plan: Plan,
        slots: Slots,
        memory: Memory,
        comm: Comm,
        device: torch.device,
        capture: Capture | None = None,
    ) -> None:
        """``capture``: of repeated steps, on a GPU (``graphs``), where the plan has them; None: steps are run."""
        self._comm, self._progress, self._options = comm, comm.progress, plan.options
        batch, movable = plan.options.batch, is_movable(plan)
        self._places = [places(plan, count) for count in range(batch + 1)]
        """Places that a step computes, by number of running sequences."""
        self._parts = parts_of(plan, slots, memory, comm, device, self._kinds(plan))
        self._sequences = Sequences(
            batch,
            copies=movable,
            kept=least_kept_positions(plan.model, plan.options),
            spare=written_rows(plan.options),
        )
        self._prefill = Prefill(plan, self._parts, memory, comm)
        self._channel, self._mode = self._parts.plain, Mode(draft=False, accept=None)
        self._tree: Tree | None = None
        """Kind of the trees that the next step verifies."""
        self._goes_ahead = goes_ahead(plan)
        self._ahead: Work | None = None
        """A step that was launched and whose message is not read yet."""
        self._place_of = list(range(batch))
        """Where each place of the callers is now; all that follows goes by these."""
        self._prompts: dict[int, Prompt] = {}
        """Prompts that are not whole in the caches yet, by place."""
        self._joining: dict[int, Root] = {}
        """Places that the next step drafts the first tree for."""
        self._samplings = Samplings(batch, device, alike=self._parts.padded)
        self.graphs = Graphs(capture if captures(plan) else None, comm.progress, comm.host)
        self._trees: list[list[int]] = [[] for _ in range(batch)]
        """Tokens of each active place's tree."""
        self._pools: dict[int, Pool] = {}
        """Candidates of the trees that the current step drafts, by place, on the drafter's leader; see ``Mode``."""
        self._first_node = torch.arange(batch, device=device).unsqueeze(1)
        self._inactive = torch.ones(batch, dtype=torch.bool, device=device)  # as the record has it
        self._no_rows = torch.zeros(batch, dtype=torch.int64, device=device)
        self._no_path = torch.zeros(batch, accept_rows(plan.options), dtype=torch.int64, device=device)

    def _kinds(self, plan: Plan) -> set[tuple[int, Tree]]:
        """Return for how many places trees are drafted together, and the trees then."""
        counts = range(1, plan.options.batch + 1)
        sizes = zip(counts, self._places[1:] if is_movable(plan) or is_padded(plan) else counts, strict=True)
        kinds = ((size, tree_for(plan.options, count)) for count, size in sizes)
        return {(size, tree) for size, tree in kinds if tree is not None}

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of running sequences, one for each number of places that a step computes and each tree then."""
        kinds = {(size, tree_for(self._options, count)): count for count, size in enumerate(self._places) if count}
        return tuple(sorted(kinds.values()))

    @property
    def drafts(self) -> bool:
        """True where the plan has a drafter."""
        return self._parts.drafted is not None

    def forget(self) -> None:
        """Discard the record of the caches: what follows reuses nothing."""
        self._sequences.forget()

    # ---- places ----

    @torch.inference_mode()
    def enter(self, mode: Mode) -> None:
        """Decode in another mode from now on; every place is free."""
        assert not any(self._sequences.active), "a mode is that of all sequences"
        self._mode, self._tree, self._ahead = mode, None, None
        self._channel = self._parts.drafted if mode.draft and self._parts.drafted else self._parts.plain
        self._channel.reset()
        if self._parts.drafter is not None:
            self._parts.drafter.recorded = mode.recorded

    @torch.inference_mode()
    def begin(
        self, prompt: tuple[int, ...], sampling: Sampling | None, free: Sequence[int], *, reuse: bool
    ) -> tuple[int, int]:
        """Begin a sequence in one of the ``free`` places; return the place, and how many positions it reuses.

        ``reuse``: of what any place's caches hold, the longest prefix that they have in common with the prompt.
        """
        now = [self._place_of[place] for place in free]
        start = self._sequences.start(prompt, now, reuse=reuse, drafted=self._channel.drafted)
        with self._sequences.changing():
            self._sequences.begin(start, prompt)
            if self._parts.base is not None:
                self._parts.base.restart(start.place, start.source, start.reused)
            if self._parts.drafter is not None:
                self._parts.drafter.restart(start.place, start.source, self._sequences.drafted[start.place])
        self._prompts[start.place] = Prompt(tokens=prompt, sampling=sampling)
        return self._place_of.index(start.place), start.reused

    def prefill(self, number: int) -> bool:
        """Run the next chunk of a place's prompt; return True after the last one: the place joins the next step."""
        place = self._place_of[number]
        prompt, start = self._prompts[place], len(self._sequences.tokens[place])
        with self._sequences.changing():
            root = self._prefill.chunk(place, prompt, start, drafted=self._channel.drafted)
            chunk = prompt.tokens[start : start + self._prefill.width]
            self._sequences.extend(place, chunk, drafted=self._channel.drafted)
        if root is None:
            return False
        del self._prompts[place]
        self._joining[place] = root
        return True

    @torch.inference_mode()
    def end(self, number: int) -> None:
        """End the sequence of a place, wherever it is: nothing more is committed."""
        place = self._place_of[number]
        self._prompts.pop(place, None)
        self._joining.pop(place, None)
        self._sequences.end(place)
        self._samplings.forget(place)
        self._inactive[place].fill_(True)

    def _arrange(self) -> None:
        """Exchange places so that the active ones are the first, and the joining ones follow."""
        active = self._sequences.active
        first, count = sum(active), sum(active) + len(self._joining)
        for target in range(count if self._sequences.copies else 0):
            wanted = [place for place, on in enumerate(active) if on] if target < first else list(self._joining)
            if target not in wanted:
                self._exchange(target, max(wanted))

    @torch.inference_mode()
    def _exchange(self, a: int, b: int) -> None:
        """Exchange two places, with all that is known of them."""
        with self._sequences.changing():
            self._sequences.exchange(a, b)
            for part in (self._parts.base, self._parts.drafter):
                if part is not None:
                    part.exchange(a, b)
        self._channel.exchange(a, b)
        kept = self._inactive[a].clone()
        self._inactive[a].copy_(self._inactive[b])
        self._inactive[b].copy_(kept)
        self._samplings.exchange(a, b)
        swap(self._trees, a, b)
        swap(self._place_of, self._place_of.index(a), self._place_of.index(b))
        swapped = {a: b, b: a}
        self._prompts = {swapped.get(place, place): prompt for place, prompt in self._prompts.items()}
        self._joining = {swapped.get(place, place): root for place, root in self._joining.items()}

    # ---- steps ----

    def step(self, notice: Callable[[], Notice] = nothing) -> tuple[dict[int, Taken], Notice]:
        """Make a step of all active and joining places; return what it gives each of them, and the notice.

        ``notice``: called on the rank that writes the step message; all ranks return what it returned there.
        """
        sequences, drafted = self._sequences, self._channel.drafted
        with sequences.changing():
            work, self._ahead = self._ahead or self._next(notice), None
            messages, agreed = self._read(work)
            taken: dict[int, Taken] = {}
            for place, message in enumerate(messages):
                number = self._place_of.index(place)
                if sequences.active[place]:
                    root, accepted = self._trees[place][0], message.path[1 : 1 + message.accepted]
                    tokens = [self._trees[place][node] for node in accepted]
                    sequences.commit(place, root, tokens, drafted=drafted, certain=self._mode.accept is None)
                    tokens, pool = [*tokens, message.tokens[0]], self._pools.get(place)
                    taken[number] = Taken(
                        tokens=tokens, message=message, joined=False, drafted=work.verified is not None, pool=pool
                    )
                elif place in work.joining:
                    self._join(place)
                    pool = self._pools.get(place)
                    taken[number] = Taken(tokens=message.tokens[:1], message=message, joined=True, pool=pool)
                self._trees[place] = message.tokens
        return taken, agreed

    @torch.inference_mode()
    def go_ahead(self, notice: Callable[[], Notice] = nothing) -> None:
        """Launch the next step, if it is one that is replayed; ``step`` returns what it gives.

        Every rank calls this at the same places; ``notice`` as of ``step``, called now.
        """
        if not self._goes_ahead or self._ahead is not None or self._joining:
            return
        with self._sequences.changing():
            self._arrange()
            shape = self._shape(self._work())
            if self.graphs.has(shape):
                self._ahead = self._next(notice)
                self._sequences.go_ahead(accept_rows(self._options))

    def steps(
        self, prompts: Sequence[tuple[int, ...]], samplings: Sequence[Sampling | None], mode: Mode, *, reuse: bool
    ) -> Generator[list[Taken | None], None, None]:
        """Yield what each step gives each of the prompts, which join together and go on until they are ended."""
        self.enter(mode)
        places = []
        try:
            for prompt, sampling in zip(prompts, samplings, strict=True):
                free = [place for place in range(len(self._trees)) if place not in places]
                places.append(self.begin(prompt, sampling, free, reuse=reuse)[0])
                while not self.prefill(places[-1]):
                    pass
            while True:
                taken, _ = self.step()
                yield [taken.get(place) for place in places]
        finally:
            for place in places:
                self.end(place)

    @torch.inference_mode()
    def _join(self, place: int) -> None:
        self._samplings.write(place, self._joining.pop(place).sampling, self._sequences.next_position(place))
        self._sequences.join(place)
        self._inactive[place].fill_(False)

    @torch.inference_mode()
    def _next(self, notice: Callable[[], Notice]) -> Work:
        """Give the device the next step, which is returned."""
        self._pools = {}
        self._arrange()
        channel, work = self._channel, self._work()
        shape, trees = self._shape(work), (channel.tokens, channel.parents)
        self._tree = work.next
        if shape is not None and channel.source == self._comm.rank:
            channel.notify(notice())  # what is replayed asks nobody
        channel.lay_out(work.layout, max(1, work.drafted.stop))
        self.graphs.step(shape, partial(self._compute, work, trees, notice if shape is None else None))
        return work

    def _read(self, work: Work) -> tuple[list[Message], Notice]:
        """Read the step message: the one thing that the host reads."""
        with self._progress.reading():
            messages, agreed = self._channel.read()
        if work.verifies:
            self._note(messages, work.places)
        self._sequences.come_back()
        return messages, agreed

    def _work(self) -> Work:
        """Return what the next step computes."""
        (places, drafted), running = self._spans(), sum(self._sequences.active) + len(self._joining)
        following = tree_for(self._options, running) if self._channel.drafted and running else None
        return Work(places=places, drafted=drafted, verified=self._tree, next=following, joining=dict(self._joining))

    def _shape(self, work: Work) -> Shape | None:
        """Return the shape of a step that may be captured; None where it is none, or is looked at while it runs.

        The trees that it verifies lie in the message of the step before, in the layout of its own.
        """
        looked_at = self._progress.timings is not None or self._mode.recorded
        if not self.graphs.captures or looked_at or not work.repeats or self._channel.layout != work.layout:
            return None
        assert work.places.start == 0, "with a GPU in the plan a step computes the first places"
        return Shape(
            drafted=self._channel.drafted,
            accept=self._mode.accept,
            places=work.places.stop,
            tree=work.next,
            sampled=self._samplings.any(work.places),
        )

    def _compute(self, work: Work, trees: tuple[Tensor, Tensor], notice: Callable[[], Notice] | None) -> None:
        """Verify trees, accept, draft the next trees, commit: all on the device; the host of a GPU reads nothing.

        ``trees``: tokens and parents of each place's. ``notice``: None: it is noted already. ``accepted`` is None on
        ranks that do not have the lm_head, and where no place is active.
        """
        channel, accepted = self._channel, None
        tokens, parents = (whole[work.places] for whole in trees)
        if work.verifies:
            self._progress.begin("verify")
        if work.verifies and self._parts.base is not None:
            accepted = self._verify(work, tokens, parents)

        # draft: the drafter catches up with the accepted path and grows the next trees from the base's last choice
        self._progress.begin("draft")
        if work.drafts:
            advance = self._draft if channel.drafted else self._choose
            advance(accepted, work)
        if self._comm.rank == channel.source:
            if not work.drafts or work.drafted.start:
                channel.accepted[:1].zero_()  # nobody has written the first row, in which the notice is
            if notice is not None:
                channel.notify(notice())
            channel.seal()
        self._comm.world.broadcast(channel.wire, channel.source)
        channel.send_to_host()

        # commit: the accepted rows become part of each sequence, on every rank
        if work.verifies:
            self._progress.begin("commit")
            self._commit(work.places, tokens.shape[1])
            self._progress.lap("commit")

    def _verify(self, work: Work, tokens: Tensor, parents: Tensor) -> Accepted | None:
        """Run all nodes of the trees, tokens and parents [S, N], at once: each sees the sequence, its ancestors and
        itself; accept on ranks of the lm_head.
        """
        assert self._parts.base is not None
        mask = ancestors(parents, work.verified.depth + 1 if work.verified else 0)  # [S, N, N]
        forward = self._parts.base.verify(tokens, mask, work.places.start)
        if forward is None:
            return None
        # accept: walk from the root to the child that the base chose, as far as there is one
        accepted = self._accept(forward, tokens, parents, mask, work)
        if self._channel.drafted or not work.drafts:
            self._progress.lap("head")
        return accepted

    def _spans(self) -> tuple[slice, slice]:
        """Return the places of which a step verifies trees, and those that it drafts for."""
        active = [place for place, on in enumerate(self._sequences.active) if on]
        return self._span(active), self._span(sorted([*active, *self._joining]))

    def _span(self, running: Sequence[int]) -> slice:
        """Return the places that are computed for some, in their order."""
        if not running:
            return slice(0, 0)
        if self._sequences.copies or self._parts.padded:
            return slice(0, self._places[len(running)])
        return slice(running[0], running[-1] + 1)

    def _accept(self, forward: Forward, tokens: Tensor, parents: Tensor, mask: Tensor, work: Work) -> Accepted:
        """Choose a token from p after every node; return the path of nodes that agree, with the base's features."""
        accept, kept = self._mode.accept, work.layout.kept
        chosen = choose_in_trees(forward, mask, self._samplings, work.places, kept)  # [S, N]
        if accept is None or not self._channel.drafted:
            verdict = walk(tokens, parents, chosen, kept)
        else:
            verdict = forced(tokens, chosen, kept, accept)
        if not self._channel.drafted:
            return Accepted(verdict=verdict, features=None)
        rows = (verdict.path + self._first_node[: len(tokens)] * tokens.shape[1]).flatten()  # [S * A], among all nodes
        return Accepted(verdict=verdict, features=forward.features.index_select(1, rows))

    def _choose(self, accepted: Accepted | None, work: Work) -> None:
        """Write the next trees of plain decoding, which are their roots, on the rank that does: part of the lm_head."""
        if self._comm.rank == self._channel.source:
            self._write_roots(accepted, work)
        if accepted is not None:
            self._progress.lap("head")

    def _write_roots(self, accepted: Accepted | None, work: Work) -> None:
        channel, extended, drafted = self._channel, work.places, work.drafted
        none = self._no_rows[drafted]
        kept, path, roots = none, self._no_path[drafted, : work.layout.kept], none.unsqueeze(1)
        if accepted is not None:
            own = accepted.verdict
            kept, path = among(own.accepted, extended, drafted), among(own.path, extended, drafted)
            roots = among(own.tokens.gather(1, own.accepted.unsqueeze(1)), extended, drafted)  # [S, 1]
        if work.joining:
            roots = roots.clone()
        for place, root in work.joining.items():
            assert root.token is not None, "the rank that writes the message has chosen the token"
            roots[place - drafted.start].copy_(root.token)
        channel.write(drafted, kept, path, roots, none.unsqueeze(1))

    def _draft(self, accepted: Accepted | None, work: Work) -> None:
        """Send the accepted path to the drafter, which writes the next trees to the step message."""
        drafter, link, extended, drafted = self._parts.drafter, self._parts.features, work.places, work.drafted
        if link is None:
            return
        view = link.step(extended.stop - extended.start, work.layout.kept) if work.verifies else None
        message = None if view is None else link.broadcast(view, accepted)
        if drafter is None:
            return
        if message is None:
            kept, path = self._no_rows[drafted], self._no_path[drafted, : work.layout.kept]
            roots, pending = kept.clone(), kept.clone()
        else:
            kept, path = among(message.accepted, extended, drafted), among(message.path, extended, drafted)
            roots = among(message.roots, extended, drafted)
            pending = among(message.accepted + 1, extended, drafted)
        joined: dict[int, Tensor] = {}
        for place, root in work.joining.items():
            assert root.token is not None
            assert root.feature is not None
            number = place - drafted.start
            joined[number] = root.feature[0]
            roots[number].copy_(root.token[0])
            pending[number].fill_(0)
        trees = drafter.draft(message, joined, roots, pending, (extended, drafted), work.next)
        if drafter.group.leads:
            self._channel.write(drafted, kept, path, *trees)
            if drafter.pool is not None and work.next is not None:
                grown = pools(drafter.pool, work.next.total_token)
                self._pools = dict(zip(range(drafted.start, drafted.stop), grown, strict=True))
        self._progress.lap("draft")

    def _commit(self, places: slice, nodes: int) -> None:
        """Keep the rows that each active place accepted, of trees of so many nodes."""
        channel, parts = self._channel, self._parts
        accepted = channel.committed(places, self._inactive[places])
        if parts.base is not None:
            parts.base.keep(channel.path[places], accepted, nodes, places.start)
            if self._comm.head is not None and self._samplings.any(places):
                self._samplings.advance(accepted + 1, places)
        if parts.drafter is not None and channel.drafted:
            parts.drafter.commit(accepted, places.start)

    def _note(self, messages: list[Message], places: slice) -> None:
        """Note on the host how many rows each place has committed."""
        rows = self._sequences.committed_rows(messages)[places]
        if self._parts.base is not None:
            self._parts.base.know(rows, places.start)
        if self._parts.drafter is not None and self._channel.drafted:
            self._parts.drafter.know(rows, places.start)
