"""Compares two plans: a typed list of differences, the layers that move, and the weights new to each device.

Fields are compared in the order of the schema. Stages, runs and layer classes are aligned by position; hosts, devices
and memory lines by name; a list of names or shares is one value. ``diff`` is empty exactly for equal plans.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from plans.codec import encode
from plans.format import format_bytes, format_ns
from plans.schema import KvAxis, Plan
from plans.step import layer_class
from plans.weights import held, held_before

Kind = Literal[
    "schema",
    "inputs",
    "options",
    "inventory",
    "model",
    "layers",
    "shares",
    "draft",
    "transport",
    "prediction",
    "memory",
    "proof",
    "fleet",
    "request",
    "templates",
    "replicas",
    "unused",
]

_NAMES = {
    "inventory.hosts": ("name",),
    "inventory.devices": ("id",),
    "memory": ("device",),
    "templates": ("name",),
}
_SHARES = {"kv_axis", "kv_subgroups", "kv_heads", "mlp_units", "rows", "embed_rows", "head_rows"}
_SECTIONS: dict[str, Kind] = {"stages": "layers", "embed": "shares", "head": "shares", "draft_placement": "draft"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One datum that differs; ``before`` and ``after`` are as in the YAML, None where a plan has no such datum."""

    kind: Kind
    path: str
    """Dotted, with positions or names in brackets: ``memory[gpu0].kv_bytes``."""
    before: Any
    after: Any

    @property
    def before_text(self) -> str:
        return _show(self.before)

    @property
    def after_text(self) -> str:
        return _show(self.after)

    def __str__(self) -> str:
        return f"{self.path}: {self.before_text} -> {self.after_text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """The devices of a layer with their shares, in the order of ``devices``."""

    devices: tuple[str, ...]
    kv_axis: KvAxis
    kv_subgroups: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlp_units: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Consecutive layers that go from one group, or split, to another; None: the plan has no such layer."""

    first_layer: int
    num_layers: int
    before: Holding | None
    after: Holding | None


def diff(a: Plan, b: Plan) -> tuple[Difference, ...]:
    """Return all fields in which two plans differ, in the order of the schema."""
    return tuple(compare("", encode(a), encode(b)))


def moves(a: Plan, b: Plan) -> tuple[Move, ...]:
    """Return the layers whose devices or shares differ, in maximal runs."""
    before, after = _holdings(a), _holdings(b)
    runs: list[Move] = []
    for layer in range(max(len(before), len(after))):
        old = before[layer] if layer < len(before) else None
        new = after[layer] if layer < len(after) else None
        if old == new:
            continue
        last = runs[-1] if runs else None
        if last and (last.before, last.after, last.first_layer + last.num_layers) == (old, new, layer):
            runs[-1] = Move(first_layer=last.first_layer, num_layers=last.num_layers + 1, before=old, after=new)
        else:
            runs.append(Move(first_layer=layer, num_layers=1, before=old, after=new))
    return tuple(runs)


def moved_bytes(a: Plan, b: Plan) -> dict[str, int]:
    """Return the bytes of weights that are new to each device: in ``b``, and not on the device of that id in ``a``.

    Of a tensor whose rows or columns on a device change only the new ones count; fillers of images do not. Where the
    plans are not of the same weights, all bytes of a device count. Devices without new bytes are left out. Both plans
    must be sound (plans.check).
    """
    before = held_before(a, b.model, b.draft, b.options.dtype, b.inputs)
    moved = {device.id: 0 for device in b.inventory.devices}
    for item in held(b):
        moved[item.device] += item.more(before.get((item.device, item.tensor)))
    return {device: nbytes for device, nbytes in moved.items() if nbytes}


def summary(a: Plan, b: Plan) -> tuple[str, ...]:
    """Return lines for people: headline, moved layers, then every difference; none for equal plans."""
    if a == b:
        return ()
    return (headline(a, b), *checkpoint_lines(a, b), *move_lines(a, b), *map(str, diff(a, b)))


def headline(a: Plan, b: Plan) -> str:
    """Return the two step times and the bytes of weights that move, in one line."""
    before, after = a.proof.objective_ns, b.proof.objective_ns
    if before == after:
        times = f"step {format_ns(before)}, unchanged"
    else:
        times = f"step {format_ns(before)} -> {format_ns(after)} ({(after - before) / max(1, before):+.1%})"
    return f"{times}; {moved(a, b)}"


def checkpoint_lines(a: Plan, b: Plan) -> tuple[str, ...]:
    """Return a line where the plans are of checkpoints that differ in the names or shapes of tensors alone."""
    if a.model != b.model or a.inputs.base_tensors_sha256 == b.inputs.base_tensors_sha256:
        return ()
    return (
        "another checkpoint of the same sizes and formats: its tensors have other names or shapes, as those of another "
        "quantizer have",
    )


