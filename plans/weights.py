"""The rows and columns of each tensor that a device holds, from the slot table; what a new plan would have to move."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plans.dtypes import HEADER_BYTES
from plans.kv import KvShare
from plans.ranges import Range, Ranges, common, length, share_range
from plans.schema import Draft, DraftPlacement, DType, Inputs, Model, Plan, VocabSplit
from plans.slot_records import SlotSpec
from plans.slots import (
    base_slots,
    draft_slots,
    drafter_slots,
    embed_slots,
    final_norm_slot,
    layer_slots,
    lm_head_table,
    rope_slots,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A rectangle of one tensor on one device, or the same rectangle of every expert's; of a vector the rows."""

    device: str
    tensor: str
    """Slot and role: the same tensor of two plans has the same name."""
    rows: Ranges
    cols: Ranges
    value_bytes: int
    """Bytes of one value of the tensor, or of that value of all experts."""
    draft: bool
    """True where the slot belongs to the drafter."""

    @property
    def nbytes(self) -> int:
        return length(self.rows) * length(self.cols) * self.value_bytes

    def more(self, before: "Held | None") -> int:
        """Return the bytes that are not in what the device held of the same tensor."""
        kept = common(self.rows, before.rows) * common(self.cols, before.cols) * self.value_bytes if before else 0
        return self.nbytes - kept


def held_before(
    plan: Plan, model: Model, draft: Draft | None, dtype: DType, inputs: Inputs
) -> dict[tuple[str, str], Held]:
    """Return what the devices of ``plan`` hold of these weights, by device and tensor: nothing of other weights."""
    base = plan.model == model and plan.options.dtype == dtype
    base = base and plan.inputs.base_tensors_sha256 == inputs.base_tensors_sha256
    drafter = base and plan.draft == draft and plan.inputs.draft_tensors_sha256 == inputs.draft_tensors_sha256
    return {(item.device, item.tensor): item for item in held(plan) if (drafter if item.draft else base)}


def held(plan: Plan) -> Iterator[Held]:
    """Yield every tensor that a device has, or has a part of."""
    for device in plan.inventory.devices:
        yield from _held(device.id, base_slots(plan, device.id).listed, draft=False)
        drafter = draft_slots(plan, device.id)
        yield from _held(device.id, () if drafter is None else drafter.listed, draft=True)


def table(name: str, model: Model, split: VocabSplit, dtype: DType) -> Iterator[Held]:
    """Yield each device's rows of the embedding, or of the lm_head with the final norm, which is whole on each."""
    for member, device in enumerate(split.devices):
        rows = share_range(split.rows, member)
        own = embed_slots(model, rows, dtype) if name == "embed" else lm_head_table(model, rows, dtype)
        norm = () if name == "embed" else (final_norm_slot(model, dtype),)
        yield from _held(device, (*norm, *(() if own is None else own.listed)), draft=False)


def stage_table(model: Model, device: str) -> Iterator[Held]:
    """Yield what a device of any stage has once: the rotary tables."""
    return _held(device, rope_slots(model), draft=False)


def layer_share(
    model: Model, layer: int, device: str, first: int, share: KvShare, units: Range, leader: bool, dtype: DType
) -> Iterator[Held]:
    """Yield a device's share of a layer: KV heads from ``first``, and a range of MLP units."""
    return _held(device, layer_slots(model, layer, first, share, units, leader, dtype).listed, draft=False)


def drafter_share(model: Model, draft: Draft, placement: DraftPlacement, dtype: DType) -> Iterator[Held]:
    """Yield every device's share of the drafter."""
    for member, device in enumerate(placement.devices):
        yield from _held(device, drafter_slots(model, draft, placement, member, dtype).listed, draft=True)


def _held(device: str, slots: Iterable[SlotSpec | None], *, draft: bool) -> Iterator[Held]:
    """Yield the pieces of slots; those of no rows or columns are left out."""
    for slot in slots:
        if slot is None:
            continue
        of_one = slot.shape if slot.experts is None else slot.shape[1:]
        whole = ((0, of_one[-1] if len(of_one) > 1 else 1),)
        # what is sorted among the columns of a share is nothing that another share has
        pieces = [
            (f"{piece.role} {piece.share}" if piece.share else piece.role, piece.rows, piece.cols or whole)
            for piece in slot.pieces
        ]
        for role, rows, cols in pieces or [("", ((0, slot.shape[0]),), whole)]:
            item = Held(
                device=device,
                tensor=f"{slot.name} {role}",
                rows=rows,
                cols=cols,
                value_bytes=HEADER_BYTES[slot.dtype] * (slot.experts or 1),
                draft=draft,
            )
            if item.nbytes:
                yield item
