"""One rank's part in decoding a batch: prefill, then draft -> verify -> commit, one message a step.

    verifier (leader of the head)         draft group                 all ranks
    ─────────────────────────────────     ─────────────────────────   ─────────────────────────
    verify: forward over the trees,
      choices, accepted paths
      ── feature message ──────────────►  extend, grow the next trees
                                            ── step message ───────►  keep(path), next trees

All ranks run this; each does what the plan gave it. Sequences that have ended keep their place in every shape and
commit nothing. Shapes: B sequences, N nodes of a tree, A most rows kept at once, C rows of a prefill chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.schema import Plan
from plans.step import PLAIN_STEP, accept_rows, prefill_features, step_features, step_layout, tree_depth
from runtime.comm.groups import Comm
from runtime.decode.eagle_head import Drafter
from runtime.decode.messages import Channel, FeatureMessage, Message, feature_message
from runtime.decode.tree import ancestors
from runtime.decode.verify import Verdict, forced, walk
from runtime.image.buffers import DTYPES, Memory
from runtime.model.base import Base, Forward
from runtime.model.blocks import Slots
from runtime.model.draw import Draw
from runtime.sampling import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How a batch is decoded."""

    draft: bool
    samplings: tuple[Sampling | None, ...]
    """Of each sequence; None: greedy."""
    accept: int | None
    """Every step commits so many drafted nodes, right or wrong, which is for timing."""
    reuse: bool
    """Rows of the caches that the batch before left are kept, as far as sequences have the same tokens."""
    stopped: Callable[[], bool]
    """Whether nobody reads the output any more."""


def decoding(*, draft: bool) -> Decoding:
    """Greedy, from nothing, to the end."""
    return Decoding(draft=draft, samplings=(), accept=None, reuse=False, stopped=lambda: False)


