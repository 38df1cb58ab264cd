"""Fixed-width messages between ranks, as views of their buffers: the step message, and the features for the drafter.

``plans.step`` has the layouts; nothing here knows an offset.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from plans.step import PLAIN_STEP, FeatureLayout, StepLayout
from runtime.model import ops


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

    def shortened(self) -> Self:
        """Return the message without the rows that count in no sequence; the host reads how many do."""
        count, width = self.tokens.shape
        most = int(self.accepted.max()) + 1
        features = self.features.view(count, width, -1)[:, :most].flatten(0, 1)
        return replace(self, tokens=self.tokens[:, :most], features=features)


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


NOTICE = 1 << 32
"""Unit in which the notice is added to the accepted length of the first sequence, which is below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Decision of the rank that writes the step message, for all ranks, beside the trees."""

    stop: bool
    """Every output ends here, since nobody reads it."""
    packets: int
    """Packets of commands that each rank takes from its own inbox before it goes on."""

    @property
    def word(self) -> int:
        """The notice as a number."""
        return 2 * self.packets + self.stop


def nothing() -> Notice:
    """Return the notice of a rank that is sent no commands."""
    return Notice(stop=False, packets=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One sequence's part of the step message, on the host: how much of the last tree is kept, and the next tree."""

    accepted: int
    path: list[int]
    tokens: list[int]
    """Tokens of the next tree, root first; the root is certain."""
    parents: list[int]


def among(part: Tensor, extended: slice, drafted: slice) -> Tensor:
    """Return what the sequences of some places have [s, ...] among those of more places, with zeros for the others."""
    if extended == drafted:
        return part
    whole = part.new_zeros(drafted.stop - drafted.start, *part.shape[1:])
    whole[extended.start - drafted.start :][: len(part)].copy_(part)
    return whole


class Channel:
    """The step message in a decoding mode: views of its buffer for P places, and the rank that fills it."""

    def __init__(self, buffer: Tensor, *, source: int, drafted: bool) -> None:
        """``source``: the rank that writes the message; ``drafted``: trees may have more than their roots."""
        self._buffer = buffer
        self.source, self.drafted = source, drafted
        self._host = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True) if buffer.is_cuda else buffer
        """What the host reads: of a GPU pinned memory, to which a step copies its message."""
        self._word = torch.zeros(1, dtype=torch.int64, device=buffer.device)
        self._noted = 0  # ``_word`` on the host
        self._laid_out: tuple[StepLayout, int] | None = None
        self.reset()

    def reset(self) -> None:
        """Discard the message."""
        self._buffer.zero_()
        self.lay_out(PLAIN_STEP, 1)

    def lay_out(self, layout: StepLayout, places: int) -> None:
        """Take the buffer as a message of this layout, for the first ``places`` of the batch."""
        if (layout, places) == self._laid_out:
            return
        self._laid_out = layout, places
        self.layout, self.nodes, self.kept = layout, layout.nodes, layout.kept
        self.wire = self._buffer[: places * layout.words].view(places, -1)
        self.accepted = self.wire[:, 0]
        self.path = self.wire[:, layout.path]
        self.tokens = self.wire[:, layout.tokens]
        self.parents = self.wire[:, layout.parents]

    def exchange(self, a: int, b: int) -> None:
        """Exchange what the message has for two places; nothing where it has only one of them."""
        if max(a, b) < len(self.wire):
            kept = self.wire[a].clone()
            self.wire[a].copy_(self.wire[b])
            self.wire[b].copy_(kept)

    def write(self, places: slice, accepted: Tensor, path: Tensor, tokens: Tensor, parents: Tensor) -> None:
        """Write ``accepted`` [S], ``path`` [S, A], ``tokens`` and ``parents`` [S, N] of S places."""
        torch.cat([accepted.unsqueeze(1), path, tokens, parents], 1, out=self.wire[places])

    def notify(self, notice: Notice) -> None:
        """Note what ``seal`` adds to the messages from now on."""
        if notice.word != self._noted:
            self._word.fill_(notice.word * NOTICE)
            self._noted = notice.word

    def seal(self) -> None:
        """Add the notice to the message."""
        self.accepted[:1].add_(self._word)

    def committed(self, places: slice, ended: Tensor) -> Tensor:
        """Return the accepted nodes of ``places`` [S], -1 where a sequence has ``ended`` [S]."""
        if ops.is_cpu(ended):
            return self.accepted[places].remainder(NOTICE).masked_fill_(ended, -1)
        accepted: Tensor = ops.on_gpu("caches").committed(self.accepted[places], ended, NOTICE)
        return accepted

    def send_to_host(self) -> None:
        """Copy the message of a GPU to the host, which does not wait."""
        if self._buffer.is_cuda:
            count = self.wire.numel()
            self._host[:count].copy_(self._buffer[:count], non_blocking=True)

    def read(self) -> tuple[list[Message], Notice]:
        """Return the message of each place, and the notice, once it is there: the one wait of the host in a step."""
        if self._buffer.is_cuda:
            torch.cuda.current_stream(self._buffer.device).synchronize()
        rows, layout = self._host[: self.wire.numel()].view(len(self.wire), -1).tolist(), self.layout
        word = rows[0][0] // NOTICE
        messages = [
            Message(
                accepted=words[0] % NOTICE,
                path=words[layout.path],
                tokens=words[layout.tokens],
                parents=words[layout.parents],
            )
            for words in rows
        ]
        return messages, Notice(stop=bool(word % 2), packets=word // 2)
