"""A plan in the words and the order of the reports: parts of a step, memory of each device, lines of text.

Lines of text have sizes in MiB or GiB and times in us or ms, with one decimal; the exact integers are in the plan. An
MLP share is in channels here (units x channels per unit), as in ``plans.diff``.
"""

import dataclasses
from dataclasses import dataclass

from planner.report.models import draft_line, model_line
from planner.report.proof import family_line, simplicity_line, verdict_line
from planner.report.speculation import speculation_lines
from plans.codec import digest
from plans.graphs import steps_line
from plans.kv import KvDivision, kv_division
from plans.schema import (
    Device,
    DeviceMemory,
    Plan,
    Speculation,
    Stage,
    VocabSplit,
)
from plans.step import layer_class
from plans.usable import by_reason, unusable_devices

TERM_TITLES = {
    "weights": "weights",
    "draft_weights": "draft weights",
    "kv": "KV",
    "draft_kv": "draft KV",
    "buffers": "buffers",
    "comm": "comm",
    "reserve": "reserve",
    "free": "free",
}


def join_shares(shares: tuple[int, ...]) -> str:
    """Return shares as ``3 + 1``, more than two equal ones as ``8 x 2``."""
    if len(shares) > 2 and len(set(shares)) == 1:
        return f"{len(shares)} x {shares[0]}"
    return " + ".join(map(str, shares))


