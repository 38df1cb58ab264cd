"""Draws of tokens from logits that are divided over a group of devices: ``runtime.sampling`` has the method.

Letters: W rows, v rows of the lm_head of this device, A depths of a tree.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from plans.step import BEST_WORDS
from runtime.comm.groups import Group
from runtime.model import ops
from runtime.model.splitmix64 import GOLDEN, mix, mixed, shifted, signed
from runtime.sampling import Sampling

# The temporaries of a draw are bounded in plans/buffers.py by `scratch.head` (weights [W, v], and as much again),
# `scratch.noise` (exponentials [A, v], and what making one row of them takes) and `scratch.best` (gathered winners).
CHUNKS = 4
"""Parts in which rows of weights are processed, which bounds temporaries."""
SMALL_WEIGHTS = 1 << 17
"""Weights up to which they are processed at once."""
SMALL_NOISE = 1024
"""Random numbers up to which those of several positions are made at once."""
GROUP_BITS = 3
"""Bits of a limit that a group finds with one sum."""
WEIGHT_BITS = 30
"""Bits of a weight as an integer: a float32 of at most 1.0 is below 2 ** 30."""


NO_TOP_K, NO_TOP_P = 2.0**63, 2.0
"""Limits that no row reaches, so that all tokens stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Parameters of draws as tensors of the device: a captured step draws by those of the moment.

    They are of S sequences; where all devices are CPUs S is 1, and limits that are not there are not looked for.
    """

    temperature: Tensor
    """[S] float32"""
    top_k: Tensor | None
    """[S] float64, NO_TOP_K: no limit. None: nothing is limited, and no limit is looked for."""
    top_p: Tensor | None
    """[S] float64, NO_TOP_P: no limit. None as of ``top_k``."""
    key: Tensor
    """[S] int64: splitmix64 of the seed."""
    position: Tensor
    """[S] int64: position in the sequence of the token that follows a row of depth 0."""
    greedy: Tensor | None = None
    """[S, 1] bool: True for a sequence that takes its highest logit; None: all draw."""

    @classmethod
    def of(cls, sampling: Sampling, position: int, device: torch.device) -> Self:
        """Return the parameters of a sampling at a position."""

        def number(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((1,), value, dtype=dtype, device=device)

        return cls(
            temperature=number(sampling.temperature, torch.float32),
            top_k=None if sampling.top_k is None else number(sampling.top_k, torch.float64),
            top_p=None if sampling.least_mass is None else number(sampling.least_mass, torch.float64),
            key=number(key_of(sampling.seed), torch.int64),
            position=number(position, torch.int64),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Parameters of the draws after the rows of one forward, as many of each sequence."""

    target: Target
    depths: Tensor
    """[W] int64: depth of each row in its tree, below ``num_depths``; added to the drawn token's position."""
    num_depths: int
    """A: one more than the largest depth there can be."""


def draw(logits: Tensor, first: int, group: Group, chance: Draw) -> Tensor:
    """Draw a token after each row [W]; ``logits`` [W, v] of tokens ``first`` …: on a CPU float32, and overwritten.

    Devices of one group send and sum the same, CPUs and GPUs: where one of them is a GPU all draw for all sequences.
    """
    if not ops.is_cpu(logits):
        return _draw_on_gpu(logits, first, group, chance)
    if not logits.shape[1]:
        processed(logits, group, chance.target)
        best = torch.zeros((logits.shape[0], BEST_WORDS), dtype=torch.float64)
        best[:, 0] = -math.inf
        return best_of_group(best, group)
    target = chance.target
    highest = None if target.greedy is None else logits.max(1)
    weights = processed(logits, group, target)
    values, tokens = _race(weights, first, chance)
    if highest is not None and target.greedy is not None:
        greedy = _of_rows(target.greedy, len(logits)).squeeze(1)
        values, tokens = torch.where(greedy, highest.values, values), torch.where(greedy, highest.indices, tokens)
    if group.handle is None:
        return tokens
    return best_of_group(torch.stack([values.double(), (tokens + first).double()], 1), group)


def _race(weights: Tensor, first: int, chance: Draw) -> tuple[Tensor, Tensor]:
    """Return the highest quotient of a weight and its noise in each row [W], and its column."""
    target, winners = chance.target, []
    rows = len(weights) // len(target.key)
    for number, keys in enumerate((target.key + target.position).split(1)):  # sequence by sequence, which bounds noise
        own = slice(number * rows, (number + 1) * rows)
        noise = exponential(keys, chance.num_depths, first, weights.shape[1])
        winners += [
            (part / noise.index_select(0, depths)).max(1) for part, depths in _chunks(weights[own], chance.depths[own])
        ]
    values, tokens = (torch.cat(column) for column in zip(*winners, strict=True))
    return values, tokens


def _draw_on_gpu(logits: Tensor, first: int, group: Group, chance: Draw) -> Tensor:
    """Draw with kernels between the collectives, which are those of a CPU."""
    target = chance.target
    rows = ops.on_gpu("divided_draws").Rows(logits, target.temperature)
    rows.gathered(group.all_gather(rows.high()))
    for wanted, counts in ((target.top_k, True), (target.top_p, False)):
        if not counts and wanted is not None:
            group.all_reduce(rows.mass(target.top_k))
        for shift in _shifts(GROUP_BITS) if wanted is not None else ():
            group.all_reduce(rows.round(wanted, shift, counts=counts, first=shift == WEIGHT_BITS - GROUP_BITS))
    if target.top_p is None:
        rows.mass(target.top_k)  # notes the limit
    best = rows.race(
        first, chance.depths, top_ps=target.top_p, keys=target.key, positions=target.position, greedy=target.greedy
    )  # fmt: skip
    return best_of_group(best, group)


