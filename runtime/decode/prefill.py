"""Prefill of a batch: each prompt through base and drafter in chunks of a fixed width, then the first trees.

A chunk of C rows is treated as a path that was drafted and accepted: its rows are committed, the token after each row
is known (the prompt's next one; after the last row the base's choice), and the drafter extends by the base's features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plans.schema import Plan
from plans.step import accept_rows
from runtime.comm.groups import Comm
from runtime.decode.choice import choose
from runtime.decode.messages import Channel, Message
from runtime.decode.parts import Accepted, Parts
from runtime.decode.sequences import Sequences
from runtime.decode.verify import Verdict
from runtime.image.buffers import Memory, fill
from runtime.model.base import Forward
from runtime.sampling import Sampling


class Prefill:
    """Prefill on one rank, with the parts that it has."""

    def __init__(self, plan: Plan, parts: Parts, memory: Memory, comm: Comm) -> None:
        options = plan.options
        self._parts, self._comm, self._progress = parts, comm, comm.progress
        self._batch, self._width, self._device = options.batch, options.prefill_chunk, parts.device
        self._chunk = memory.buffer("chunk") if parts.base is not None else torch.empty(0)
        self._draft_hidden = plan.draft.hidden_size if plan.draft is not None else 0
        self._no_path = torch.zeros(options.batch, accept_rows(options), dtype=torch.int64, device=parts.device)
        self.reused = [0] * options.batch
        """Positions of each sequence that the caches had of its prompt."""

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[tuple[int, ...]],
        samplings: Sequence[Sampling | None],
        channel: Channel,
        sequences: Sequences,
        *,
        reuse: bool,
    ) -> list[Message]:
        """Run the prompts; return the step message with the first trees, whose roots are the tokens after the prompts.

        ``reuse``: keep what the caches have of the prompts.
        """
        assert 0 < len(prompts) <= self._batch
        base, drafter = self._parts.base, self._parts.drafter
        self.reused = sequences.begin(prompts, reuse=reuse, drafted=channel.drafted)
        if base is not None:
            base.truncate(self.reused)
        if drafter is not None:
            drafter.truncate(sequences.drafted)
        roots = torch.zeros(self._batch, dtype=torch.int64, device=self._device)
        hidden: list[Tensor] = []
        for number, prompt in enumerate(prompts):
            sampling = samplings[number] if number < len(samplings) else None
            root, feature = self._prompt(number, prompt, sampling, drafted=channel.drafted)
            if root is not None:
                roots[number : number + 1] = root
            if feature is not None:
                hidden.append(feature)
        accepted = torch.zeros_like(roots)
        if channel.drafted and drafter is not None:
            padding = hidden[0].new_zeros(self._batch - len(prompts), self._draft_hidden)
            trees = drafter.grow(torch.cat([*hidden, padding]), roots, accepted)
            if drafter.group.leads:
                channel.write(accepted, self._no_path, *trees, stop=False)
        elif not channel.drafted and base is not None:
            channel.write(accepted, self._no_path[:, :1], roots.unsqueeze(1), accepted.unsqueeze(1), stop=False)
        self._comm.world.broadcast(channel.wire, channel.source)
        sequences.prefilled(prompts, drafted=channel.drafted)
        with self._progress.reading():
            return channel.read()

    def _prompt(
        self, number: int, prompt: tuple[int, ...], sampling: Sampling | None, *, drafted: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run one prompt, behind the positions that are reused.

        Returns the token that follows it [1], on ranks of the lm_head and the drafter, and the drafter's output at its
        last position [1, H], on ranks of the drafter.
        """
        root = feature = None
        for start in range(self.reused[number], len(prompt), self._width):
            self._progress.begin("prefill")
            chunk = prompt[start : start + self._width]
            last, ends = len(chunk) - 1, start + self._width >= len(prompt)
            forward = self._run_chunk(number, chunk)
            if ends and forward is not None:
                row, depth = forward.normed[last : last + 1], self._no_path[0, :1]
                root = choose(forward, row, sampling, position=len(prompt), depths=depth, num_depths=1)
            if drafted:
                following = root if ends else prompt[start + self._width]
                feature, chosen = self._extend(number, last, self._as_accepted(forward, last, following))
                root = root if chosen is None else chosen if ends else None
        return root, feature

    def _run_chunk(self, number: int, chunk: tuple[int, ...]) -> Forward | None:
        """Run and commit a padded chunk in the base; return the output on ranks of the lm_head, None elsewhere."""
        if self._parts.base is None:
            return None
        padding = [0] * (self._width - len(chunk))
        fill(self._chunk, [*chunk, *padding])
        return self._parts.base.prefill(number, self._chunk, len(chunk) - 1)

    def _extend(self, number: int, last: int, accepted: Accepted | None) -> tuple[Tensor | None, Tensor | None]:
        """Extend the drafter by a chunk and commit it; return its output at the last row, and the token after that row.

        None and None on ranks that do not have the drafter.
        """
        drafter, link = self._parts.drafter, self._parts.features
        if link is None:
            return None, None
        message = link.broadcast(link.chunk, accepted)
        if drafter is None:
            return None, None
        feature = drafter.extend(message, number)
        drafter.commit_one(number, last + 1)
        return feature, message.roots

    def _as_accepted(self, forward: Forward | None, last: int, following: int | Tensor | None) -> Accepted | None:
        """Return a chunk as an accepted path with the token after each row; after row ``last`` it is ``following``."""
        if forward is None:
            return None
        assert following is not None, "a rank of the lm_head has chosen the token after the prompt"
        tokens = self._chunk.roll(-1).unsqueeze(0)
        tokens[:, last].fill_(following) if isinstance(following, int) else tokens[:, last].copy_(following)
        accepted = torch.full((1,), last, dtype=torch.int64, device=self._device)
        verdict = Verdict(accepted=accepted, path=self._no_path[:1], tokens=tokens)
        return Accepted(verdict=verdict, features=forward.features)
