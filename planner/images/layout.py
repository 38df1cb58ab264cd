"""Plan and family -> the slot table of each device's image: names, shapes, offsets, and where the bytes come from.

The one place that knows the slots. Planning counts bytes with the functions that lay out the image, so planned bytes
and image bytes agree by construction: the data of an image is exactly weights_bytes + draft_weights_bytes.

Shape letters: H hidden size, D head dim, k KV heads and h query heads of this device, m MLP channels of this device,
E experts (m is then of each). A device that shares its KV heads along ``head_dim`` has d = D/parts dims of each, all
others d = D.
"""

import dataclasses
from collections.abc import Callable, Iterable

from planner.families import BaseInput, DraftInput, inv_freq_bytes
from plans.artifact import LAYOUT_VERSION, PAGE_BYTES, Abi, abi_of, align
from plans.kv import KvShare
from plans.safetensors_header import TensorEntry, encode_header
from plans.schema import DType, LayerClass, Model, Plan
from plans.slots import Slot, _base_slots, _draft_slots, _Given, _slot, attention_bytes, mlp_bytes

# ---- blocks: the slots of a share, unplaced ----


# ---- bytes of a share, for planning ----


def layer_bytes(
    model: Model, dtype: DType, layer_class: LayerClass, share: KvShare, mlp_units: int, leader: bool
) -> int:
    """Bytes of one layer on a device with these shares."""
    attention = attention_bytes(model, dtype, layer_class, share, leader)
    return attention + mlp_bytes(model, dtype, layer_class, mlp_units, leader)


# ---- images ----


def image_slots(plan: Plan, device_id: str, base: BaseInput, draft: DraftInput | None) -> tuple[Slot, ...]:
    """All slots of a device's image, in the order of the file, fillers included; offsets are multiples of 256."""
    of_base = _Given(tensor=_tensors(base), inv_freq=inv_freq_bytes(base.rope))
    slots = _base_slots(plan, device_id, of_base)
    if plan.draft_placement is not None and device_id in plan.draft_placement.devices:
        assert draft is not None, "a plan with a draft is laid out with the draft's tensors"
        of_draft = _Given(tensor=_tensors(draft), inv_freq=inv_freq_bytes(draft.rope))
        slots += _draft_slots(plan, device_id, of_base, of_draft)
    return _placed(slots)


def _tensors(given: BaseInput | DraftInput) -> Callable[[str], str]:
    """From role to the name of the checkpoint's tensor."""
    return lambda role: given.roles[role].name


def _placed(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """The slots one after the other, with declared fillers up to each multiple of the alignment."""
    placed: list[Slot] = []
    offset = fillers = 0
    for slot in slots:
        placed.append(dataclasses.replace(slot, offset=offset))
        offset += slot.nbytes
        gap = align(offset) - offset
        if gap:
            filler = _slot(f"_pad.{fillers}", "U8", (gap,), (), bytes(gap))
            placed.append(dataclasses.replace(filler, offset=offset))
            offset += gap
            fillers += 1
    return tuple(placed)


def data_bytes(slots: tuple[Slot, ...]) -> int:
    """Bytes of an image after its header."""
    return slots[-1].offset + slots[-1].nbytes if slots else 0


def abi(slots: tuple[Slot, ...], dtype: DType) -> Abi:
    """The ABI of an image with these slots."""
    return abi_of((slot.entry for slot in slots), dtype)


def header(slots: tuple[Slot, ...], device_id: str) -> bytes:
    """Length and JSON of a safetensors header, padded with spaces to a multiple of 4096 bytes in all.

    The plan's digest is not in it: an image that a new plan leaves as it was keeps its bytes.
    """
    tensors = [
        TensorEntry(name=slot.name, dtype=slot.dtype, shape=slot.shape, offset=slot.offset, nbytes=slot.nbytes)
        for slot in slots
    ]
    return encode_header(tensors, {"abi": str(LAYOUT_VERSION), "device": device_id}, PAGE_BYTES)
