"""Fixed-width messages between ranks, as views of their buffers: the step message, and the features for the drafter.

``plans.step`` has the layouts; nothing here knows an offset.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plans.step import FeatureLayout, StepLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureMessage:
    """Views of the message from the verifier to the drafter; S sequences of n rows each."""

    wire: Tensor
    """The message, uint8 [bytes]."""
    accepted: Tensor
    """[S]: rows 0 … accepted of a sequence count."""
    tokens: Tensor
    """[S, n]: the token behind each row; at row ``accepted`` the one that was just decided."""
    path: Tensor
    """[S, A]: nodes of the last tree to keep."""
    features: Tensor
    """[S * n, F], in the dtype of the plan."""

    @property
    def roots(self) -> Tensor:
        """[S]: the tokens that were just decided."""
        return self.tokens.gather(1, self.accepted.unsqueeze(1)).squeeze(1)


def feature_message(layout: FeatureLayout, buffer: Tensor, dtype: torch.dtype) -> FeatureMessage:
    """Return the views of a feature buffer, uint8, for a message of this layout with features of ``dtype``."""
    wire = buffer[: layout.nbytes]
    words = wire[: layout.feature_start].view(torch.int64)
    return FeatureMessage(
        wire=wire,
        accepted=words[layout.accepted],
        tokens=words[layout.tokens].view(layout.sequences, layout.rows),
        path=words[layout.path].view(layout.sequences, layout.kept),
        features=wire[layout.feature_start :].view(dtype).view(layout.sequences * layout.rows, -1),
    )


STOP = 1 << 32
"""Added to the accepted lengths by the rank that writes the message, when nobody reads the output any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One sequence's part of the step message, on the host: how much of the last tree is kept, and the next tree."""

    accepted: int
    stopped: bool
    """The output ends here for everybody."""
    path: list[int]
    tokens: list[int]
    """Tokens of the next tree, root first; the root is certain."""
    parents: list[int]


class Channel:
    """The step message in a decoding mode: views of its buffer, and the rank that fills it."""

    def __init__(
        self, buffer: Tensor, layout: StepLayout, *, batch: int, levels: int, source: int, drafted: bool
    ) -> None:
        """``levels``: most levels of a tree below its root; ``source``: the rank that writes the message."""
        self._layout = layout
        self.wire = buffer[: batch * layout.words].view(batch, -1)
        self.accepted = self.wire[:, 0]
        self.path = self.wire[:, layout.path]
        self.tokens = self.wire[:, layout.tokens]
        self.parents = self.wire[:, layout.parents]
        self.nodes, self.kept = layout.nodes, layout.kept
        self.levels, self.source, self.drafted = levels, source, drafted

    def write(self, accepted: Tensor, path: Tensor, tokens: Tensor, parents: Tensor, *, stop: bool) -> None:
        """Write ``accepted`` [B], ``path`` [B, A], ``tokens`` and ``parents`` [B, N]."""
        torch.cat([accepted.unsqueeze(1), path, tokens, parents], 1, out=self.wire)
        if stop:
            self.accepted += STOP

    def read(self) -> list[Message]:
        """Return the message of each sequence: the one transfer to the host of a step."""
        rows, layout = self.wire.tolist(), self._layout
        if rows[0][0] >= STOP:
            self.accepted -= STOP
        return [
            Message(
                accepted=words[0] % STOP,
                stopped=words[0] >= STOP,
                path=words[layout.path],
                tokens=words[layout.tokens],
                parents=words[layout.parents],
            )
            for words in rows
        ]
