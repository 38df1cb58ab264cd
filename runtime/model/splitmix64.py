"""The hash splitmix64 (Steele, Lea and Flood, OOPSLA 2014), of numbers and of int64 tensors."""

from torch import Tensor

WORD = (1 << 64) - 1


def signed(word: int) -> int:
    """Return the lower 64 bits of a number as int64."""
    return (word & WORD) - ((word & 1 << 63) << 1)


GOLDEN, FIRST, SECOND = signed(0x9E3779B97F4A7C15), signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def mix(word: int) -> int:
    """Return splitmix64 of a number."""
    word = (word + GOLDEN) & WORD
    word = ((word ^ word >> 30) * FIRST) & WORD
    word = ((word ^ word >> 27) * SECOND) & WORD
    return word ^ word >> 31


def mixed(words: Tensor) -> Tensor:
    """Replace int64 words by their splitmix64, in place; products wrap around."""
    words.add_(GOLDEN)
    words.bitwise_xor_(shifted(words, 30)).mul_(FIRST)
    words.bitwise_xor_(shifted(words, 27)).mul_(SECOND)
    return words.bitwise_xor_(shifted(words, 31))


def shifted(words: Tensor, bits: int) -> Tensor:
    """Return words shifted to the right, filled with zeros."""
    return words.bitwise_right_shift(bits).bitwise_and_((1 << 64 - bits) - 1)
