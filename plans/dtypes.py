"""Bytes of a value of every dtype, and the names of dtypes in a safetensors header."""

from collections.abc import Mapping

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a value of weights and activations, by the plan's dtype."""

KV_DTYPE_BYTES: Mapping[str, int] = {**DTYPE_BYTES, "float8_e4m3fn": 1, "int8": 1}
"""Bytes of a value of a KV cache, by the plan's dtype of KV caches."""

KV_CODES = ("int8", "float8_e4m3fn")
"""Dtypes of a KV cache in codes of 8 bits, with a scale for each key and value of a head."""

KV_SCALE_BYTES = 4
"""Bytes of the scale, a float32, of a head's codes in a row of a KV cache; they begin at a multiple of as many."""

BUFFER_BYTES: Mapping[str, int] = {**KV_DTYPE_BYTES, "float64": 8, "int64": 8, "uint8": 1}
"""Bytes of a value of a buffer, by its dtype."""

HEADER_NAMES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""Name in a safetensors header of each dtype of a plan."""

HEADER_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
"""Bytes of a value, by the name of its dtype in a safetensors header."""

IMAGE_DTYPES = (*HEADER_NAMES.values(), "I32", "I64", "U8")
"""Dtypes that an image may have, by their names in the header."""


def cached_width(kv_dtype: str, head_dim: int) -> int:
    """Return the values of a KV cache that a key or a value of ``head_dim`` dims takes, in codes with their scale.

    In codes: those of the dims, up to a multiple of KV_SCALE_BYTES, and behind them the bytes of the scale.
    """
    if kv_dtype not in KV_CODES:
        return head_dim
    return -(-head_dim // KV_SCALE_BYTES) * KV_SCALE_BYTES + KV_SCALE_BYTES