def describe_heads(shares: tuple[int, ...], divided: KvDivision) -> str:
    """Return the KV heads of each device as ``3 + 1``, with subgroups as ``4 + 4 over 2 by context``.

    There the first device has 4 KV heads and two devices share another 4, each with a part of the context. ``by query
    heads``: each of the two has all 4 KV heads, and a part of their query heads.
    """
    if max(divided.subgroups) == 1:
        return join_shares(shares)
    sizes = zip(divided.starts, divided.subgroups, strict=True)
    texts = [str(shares[start]) if size == 1 else f"{shares[start]} over {size}" for start, size in sizes]
    folded = f"{len(texts)} x ({texts[0]})" if len(texts) > 2 and len(set(texts)) == 1 else " + ".join(texts)
    return f"{folded} by {'query heads' if divided.axis == 'heads' else divided.axis}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One line of the placement: a run of layers of a stage, or embed, lm_head or draft, where ``layers`` is empty."""

    name: str
    """``stage 0``, ``embed``, ``lm_head`` or ``draft``; empty for all but the first run of a stage."""
    layers: str
    devices: tuple[str, ...]
    attention: tuple[int, ...]
    """KV heads per device, in the order of ``devices``; empty where the part has none."""
    kv_heads: str
    """``attention`` as text, with the subgroups of devices that share KV heads."""
    mlp: tuple[int, ...]
    """MLP channels per device, in the order of ``devices``."""
    rows: tuple[int, ...]
    """Vocabulary rows per device, in the order of ``devices``."""
    transport: str
    """Transport of the all-reduces in the group; empty for all but the first line of a stage."""
    hop: str
    """Transport over which the part receives its input; empty where nothing is sent."""
    predicted_ns: int | None
    """Predicted ns per step; None on all but the first line of a stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceLine:
    """The memory of one device: ``terms`` are bytes by term and, with reserve and free, add up to its memory."""

    id: str
    host: str
    type: str
    role: str
    memory_bytes: int
    """Memory of the device, with the reserve."""
    terms: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One part of the predicted step, for the time bar."""

    name: str
    duration_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The content of all forms of a report: text, Markdown and HTML."""

    title: str
    model: str
    draft: str
    inputs: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    blocks: tuple[tuple[Part, ...], ...]
    """``parts`` with the lines of one stage in one tuple."""
    devices: tuple[DeviceLine, ...]
    several_hosts: bool
    """True where the devices in use are on more than one host."""
    unused: tuple[Device, ...]
    """Devices that could run the model and have no part."""
    unusable: tuple[str, ...]
    """Devices that cannot run it, by reason, as lines."""
    phases: tuple[Phase, ...]
    objective_ns: int
    least_ns: int
    bound_ns: int
    status: str
    verdict: str
    simplicity: str
    """Bounds of the simplest placements in words; empty where the plan records none."""
    family: str
    """Placements that the proof is about."""
    min_free_bytes: int
    speculation: tuple[str, ...]
    """Expected gain of drafting, in words; empty where nothing is known of it."""
    acceptance: str
    """Source of the acceptance that is expected; empty where none is."""
    digest: str


def view(plan: Plan, speculation: Speculation | None = None) -> View:
    """Return the content of the report of a plan; ``speculation``: what drafting is expected to gain."""
    parts = _parts(plan)
    used = {entry.device for entry in plan.memory}
    unusable = unusable_devices(plan.inventory)
    return View(
        title=f"{plan.model.family}, {plan.model.num_layers} layers, on {len(used)} "
        + ("device" if len(used) == 1 else "devices"),
        model=model_line(plan),
        draft=draft_line(plan),
        inputs=_input_lines(plan),
        options=_option_lines(plan),
        parts=parts,
        blocks=_blocks(parts),
        devices=tuple(device_line(plan, entry) for entry in plan.memory),
        several_hosts=len({plan.device(name).host for name in used}) > 1,
        unused=tuple(device for device in plan.inventory.devices if device.id not in {*used, *unusable}),
        unusable=tuple(by_reason(unusable)),
        phases=tuple(Phase(name=name, duration_ns=duration_ns) for name, duration_ns in part_times(plan)),
        objective_ns=plan.proof.objective_ns,
        least_ns=plan.proof.least_ns,
        bound_ns=plan.proof.bound_ns,
        status=plan.proof.status,
        verdict=verdict_line(plan),
        simplicity=simplicity_line(plan),
        family=family_line(plan),
        min_free_bytes=plan.proof.min_free_bytes,
        speculation=speculation_lines(plan, speculation, same_placement=plan.speculation is None),
        acceptance=speculation.profile_source if speculation else "",
        digest=digest(plan),
    )


def _input_lines(plan: Plan) -> tuple[tuple[str, str], ...]:
    values = ((field.name, getattr(plan.inputs, field.name)) for field in dataclasses.fields(plan.inputs))
    return tuple((name, value) for name, value in values if value is not None)


def _option_lines(plan: Plan) -> tuple[tuple[str, str], ...]:
    options, tree = plan.options, plan.options.tree
    lines = [
        ("context", f"{options.context} positions"),
        ("batch", str(options.batch)),
        ("dtype", options.dtype),
        ("KV dtype", options.kv_dtype),
        ("prefill chunk", f"{options.prefill_chunk} tokens"),
        ("stall timeout", f"{options.stall_timeout_s} s"),
        ("strategy", options.strategy),
        *([("steps", steps)] if (steps := steps_line(plan)) is not None else []),
    ]
    if options.kv_axis is not None:
        lines.append(("KV divided by", options.kv_axis))
    if options.custom is not None:
        lines.append(("device map", f"{len(options.custom)} modules"))
    if options.simplify_ppm:
        lines.append(("simplify", f"{options.simplify_ppm / 10**4:g} %"))
    if options.max_devices is not None:
        lines.append(("max devices", str(options.max_devices)))
    if options.gap_ppm:
        lines.append(("accepted gap", f"{options.gap_ppm / 10**4:g} %"))
    if tree is not None:
        static = "static, " if tree.kind == "static" else ""
        lines.append(("tree", f"{static}total_token {tree.total_token}, depth {tree.depth}, top_k {tree.top_k}"))
    return tuple(lines)


def _parts(plan: Plan) -> tuple[Part, ...]:
    empty = Part(
        name="",
        layers="",
        devices=(),
        attention=(),
        kv_heads="",
        mlp=(),
        rows=(),
        transport="",
        hop="",
        predicted_ns=None,
    )
    drafter = plan.draft_placement
    parts = [_table_part("embed", plan.embed, empty)]
    for number, stage in enumerate(plan.stages):
        parts += _stage_parts(plan, number, stage, empty)
    parts.append(_table_part("lm_head", plan.head, empty))
    if drafter is not None and plan.draft is not None:
        parts.append(
            Part(
                name="draft",
                layers="",
                devices=drafter.devices,
                attention=drafter.kv_heads,
                kv_heads=describe_heads(drafter.kv_heads, kv_division(drafter)),
                mlp=tuple(units * plan.draft.mlp.unit for units in drafter.mlp_units),
                rows=drafter.head_rows or (),
                transport=drafter.transport,
                hop=_hop(drafter.feature_transport),
                predicted_ns=drafter.predicted_ns,
            )
        )
    return tuple(parts)


def _table_part(name: str, split: VocabSplit, empty: Part) -> Part:
    return dataclasses.replace(
        empty,
        name=name,
        devices=split.devices,
        rows=split.rows,
        transport=split.transport,
        hop=_hop(split.hop_transport),
        predicted_ns=split.predicted_ns,
    )


def _hop(transport: str) -> str:
    return "" if transport == "local" else transport


def _stage_parts(plan: Plan, number: int, stage: Stage, empty: Part) -> list[Part]:
    """Return one line per run of layers of a stage."""
    parts, layer = [], stage.first_layer
    for position, run in enumerate(stage.runs):
        unit = layer_class(plan.model, layer).mlp.unit
        parts.append(
            dataclasses.replace(
                empty,
                name=f"stage {number}" if position == 0 else "",
                layers=layer_range(layer, run.num_layers),
                devices=stage.devices,
                attention=run.kv_heads,
                kv_heads=describe_heads(run.kv_heads, kv_division(stage)),
                mlp=tuple(units * unit for units in run.mlp_units),
                transport=stage.transport if position == 0 else "",
                hop=_hop(stage.hop_transport) if position == 0 else "",
                predicted_ns=stage.predicted_ns if position == 0 else None,
            )
        )
        layer += run.num_layers
    return parts


def _blocks(parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], ...]:
    blocks: list[tuple[Part, ...]] = []
    for part in parts:
        if part.name:
            blocks.append((part,))
        else:
            blocks[-1] = (*blocks[-1], part)
    return tuple(blocks)


def layer_range(first: int, count: int) -> str:
    """Return ``3-7``, or ``3`` for one layer."""
    return f"{first}-{first + count - 1}" if count > 1 else str(first)


def device_line(plan: Plan, entry: DeviceMemory) -> DeviceLine:
    """Return the memory of a device with its roles; a table beside the devices of its stage is no role of its own."""
    device = plan.device(entry.device)
    roles = [f"stage {i}" for i, stage in enumerate(plan.stages) if device.id in stage.devices]
    tables = (("embed", plan.embed.devices, plan.stages[0]), ("lm_head", plan.head.devices, plan.stages[-1]))
    roles += [name for name, devices, beside in tables if device.id in devices and devices != beside.devices]
    if plan.draft_placement is not None and device.id in plan.draft_placement.devices:
        roles.append("draft")
    free = device.capacity_bytes - entry.planned_bytes
    terms = {**entry.terms, "reserve": device.reserve_bytes, "free": free}
    return DeviceLine(
        id=device.id,
        host=device.host,
        type=device.type,
        role=", ".join(roles),
        memory_bytes=device.memory_bytes,
        terms=terms,
    )


def part_times(plan: Plan) -> tuple[tuple[str, int], ...]:
    """Return the parts of a step with their predicted ns, in order; ``messages`` is the rest of the step."""
    parts = [("embed", plan.embed.predicted_ns)]
    parts += [(f"stage {i}", stage.predicted_ns) for i, stage in enumerate(plan.stages)]
    parts.append(("lm_head", plan.head.predicted_ns))
    if plan.draft_placement is not None:
        parts.append(("draft", plan.draft_placement.predicted_ns))
    rest = plan.proof.objective_ns - sum(duration_ns for _, duration_ns in parts)
    return (*parts, ("messages", rest)) if rest > 0 else tuple(parts)
