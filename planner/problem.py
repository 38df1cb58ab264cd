"""The waist between models and solvers: integers only, serialisable, no model words.

Layers are equal and are run by *groups* of devices. Inside a group a layer has two divisible axes: a coarse one, of
which every way to divide it is listed as a *column* with its time and bytes, and a fine one (*units*), whose division
is a number per device. Two tables of *rows* go to the devices of the first and of the last group. An optional *tail*
is one more block, on any group, divided in the same way, with up to two tables of rows of its own.

Devices are referred to by index in canonical order; per-member tuples are in the order of ``Group.devices``.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One way to divide the coarse axis of one layer over a group."""

    shares: tuple[int, ...]
    ns: int
    """Time of a layer without its units: the slowest share, fixed work, collectives."""
    bytes: tuple[int, ...]
    """Of each member, per layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Devices that may run a stage together; those of one host."""

    devices: tuple[int, ...]
    host: int
    columns: tuple[Column, ...]
    hop_ns: int
    """Reaching this group from another of its host."""
    network_hop_ns: int
    """Reaching it from another host."""
    stage_bytes: tuple[int, ...]
    """Of each member, once, when the group runs a stage."""
    first_ns: int
    """Rows of the first table: what being the first stage costs."""
    last_ns: int
    """What being the last stage costs beside the rows of the last table."""
    last_bytes: tuple[int, ...]
    """Of each member, once, when the stage is the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TailGroup:
    """Devices that may run the tail together."""

    group: int
    """Index in ``Problem.groups``."""
    columns: tuple[Column, ...]
    """Their bytes hold all that does not depend on units and rows."""
    receive_ns: int
    """Receiving from the leader of the last stage."""
    receive_inside_ns: int
    """The same when that leader is in this group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """The block after the last stage."""

    groups: tuple[TailGroup, ...]
    units: int
    unit_bytes: int
    unit_ps: tuple[int, ...]
    """Time of one unit on each device."""
    first_rows: int
    first_row_bytes: int
    shares_first: bool
    """Its first table is the base's: on the first stage's group it may be shared, elsewhere it is a copy."""
    last_rows: int
    last_row_bytes: int
    shares_last: bool
    """Its last table is the base's: likewise on the last stage's group."""
    row_ps: tuple[int, ...]
    """Time of one row of the last table on each device."""
    network_ns: int
    """More for receiving, when the last stage is in another host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Divide ``layers`` layers and two tables over devices such that one step takes least."""

    devices: tuple[str, ...]
    capacity_bytes: tuple[int, ...]
    hosts: tuple[tuple[int, ...], ...]
    """Devices of each host."""
    layers: int
    units: int
    """Of one layer."""
    unit_bytes: int
    unit_ps: tuple[int, ...]
    """Time of one unit on each device."""
    first_rows: int
    first_row_bytes: int
    last_rows: int
    last_row_bytes: int
    row_ps: tuple[int, ...]
    """Time of one row of the last table on each device."""
    quantum_ns: int
    """Time that is divided freely, of units and of rows, is counted in whole quanta, rounded up: finer than any
    prediction, and without it the proof is about the last nanosecond of a rounding."""
    groups: tuple[Group, ...]
    tail: Tail | None
    fixed_ns: int
    """Of any placement."""
    message_ns: tuple[int, ...]
    """Of each host: telling its other devices, when it has more than one in use."""
    network_message_ns: int
    """Telling one more host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageAnswer:
    """A stage: layers of each column, and units of each member over all its layers."""

    group: int
    layers: tuple[int, ...]
    units: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TailAnswer:
    """Rows are None where the base's tables are shared."""

    group: int
    """Index in ``Tail.groups``."""
    column: int
    units: tuple[int, ...]
    first_rows: tuple[int, ...] | None
    last_rows: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An assignment: stages in order; rows per member of the first and last stage."""

    stages: tuple[StageAnswer, ...]
    first_rows: tuple[int, ...]
    last_rows: tuple[int, ...]
    tail: TailAnswer | None


def most_ps(problem: Problem) -> int:
    """No answer takes longer, but for hops and messages of more than a thousand stages."""
    groups, tail = problem.groups, problem.tail
    fixed = [ns for g in groups for ns in (g.hop_ns, g.network_hop_ns, g.first_ns, g.last_ns)]
    columns = problem.layers * max(column.ns for g in groups for column in g.columns)
    times = problem.layers * problem.units * max(problem.unit_ps) + problem.last_rows * max(problem.row_ps)
    if tail is not None:
        fixed += [ns for g in tail.groups for ns in (g.receive_ns, g.receive_inside_ns)]
        fixed += [column.ns for g in tail.groups for column in g.columns]
        times += tail.units * max(tail.unit_ps) + max(tail.last_rows, problem.last_rows) * max(tail.row_ps)
    return 1000 * (columns + 1000 * max(fixed)) + times


def most_bytes(problem: Problem) -> int:
    """No answer puts more on one device."""
    groups, tail = problem.groups, problem.tail
    columns = problem.layers * max(nbytes for g in groups for column in g.columns for nbytes in column.bytes)
    rows = problem.first_rows * problem.first_row_bytes + problem.last_rows * problem.last_row_bytes
    stage = max(max(g.stage_bytes) + max(g.last_bytes) for g in groups)
    most = columns + problem.layers * problem.units * problem.unit_bytes + rows + stage
    if tail is not None:
        most += max(nbytes for g in tail.groups for column in g.columns for nbytes in column.bytes)
        most += tail.units * tail.unit_bytes
        most += tail.first_rows * tail.first_row_bytes + tail.last_rows * tail.last_row_bytes
    return most
