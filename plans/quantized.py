"""Layout of quantized matrices in an image: codes, scales and, where a format has them, zero points.

A matrix [out, in] of a format is up to three slots of the image:

    codes   uint8 [out, in] of 8 bits, [out, in / 2] of 4
    scales  [out, groups]: groups = ceil(in / group), or 1 where all of a row share a scale
    zeros   uint8 [out, groups], of int4 and int8 with zero points
    order   int32 [in], of a format that is ``ordered``: the input's column that each is multiplied with

    int4, int8      value = (code - zero) * scale, codes without a sign; without zero points zero is half of their range
    float8_e4m3fn   value = code * scale
    float4_e2m1     value = code * 2 ** (scale - 127), scales are the bytes of float8_e8m0

Values are those products in float32. Each row has scales of its own, also where a checkpoint has one for a block of
rows or for a matrix, so that rows can be cut and stacked anywhere. Of 4 bits, BLOCK columns are BLOCK / 2 bytes: byte j
has the code of column j in its lower half and that of column j + BLOCK / 2 in its upper half, so that a vector of bytes
becomes two vectors of neighbouring columns by a mask and a shift.

Columns that are ordered are sorted by their groups. A device that has some of them has a part of each group, which is
filled up to whole blocks by columns whose ``order`` is -1, where the input counts as 0; a group is then one block.
"""

import dataclasses
import math
from collections.abc import Mapping

from plans.schema import Attention, Draft, KvAxis, LayerClass, Model, RoundedWeights, WeightFormat

SCALE_NAMES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float8_e8m0": "U8"}
"""Name in a safetensors header of each dtype of scales in an image; codes and zero points are U8."""

BLOCK = 32
"""Columns that are packed together in formats of 4 bits, whose ``in`` is a multiple of it, as every group is."""

ORDER_BYTES = 4
"""Bytes of the order of a column, an int32."""

ROUNDED: Mapping[RoundedWeights, WeightFormat] = {
    "int8": WeightFormat(code="int8", group=None, zeros=False, scale="bfloat16"),
    "int4-g128": WeightFormat(code="int4", group=128, zeros=False, scale="bfloat16"),
    "int4-g32": WeightFormat(code="int4", group=32, zeros=False, scale="bfloat16"),
    "fp8": WeightFormat(code="float8_e4m3fn", group=None, zeros=False, scale="bfloat16"),
}
"""Formats to which plain weights are rounded: those of compressed-tensors' W8A16 and W4A16, and of FP8 by channels."""


def has_codes(model: Model) -> bool:
    """Return True where some weight of a model is quantized."""
    return model.head_format is not None or any(
        form is not None for layers in model.layers for form in layer_formats(layers).values()
    )


def layer_formats(layers: LayerClass) -> dict[str, WeightFormat | None]:
    """Return the formats of the linear layers of a class: q, k, v, o, gate, up and down."""
    return layers.attention.formats | layers.mlp.formats


def draft_embed_format(model: Model, draft: Draft) -> WeightFormat | None:
    """Return the format of the drafter's embedding table: its own is plain, else it is the base's."""
    return None if draft.own_embedding else model.embed_format


def draft_head_format(model: Model, draft: Draft) -> WeightFormat | None:
    """Return the format of the drafter's lm_head: its own is plain, else it is the base's."""
    return None if draft.own_head else model.head_format


def rounded_table(weights: RoundedWeights) -> WeightFormat | None:
    """Return the format to which the lm_head is rounded, of a tied model the embedding too; None: it stays plain.

    Integers of 8 bits with a scale for each row, whatever the layers have, as other programs keep it too (GGUF's Q4_0
    with an output in Q8_0); beside layers in float8 it stays, as published checkpoints have it.
    """
    return None if weights == "fp8" else ROUNDED["int8"]


def is_half(form: WeightFormat) -> bool:
    """Return True where a code has 4 bits."""
    return form.code in ("int4", "float4_e2m1")


def code_bytes(form: WeightFormat, columns: int) -> int:
    """Return the bytes of so many codes of a row."""
    return columns // 2 if is_half(form) else columns


def groups(form: WeightFormat, columns: int) -> int:
    """Return the number of scales of so many columns."""
    return 1 if form.group is None else -(-columns // form.group)


def held_columns(form: WeightFormat | None, columns: int, whole: int) -> int:
    """Return the columns that an image has of ``columns`` of a matrix with ``whole``, with those that fill up groups.

    Which columns a group has is known when images are compiled: it is the most that any groups take.
    """
    if form is None or not form.ordered or columns == whole:
        return columns
    filled = columns + (BLOCK - 1) * groups(form, whole)
    return min(whole, filled // BLOCK * BLOCK)


def share_format(form: WeightFormat, columns: int, whole: int) -> WeightFormat:
    """Return the format in the image of a device that has ``columns`` of a matrix with ``whole``."""
    return dataclasses.replace(form, group=BLOCK) if form.ordered and columns != whole else form


def coded_columns(columns: int) -> int:
    """Return the float32 that a CPU kernel has of a row of x, or of a weight: of whole blocks, and one for each.

    The latter are whole vectors, of up to 16.
    """
    blocks = -(-columns // BLOCK)
    return blocks * BLOCK + -(-blocks // 16) * 16


def column_unit(form: WeightFormat) -> int:
    """Return the columns on multiples of which a matrix can be cut."""
    return form.group or (BLOCK if is_half(form) else 1)


def head_unit(attention: Attention) -> int:
    """Return the KV heads on multiples of which devices can divide attention: those whose columns of o, the least
    common multiple of a KV head's and of its format's, end with a group; the last device has what is left.
    """
    if attention.o_format is None or attention.o_format.ordered:
        return 1
    of_head = attention.num_heads // max(1, attention.num_kv_heads) * attention.head_dim
    return math.lcm(column_unit(attention.o_format), of_head) // of_head if of_head > 0 else 1


def divides(attention: Attention, axis: KvAxis, parts: int) -> bool:
    """Return True where a subgroup of so many devices cuts the columns of o on multiples that its format allows.

    A subgroup of one cuts none; which KV heads it has: ``head_unit``.
    """
    if parts == 1 or attention.o_format is None or attention.o_format.ordered:
        return True
    if attention.o_format.group is None and not is_half(attention.o_format):
        return True
    unit, of_head = column_unit(attention.o_format), attention.head_dim
    of_group = attention.num_heads // max(1, attention.num_kv_heads) * of_head
    if axis == "head_dim":
        return of_head % (parts * unit) == 0
    return of_group % ((1 if axis == "batch" else parts) * unit) == 0
