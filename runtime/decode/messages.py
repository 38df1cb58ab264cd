"""Fixed-width messages between ranks: the message of a step, and the features for the EAGLE head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plans.schema import Plan
from plans.step import accept_rows, feature_width, feature_words
from runtime.image.buffers import DTYPES


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureMessage:
    """What the verifier tells the head, over one buffer: views of it, for the rows of all sequences or of one."""

    wire: Tensor
    """uint8, all of it."""
    accepted: Tensor
    """[B]: rows 0 … accepted of a sequence count."""
    tokens: Tensor
    """[B, n]: the token behind each row; at row ``accepted`` the one that was just decided."""
    path: Tensor
    """[B, A]: nodes of the last tree to keep."""
    features: Tensor
    """[W, F]"""

    @property
    def roots(self) -> Tensor:
        """[B]: the tokens that were just decided."""
        return self.tokens.gather(1, self.accepted.unsqueeze(1)).squeeze(1)


def feature_message(plan: Plan, buffer: Tensor, sequences: int, rows: int) -> FeatureMessage:
    """Views of a feature buffer for a message of so many rows of each of so many sequences."""
    assert plan.draft is not None
    kept, width, dtype = accept_rows(plan.options), feature_width(plan.model, plan.draft), DTYPES[plan.options.dtype]
    every = sequences * rows
    start = 8 * feature_words(plan.options, every)
    wire = buffer[: start + every * width * dtype.itemsize]
    words = wire[:start].view(torch.int64)
    return FeatureMessage(
        wire=wire,
        accepted=words[:sequences],
        tokens=words[sequences : sequences + every].view(sequences, rows),
        path=words[sequences + every : sequences + every + sequences * kept].view(sequences, kept),
        features=wire[start:].view(dtype).view(every, width),
    )


STOP = 1 << 32
"""Added to the accepted lengths by the rank that writes the message, when nobody reads the output any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What a step says of one sequence, on the host: how much of the last tree is kept, and the next tree."""

    accepted: int
    stopped: bool
    """The output ends here for everybody."""
    path: list[int]
    tokens: list[int]
    """Of the next tree, root first; the root is certain."""
    parents: list[int]


class Channel:
    """The step message in a decoding mode: views of its buffer, and who fills it."""

    def __init__(
        self, buffer: Tensor, *, batch: int, nodes: int, kept: int, levels: int, source: int, drafted: bool
    ) -> None:
        self.wire = buffer[: batch * (1 + kept + 2 * nodes)].view(batch, -1)
        self.accepted = self.wire[:, 0]
        self.path = self.wire[:, 1 : 1 + kept]
        self.tokens = self.wire[:, 1 + kept : 1 + kept + nodes]
        self.parents = self.wire[:, 1 + kept + nodes :]
        self.nodes, self.kept, self.levels, self.source, self.drafted = nodes, kept, levels, source, drafted

    def write(self, accepted: Tensor, path: Tensor, tokens: Tensor, parents: Tensor, *, stop: bool) -> None:
        """``accepted`` [B], ``path`` [B, A], ``tokens`` and ``parents`` [B, N]."""
        torch.cat([accepted.unsqueeze(1), path, tokens, parents], 1, out=self.wire)
        if stop:
            self.accepted += STOP

    def read(self) -> list[Message]:
        """The one transfer to the host of a step."""
        start, stop = 1 + self.kept, 1 + self.kept + self.nodes
        every = self.wire.tolist()
        if every[0][0] >= STOP:
            self.accepted -= STOP
        return [
            Message(
                accepted=words[0] % STOP,
                stopped=words[0] >= STOP,
                path=words[1:start],
                tokens=words[start:stop],
                parents=words[stop:],
            )
            for words in every
        ]
