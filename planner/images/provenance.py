"""Trace a slot's bytes to their sources: tensors, rows and columns by the plan, files and offsets by the headers."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.checkpoints.checkpoint import PICKLE
from planner.checkpoints.header import TensorInfo
from planner.errors import InputError
from planner.families import BaseInput, DraftInput
from planner.images.layout import Part, Slot, header, image_slots
from planner.quantized import Stored
from plans.artifact import image_name, is_filler
from plans.dtypes import HEADER_BYTES
from plans.ranges import Ranges, length
from plans.schema import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteRuns:
    """Bytes of a source file: ``count`` runs of ``nbytes``, each beginning ``stride_bytes`` after the one before."""

    offset: int
    nbytes: int
    count: int
    stride_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Source of one part of a slot; the parts of a slot are stacked along its first axis."""

    checkpoint: str
    """``base`` or ``draft``."""
    tensor: str
    shape: tuple[int, ...] | None
    rows: Ranges
    columns: Ranges | None
    """None: all columns."""
    operation: str
    """``copy`` or ``cast F32 to BF16``, followed by ``, columns`` if only some columns are taken.

    ``, transposed`` where columns become rows, and ``, one of 2 columns`` where others are between them.
    """
    file: str | None
    """None, like ``ranges`` and ``shape``, where only a bare config was given."""
    ranges: tuple[ByteRuns, ...] | None
    """With the columns between, where one of several is taken. None of a quantized layer, whose bytes are in another
    order, and in a pickle: offsets in the file it is converted to are not those in the pickle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Sources of a slot in the image of one device."""

    device: str
    slot: str
    dtype: str
    shape: tuple[int, ...]
    image: str
    offset: int
    """Offset of the slot's first byte in the image's file."""
    nbytes: int
    origins: tuple[Origin, ...]
    """Empty for rotary frequencies, which are computed from the config, and for a filler."""


def provenance(plan: Plan, name: str, base: BaseInput, draft: DraftInput | None) -> tuple[Provenance, ...]:
    """Return the sources of a slot on every device that has it; raise InputError if none has."""
    traced: list[Provenance] = []
    known: dict[str, None] = {}
    for device in plan.devices:
        slots = image_slots(plan, device.id, base, draft)
        known |= dict.fromkeys(slot.name for slot in slots if slot.parts)
        start = len(header(slots, device.id))
        traced += [_trace(slot, device.id, start, base, draft) for slot in slots if slot.name == name]
    if not traced:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"expected a name like {', '.join(list(known)[:3])}"
        raise InputError(f"--slot {name}: no device has it: {hint}")
    return tuple(traced)


def _trace(slot: Slot, device: str, start: int, base: BaseInput, draft: DraftInput | None) -> Provenance:
    return Provenance(
        device=device,
        slot=slot.name,
        dtype=slot.dtype,
        shape=slot.shape,
        image=image_name(device),
        offset=start + slot.offset,
        nbytes=slot.nbytes,
        origins=tuple(_origin(part, slot, base, draft) for part in slot.parts),
    )


def _origin(part: Part, slot: Slot, base: BaseInput, draft: DraftInput | None) -> Origin:
    source = base if part.source == "base" else draft
    assert source is not None, "a slot of the EAGLE head, but no head"
    info = (source.checkpoint.tensors or {}).get(part.tensor)
    if part.stored is not None:
        return _of_layer(part, part.stored, source.checkpoint.tensors or {})
    verb = "copy" if info is None or info.dtype == slot.dtype else f"cast {info.dtype} to {slot.dtype}"
    width = 1 if info is None or len(info.shape) == 1 else info.shape[-1]
    item = 0 if info is None else HEADER_BYTES[info.dtype]
    ranges = None if info is None else tuple(_ranges(part, info.offset, width, item))
    rows, columns = part.tensor_ranges()
    if part.columns is not None:
        verb += ", transposed" + ("" if part.columns.step == 1 else f", one of {part.columns.step} columns")
    return Origin(
        checkpoint=part.source,
        tensor=part.tensor,
        shape=None if info is None else info.shape,
        rows=rows,
        columns=columns,
        operation=verb if part.cols is None else f"{verb}, columns",
        file=None if info is None else info.file,
        ranges=None if info is not None and info.file == PICKLE else ranges,
    )


def _of_layer(part: Part, stored: Stored, tensors: Mapping[str, TensorInfo]) -> Origin:
    """Return the source of a part of a quantized layer, whose bytes are in another order in the checkpoint."""
    named = sorted({tensor.name for role, tensor in stored.tensors.items() if role in (part.kind, "order")})
    rows, columns = part.tensor_ranges()
    return Origin(
        checkpoint=part.source,
        tensor=" and ".join(named),
        shape=stored.shape(part.kind),
        rows=rows,
        columns=columns if stored.share is None else stored.share,
        operation=f"{part.kind} of {stored.module}, {stored.layout.words}"
        + (", sorted by groups" if stored.sorts else "")
        + ("" if part.cols is None and stored.share is None else ", columns")
        + ("" if part.sorted_as is None else f", rows as the sorted columns of {part.sorted_as.module}"),
        file=" and ".join(sorted({tensors[name].file for name in named})) if tensors else None,
        ranges=None,
    )


def _ranges(part: Part, offset: int, width: int, item: int) -> Iterator[ByteRuns]:
    """Yield the bytes of a part, of a tensor at ``offset`` with rows of ``width`` elements of ``item`` bytes."""
    row = width * item
    rows, columns = part.tensor_ranges()
    for first, last in rows:
        if columns is None:
            yield ByteRuns(offset=offset + first * row, nbytes=(last - first) * row, count=1, stride_bytes=0)
            continue
        for left, right in columns:
            yield ByteRuns(
                offset=offset + first * row + left * item,
                nbytes=(right - left) * item,
                count=last - first,
                stride_bytes=row,
            )


def lines(traced: tuple[Provenance, ...]) -> Iterator[str]:
    """Yield the sources of a slot as lines of text."""
    for slot in traced:
        size = "x".join(map(str, slot.shape))
        yield f"{slot.device}: {slot.dtype} [{size}], {slot.nbytes} bytes at {slot.offset} of {slot.image}"
        if not slot.origins:
            yield ("  zeros: a gap" if is_filler(slot.slot) else "  computed from the config: rotary frequencies")
        for origin in slot.origins:
            yield f"  {origin.operation}: {_spans(origin)} of {origin.tensor} ({origin.checkpoint})"
            if origin.file is not None and origin.ranges is None:
                yield f"    {origin.file}: in another order"
            for span in origin.ranges or ():
                runs = f"{span.count} x {span.nbytes} bytes, each {span.stride_bytes} on" if span.stride_bytes else ""
                yield f"    {origin.file}: {runs or f'{span.nbytes} bytes'}, from {span.offset}"


def _spans(origin: Origin) -> str:
    rows = f"rows {_text(origin.rows)}"
    return rows if origin.columns is None else f"{rows}, columns {_text(origin.columns)}"


def _text(ranges: Ranges) -> str:
    shown = [f"{start}-{stop - 1}" for start, stop in ranges[:4]]
    return ", ".join([*shown, *([f"… ({length(ranges)} in all)"] if len(ranges) > 4 else [])])
