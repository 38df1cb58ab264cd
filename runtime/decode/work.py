"""The work of a step: the options it has, what it computes, and what it gives each place."""

from dataclasses import dataclass

from plans.schema import Tree
from plans.step import StepLayout, tree_layout
from runtime.decode.messages import Message
from runtime.decode.pool import Pool
from runtime.decode.prefill import Root


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """Options that all sequences which are decoded together have in common."""

    draft: bool
    """False: plain decoding, one token a step, also where the plan has a drafter."""
    accept: int | None
    """For timing: number of drafted nodes that every step accepts, whatever they are."""
    recorded: bool = False
    """True: the drafter's leader keeps all candidates of each draft."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Result of a step for one place."""

    tokens: list[int]
    """New tokens: of a place that joins its first; else the accepted ones and the base's next choice."""
    message: Message
    joined: bool
    """True for the first step of a sequence, which verified nothing of it."""
    drafted: bool = False
    """True where a tree with more than its root was verified."""
    pool: Pool | None = None
    """Candidates of the next tree, whose root is the last of ``tokens``, where drafts are recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a step computes: all that it depends on beside what lies on the device."""

    places: slice
    """Places whose trees are verified; none where none is active."""
    drafted: slice
    """Places that the next trees are for, the verified ones among them."""
    verified: Tree | None
    """Kind of the verified trees; None: their roots."""
    next: Tree | None
    """Kind of the next trees."""
    joining: dict[int, Root]
    """Places that join, with the beginnings of their first trees."""

    @property
    def verifies(self) -> bool:
        return bool(self.places.stop > self.places.start)

    @property
    def drafts(self) -> bool:
        return bool(self.drafted.stop > self.drafted.start)

    @property
    def layout(self) -> StepLayout:
        """Layout of the step message."""
        return tree_layout(self.verified if self.verifies else None, self.next)

    @property
    def repeats(self) -> bool:
        """True where the step after it, if no sequence begins or ends, does the same."""
        return self.verifies and not self.joining and (self.places, self.verified) == (self.drafted, self.next)
