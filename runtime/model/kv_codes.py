"""Keys and values of a KV cache in 8 bits: codes of int8 or float8_e4m3fn, with a scale for each head in each row.

    a head in a row    [codes of D dims, up to a multiple of 4] [scale, a float32]

    int8             scale = max(max |x| / 127, 2^-126)   code = the nearest integer to x / scale, of two the even one
    float8_e4m3fn    scale = max(max |x| / 448, 2^-126)   code = the nearest float8 to x / scale, of two the even one
                     value = code * scale

All of it is in float32, so a key has the same codes wherever and beside whatever rows it is computed, and zeros stay
zeros. But for float32's rounding |value - x| is in int8 at most scale / 2, max |x| / 254; in float8 at most |x| / 16,
or scale / 1024, max |x| / 458752, where that is more. What is larger than 2^127, an infinity too, counts as
that. Of a head with a NaN the codes are 0 and the scale is NaN: so are all its values.

These are the operations of torch, where members of a subgroup divide heads or positions; kernels have the same rule
(``kernels.attention``, ``triton_kernels.heads``). By ``head_dim`` a member's part of a head has a scale of its own.
"""

import torch
from torch import Tensor

from plans.dtypes import KV_SCALE_BYTES, cached_width

MOST_CODE = {torch.int8: 127, torch.float8_e4m3fn: 448}
"""Largest code, by the dtype of a cache in codes."""
LEAST_SCALE = torch.finfo(torch.float32).tiny
LARGEST = 2.0**127
"""Largest value: codes times the scale that follows from it are finite."""


def stored_dims(dtype: torch.dtype, head_dim: int) -> int:
    """Return the values of a head of ``head_dim`` dims in a row of a cache of a dtype."""
    return cached_width(str(dtype).removeprefix("torch."), head_dim)


def encoded(kv: Tensor, dtype: torch.dtype) -> Tensor:
    """Return keys or values ``kv`` [..., D] as a cache of ``dtype`` has them; `scratch.stored` bounds temporaries."""
    most = MOST_CODE[dtype]
    values = kv.to(torch.float32, copy=True).clamp_(-LARGEST, LARGEST)
    scales = torch.linalg.vector_norm(values, float("inf"), -1, keepdim=True).div_(most).clamp_(min=LEAST_SCALE)
    codes = values.div_(scales).nan_to_num_(nan=0.0).clamp_(-most, most)
    if dtype == torch.int8:
        codes.round_()
    stored = torch.zeros(*kv.shape[:-1], stored_dims(dtype, kv.shape[-1]), dtype=dtype, device=kv.device)
    stored[..., : kv.shape[-1]].copy_(codes)
    scales_of(stored).copy_(scales.squeeze(-1))
    return stored


def decoded(stored: Tensor, dims: int) -> Tensor:
    """Return the values of ``stored`` [..., width], heads of ``dims`` dims: [..., D] in float32."""
    return stored[..., :dims].float().mul_(scales_of(stored).unsqueeze(-1))


def scales_of(stored: Tensor) -> Tensor:
    """Return a view of the scales of ``stored`` [..., width]: float32 [...]."""
    return stored[..., -KV_SCALE_BYTES:].view(torch.float32).squeeze(-1)
