"""Bytes of a value of every dtype, and the names of dtypes in a safetensors header."""

from collections.abc import Mapping

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a value of weights and activations, by the plan's dtype."""

KV_DTYPE_BYTES: Mapping[str, int] = {**DTYPE_BYTES, "float8_e4m3fn": 1}
"""Bytes of a value of a KV cache, by the plan's dtype of KV caches."""

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

IMAGE_DTYPES = (*HEADER_NAMES.values(), "I64", "U8")
"""Dtypes that an image may have, by their names in the header."""
