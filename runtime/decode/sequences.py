"""The record, on the host, of what each sequence of a batch has in the KV caches; the same on every rank.

    tokens     t0 t1 t2 t3 t4 t5        committed in the base's caches
    drafted    ─────────────►           so many of them are in the drafter's caches too

A drafted batch fills both. Plain decoding fills the base's alone, so the drafter's may be shorter.
"""

from collections.abc import Sequence

from runtime.decode.messages import Message


class Sequences:
    """Committed tokens of each sequence, and which sequences are still decoded."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        """Tokens of the committed positions, by sequence."""
        self.drafted = [0] * batch
        """Positions of each sequence in the drafter's caches."""
        self.active = [False] * batch
        """True for a sequence that commits; one that has ended keeps its rows in every shape and commits nothing."""

    @property
    def next_positions(self) -> list[int]:
        """Position of the token after the root of each sequence's tree: the root is certain, but not committed."""
        return [len(tokens) + 1 for tokens in self.tokens]

    def begin(self, prompts: Sequence[tuple[int, ...]], *, reuse: bool, drafted: bool) -> list[int]:
        """Begin a batch; return how many positions of each sequence stay, for the caches to be truncated to.

        ``reuse``: keep what a sequence and its prompt have in common, but for the last position: the drafter's row of a
        position was computed from the next token too, which may differ. ``drafted``: only what both caches have.
        """
        padded: list[tuple[int, ...]] = [*prompts, *(() for _ in range(self._batch - len(prompts)))]
        kept = [0] * self._batch
        if reuse:
            kept = [max(0, common_length(old, new) - 1) for old, new in zip(self.tokens, padded, strict=True)]
        if drafted:
            kept = [min(rows, rows_drafted) for rows, rows_drafted in zip(kept, self.drafted, strict=True)]
        self.drafted = [min(rows, rows_drafted) for rows, rows_drafted in zip(kept, self.drafted, strict=True)]
        self.tokens = [tokens[:rows] for tokens, rows in zip(self.tokens, kept, strict=True)]
        self.active = [number < len(prompts) for number in range(self._batch)]
        return kept

    def prefilled(self, prompts: Sequence[tuple[int, ...]], *, drafted: bool) -> None:
        """Record that the prompts are committed."""
        for number, prompt in enumerate(prompts):
            self.tokens[number] = list(prompt)
            if drafted:
                self.drafted[number] = len(prompt)

    def commit(self, roots: list[int], accepted: list[list[int]], *, drafted: bool) -> None:
        """Record a step: each active sequence commits its tree's root and the accepted tokens."""
        for number, (root, tokens) in enumerate(zip(roots, accepted, strict=True)):
            if self.active[number]:
                self.tokens[number] += [root, *tokens]
                if drafted:
                    self.drafted[number] = len(self.tokens[number])

    def committed_rows(self, messages: list[Message]) -> list[int]:
        """Return how many rows each sequence commits in a step: root and accepted nodes, or 0 once it has ended."""
        return [message.accepted + 1 if on else 0 for message, on in zip(messages, self.active, strict=True)]

    def end(self, number: int) -> None:
        """Record that a sequence has ended: it commits nothing more."""
        self.active[number] = False

    def forget(self) -> None:
        """Discard the record, so that nothing is reused: a step was interrupted, or its tokens are not the base's."""
        self.tokens = [[] for _ in range(self._batch)]


def common_length(old: Sequence[int], new: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = zip(old, new, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
