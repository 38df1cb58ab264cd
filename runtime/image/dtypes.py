"""Dtypes of torch by their names in plans and in safetensors headers."""

import torch

from plans.dtypes import HEADER_NAMES

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "int8": torch.int8,
    "float64": torch.float64,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
"""Dtypes of activations, KV caches and buffers, by the name in a plan."""

HEADER_DTYPES = {
    **{name: DTYPES[dtype] for dtype, name in HEADER_NAMES.items()},
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}
"""Dtypes of an image's slots, by the name in its header."""
