"""Answers of the base to a group of prompts, decoded together, with the features of every position."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from head_training.base import ATTENTION, Base, GroupCache

PREFILL_TOKENS = 1024
"""Tokens of prompts that one pass takes, at least a prompt's: it keeps the hidden states of every layer."""
VOCABULARY_BLOCK = 4096
"""Rows of the lm_head whose logits are computed at once: they stay in the cache of the processor."""
LEAST_LIVE_SHARE = 0.8
"""Share of rows still decoding below which the others are dropped from the cache."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One sequence: prompt and answer, and what the base computed for all tokens but the last."""

    tokens: list[int]
    start: int
    """Index of the answer's first token."""
    states: Tensor
    """[len(tokens) - 1, 4 H]: three features and the final state of each position."""
    choices: list[int] | None = None
    """The base's most probable token after each position, where the answer was not chosen so; else the next token."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Choice of the next token: greedily at temperature 0, else sampled from the most probable ``top_p``."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Group:
    """Rows that decode together: prompts end in the same column, so that every step writes one column of the cache.

    The tokens that all prompts begin with are run and cached once. Columns are those of the tokens after them:

        shared  | . . own prompt of row 0 | answer
        shared  |         own prompt of row 1 | answer      <- both prompts end in column ``columns`` - 1
    """

    def __init__(self, base: Base, prompts: Sequence[list[int]], max_new_tokens: int, keep_states: bool) -> None:
        self.base = base
        count = len(prompts)
        shared = min(shared_beginning(prompts), min(map(len, prompts)) - 1) if count > 1 else 0
        self.shared = prompts[0][:shared]
        self.lengths = torch.tensor([len(prompt) - shared for prompt in prompts])
        self.columns = int(self.lengths.max())
        total = self.columns + max_new_tokens
        self.tokens = torch.zeros(count, total, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            self.tokens[row, self.columns - len(prompt) + shared : self.columns] = torch.tensor(prompt[shared:])
        dtype = base.lm_head.dtype
        self.shared_states = torch.empty(shared, base.width, dtype=dtype)
        self.states = torch.empty(count, total if keep_states else 0, base.width, dtype=dtype)
        self.ends = torch.full((count,), total)
        self.live = torch.arange(count)
        self.cache = GroupCache(base, count, max(total, shared))
        self.cache.first = self.columns - self.lengths

    def prefill(self) -> Tensor:
        """Run the prompts; return the final state of each one's last token [B, H]."""
        shared, width = len(self.shared), self.columns
        if shared:
            self.cache.rows = slice(0, 1)
            causal = torch.ones(shared, shared, dtype=torch.bool).tril()[None, None]
            self.shared_states = self._run(torch.tensor([self.shared]), torch.arange(shared)[None], causal)[0]
            self.cache.share(shared)
        last = []
        column = torch.arange(width)
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        own = torch.eye(width, dtype=torch.bool)  # a padding column sees itself: softmax of nothing is NaN
        count = max(1, PREFILL_TOKENS // width)
        for first in range(0, len(self.tokens), count):
            rows = slice(first, first + count)
            self.cache.rows = rows
            begin = self.cache.first[rows, None]
            visible = (column >= begin)[:, None] & causal | own
            visible = torch.cat((torch.ones(len(begin), width, shared, dtype=torch.bool), visible), dim=-1)[:, None]
            states = self._run(self.tokens[rows, :width], shared + (column - begin).clamp(min=0), visible)
            if self.states.shape[1]:
                self.states[rows, :width] = states
            last.append(states[:, -1, -self.base.config.hidden_size :].clone())
        self.cache.rows = slice(0, len(self.tokens))
        self.cache.column = width
        return torch.cat(last)

    def take(self, chosen: Tensor) -> None:
        """Append one token to each live row; rows that end leave the group."""
        column = self.cache.column
        self.tokens[self.live, column] = chosen
        ended = torch.tensor([token in self.base.end_ids for token in chosen.tolist()])
        self.ends[self.live[ended]] = torch.minimum(self.ends[self.live[ended]], torch.tensor(column + 1))

    def shrink(self) -> None:
        """Drop rows that have ended once they are many."""
        running = self.ends[self.live] > self.cache.column
        if running.float().mean() < LEAST_LIVE_SHARE:
            self.live = self.live[running]
            self.cache.keep(running.nonzero()[:, 0])

    def step(self) -> Tensor:
        """Run the newest token of each live row; return its final state [live, H]."""
        column = self.cache.column
        live = self.live
        positions = (len(self.shared) + column - self.cache.first)[:, None]
        states = self._run(self.tokens[live, column, None], positions, None)
        if self.states.shape[1]:
            self.states[live, column] = states[:, 0]
        self.cache.column = column + 1
        return states[:, 0, -self.base.config.hidden_size :]

    def answers(self) -> list[Answer]:
        """Return the sequences, up to their end token or where the group stopped."""
        result = []
        for row in range(len(self.tokens)):
            first, end = self.columns - int(self.lengths[row]), int(self.ends[row])
            result.append(
                Answer(
                    tokens=self.shared + self.tokens[row, first:end].tolist(),
                    start=len(self.shared) + int(self.lengths[row]),
                    states=torch.cat((self.shared_states, self.states[row, first : end - 1])),
                )
            )
        return result

    def _run(self, ids: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
        """Return what is kept of each position, [B, Q, 4 H]; without a mask, of the newest token of each row."""
        ATTENTION.cache = self.cache
        out = self.base.model.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=visible,
            past_key_values=self.cache,
            use_cache=True,
            output_hidden_states=True,
        )
        kept = [out.hidden_states[tap] for tap in self.base.taps] + [out.last_hidden_state]
        return torch.cat(kept, dim=-1)


@torch.no_grad()
def answer_group(
    base: Base, prompts: Sequence[list[int]], max_new_tokens: int, choice: Choice, *, keep_states: bool = True
) -> list[Answer]:
    """Answer prompts together, each until an end token or ``max_new_tokens``."""
    group = Group(base, prompts, max_new_tokens, keep_states)
    generator = torch.Generator().manual_seed(choice.seed)
    final = group.prefill()
    for number in range(max_new_tokens):
        group.take(choose(base, final, choice, generator))
        group.shrink()
        if not len(group.live) or number == max_new_tokens - 1:
            break
        final = group.step()
    return group.answers()


def shared_beginning(prompts: Sequence[list[int]]) -> int:
    """Return the number of tokens that all prompts begin with."""
    first, last = min(prompts), max(prompts)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def choose(base: Base, final: Tensor, choice: Choice, generator: torch.Generator) -> Tensor:
    """Return a token per row of [B, H] final states."""
    if choice.temperature == 0.0:
        return most_probable(final, base.lm_head)
    # of all others than the 1000 most probable no sampled text is the better
    logits = (final @ base.lm_head.T).float() / choice.temperature
    best = logits.topk(min(1000, logits.shape[-1]))
    p = best.values.softmax(-1)
    p = p.masked_fill(p.cumsum(-1) - p >= choice.top_p, 0.0)
    picked = torch.multinomial(p, 1, generator=generator)
    return best.indices.gather(-1, picked)[:, 0]


def most_probable(final: Tensor, lm_head: Tensor) -> Tensor:
    """Return the token [B] of the largest logit, computed block by block of the vocabulary."""
    blocks = [(final @ rows.T).max(-1) for rows in lm_head.split(VOCABULARY_BLOCK)]
    number = torch.stack([block.values for block in blocks]).max(0, keepdim=True).indices
    within = torch.stack([block.indices for block in blocks]).gather(0, number)
    return (within + number * VOCABULARY_BLOCK)[0]


@torch.no_grad()
def follow_group(base: Base, texts: Sequence[tuple[list[int], list[int]]], longest: int) -> list[Answer]:
    """Return the states of prompts with given answers, cut to ``longest`` tokens, without decoding."""
    order = sorted(range(len(texts)), key=lambda i: sum(map(len, texts[i])))
    answers: dict[int, Answer] = {}
    while order:
        count = max(1, PREFILL_TOKENS // sum(map(len, texts[order[-1]])))
        order, together = order[:-count], order[-count:]
        group = Group(base, [(texts[i][0] + texts[i][1])[:longest] for i in together], 0, keep_states=True)
        group.prefill()
        for i, answer in zip(together, group.answers(), strict=True):
            choices = most_probable(answer.states[:, -base.config.hidden_size :], base.lm_head).tolist()
            answers[i] = dataclasses.replace(answer, start=len(texts[i][0]), choices=choices)
    return [answers[i] for i in range(len(texts))]
