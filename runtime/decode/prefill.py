"""Prefill: prompts through base and drafter in chunks; a chunk is one turn, between the steps of other sequences.

A chunk of C rows is treated as a path that was drafted and accepted: its rows are committed, the token after each row
is known (the prompt's next one; after the last row the base's choice), and the drafter extends by the base's features.
The last chunk leaves the root of the first tree and the drafter's output there; the next step drafts from them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plans.schema import Plan
from plans.step import accept_rows
from runtime.comm.groups import Comm
from runtime.decode.choice import choose_first
from runtime.decode.parts import Accepted, Parts
from runtime.decode.verify import Verdict
from runtime.image.buffers import Memory, fill
from runtime.model.base import Forward
from runtime.sampling import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt on its way into the caches of a place."""

    tokens: tuple[int, ...]
    sampling: Sampling | None
    """None: greedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    """Beginning of the first tree of a sequence."""

    token: Tensor | None
    """[1]: the token after the prompt, on ranks of the lm_head and, where it drafts, of the drafter; None elsewhere."""
    feature: Tensor | None
    """[1, H]: the drafter's output at the last position of the prompt, on ranks of the drafter; None elsewhere."""
    sampling: Sampling | None
    """Sampling of the sequence; None: greedy."""


class Prefill:
    """Prefill on one rank, with the parts that it has."""

    def __init__(self, plan: Plan, parts: Parts, memory: Memory, comm: Comm) -> None:
        self._parts, self._progress = parts, comm.progress
        self.width = plan.options.prefill_chunk
        """C: most positions of a chunk."""
        self._padded = parts.padded
        self._chunk = memory.buffer("chunk") if parts.base is not None else torch.empty(0)
        self._no_path = torch.zeros(1, accept_rows(plan.options), dtype=torch.int64, device=parts.device)

    @torch.inference_mode()
    def chunk(self, place: int, prompt: Prompt, start: int, *, drafted: bool) -> Root | None:
        """Run and commit the positions of a prompt from ``start`` on, at most C; return the root behind the last one.

        None where the prompt goes on behind the chunk.
        """
        self._progress.begin("prefill")
        tokens = prompt.tokens[start : start + self.width]
        last, end, ends = len(tokens) - 1, start + self.width, start + self.width >= len(prompt.tokens)
        width = self.width if self._padded else len(tokens)
        forward, root, feature = self._run_chunk(place, tokens, width), None, None
        if ends and forward is not None:
            root = choose_first(forward, forward.normed[last : last + 1], prompt.sampling, len(prompt.tokens))
        if drafted:
            following = root if ends else prompt.tokens[end]
            feature, chosen = self._extend(place, last, width, self._as_accepted(forward, last, following))
            root = root if chosen is None else chosen
        return Root(token=root, feature=feature, sampling=prompt.sampling) if ends else None

    def _run_chunk(self, place: int, tokens: tuple[int, ...], width: int) -> Forward | None:
        """Run and commit a padded chunk in the base; return the output on ranks of the lm_head, None elsewhere."""
        if self._parts.base is None:
            return None
        chunk = self._chunk[:width]
        fill(chunk, [*tokens, *[0] * (width - len(tokens))])
        return self._parts.base.prefill(place, chunk, len(tokens) - 1)

    def _extend(
        self, place: int, last: int, width: int, accepted: Accepted | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Extend the drafter by a chunk and commit it; return its output at the last row, and the token after that row.

        None and None on ranks that do not have the drafter.
        """
        drafter, link = self._parts.drafter, self._parts.features
        if link is None:
            return None, None
        message = link.broadcast(link.chunk(width), accepted)
        if drafter is None:
            return None, None
        feature = drafter.extend(message, place)
        drafter.commit_one(place, last + 1)
        return feature, message.roots

    def _as_accepted(self, forward: Forward | None, last: int, following: int | Tensor | None) -> Accepted | None:
        """Return a chunk as an accepted path with the token after each row; after row ``last`` it is ``following``."""
        if forward is None:
            return None
        assert following is not None, "a rank of the lm_head has chosen the token after the prompt"
        tokens = self._chunk[: forward.normed.shape[0]].roll(-1).unsqueeze(0)
        tokens[:, last].fill_(following) if isinstance(following, int) else tokens[:, last].copy_(following)
        accepted = torch.full((1,), last, dtype=torch.int64, device=self._parts.device)
        verdict = Verdict(accepted=accepted, path=self._no_path, tokens=tokens)
        return Accepted(verdict=verdict, features=forward.features)
