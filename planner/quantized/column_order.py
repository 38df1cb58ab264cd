"""The order of columns whose groups are not neighbours in a checkpoint: GPTQ's ``desc_act``, ``actorder`` group.

A tensor of the layer, ``order``, has the group of each column. Images have columns sorted by groups, those of a group
in the order of the checkpoint: the same codes, scales and zero points, each product of which is added elsewhere.
"""

from dataclasses import dataclass

import numpy as np

from planner.errors import ValuesError
from planner.quantized.codes import Array, Read
from planner.quantized.layouts import PackedRows, PlainRows
from planner.quantized.records import Expected, Stored
from plans.quantized import BLOCK


@dataclass(frozen=True, kw_only=True, slots=True)
class Sorting:
    """Columns of an image; behind those of a group that a device has in part there are some that are none."""

    columns: Array
    """By column of the image, that of the checkpoint; any where it is none."""
    inputs: Array
    """By column of the image, int32: that of the device's input; -1 where it is none."""
    groups: Array
    """By group of the image, that of the checkpoint."""


def require_neighbours(stored: Stored, tensor: Expected, read: Read) -> None:
    """Raise ValuesError unless the columns' groups, which ``tensor`` has, follow one another."""
    reason = ": config.json does not say that columns are in another order (desc_act, without static_groups)"
    _require_equal(tensor.name, _groups(stored, tensor, read), _neighbours(stored), reason)


def sorted_columns(stored: Stored, read: Read) -> Sorting:
    """Return the columns of an image in their order; raise ValuesError for groups that are not whole."""
    name, group = stored.tensors["order"].name, stored.form.group
    assert group is not None, "columns of one group have no order"
    found = _groups(stored, stored.tensors["order"], read)
    _require_whole(name, found, stored.groups, group)
    if stored.alike is not None and stored.alike.name != name:
        reason = (
            f", as {stored.alike.name} has: layers that are multiplied with one input have its columns in one order"
        )
        _require_equal(name, found, _groups(stored, stored.alike, read), reason)
    columns = np.argsort(found, kind="stable").astype(np.int32)
    if stored.inputs == stored.columns:
        return Sorting(columns=columns, inputs=columns, groups=np.arange(stored.groups))
    assert stored.share is not None
    return _of_share(stored, np.concatenate([np.arange(*span) for span in stored.share]), columns, found)


def _groups(stored: Stored, tensor: Expected, read: Read) -> Array:
    """Return the group of each column; compressed-tensors has -1 for all where they follow one another."""
    found = read(tensor.name, (0, stored.columns)).reshape(-1)
    if isinstance(stored.layout, PackedRows | PlainRows) and (found == -1).all():
        return _neighbours(stored)
    return found


def _neighbours(stored: Stored) -> Array:
    """Return the group of each column where the columns of each group are neighbours."""
    return np.arange(stored.columns) // (stored.form.group or stored.columns)


def _require_whole(name: str, found: Array, count: int, group: int) -> None:
    wrong = np.flatnonzero((found < 0) | (found >= count))
    if len(wrong):
        column = int(wrong[0])
        raise ValuesError(f"{name}[{column}]: found group {found[column]}, expected 0 to {count - 1}")
    sizes = np.bincount(found, minlength=count)
    wrong = np.flatnonzero(sizes != group)
    if len(wrong):
        number = int(wrong[0])
        raise ValuesError(f"{name}: group {number}: found {sizes[number]} columns, expected {group}")


def _require_equal(name: str, found: Array, expected: Array, reason: str) -> None:
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        column = int(wrong[0])
        raise ValuesError(f"{name}[{column}]: found group {found[column]}, expected {expected[column]}{reason}")


def _of_share(stored: Stored, share: Array, columns: Array, found: Array) -> Sorting:
    """Return the columns of a device, ``share``, each group of which is filled up to whole blocks."""
    places = np.full(stored.columns, -1, np.int32)
    places[share] = np.arange(len(share), dtype=np.int32)
    kept = columns[places[columns] >= 0]
    inputs, own = np.full(stored.held_columns, -1, np.int32), np.zeros(stored.held_columns, np.int32)
    groups, first = np.zeros(stored.held_columns // BLOCK, np.int64), 0
    for number, size in enumerate(np.bincount(found[kept], minlength=stored.groups)):
        of_group, kept = kept[:size], kept[size:]
        last = first + -(-int(size) // BLOCK) * BLOCK
        inputs[first : first + size], own[first : first + size] = places[of_group], of_group
        groups[first // BLOCK : last // BLOCK] = number
        first = last
    assert first <= stored.held_columns, "more columns than an image has room for"
    return Sorting(columns=own, inputs=inputs, groups=groups)
