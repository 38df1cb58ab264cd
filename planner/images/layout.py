"""Slot table of a device -> its image: offsets, fillers, and the tensors of the checkpoints that the bytes come from.

Names, dtypes, shapes and order of the slots are ``plans.slots``, which planning counts as well, so planned bytes and
image bytes agree by construction: the data of an image is exactly weights_bytes + draft_weights_bytes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from planner.families import BaseInput, Columns, DraftInput, Source, rope_bytes
from planner.quantized import Part as CodedPart
from planner.quantized import Stored
from plans.artifact import PAGE_BYTES, Abi, abi_of, align, filler_name, image_metadata
from plans.ranges import Range, Ranges
from plans.rotary import Order
from plans.safetensors_header import TensorEntry, encode_header
from plans.schema import DType, Plan
from plans.slot_records import SlotSpec
from plans.slots import device_slots, draft_rope_slot, rope_slots


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Rows of one source tensor, or the same columns of them; the parts of a slot are stacked along axis 0."""

    source: Literal["base", "draft"]
    tensor: str
    """Name in the checkpoint."""
    rows: Ranges
    """Rows of the role: in ``order``, and counted from ``first``."""
    cols: Ranges | None
    """None: whole rows (or a vector)."""
    first: int | None = None
    """Row of the tensor where those of the role begin; None: at its first."""
    order: Order | None = None
    """Row r is row r - r % D + ``order[r % D]``, with D rows of a head; None: r itself."""
    columns: Columns | None = None
    """Rows of the role are columns of the tensor, from row ``first`` on; None: they are its rows."""
    stored: Stored | None = None
    """The quantized layer that the rows are computed from; ``tensor`` is then the name of a part of it."""
    kind: CodedPart = "codes"
    """With ``stored``: the part of it."""
    sorted_as: Stored | None = None
    """Rows of the role have the order of this layer's columns, sorted by groups that the checkpoint has."""

    def tensor_ranges(self) -> tuple[Ranges, Ranges | None]:
        """Return rows and columns of the tensor; columns None: all. Between columns there may be those of others."""
        if self.columns is None:
            return tuple(span for rows in self.rows for span in self.tensor_rows(*rows)), self.cols
        first, turned = self.first or 0, self.columns
        rows = tuple((first + start, first + stop) for start, stop in self.cols or ((0, turned.width),))
        begin, step = turned.first, turned.step
        spans = ((start, stop) for start, stop in self.rows if start < stop)
        return rows, tuple((begin + step * start, begin + step * (stop - 1) + 1) for start, stop in spans)

    def tensor_rows(self, start: int, stop: int) -> Iterator[Range]:
        """Yield rows of the role as ranges of the tensor's rows, in the order in which the image has them."""
        first = self.first or 0
        if self.order is None:
            yield first + start, first + stop
            return
        size, begin = len(self.order), None
        for row in range(start, stop):
            at = first + row - row % size + self.order[row % size]
            if begin is None or at != begin[1]:
                if begin is not None:
                    yield begin
                begin = at, at + 1
            else:
                begin = begin[0], at + 1
        if begin is not None:
            yield begin


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One tensor of an image: from ``parts`` of a checkpoint, or from ``literal`` bytes."""

    name: str
    dtype: str
    """Name in a safetensors header: BF16, F16, F32, I64, U8."""
    shape: tuple[int, ...]
    offset: int
    """Offset from the start of the data, in bytes."""
    nbytes: int
    parts: tuple[Part, ...]
    literal: bytes | None

    @property
    def entry(self) -> TensorEntry:
        """The slot as the image's header declares it."""
        return TensorEntry(name=self.name, dtype=self.dtype, shape=self.shape, offset=self.offset, nbytes=self.nbytes)


def image_slots(plan: Plan, device_id: str, base: BaseInput, draft: DraftInput | None) -> tuple[Slot, ...]:
    """Return all slots of a device's image in the order of the file, fillers included; offsets are multiples of 256."""
    specs = device_slots(plan, device_id)
    inputs: dict[str, BaseInput | DraftInput] = {"base": base} | ({} if draft is None else {"draft": draft})
    roles = {source: one.roles for source, one in inputs.items()}
    return placed(specs, roles, rotary_tables(plan, base, draft))


def rotary_tables(plan: Plan, base: BaseInput, draft: DraftInput | None) -> Mapping[str, bytes]:
    """Return the content of the rotary slots, by name."""
    context, ropes = plan.options.context, dict.fromkeys(base.ropes)
    named = [(spec.name, rope) for spec, rope in zip(rope_slots(plan.model), ropes, strict=True)]
    if plan.draft is not None and draft is not None:
        named.append((draft_rope_slot(plan.draft).name, draft.ropes[0]))
    return {name: rope_bytes(rope, context) for name, rope in named}


def placed(
    specs: Iterable[SlotSpec], roles: Mapping[str, Mapping[str, Source]], literals: Mapping[str, bytes]
) -> tuple[Slot, ...]:
    """Return the slots one after the other, with declared fillers up to each multiple of the alignment.

    ``roles``: by checkpoint, the rows of a tensor for each role; ``literals``: by slot, content of no tensor.
    """
    slots: list[Slot] = []
    offset = fillers = 0
    for spec in specs:
        literal = None if spec.pieces else literals[spec.name]
        assert literal is None or len(literal) == spec.nbytes, f"{spec.name}: {len(literal or b'')} bytes"
        slots.append(
            Slot(
                name=spec.name,
                dtype=spec.dtype,
                shape=spec.shape,
                offset=offset,
                nbytes=spec.nbytes,
                parts=_parts(spec, roles[spec.source]),
                literal=literal,
            )
        )
        offset += spec.nbytes
        gap = align(offset) - offset
        if gap:
            slots.append(_filler(fillers, offset, gap))
            offset += gap
            fillers += 1
    return tuple(slots)


def _parts(spec: SlotSpec, roles: Mapping[str, Source]) -> tuple[Part, ...]:
    """Return the pieces of a slot as parts of tensors, expert after expert."""
    experts = (None,) if spec.experts is None else range(spec.experts)
    sources = ((piece, roles[piece.tensor(expert)]) for expert in experts for piece in spec.pieces)
    return tuple(
        Part(
            source=spec.source,
            tensor=source.name,
            rows=piece.rows,
            cols=piece.cols,
            first=source.first or None,
            order=piece.order,
            columns=source.columns,
            stored=source.stored and replace(source.stored, share=piece.share),
            kind=source.part,
            sorted_as=source.sorted_as,
        )
        for piece, source in sources
    )


def _filler(number: int, offset: int, nbytes: int) -> Slot:
    return Slot(
        name=filler_name(number),
        dtype="U8",
        shape=(nbytes,),
        offset=offset,
        nbytes=nbytes,
        parts=(),
        literal=bytes(nbytes),
    )


def data_bytes(slots: tuple[Slot, ...]) -> int:
    """Return the bytes of an image after its header."""
    return slots[-1].offset + slots[-1].nbytes if slots else 0


def abi(slots: tuple[Slot, ...], dtype: DType) -> Abi:
    """Return the ABI of an image with these slots."""
    return abi_of((slot.entry for slot in slots), dtype)


def header(slots: tuple[Slot, ...], device_id: str) -> bytes:
    """Return length and JSON of a safetensors header, padded with spaces to a multiple of 4096 bytes in all."""
    return encode_header((slot.entry for slot in slots), image_metadata(device_id), PAGE_BYTES)
