"""Draws of tokens from logits that are divided over a group of devices, one program a row: what a device computes
between the collectives of ``runtime.model.draw``, whose order and messages these are.

    high       highest logit of a row                                       gathered
    totals     of the weights that are at least each of seven bounds, their number or sum: three bits of a limit; the
               bits of the round before follow from its sums                summed, ten rounds a limit
    mass       sum of the weights that top-k leaves                         summed
    race       this device's winner, by the whole limits                    gathered
    winner     of all devices

A weight is exp((logit - highest) / temperature) and is computed again wherever it is needed: nothing as wide as the
vocabulary is written. Shapes: W rows, v of a row's columns on this device, S sequences with W / S rows each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import power_of_two
from runtime.model.triton_kernels.limits import LAST
from runtime.model.triton_kernels.sampling import exponential_of, mixed, weights_of

COLUMNS = 512
"""Columns that a program looks at together."""
DIGITS = 7
"""Bounds of a round: multiples of a power of two above the bits that are known."""


@triton.jit
def high_kernel(logits, highs, stride, width, BLOCK: tl.constexpr):
    """Find the highest logit of one row; -inf where there is none."""
    row = tl.program_id(0).to(tl.int64)
    high = float("-inf")
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        value = tl.load(logits + row * stride + column, mask=column < width, other=float("-inf")).to(tl.float32)
        high = tl.maximum(high, tl.max(value, 0))
    tl.store(highs + row, high)


@triton.jit
def _highest(highs, row, rows, members):
    high = float("-inf")
    for member in range(members):
        high = tl.maximum(high, tl.load(highs + member * rows + row))
    return high


@triton.jit
def _found(bits, totals, row, wanted, shift):
    """Return the bits of a limit after a round, whose totals have been summed."""
    digit = tl.arange(0, 8)
    total = tl.load(totals + row * 7 + digit - 1, mask=digit > 0, other=0.0)
    reached = tl.sum(((total >= wanted) & (digit > 0)).to(tl.int32), 0)
    return tl.load(bits + row) + (reached << shift)


@triton.jit
def totals_kernel(
    logits, highs, temperatures, least, wanted, masses, bits, before, totals, stride, width, members, per_sequence,
    shift, FIRST: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up a row's weights that reach each bound of a round; ``least``: bits of the weights that are left at all."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    sequence = row // per_sequence
    high, temperature = _highest(highs, row, rows, members), tl.load(temperatures + sequence)
    kept = 0.0 * temperature
    if not COUNTS:
        kept = tl.cast(tl.load(least + row), tl.float32, bitcast=True)
    if FIRST:
        known = (sequence * 0).to(tl.int32)
    else:
        goal = tl.load(wanted + sequence)
        if not COUNTS:
            goal = goal * tl.load(masses + row)
        known = _found(bits, before, row, goal, shift + 3)
    tl.store(bits + row, known)
    digit = tl.arange(0, 8)
    bound = tl.cast(known + (digit << shift), tl.float32, bitcast=True)
    total = tl.zeros([8], tl.float64)
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        weight = weights_of(logits + row * stride, column, width, high, temperature, kept)[:, None]
        reaches = weight >= bound[None, :]
        if COUNTS:
            total += tl.sum(reaches.to(tl.int32), 0).to(tl.float64)
        else:
            total += tl.sum(tl.where(reaches, weight, 0.0), 0).to(tl.float64)
    tl.store(totals + row * 7 + digit - 1, total, mask=digit > 0)


@triton.jit
def mass_kernel(
    logits, highs, temperatures, wanted, bits, before, masses, stride, width, members, per_sequence,
    LIMITED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Note the limit of top-k in ``bits``, and add up a row's weights that reach it."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    sequence = row // per_sequence
    high, temperature = _highest(highs, row, rows, members), tl.load(temperatures + sequence)
    known = (sequence * 0).to(tl.int32)
    if LIMITED:
        known = _found(bits, before, row, tl.load(wanted + sequence), 0)
    tl.store(bits + row, known)
    kept = tl.cast(known, tl.float32, bitcast=True)
    mass = tl.zeros([1], tl.float64)
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        weight = weights_of(logits + row * stride, column, width, high, temperature, kept)
        mass += tl.sum(weight, 0).to(tl.float64)
    tl.store(masses + row + tl.arange(0, 1), mass)


@triton.jit
def race_kernel(
    logits, highs, temperatures, least, wanted, masses, bits, before, keys, positions, depths, greedy, best, stride,
    width, members, per_sequence, first, LIMITED: tl.constexpr, MIXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the winner of one row among this device's columns, of equal ones the first; of a greedy row its highest."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    sequence = row // per_sequence
    high, temperature = _highest(highs, row, rows, members), tl.load(temperatures + sequence)
    kept = tl.cast(tl.load(least + row), tl.float32, bitcast=True)
    if LIMITED:
        known = _found(bits, before, row, tl.load(wanted + sequence) * tl.load(masses + row), 0)
        kept = tl.maximum(kept, tl.cast(known, tl.float32, bitcast=True))
    is_greedy = sequence < 0
    if MIXED:
        is_greedy = tl.load(greedy + sequence) != 0
    key = mixed(tl.load(keys + sequence) + tl.load(positions + sequence) + tl.load(depths + row))
    winner, token = 0.0 * temperature + float("-inf"), 0
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        if is_greedy:
            arrival = tl.load(logits + row * stride + column, mask=column < width, other=float("-inf")).to(tl.float32)
        else:
            weight = weights_of(logits + row * stride, column, width, high, temperature, kept)
            arrival = weight / exponential_of(key, (first + column).to(tl.int64))
            arrival = tl.where(column < width, arrival, float("-inf"))
        most = tl.max(arrival, 0)
        earliest = tl.min(tl.where(arrival == most, column, LAST), 0)
        token = tl.where(most > winner, earliest, token)
        winner = tl.maximum(winner, most)
    tl.store(best + row * 2, winner.to(tl.float64))
    tl.store(best + row * 2 + 1, (first + token).to(tl.float64))


@triton.jit
def words_kernel(values, tokens, best, first):
    """Write the highest logit and the token of one row as a message."""
    row = tl.program_id(0).to(tl.int64)
    tl.store(best + row * 2, tl.load(values + row).to(tl.float64))
    tl.store(best + row * 2 + 1, (tl.load(tokens + row) + first).to(tl.float64))


@triton.jit
def winner_kernel(best, tokens, members):
    """Find the token of the highest value of one row, of equal ones the first device's."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    winner, token = tl.load(best + row * 2), tl.load(best + row * 2 + 1)
    for member in range(1, members):
        value = tl.load(best + (member * rows + row) * 2)
        own = tl.load(best + (member * rows + row) * 2 + 1)
        token = tl.where(value > winner, own, token)
        winner = tl.maximum(winner, value)
    tl.store(tokens + row, token.to(tl.int64))


