"""Draws tokens from logits that are divided over a group of devices."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.comm.groups import Group
from runtime.sampling import Sampling

SLICES = 4
"""Rows are worked on in so many parts, which bounds temporaries, unless there is little of them."""


LITTLE = 1 << 17


FEW = 1024
"""So many numbers are no matter."""


WEIGHT_BITS = 30
"""Weights are at most 1.0, whose bits as an integer are below 2 ** 30."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What the draws of one forward share."""

    sampling: Sampling
    place: int
    """In the sequence, of the token that follows a row of depth 0."""
    depths: Tensor
    """[W] int64, below ``places``."""
    places: int
    """A: one more than the largest depth there can be."""


def draw(logits: Tensor, first: int, group: Group, chance: Draw) -> Tensor:
    """``logits`` [W, v] float32 of tokens ``first`` …, overwritten -> a token drawn after each row [W]."""
    weights = processed(logits, group, chance.sampling)
    race = exponential(chance.sampling.seed, chance.place, chance.places, first, logits.shape[1], logits.device)
    if not logits.shape[1]:
        best = torch.zeros((logits.shape[0], 2), dtype=torch.float64, device=logits.device)
        best[:, 0] = -1.0
    else:
        winners = [(part / race.index_select(0, depths)).max(1) for part, depths in _slices(weights, chance.depths)]
        values, tokens = (torch.cat(column) for column in zip(*winners, strict=True))
        if group.handle is None:
            return tokens
        best = torch.stack([values.double(), (tokens + first).double()], 1)
    values, tokens = group.all_gather(best).unbind(2)  # [members, W]
    winner = values.max(0, keepdim=True).indices
    return tokens.gather(0, winner).squeeze(0).long()


def processed(logits: Tensor, group: Group, sampling: Sampling) -> Tensor:
    """``logits`` [W, v], overwritten -> weights [W, v]: probabilities of the processed distribution times a factor per
    row, the same on all members.
    """
    rows = logits.shape[0]
    high = logits.amax(1, keepdim=True) if logits.shape[1] else logits.new_full((rows, 1), -math.inf)
    weights = logits.sub_(group.all_gather(high).amax(0)).div_(sampling.temperature).exp_()
    if sampling.top_k is not None:
        at_least = torch.full((rows, 1), sampling.top_k, dtype=torch.float64, device=logits.device)
        keep_from(weights, limit(weights, at_least, group, _count))
    if sampling.top_p is not None and sampling.top_p < 1:
        everything = weights.sum(1, keepdim=True, dtype=torch.float64)
        group.all_reduce(everything)
        keep_from(weights, limit(weights, everything * sampling.top_p, group, _mass))
    return weights


def keep_from(weights: Tensor, least: Tensor) -> None:
    """Weights below ``least`` [W, 1] become 0."""
    for part, lower in _slices(weights, least):
        part.masked_fill_(part < lower, 0.0)


def limit(weights: Tensor, wanted: Tensor, group: Group, total: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[W, 1]: the highest weight w with ``total`` of all weights from w on at least ``wanted`` [W, 1]; 0 if none has.

    Digit by digit of its bits, highest first: numbers of 30 bits, which float32 between 0 and 1 are, have the order of
    the floats. Over a group three bits at a time, as a sum over the group costs more than seven over the rows.
    """
    width = 1 if group.handle is None else 3
    found = torch.zeros(wanted.shape, dtype=torch.int32, device=weights.device)
    digits = torch.arange(1, 1 << width, dtype=torch.int32, device=weights.device)
    for shift in range(WEIGHT_BITS - width, -1, -width):
        tried = (found + (digits << shift)).view(torch.float32)  # [W, digits]
        totals = torch.cat([total(part, lower) for part, lower in _slices(weights, tried)])
        group.all_reduce(totals)
        found += (totals >= wanted).sum(1, keepdim=True, dtype=torch.int32) << shift
    return found.view(torch.float32)


def _slices(weights: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of both, part by part."""
    parts = SLICES if weights.numel() > LITTLE else 1
    return zip(weights.chunk(parts), other.chunk(parts), strict=True)


def _count(weights: Tensor, lowers: Tensor) -> Tensor:
    """How many weights of a row are at least each of ``lowers`` [W, d]: [W, d] float64."""
    return torch.stack([(weights >= lower.unsqueeze(1)).sum(1) for lower in lowers.unbind(1)], 1).double()


def _mass(weights: Tensor, lowers: Tensor) -> Tensor:
    """The sum of those: [W, d] float64."""
    return torch.stack(
        [torch.where(weights >= lower.unsqueeze(1), weights, 0.0).sum(1, dtype=torch.float64)
         for lower in lowers.unbind(1)], 1
    )  # fmt: skip


def exponential(seed: int, place: int, places: int, first: int, count: int, device: torch.device) -> Tensor:
    """[places, count] float32, exponential of mean 1: for each token ``first`` … at each place ``place`` ….

    The hash is that of splitmix64; its upper 53 bits are a uniform number between 0 and 1, never either.
    """
    out = torch.empty((places, count), dtype=torch.float32, device=device)
    tokens = torch.arange(first, first + count, device=device).mul_(_GOLDEN)
    keys = _mixed(torch.arange(places, device=device).add_(_signed(_mix(seed) + place))).unsqueeze(1)
    # a vocabulary is worked on place by place, which bounds temporaries
    at_once = max(1, FEW // max(1, count))
    for part, rows in zip(keys.split(at_once), out.split(at_once), strict=True):
        uniform = _shifted(_mixed(tokens + part), 11).double().add_(0.5).mul_(2.0**-53)
        rows.copy_(uniform.neg_().log1p_().neg_())
    return out


def _signed(word: int) -> int:
    return (word & (1 << 64) - 1) - ((word & 1 << 63) << 1)


_GOLDEN = _signed(0x9E3779B97F4A7C15)

_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(word: int) -> int:
    """splitmix64 of a number."""
    word = (word + 0x9E3779B97F4A7C15) & (1 << 64) - 1
    word = ((word ^ word >> 30) * _FIRST) & (1 << 64) - 1
    word = ((word ^ word >> 27) * _SECOND) & (1 << 64) - 1
    return word ^ word >> 31


def _mixed(words: Tensor) -> Tensor:
    """The same of int64 words, in place; products wrap around."""
    words.add_(_GOLDEN)
    words.bitwise_xor_(_shifted(words, 30)).mul_(_signed(_FIRST))
    words.bitwise_xor_(_shifted(words, 27)).mul_(_signed(_SECOND))
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: Tensor, bits: int) -> Tensor:
    """A logical shift to the right."""
    return words.bitwise_right_shift(bits).bitwise_and_((1 << 64 - bits) - 1)
