"""Bytes of shares: exact where a share is listed, an affine upper bound where the solver divides freely.

Slots are counted by :mod:`plans.slot_bytes`, everything that the runtime allocates beside them by
:mod:`plans.buffers`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from planner.costs.coded import gate_up_order_bytes, order_bytes, stored_bytes
from planner.integers import ceil_div
from plans import slot_bytes
from plans.artifact import ALIGNMENT_BYTES
from plans.buffer import Buffer
from plans.buffers import device_terms
from plans.dtypes import DTYPE_BYTES
from plans.schema import DeviceMemory, Draft, DType, LayerClass, Mlp, Model, Plan, WeightFormat
from plans.step import ALIGN_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Affine:
    """Affine bound: at most ``fixed + slope * n`` bytes for a share of n units or rows."""

    fixed: int
    slope: int


def affine(exact: Callable[[int], int], most: int, slope: int, slots: int, once: int = 0) -> Affine:
    """Bound ``exact`` on 0 … ``most``, which grows by ``slope`` bytes but for the alignment of ``slots`` slots.

    ``once``: bytes that any share but none has.
    """
    aligned = all(exact(n) == exact(0) + n * slope for n in (1, most))
    bound = Affine(fixed=exact(0) + (0 if aligned else slots * ALIGNMENT_BYTES + once), slope=slope)
    assert bound.fixed + most * slope >= exact(most), "an affine bound below the bytes that it bounds"
    return bound


def _unit_bytes(mlp: Mlp, hidden: int, dtype: DType) -> int:
    width, bytes_of = DTYPE_BYTES[dtype], partial(_channels_bytes, mlp, hidden, dtype)
    biases = mlp.num_experts * (2 if mlp.bias else 0) * mlp.unit * width
    return mlp.num_experts * bytes_of(mlp.unit) + bytes_of(mlp.shared_unit) + biases


def _channels_bytes(mlp: Mlp, hidden: int, dtype: DType, channels: int) -> int:
    """Return the bytes of so many channels, but for scales of down that each share has of all its channels."""
    gate_up = sum(stored_bytes(mlp.formats[name], channels, hidden, DTYPE_BYTES[dtype]) for name in ("gate", "up"))
    return gate_up + stored_bytes(mlp.down_format, hidden, channels, DTYPE_BYTES[dtype]) - _whole_bytes(mlp, hidden)


def _whole_bytes(mlp: Mlp, hidden: int) -> int:
    """Return the bytes of the scales of down of one expert, where a row has one for all channels."""
    form = mlp.down_format
    return 0 if form is None or form.group is not None else stored_bytes(form, hidden, 0, 0)


def layer_mlp(model: Model, dtype: DType, layer_class: LayerClass, leader: bool) -> Affine:
    """Bound the slots of a layer's MLP, in units."""
    mlp = layer_class.mlp
    slope = _unit_bytes(mlp, model.hidden_size, dtype)
    sliced = (5 if mlp.shared_size else 3) + 4 * (2 if mlp.shared_size else 1) * (mlp.down_format is not None)
    ordered = gate_up_order_bytes(mlp, model.hidden_size)
    sliced += (2 if mlp.shared_size else 1) * (ordered > 0)
    if mlp.gate_up_formats is not None:  # codes, scales, zeros and order of another matrix
        sliced += 4
    once = (mlp.num_experts + bool(mlp.shared_size)) * (_whole_bytes(mlp, model.hidden_size) + ordered)
    return affine(lambda n: slot_bytes.mlp_bytes(model, dtype, layer_class, n, leader), mlp.units, slope, sliced, once)


def draft_mlp(draft: Draft, dtype: DType, leader: bool) -> Affine:
    """Bound the slots of the MLPs of all layers of the drafter, in units of one layer."""
    slope = draft.num_layers * _unit_bytes(draft.mlp, draft.hidden_size, dtype)
    aligned = 3 * draft.num_layers
    return affine(lambda n: slot_bytes.draft_mlp_bytes(draft, dtype, n, leader), draft.mlp.units, slope, aligned)


def table(exact: Callable[[int], int], rows: int, width: int, dtype: DType, form: WeightFormat | None) -> Affine:
    """Bound the slots of a vocabulary table of rows of ``width`` values, in rows."""
    slots = 1 if form is None else 2 + form.zeros + bool(form.ordered)
    slope, once = stored_bytes(form, 1, width, DTYPE_BYTES[dtype]), order_bytes(form, width)
    return affine(exact, rows, slope, slots, once)


def total(buffers: Iterable[Buffer]) -> int:
    """Return the bytes of a table of buffers."""
    return sum(buffer.nbytes for buffer in buffers)


def with_rows(fixed: int, buffers: Callable[[int], tuple[Buffer, ...]], rows: int) -> Affine:
    """Bound ``fixed`` and buffers that grow with a table's rows; each is rounded up, and so is what a pool has."""
    none, every = buffers(0), buffers(rows)
    grown = sum(a != b for a, b in zip(none, every, strict=True))
    slope = ceil_div(total(every) - total(none), rows)
    return Affine(fixed=fixed + total(none) + 2 * ALIGN_BYTES * grown, slope=slope)


def device_memory(plan: Plan, device: str, weights_bytes: int, draft_weights_bytes: int) -> DeviceMemory:
    """Return the memory terms of one device."""
    terms = device_terms(plan, device)
    return DeviceMemory(
        device=device,
        weights_bytes=weights_bytes,
        draft_weights_bytes=draft_weights_bytes,
        kv_bytes=terms["kv"],
        draft_kv_bytes=terms["draft_kv"],
        buffers_bytes=terms["buffers"],
        comm_bytes=terms["comm"],
    )
