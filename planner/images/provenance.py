"""Where the bytes of a slot come from: tensors, rows and columns by the plan; files and offsets by the headers."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from planner.checkpoints.checkpoint import PICKLE
from planner.errors import InputError
from planner.families import BaseInput, DraftInput
from planner.images.layout import header, image_slots
from plans.artifact import ITEM_BYTES
from plans.ranges import Ranges, length
from plans.schema import Plan
from plans.slots import Part, Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Bytes of a source file: ``count`` runs of ``nbytes``, each ``stride_bytes`` after the one before."""

    offset: int
    nbytes: int
    count: int
    stride_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What one part of a slot is made of; the parts of a slot are stacked along its first axis."""

    checkpoint: str
    """``base`` or ``draft``."""
    tensor: str
    shape: tuple[int, ...] | None
    rows: Ranges
    columns: Ranges | None
    """None: all."""
    operation: str
    file: str | None
    """None, as ``ranges`` and ``shape``, where no headers are at hand."""
    ranges: tuple[Range, ...] | None
    """Also None in a pickle, whose tensors lie wherever they lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """A slot in the image of one device."""

    device: str
    slot: str
    dtype: str
    shape: tuple[int, ...]
    image: str
    offset: int
    """In the image's file."""
    nbytes: int
    origins: tuple[Origin, ...]
    """None of them: rotary frequencies, computed from the config, or a gap."""


def provenance(plan: Plan, name: str, base: BaseInput, draft: DraftInput | None) -> tuple[Provenance, ...]:
    """The slot of a name on every device that has it; raise InputError where none has."""
    found: list[Provenance] = []
    known: dict[str, None] = {}
    for device in plan.devices:
        slots = image_slots(plan, device.id, base, draft)
        known |= dict.fromkeys(slot.name for slot in slots if slot.parts)
        start = len(header(slots, device.id))
        found += [_of(slot, device.id, start, base, draft) for slot in slots if slot.name == name]
    if not found:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"expected a name like {', '.join(list(known)[:3])}"
        raise InputError(f"--slot {name}: no device has it: {hint}")
    return tuple(found)


def _of(slot: Slot, device: str, start: int, base: BaseInput, draft: DraftInput | None) -> Provenance:
    return Provenance(
        device=device,
        slot=slot.name,
        dtype=slot.dtype,
        shape=slot.shape,
        image=f"{device}.safetensors",
        offset=start + slot.offset,
        nbytes=slot.nbytes,
        origins=tuple(_origin(part, slot, base, draft) for part in slot.parts),
    )


def _origin(part: Part, slot: Slot, base: BaseInput, draft: DraftInput | None) -> Origin:
    given = base if part.source == "base" else draft
    assert given is not None, "a part of a head that there is not"
    info = (given.checkpoint.tensors or {}).get(part.tensor)
    verb = "copy" if info is None or info.dtype == slot.dtype else f"cast {info.dtype} to {slot.dtype}"
    width = 1 if info is None or len(info.shape) == 1 else info.shape[1]
    item = 0 if info is None else ITEM_BYTES[info.dtype]
    ranges = None if info is None else tuple(_ranges(part, info.offset, width, item))
    return Origin(
        checkpoint=part.source,
        tensor=part.tensor,
        shape=None if info is None else info.shape,
        rows=part.rows,
        columns=part.cols,
        operation=verb if part.cols is None else f"{verb}, columns",
        file=None if info is None else info.file,
        ranges=None if info is not None and info.file == PICKLE else ranges,
    )


def _ranges(part: Part, offset: int, width: int, item: int) -> Iterator[Range]:
    row = width * item
    for first, last in part.rows:
        if part.cols is None:
            yield Range(offset=offset + first * row, nbytes=(last - first) * row, count=1, stride_bytes=0)
            continue
        for left, right in part.cols:
            yield Range(
                offset=offset + first * row + left * item,
                nbytes=(right - left) * item,
                count=last - first,
                stride_bytes=row,
            )


def lines(found: tuple[Provenance, ...]) -> Iterator[str]:
    """For people."""
    for here in found:
        size = "x".join(map(str, here.shape))
        yield f"{here.device}: {here.dtype} [{size}], {here.nbytes} bytes at {here.offset} of {here.image}"
        if not here.origins:
            yield (
                "  zeros: a gap" if here.slot.startswith("_pad.") else "  computed from the config: rotary frequencies"
            )
        for origin in here.origins:
            yield f"  {origin.operation}: {_spans(origin)} of {origin.tensor} ({origin.checkpoint})"
            for span in origin.ranges or ():
                runs = f"{span.count} x {span.nbytes} bytes, each {span.stride_bytes} on" if span.stride_bytes else ""
                yield f"    {origin.file}: {runs or f'{span.nbytes} bytes'}, from {span.offset}"


def _spans(origin: Origin) -> str:
    rows = f"rows {_text(origin.rows)}"
    return rows if origin.columns is None else f"{rows}, columns {_text(origin.columns)}"


def _text(ranges: Ranges) -> str:
    shown = [f"{start}-{stop - 1}" for start, stop in ranges[:4]]
    return ", ".join([*shown, *([f"… ({length(ranges)} in all)"] if len(ranges) > 4 else [])])
