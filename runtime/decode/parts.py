"""The parts of a plan that one rank runs, and the channels on which it exchanges messages with the other ranks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from plans.places import is_padded
from plans.schema import Plan, Tree
from plans.step import feature_layout
from runtime.comm.groups import Comm, Group
from runtime.decode.drafter import Drafter
from runtime.decode.messages import Channel, FeatureMessage, feature_message
from runtime.decode.verify import Verdict
from runtime.image.buffers import Memory
from runtime.image.dtypes import DTYPES
from runtime.model.base import Base
from runtime.model.blocks import Slots


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The decision of the verifier on rows of the base, with their features: what the drafter extends by."""

    verdict: Verdict
    features: Tensor | None
    """[a, S * n, H]: the captured features of the rows that the verdict is about; None: nobody drafts by them."""


class FeatureLink:
    """The broadcast of accepted features from the verifier, the leader of the lm_head, to the drafter's ranks."""

    def __init__(
        self, group: Group, step: Callable[[int, int], FeatureMessage], chunk: Callable[[int], FeatureMessage]
    ) -> None:
        """Bind views of the buffer.

        ``step``: for so many sequences and kept rows of each; ``chunk``: for so many rows of a prompt.
        """
        self._group, self.step, self.chunk = group, step, chunk

    def broadcast(self, message: FeatureMessage, accepted: Accepted | None) -> FeatureMessage:
        """Send ``accepted`` from the verifier, the only rank whose value counts; return the message."""
        if accepted is not None:
            message.accepted.copy_(accepted.verdict.accepted)
            message.tokens.copy_(accepted.verdict.tokens)
            message.path.copy_(accepted.verdict.path)
            rows, features = message.features.shape[0], accepted.features
            assert features is not None
            message.features.view(rows, *features.shape[::2]).copy_(features.transpose(0, 1))
        self._group.broadcast(message.wire, self._group.ranks[0])
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The parts of one rank; None for a part that other ranks run."""

    base: Base | None
    drafter: Drafter | None
    features: FeatureLink | None
    """On the verifier and on the drafter's ranks."""
    plain: Channel
    """Step message of plain decoding."""
    drafted: Channel | None
    """Step message of speculative decoding; None: the plan has no drafter."""
    device: torch.device
    padded: bool
    """True: every chunk and every step has all its rows, so that a GPU sees few shapes. Where all devices are CPUs,
    rows that nobody needs are not computed; no row's bits depend on others."""


def parts_of(
    plan: Plan, slots: Slots, memory: Memory, comm: Comm, device: torch.device, kinds: Iterable[tuple[int, Tree]]
) -> Parts:
    """Bind the parts of a plan that this rank runs to its image and its buffers; ``kinds`` as in ``Drafter``."""
    in_base = any((comm.embed, *comm.stages, comm.head))
    return Parts(
        base=Base(plan, slots, memory, comm) if in_base else None,
        drafter=Drafter(plan, slots, memory, comm, kinds) if comm.draft is not None else None,
        features=_feature_link(plan, memory, comm),
        plain=_plain_channel(plan, memory),
        drafted=_drafted_channel(plan, memory),
        device=device,
        padded=is_padded(plan),
    )


def _plain_channel(plan: Plan, memory: Memory) -> Channel:
    """Return the step message of a tree that is its root; the leader of the lm_head writes it."""
    return Channel(memory.buffer("message"), source=_rank_of(plan, plan.head.devices[0]), drafted=False)


def _drafted_channel(plan: Plan, memory: Memory) -> Channel | None:
    """Return the step message of draft trees; the leader of the drafter's group writes it."""
    if plan.draft_placement is None:
        return None
    source = _rank_of(plan, plan.draft_placement.devices[0])
    return Channel(memory.buffer("message"), source=source, drafted=True)


def _feature_link(plan: Plan, memory: Memory, comm: Comm) -> FeatureLink | None:
    if comm.feature is None or plan.draft is None:
        return None
    model, draft, options = plan.model, plan.draft, plan.options
    buffer, dtype = memory.buffer("features"), DTYPES[options.dtype]

    def chunk(rows: int) -> FeatureMessage:
        return feature_message(feature_layout(model, draft, options, sequences=1, rows=rows), buffer, dtype)

    @cache  # few: numbers of places, and of rows that a kind of tree keeps
    def step(sequences: int, rows: int) -> FeatureMessage:
        layout = feature_layout(model, draft, options, sequences=sequences, rows=rows, kept=rows)
        return feature_message(layout, buffer, dtype)

    return FeatureLink(comm.feature, step=step, chunk=chunk)


def _rank_of(plan: Plan, device_id: str) -> int:
    return next(rank for rank, device in enumerate(plan.devices) if device.id == device_id)