def moved(a: Plan, b: Plan) -> str:
    """Return the result of :func:`moved_bytes` in words."""
    nbytes = moved_bytes(a, b)
    if not nbytes:
        return "moves no weights"
    devices = ", ".join(f"{device} {format_bytes(count)}" for device, count in nbytes.items())
    return f"moves {format_bytes(sum(nbytes.values()))} of weights: {devices}"


def move_lines(a: Plan, b: Plan) -> tuple[str, ...]:
    """Return a line per move, with MLP shares in channels; one per unit size where layers of several sizes move."""
    lines = []
    for move in moves(a, b):
        layers = range(move.first_layer, move.first_layer + move.num_layers)
        for (old_unit, new_unit), group in groupby(
            layers, key=lambda layer: (_mlp_unit(a, layer), _mlp_unit(b, layer))
        ):
            run = list(group)
            name = f"layers {run[0]}-{run[-1]}" if len(run) > 1 else f"layer {run[0]}"
            lines.append(f"{name}: {_show_holding(move.before, old_unit)} -> {_show_holding(move.after, new_unit)}")
    return tuple(lines)


def _mlp_unit(plan: Plan, layer: int) -> int:
    """Return the channels of an MLP unit of a layer; 1 where the plan has no such layer."""
    return layer_class(plan.model, layer).mlp.unit if layer < plan.model.num_layers else 1


def compare(path: str, a: Any, b: Any) -> Iterator[Difference]:
    """Yield the differences of two pieces of plain data, in the order of the fields; ``path``: of both."""
    if isinstance(a, dict) and isinstance(b, dict):
        # The order of the schema, in which both are; what only one has goes where that one has it.
        for name in dict.fromkeys((*a, *b)):
            yield from compare(f"{path}.{name}" if path else name, a.get(name), b.get(name))
    elif isinstance(a, list) and isinstance(b, list) and any(isinstance(item, dict) for item in (*a, *b)):
        yield from _compare_lists(path, a, b)
    elif a != b or type(a) is not type(b):
        yield Difference(kind=_kind(path), path=path, before=a, after=b)


def _compare_lists(path: str, a: list[Any], b: list[Any]) -> Iterator[Difference]:
    names = ("a", "b") if path.endswith(".pairs") else _NAMES.get(path)
    before, after = _by_name(a, names), _by_name(b, names)
    if len(before) < len(a) or len(after) < len(b):  # not a sound plan: names do not tell the items apart
        names, before, after = None, _by_name(a, None), _by_name(b, None)
    if names and list(before) != list(after) and sorted(before) == sorted(after):
        yield Difference(kind=_kind(path), path=path, before=list(before), after=list(after))
    for name in dict.fromkeys((*before, *after)):
        yield from compare(f"{path}[{name}]", before.get(name), after.get(name))


def _by_name(items: list[Any], names: tuple[str, ...] | None) -> dict[str, Any]:
    if names is None:
        return {str(position): item for position, item in enumerate(items)}
    return {"+".join(item[name] for name in names): item for item in items}


def _kind(path: str) -> Kind:
    section, field = path.partition(".")[0].partition("[")[0], path.rpartition(".")[2]
    if field.endswith("transport") and section != "inventory":
        return "transport"
    if field == "predicted_ns":
        return "prediction"
    if field in _SHARES and section not in ("draft", "options"):
        return "shares"
    return _SECTIONS.get(section, section)  # type: ignore[arg-type] # the other sections are kinds


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_show(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show_holding(holding: Holding | None, mlp_unit: int) -> str:
    if holding is None:
        return "nothing"
    if len(holding.devices) == 1:
        return holding.devices[0]
    shares = zip(holding.devices, holding.kv_heads, holding.mlp_units, strict=True)
    members = (f"{device} ({heads} KV heads, {units * mlp_unit} MLP channels)" for device, heads, units in shares)
    subgroups = _show(list(holding.kv_subgroups))
    axis = "" if max(holding.kv_subgroups) == 1 else f", KV heads divided by {holding.kv_axis} in {subgroups}"
    return " + ".join(members) + axis


def _holdings(plan: Plan) -> list[Holding]:
    """Return the holding of each layer, in order."""
    return [
        Holding(
            devices=stage.devices,
            kv_axis=stage.kv_axis,
            kv_subgroups=stage.kv_subgroups,
            kv_heads=run.kv_heads,
            mlp_units=run.mlp_units,
        )
        for stage in plan.stages
        for run in stage.runs
        for _ in range(run.num_layers)
    ]
