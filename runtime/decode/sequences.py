"""The record, on the host, of what each place of a batch has in the KV caches; the same on every rank.

A place holds one sequence at a time: B of them, which begin and end independently of each other.

    tokens     t0 t1 t2 t3 t4 t5        committed in the base's caches
    drafted    ─────────────►           so many of them are in the drafter's caches too

Drafting fills both. Plain decoding fills the base's alone, so the drafter's may be shorter. What a sequence leaves
behind stays until its place is taken again, and a prompt that begins alike reuses it.

Layers with a window w hold the last K positions of a sequence, w - 1 and S more. Of L positions that were written in a
place, a prompt can reuse the first n if L <= K, or n >= L - S: then its next row finds its window. A step that goes
ahead (``decode.step``) may write behind L until its message is read, and in a place whose sequence has ended meanwhile
nobody records what it wrote: L then counts all that it may have written.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runtime.decode.messages import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Beginning of a sequence: its place, and the place whose caches have its first positions already."""

    place: int
    source: int
    """Mostly the place itself."""
    reused: int
    """Positions that are not computed again."""


class Sequences:
    """Committed tokens of each place, and which places are decoded."""

    def __init__(self, batch: int, *, copies: bool, kept: int | None = None, spare: int = 0) -> None:
        """``copies``: every device with the caches of one place has those of all others too, and can copy them.

        ``kept``: K, None where all layers hold all positions; ``spare``: S.
        """
        self.copies, self._kept, self._spare = copies, kept, spare
        self._written = [0] * batch
        """L: most positions that the caches of each place have had since it began with none."""
        self._ahead = [0] * batch
        """Most rows that a step whose message is not read writes behind the committed ones."""
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        """Tokens of the committed positions, by place."""
        self.drafted = [0] * batch
        """Positions of each place in the drafter's caches."""
        self.active = [False] * batch
        """True for a place that commits; an ended one keeps its rows in every shape and commits nothing."""
        self._certain = [True] * batch
        """False for a place whose record may be wrong, or is not what the base chose; nothing of it is reused."""
        self._used = [0] * batch
        """Number of the last sequence that began in each place."""

    def next_position(self, place: int) -> int:
        """Return the position of the token after the root of a place's tree: the root is certain, but not committed."""
        return len(self.tokens[place]) + 1

    def start(self, prompt: Sequence[int], free: Sequence[int], *, reuse: bool, drafted: bool) -> Start:
        """Return where a prompt begins best, among the places that are ``free``.

        ``reuse``: with the longest prefix that any place holds, decoding or not. In that place itself where it is free
        and loses less than half of what it holds, so that a conversation goes on where it was; otherwise in the free
        place that was used longest ago, which copies the prefix if it has less of it. ``drafted`` as in ``reusable``.
        """
        least = min(free, key=lambda place: (self._used[place], place))
        if not reuse:
            return Start(place=least, source=least, reused=0)
        rows = [self.reusable(place, prompt, drafted=drafted) for place in range(len(self.tokens))]
        best = max(range(len(rows)), key=lambda place: (rows[place], place in free, place == least, -place))
        if best in free and (2 * rows[best] >= len(self.tokens[best]) or not self.copies):
            return Start(place=best, source=best, reused=rows[best])
        if self.copies:
            return Start(place=least, source=best if rows[best] > rows[least] else least, reused=rows[best])
        place = max(free, key=lambda place: (rows[place], -self._used[place]))
        return Start(place=place, source=place, reused=rows[place])

    def reusable(self, place: int, prompt: Sequence[int], *, drafted: bool) -> int:
        """Return how many positions of a prompt a place's caches have; ``drafted``: the base's and the drafter's.

        That is what both have in common, but for the last position: the drafter's row of a position was computed from
        the next token too, which may differ, and the token after the prompt follows from its last row.
        """
        if not self._certain[place]:
            return 0
        rows = max(0, common_length(self.tokens[place], prompt) - 1)
        rows = min(rows, self.drafted[place]) if drafted else rows
        written = self._written[place] + self._ahead[place]
        return rows if self._kept is None or written <= self._kept or rows >= written - self._spare else 0

    def begin(self, start: Start, prompt: Sequence[int]) -> None:
        """Record that a sequence begins."""
        self._written[start.place] = self._written[start.source] + self._ahead[start.source] if start.reused else 0
        self.drafted[start.place] = min(start.reused, self.drafted[start.source])
        self.tokens[start.place] = list(prompt[: start.reused])
        self.active[start.place], self._certain[start.place] = False, True
        self._used[start.place] = max(self._used) + 1

    def extend(self, place: int, tokens: Sequence[int], *, drafted: bool) -> None:
        """Record that tokens are committed to a place: a part of its prompt."""
        self.tokens[place] += tokens
        self._written[place] = max(self._written[place], len(self.tokens[place]))
        if drafted:
            self.drafted[place] = len(self.tokens[place])

    def join(self, place: int) -> None:
        """Record that a place has its first tree: from now on it is decoded."""
        self.active[place] = True

    def commit(self, place: int, root: int, accepted: list[int], *, drafted: bool, certain: bool) -> None:
        """Record a step of an active place: it commits its tree's root and the accepted tokens.

        ``certain``: they are what the base chose.
        """
        self.extend(place, [root, *accepted], drafted=drafted)
        self._certain[place] &= certain

    def committed_rows(self, messages: list[Message]) -> list[int]:
        """Return how many rows each place of a step commits: root and accepted nodes, or 0 where it is not active."""
        return [message.accepted + 1 if on else 0 for message, on in zip(messages, self.active, strict=False)]

    def end(self, place: int) -> None:
        """Record that the sequence of a place has ended: it commits nothing more."""
        self.active[place] = False
        self._written[place] += self._ahead[place]
        self._ahead[place] = 0

    def go_ahead(self, rows: int) -> None:
        """Record that a step is given to the devices, which commits at most so many ``rows`` of each active place."""
        self._ahead = [rows if on else 0 for on in self.active]

    def come_back(self) -> None:
        """Record that the message of a step is read: what it has committed is recorded next."""
        self._ahead = [0] * len(self._ahead)

    def exchange(self, a: int, b: int) -> None:
        """Record that two places have changed what is in their caches, and their sequences."""
        for listed in (self._written, self.tokens, self.drafted, self.active, self._certain, self._used):
            swap(listed, a, b)

    def forget(self) -> None:
        """Discard the record, so that nothing is reused."""
        self._certain = [False] * len(self._certain)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Discard the record where what happens within this context is interrupted."""
        try:
            yield
        except BaseException:
            self.forget()
            raise


def swap(listed: list[Any], a: int, b: int) -> None:
    """Exchange two items of a list."""
    listed[a], listed[b] = listed[b], listed[a]


def common_length(old: Sequence[int], new: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = zip(old, new, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