class Stepper:
    """One rank's share of a plan, which decodes one batch after the other."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm, device: torch.device) -> None:
        options, place = plan.options, plan.draft_placement
        self._comm, self._device, self._progress = comm, device, comm.progress
        self._batch, self._width = options.batch, options.prefill_chunk
        in_base = any((comm.embed, *comm.stages, comm.head))
        self._base = Base(plan, slots, memory, comm) if in_base else None
        self._drafter = Drafter(plan, slots, memory, comm) if comm.draft else None
        ranks = {device.id: rank for rank, device in enumerate(plan.devices)}
        buffer = memory.buffer("message")
        self._plain = self._channel = Channel(
            buffer,
            PLAIN_STEP,
            batch=options.batch,
            levels=0,
            source=ranks[plan.head.devices[0]],
            drafted=False,
        )
        self._drafted = self._plain
        if place is not None:
            self._drafted = Channel(
                buffer,
                step_layout(options),
                batch=options.batch,
                levels=tree_depth(options),
                source=ranks[place.devices[0]],
                drafted=True,
            )
        self._told = self._told_prompt = None
        if comm.feature is not None and plan.draft is not None:
            features, dtype = memory.buffer("features"), DTYPES[options.dtype]
            self._told = feature_message(step_features(plan.model, plan.draft, options), features, dtype)
            self._told_prompt = feature_message(prefill_features(plan.model, plan.draft, options), features, dtype)
        self._chunk = memory.buffer("chunk") if self._base else None
        self._draft_hidden = plan.draft.hidden_size if plan.draft is not None else 0
        self._first_node = torch.arange(options.batch, device=device).unsqueeze(1)
        self._none = torch.zeros(options.batch, accept_rows(options), dtype=torch.int64, device=device)
        self._active: list[bool] = []
        self._how = decoding(draft=False)
        self._committed: list[list[int]] = [[] for _ in range(options.batch)]
        """Tokens of the committed positions of each sequence, on every rank."""
        self._drafted_rows = [0] * options.batch
        """So many of them are in the caches of the draft."""
        self.reused = self._drafted_rows
        """Positions of each sequence that the last prefill found in the caches."""

    @property
    def drafts(self) -> bool:
        """Whether the plan has a draft."""
        return self._drafted.drafted

    def end(self, sequence: int) -> None:
        """A sequence has ended: it commits nothing more."""
        self._active[sequence] = False

    def steps(self, prompts: Sequence[tuple[int, ...]], how: Decoding) -> Iterator[list[tuple[list[int], Message]]]:
        """Each step's tokens and message, sequence by sequence, without end; the first is prefill's one token."""
        self._channel, self._how = self._drafted if how.draft else self._plain, how
        whole = False
        try:
            messages = self._prefill(prompts)
            whole = True
            yield [(message.tokens[:1], message) for message in messages[: len(prompts)]]
            while True:
                whole = False
                trees, messages = [message.tokens for message in messages], self._step()
                accepted = [
                    [tree[node] for node in message.path[1 : 1 + message.accepted]]
                    for tree, message in zip(trees, messages, strict=True)
                ]
                self._note(trees, accepted)
                whole = how.accept is None
                yield [
                    ([*tokens, message.tokens[0]], message)
                    for tokens, message in zip(accepted, messages[: len(prompts)], strict=False)
                ]
        finally:
            if not whole:
                self._committed = [[] for _ in range(self._batch)]  # rows of a step that was interrupted, or forced

    def _note(self, trees: list[list[int]], accepted: list[list[int]]) -> None:
        """What a step committed."""
        for number, (tree, tokens) in enumerate(zip(trees, accepted, strict=True)):
            if self._active[number]:
                self._committed[number] += [tree[0], *tokens]
                if self._channel.drafted:
                    self._drafted_rows[number] = len(self._committed[number])

    # ---- one step ----

    @torch.inference_mode()
    def _step(self) -> list[Message]:
        """Verify the trees in the channel, draft the next ones, commit what was accepted."""
        channel = self._channel
        self._progress.begin("verify")
        verdict, features = None, None
        if self._base is not None:
            mask = ancestors(channel.parents, channel.levels)
            forward = self._base.verify(channel.tokens, mask)
            if forward is not None:
                verdict = self._judge(mask, self._choose_in_trees(forward.normed, mask))
                rows = (verdict.path + self._first_node * channel.nodes).flatten()
                features = forward.features.index_select(1, rows)
                self._progress.lap("head")
        self._progress.begin("draft")
        if channel.drafted:
            self._draft_next(verdict, features)
        elif verdict is not None:
            roots = verdict.tokens.gather(1, verdict.accepted.unsqueeze(1))
            channel.write(verdict.accepted, verdict.path, roots, torch.zeros_like(roots), stop=self._how.stopped())
        self._comm.world.broadcast(channel.wire, channel.source)
        messages = channel.read()
        self._progress.begin("commit")
        self._commit(messages)
        self._progress.lap("commit")
        return messages

    def _choose_in_trees(self, normed: Tensor, mask: Tensor) -> Tensor:
        """The base's choice after each node, of ``normed`` [B * N, H]: [B * N].

        The token behind a root comes after what is committed and the root.
        """
        assert self._base is not None
        if not any(self._how.samplings):
            return self._base.best(normed)
        depths, rows = mask.sum(2) - 1, normed.unflatten(0, (self._batch, -1))
        return torch.cat([
            self._choose(number, rows[number], len(self._committed[number]) + 1, depths[number], self._channel.kept)
            for number in range(self._batch)
        ])  # fmt: skip

    def _choose(self, number: int, normed: Tensor, place: int, depths: Tensor, places: int) -> Tensor:
        """The base's choice after each row of one sequence, ``normed`` [W, H]: [W]; places as ``Draw`` has them."""
        assert self._base is not None
        sampling = self._how.samplings[number] if number < len(self._how.samplings) else None
        if sampling is None:
            return self._base.best(normed)
        return self._base.draw(normed, Draw(sampling=sampling, place=place, depths=depths, places=places))

    def _judge(self, mask: Tensor, chosen: Tensor) -> Verdict:
        """The verdict on every tree, of ``chosen`` [B * N]."""
        channel, accept = self._channel, self._how.accept
        choices = chosen.view(self._batch, channel.nodes)
        if accept is None or not channel.drafted:
            return walk(channel.tokens, channel.parents, mask, choices, channel.kept)
        return forced(channel.tokens, choices, channel.kept, accept)

    def _draft_next(self, verdict: Verdict | None, features: Tensor | None) -> None:
        """The verifier's verdict and features [a, B * A, T] -> the step's message, on the draft's leader."""
        told = self._tell(self._told, verdict, features)
        if self._drafter is not None and told is not None:
            hidden = self._drafter.extend(told)
            trees = self._drafter.grow(hidden, told.roots, told.accepted + 1)
            if self._drafter.group.leads:
                self._channel.write(told.accepted, told.path, *trees, stop=self._how.stopped())
            self._progress.lap("draft")

    def _tell(
        self, message: FeatureMessage | None, verdict: Verdict | None, features: Tensor | None
    ) -> FeatureMessage | None:
        """The feature message, from the verifier to the draft group; None on ranks that are neither."""
        group = self._comm.feature
        if group is None or message is None:
            return None
        if verdict is not None and features is not None:
            message.accepted.copy_(verdict.accepted)
            message.tokens.copy_(verdict.tokens)
            message.path.copy_(verdict.path)
            rows = message.features.shape[0]
            message.features.view(rows, *features.shape[::2]).copy_(features.transpose(0, 1))
        group.broadcast(message.wire, group.ranks[0])
        return message

    def _commit(self, messages: list[Message]) -> None:
        """Keep what each sequence accepted, unless it has ended."""
        channel = self._channel
        kept = [message.accepted + 1 if on else 0 for message, on in zip(messages, self._active, strict=True)]
        if self._base is not None:
            accepted = channel.accepted
            if not all(self._active):
                accepted = accepted.masked_fill(torch.tensor(self._active, device=self._device).logical_not(), -1)
            self._base.keep(channel.path, accepted, channel.nodes, kept)
        if self._drafter is not None and channel.drafted:
            self._drafter.commit(kept)

    # ---- prefill ----

    @torch.inference_mode()
    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> list[Message]:
        """Run the prompts in chunks of a fixed width; the message holds the first tokens and the first trees."""
        assert 0 < len(prompts) <= self._batch
        channel = self._channel
        self.reused = self._keep(prompts)
        self._active = [number < len(prompts) for number in range(self._batch)]
        roots = torch.zeros(self._batch, dtype=torch.int64, device=self._device)
        hidden: list[Tensor] = []
        for number, prompt in enumerate(prompts):
            root, feature = self._prefill_one(number, prompt)
            if root is not None:
                roots[number : number + 1] = root
            if feature is not None:
                hidden.append(feature)
        accepted = torch.zeros_like(roots)
        if channel.drafted and self._drafter is not None:
            absent = hidden[0].new_zeros(self._batch - len(prompts), self._draft_hidden)
            trees = self._drafter.grow(torch.cat([*hidden, absent]), roots, accepted)
            if self._drafter.group.leads:
                channel.write(accepted, self._none, *trees, stop=False)
        elif not channel.drafted and self._base is not None:
            channel.write(accepted, self._none[:, :1], roots.unsqueeze(1), accepted.unsqueeze(1), stop=False)
        self._comm.world.broadcast(channel.wire, channel.source)
        for number, prompt in enumerate(prompts):
            self._committed[number] = list(prompt)
            if channel.drafted:
                self._drafted_rows[number] = len(prompt)
        return channel.read()

    def _keep(self, prompts: Sequence[tuple[int, ...]]) -> list[int]:
        """Forget the last batch, but for the rows that this one has too; how many those are.

        The draft's row of a position knows the token behind it too, so of a common beginning the last row is made anew.
        """
        every: list[tuple[int, ...]] = [*prompts, *(() for _ in range(self._batch - len(prompts)))]
        kept = [0] * self._batch
        if self._how.reuse:
            kept = [max(0, _common(old, new) - 1) for old, new in zip(self._committed, every, strict=True)]
        if self._channel.drafted:
            kept = [min(rows, drafted) for rows, drafted in zip(kept, self._drafted_rows, strict=True)]
        self._drafted_rows = [min(rows, drafted) for rows, drafted in zip(kept, self._drafted_rows, strict=True)]
        self._committed = [tokens[:rows] for tokens, rows in zip(self._committed, kept, strict=True)]
        if self._base is not None:
            self._base.truncate(kept)
        if self._drafter is not None:
            self._drafter.truncate(self._drafted_rows)
        return kept

    def _prefill_one(self, number: int, prompt: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """One sequence: the token that follows the prompt [1], and the root's feature [1, H], where they are known."""
        width, drafted = self._width, self._channel.drafted
        root = feature = None
        for start in range(self.reused[number], len(prompt), width):
            self._progress.begin("prefill")
            chunk, following = prompt[start : start + width], prompt[start + 1 : start + 1 + width]
            last, ends = len(chunk) - 1, start + width >= len(prompt)
            forward = self._run_chunk(number, chunk)
            if ends and forward is not None:
                root = self._choose(number, forward.normed[last : last + 1], len(prompt), self._none[0, :1], 1)
            if drafted:
                features = None if forward is None else forward.features
                told = self._tell(self._told_prompt, self._as_accepted(following, forward, last, root), features)
                if self._drafter is not None and told is not None:
                    feature = self._drafter.extend(told, number)
                    self._drafter.commit([last + 1 if other == number else 0 for other in range(self._batch)])
                    root = told.roots.clone() if ends else None
        return root, feature

    def _run_chunk(self, number: int, chunk: tuple[int, ...]) -> Forward | None:
        """A forward over a padded chunk, committed."""
        if self._base is None or self._chunk is None:
            return None
        padding = [0] * (self._chunk.shape[0] - len(chunk))
        self._chunk.copy_(torch.tensor([*chunk, *padding]))
        return self._base.prefill(number, self._chunk, len(chunk) - 1)

    def _as_accepted(
        self, following: tuple[int, ...], forward: Forward | None, last: int, root: Tensor | None
    ) -> Verdict | None:
        """A chunk as if it had been drafted and accepted: the token behind each row, ``root`` [1] behind the last."""
        if forward is None:
            return None
        tokens = torch.tensor([[*following, *[0] * (self._width - len(following))]], device=self._device)
        if root is not None:
            tokens[0, last : last + 1] = root
        return Verdict(accepted=torch.tensor([last], device=self._device), path=self._none[:1], tokens=tokens)


def _common(old: Sequence[int], new: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(old, new, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