class Rows:
    """Logits of a device, and what is known of their rows."""

    def __init__(self, logits: Tensor, temperatures: Tensor) -> None:
        """``logits`` [W, v] in any dtype, ``temperatures`` [S] float32."""
        self.logits, self.temperatures = logits, temperatures
        self.highs = torch.empty(logits.shape[0], 1, dtype=torch.float32, device=logits.device)
        """[W, 1], or once they are gathered [members, W, 1]."""
        self._members = 0
        self._block = min(COLUMNS, power_of_two(logits.shape[1]))
        rows, device = logits.shape[0], logits.device
        self._kept, self._bits = torch.empty(2, rows, dtype=torch.int32, device=device)
        self.totals = torch.empty(rows, DIGITS, dtype=torch.float64, device=device)
        """[W, 7], to be summed after each round."""
        self.masses = torch.empty(rows, 1, dtype=torch.float64, device=device)
        """[W, 1], to be summed."""
        assert rows % len(temperatures) == 0
        assert logits.stride(1) == 1

    def high(self) -> Tensor:
        """Return the highest logits [W, 1], to be gathered."""
        launch.start(
            high_kernel, (len(self.logits),), self.logits, self.highs, self.logits.stride(0), self.logits.shape[1],
            BLOCK=self._block, warps=8,
        )  # fmt: skip
        return self.highs

    def gathered(self, highs: Tensor) -> None:
        """Note the highest logits of all members [members, W, 1]."""
        self.highs, self._members = highs, highs.shape[0]

    def round(self, wanted: Tensor, shift: int, *, counts: bool, first: bool) -> Tensor:
        """Return the totals of the bounds at bits ``shift`` and above [W, 7], to be summed; see ``draw.limit``.

        ``wanted`` [S] float64: top-k where it ``counts``, else top-p.
        """
        totals = torch.empty_like(self.totals)
        bits = self._kept if counts else self._bits
        launch.start(
            totals_kernel, (len(self.logits),), self.logits, self.highs, self.temperatures, self._kept, wanted,
            self.masses, bits, self.totals, totals, *self._sizes, shift, FIRST=first, COUNTS=counts, BLOCK=self._block,
            warps=8,
        )  # fmt: skip
        self.totals = totals
        return totals

    def mass(self, top_ks: Tensor | None) -> Tensor:
        """Return the sums of the weights that top-k leaves [W, 1], to be summed. ``top_ks``: as in ``round``."""
        launch.start(
            mass_kernel, (len(self.logits),), self.logits, self.highs, self.temperatures, top_ks, self._kept,
            self.totals, self.masses, *self._sizes, LIMITED=top_ks is not None, BLOCK=self._block, warps=8,
        )  # fmt: skip
        return self.masses

    def race(
        self, first: int, depths: Tensor, *, top_ps: Tensor | None, keys: Tensor, positions: Tensor,
        greedy: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return the winners [W, 2] float64, values and tokens from ``first`` on, to be gathered; of a greedy sequence
        the highest logits. Arguments as in ``sampling.draw``.
        """
        best = torch.empty(len(self.logits), 2, dtype=torch.float64, device=self.logits.device)
        launch.start(
            race_kernel, (len(self.logits),), self.logits, self.highs, self.temperatures, self._kept, top_ps,
            self.masses, self._bits, self.totals, keys, positions, depths,
            None if greedy is None else greedy.view(torch.uint8), best, *self._sizes, first, LIMITED=top_ps is not None,
            MIXED=greedy is not None, BLOCK=self._block, warps=8,
        )  # fmt: skip
        return best

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        rows, width = self.logits.shape
        return self.logits.stride(0), width, self._members, rows // len(self.temperatures)


def words(values: Tensor, tokens: Tensor, first: int) -> Tensor:
    """Return the highest values [W] and their tokens, ``first`` added, as a message [W, 2] float64."""
    best = torch.empty(len(values), 2, dtype=torch.float64, device=values.device)
    launch.start(words_kernel, (len(values),), values, tokens, best, first, warps=1)
    return best


def winner(gathered: Tensor) -> Tensor:
    """Return the token of the highest value of each row [W]; ``gathered`` [members, W, 2] float64."""
    members, rows, _ = gathered.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=gathered.device)
    launch.start(winner_kernel, (rows,), gathered, tokens, members, warps=1)
    return tokens
