"""Unpack integers of 4 and 8 bits, and pack codes as images have them (``plans.quantized``)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from plans.quantized import BLOCK
from plans.ranges import Range

Array = npt.NDArray[Any]
Read = Callable[[str, Range | None], Array]
"""Returns rows of a tensor of the checkpoint by its name, counted through all matrices that it packs [rows, columns],
or all of it (None), as numpy holds its dtype: bfloat16 and 8-bit floats as their bits."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of each half byte of a word of AWQ, from the lowest."""


def unpacked(words: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Return the codes of int32 words [n, w], the lowest bits first: uint8 [n, w * 32 / bits]."""
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return octets
    codes = np.empty((octets.shape[0], 2 * octets.shape[1]), np.uint8)
    np.bitwise_and(octets, 15, out=codes[:, 0::2])
    np.right_shift(octets, 4, out=codes[:, 1::2])
    return codes


def packed(codes: npt.NDArray[np.uint8], half: bool) -> npt.NDArray[np.uint8]:
    """Return codes [n, columns] as images have them; ``half``: of 4 bits, [n, columns / 2]."""
    if not half:
        return codes
    blocks = codes.reshape(len(codes), -1, 2, BLOCK // 2)
    both = blocks[:, :, 0] | (blocks[:, :, 1] << np.uint8(4))
    return both.reshape(len(codes), -1)


def transposed(words: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Return the codes of int32 words [w, out] that lie along the first axis: uint8 [out, w * 32 / bits]."""
    return unpacked(np.ascontiguousarray(words.T), bits)


def awq_columns(words: Array) -> npt.NDArray[np.uint8]:
    """Return the codes of AWQ's words [n, w]: uint8 [n, 8 w]."""
    codes = unpacked(words, 4).reshape(len(words), -1, 8)
    ordered = np.empty_like(codes)
    ordered[:, :, AWQ_ORDER] = codes
    return ordered.reshape(len(words), -1)