def best_of_group(best: Tensor, group: Group) -> Tensor:
    """Return the token of the highest value of each row [W], of equal ones the first member's.

    ``best`` [W, BEST_WORDS] float64: highest value and its token on this member.
    """
    gathered = group.all_gather(best)
    if not ops.is_cpu(gathered):
        token: Tensor = ops.on_gpu("divided_draws").winner(gathered)
        return token
    values, tokens = gathered.unbind(2)  # [members, W]
    winner = values.max(0, keepdim=True).indices
    return tokens.gather(0, winner).squeeze(0).long()


def processed(logits: Tensor, group: Group, target: Target) -> Tensor:
    """Return weights [W, v]: the processed distribution p times a factor per row, the same on all members.

    ``logits`` [W, v] are overwritten. Order: temperature, top-k, top-p.
    """
    rows = logits.shape[0]
    high = logits.amax(1, keepdim=True) if logits.shape[1] else logits.new_full((rows, 1), -math.inf)
    weights = logits.sub_(group.all_gather(high).amax(0)).div_(_of_rows(target.temperature, rows)).exp_()
    if target.top_k is not None:
        keep_from(weights, limit(weights, _of_rows(target.top_k, rows), group, _count))
    if target.top_p is not None:
        mass = weights.sum(1, keepdim=True, dtype=torch.float64)
        group.all_reduce(mass)
        keep_from(weights, limit(weights, mass * _of_rows(target.top_p, rows), group, _mass))
    return weights


def _of_rows(of_sequences: Tensor, rows: int) -> Tensor:
    """Return what sequences have [S] or [S, 1] for each of so many rows [W, 1]."""
    return of_sequences.view(-1, 1).repeat_interleave(rows // len(of_sequences), 0)


def keep_from(weights: Tensor, least: Tensor) -> None:
    """Set weights below ``least`` [W, 1] to 0."""
    for part, lower in _chunks(weights, least):
        part.masked_fill_(part < lower, 0.0)


def limit(weights: Tensor, wanted: Tensor, group: Group, total: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return [W, 1]: the highest weight w for which ``total`` of the weights >= w is at least ``wanted`` [W, 1], or 0.

    A search by the bits of w, highest first: float32 between 0 and 1 have the order of their bits as 30-bit integers.
    Over a group GROUP_BITS at a time, as one sum over the group costs more than seven over the rows.
    """
    width = 1 if group.handle is None else GROUP_BITS
    bits = torch.zeros(wanted.shape, dtype=torch.int32, device=weights.device)
    digits = torch.arange(1, 1 << width, dtype=torch.int32, device=weights.device)
    for shift in _shifts(width):
        candidates = (bits + (digits << shift)).view(torch.float32)  # [W, digits]
        totals = torch.cat([total(part, lower) for part, lower in _chunks(weights, candidates)])
        group.all_reduce(totals)
        bits += (totals >= wanted).sum(1, keepdim=True, dtype=torch.int32) << shift
    return bits.view(torch.float32)


def _shifts(width: int) -> range:
    """Return the places of the lowest of ``width`` bits that are found together, the highest first."""
    return range(WEIGHT_BITS - width, -1, -width)


def _chunks(weights: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of both, chunk by chunk."""
    parts = CHUNKS if weights.numel() > SMALL_WEIGHTS else 1
    return zip(weights.chunk(parts), other.chunk(parts), strict=True)


def _count(weights: Tensor, lowers: Tensor) -> Tensor:
    """Return [W, d] float64: the number of weights of a row that are at least each of ``lowers`` [W, d]."""
    return torch.stack([(weights >= lower.unsqueeze(1)).sum(1) for lower in lowers.unbind(1)], 1).double()


def _mass(weights: Tensor, lowers: Tensor) -> Tensor:
    """Return [W, d] float64: the sum of the weights of a row that are at least each of ``lowers`` [W, d]."""
    return torch.stack(
        [torch.where(weights >= lower.unsqueeze(1), weights, 0.0).sum(1, dtype=torch.float64)
         for lower in lowers.unbind(1)], 1
    )  # fmt: skip


def exponential(key: Tensor, positions: int, first: int, count: int) -> Tensor:
    """Return exponentials of mean 1, float32 [positions, count], of so many positions and tokens from ``first`` on.

    ``key`` [1] int64: that of the seed plus the first position. The hash is that of splitmix64; its upper 53 bits are a
    uniform number between 0 and 1, never either.
    """
    out = torch.empty((positions, count), dtype=torch.float32, device=key.device)
    tokens = torch.arange(first, first + count, device=key.device).mul_(GOLDEN)
    keys = mixed(torch.arange(positions, device=key.device).add_(key)).unsqueeze(1)
    # a vocabulary is processed position by position, which bounds temporaries
    at_once = max(1, SMALL_NOISE // max(1, count))
    for part, rows in zip(keys.split(at_once), out.split(at_once), strict=True):
        uniform = shifted(mixed(tokens + part), 11).double().add_(0.5).mul_(2.0**-53)
        rows.copy_(uniform.neg_().log1p_().neg_())
    return out


def key_of(seed: int) -> int:
    """Return the key of a seed, int64."""
    return signed(mix(seed))
