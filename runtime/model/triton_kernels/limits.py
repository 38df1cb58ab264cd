"""Numbers beyond all others, which kernels mask with."""

import triton.language as tl

LAST = tl.constexpr(0x7FFFFFFF)
"""A number above those of all tokens, nodes, experts and candidates."""
