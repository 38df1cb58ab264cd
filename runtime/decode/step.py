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

Shapes: B sequences, N nodes of a tree, A most nodes of a path, H hidden size, a captured features of a row. Sequences
that have ended keep their rows in every shape and commit nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.schema import Plan
from runtime.comm.groups import Comm
from runtime.decode.choice import choose_in_trees
from runtime.decode.messages import Message
from runtime.decode.parts import Accepted, parts_of
from runtime.decode.prefill import Prefill
from runtime.decode.sequences import Sequences
from runtime.decode.tree import ancestors
from runtime.decode.verify import forced, walk
from runtime.image.buffers import Memory
from runtime.model.base import Forward
from runtime.model.blocks import Slots
from runtime.sampling import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """Options of decoding a batch."""

    draft: bool
    """False: plain decoding, one token a step, also where the plan has a drafter."""
    samplings: tuple[Sampling | None, ...]
    """By sequence; None: greedy."""
    accept: int | None
    """For timing: number of drafted nodes that every step accepts, whatever they are."""
    reuse: bool
    """True: positions that the caches hold of an earlier batch are kept as far as the prompt has the same tokens."""
    stopped: Callable[[], bool]
    """Returns True once nobody reads the output any more; called in every step."""


def decoding(*, draft: bool) -> Decoding:
    """Return options for greedy decoding without reuse and without end."""
    return Decoding(draft=draft, samplings=(), accept=None, reuse=False, stopped=lambda: False)


class Stepper:
    """Decoder of one rank: runs its share of a plan for one batch after the other."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm, device: torch.device) -> None:
        self._comm, self._progress = comm, comm.progress
        self._parts = parts_of(plan, slots, memory, comm, device)
        self._sequences = Sequences(plan.options.batch)
        self._prefill = Prefill(plan, self._parts, memory, comm)
        self._channel, self._options = self._parts.plain, decoding(draft=False)
        self._first_node = torch.arange(plan.options.batch, device=device).unsqueeze(1)
        self._ended = torch.ones(plan.options.batch, dtype=torch.bool, device=device)  # as the record has it

    @property
    def drafts(self) -> bool:
        """True where the plan has a drafter."""
        return self._parts.drafted is not None

    @property
    def reused(self) -> list[int]:
        """Positions of each sequence that the last prefill found in the caches."""
        return self._prefill.reused

    def forget(self) -> None:
        """Discard the record of the caches: the next batch reuses nothing."""
        self._sequences.forget()

    @torch.inference_mode()
    def end(self, sequence: int) -> None:
        """Stop committing to a sequence, which has ended."""
        self._sequences.end(sequence)
        self._ended[sequence].fill_(True)

    def steps(self, prompts: Sequence[tuple[int, ...]], options: Decoding) -> Iterator[list[tuple[list[int], Message]]]:
        """Yield each step's new tokens and message by sequence, without end; prefill's one token first."""
        self._channel = self._parts.drafted if options.draft and self._parts.drafted else self._parts.plain
        self._options = options
        valid = False  # the record of the caches: not within a step, nor after tokens that are not the base's choice
        try:
            messages = self._prefill.run(
                prompts, options.samplings, self._channel, self._sequences, reuse=options.reuse
            )
            self._begin(len(prompts))
            valid = True
            yield [(message.tokens[:1], message) for message in messages[: len(prompts)]]
            while True:
                valid = False
                trees, messages = [message.tokens for message in messages], self._step()
                accepted = [
                    [tree[node] for node in message.path[1 : 1 + message.accepted]]
                    for tree, message in zip(trees, messages, strict=True)
                ]
                self._sequences.commit([tree[0] for tree in trees], accepted, drafted=self._channel.drafted)
                valid = options.accept is None
                yield [
                    ([*tokens, message.tokens[0]], message)
                    for tokens, message in zip(accepted, messages[: len(prompts)], strict=False)
                ]
        finally:
            if not valid:
                self._sequences.forget()

    @torch.inference_mode()
    def _begin(self, sequences: int) -> None:
        """Commit to the first ``sequences`` sequences, until they end."""
        self._ended.fill_(True)
        self._ended[:sequences].fill_(False)

    @torch.inference_mode()
    def _step(self) -> list[Message]:
        """Verify the trees in the channel, accept, draft the next trees, commit; return the step message.

        A rank without a part skips it; ``forward`` and ``accepted`` are None on ranks that do not have the lm_head. The
        host reads nothing before the message.
        """
        channel, base = self._channel, self._parts.base
        accepted = None

        # verify: the base runs all nodes at once; each sees the sequence, its ancestors and itself
        self._progress.begin("verify")
        if base is not None:
            mask = ancestors(channel.parents, channel.levels)  # [B, N, N]
            forward = base.verify(channel.tokens, mask)
            # accept: walk from the root to the child that the base chose, as far as there is one
            if forward is not None:
                accepted = self._accept(forward, mask)
                self._progress.lap("head")

        # draft: the drafter catches up with the accepted path and grows the next trees from the base's last choice
        self._progress.begin("draft")
        if channel.drafted:
            self._draft(accepted)
        elif accepted is not None:  # the next tree is its root
            verdict = accepted.verdict
            roots = verdict.tokens.gather(1, verdict.accepted.unsqueeze(1))  # [B, 1]
            channel.write(verdict.accepted, verdict.path, roots, torch.zeros_like(roots), stop=self._options.stopped())
        self._comm.world.broadcast(channel.wire, channel.source)
        with self._progress.reading():
            messages = channel.read()

        # commit: the accepted rows become part of each sequence, on every rank
        self._progress.begin("commit")
        self._commit(messages)
        self._progress.lap("commit")
        return messages

    def _accept(self, forward: Forward, mask: Tensor) -> Accepted:
        """Choose a token from p after every node; return the path of nodes that agree, with the base's features."""
        channel, options = self._channel, self._options
        positions = self._sequences.next_positions
        chosen = choose_in_trees(forward, mask, options.samplings, positions, channel.kept)  # [B, N]
        if options.accept is None or not channel.drafted:
            verdict = walk(channel.tokens, channel.parents, mask, chosen, channel.kept)
        else:
            verdict = forced(channel.tokens, chosen, channel.kept, options.accept)
        rows = (verdict.path + self._first_node * channel.nodes).flatten()  # [B * A], among all nodes
        return Accepted(verdict=verdict, features=forward.features.index_select(1, rows))

    def _draft(self, accepted: Accepted | None) -> None:
        """Send the accepted path to the drafter, which writes the next trees to the step message."""
        drafter, link = self._parts.drafter, self._parts.features
        if link is None:
            return
        message = link.broadcast(link.step, accepted)
        if drafter is None:
            return
        hidden = drafter.extend(message)  # [B, H]: output at the last accepted row
        trees = drafter.grow(hidden, message.roots, message.accepted + 1)
        if drafter.group.leads:
            self._channel.write(message.accepted, message.path, *trees, stop=self._options.stopped())
        self._progress.lap("draft")

    def _commit(self, messages: list[Message]) -> None:
        """Keep the rows that each sequence accepted; none of a sequence that has ended."""
        channel, rows = self._channel, self._sequences.committed_rows(messages)
        accepted = channel.accepted.masked_fill(self._ended, -1)
        if self._parts.base is not None:
            self._parts.base.keep(channel.path, accepted, channel.nodes, rows)
        if self._parts.drafter is not None and channel.drafted:
            self._parts.drafter.commit(accepted, rows)
