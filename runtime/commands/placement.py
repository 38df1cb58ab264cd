"""Placement of a plan as text: the layers, KV heads and tensors of each device. Needs no torch."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from plans.artifact import is_filler
from plans.format import format_bytes
from plans.graphs import steps_line
from plans.schema import Model, Plan, Stage
from plans.step import layer_class
from runtime.image.verify import opened, read_record, read_slots


def plan_lines(plan: Plan, devices: list[str]) -> Iterator[str]:
    """Yield a line for each device: its parts of the model, and its planned memory; of GPUs also how steps start."""
    memory = {entry.device: entry for entry in plan.memory}
    for device in plan.devices:
        if device.id in devices:
            planned, kv = memory[device.id].planned_bytes, memory[device.id].kv_bytes + memory[device.id].draft_kv_bytes
            yield (
                f"{device.id} ({device.type} of {device.host}): {', '.join(_parts(plan, device.id))}; planned "
                f"{format_bytes(planned)}, of which KV cache {format_bytes(kv)}"
            )
    steps = steps_line(plan)
    if steps is not None:
        yield f"steps: {steps}"


def _parts(plan: Plan, device: str) -> Iterator[str]:
    if device in plan.embed.devices:
        yield f"{plan.embed.rows[plan.embed.devices.index(device)]} rows of the embedding"
    for stage in plan.stages:
        if device in stage.devices:
            yield from _layers(plan.model, stage, stage.devices.index(device))
    if device in plan.head.devices:
        yield f"{plan.head.rows[plan.head.devices.index(device)]} rows of the lm_head"
    drafter = plan.draft_placement
    if drafter is not None and device in drafter.devices:
        yield f"drafter with {drafter.kv_heads[drafter.devices.index(device)]} KV heads"


def _layers(model: Model, stage: Stage, member: int) -> Iterator[str]:
    """Yield the layers of a member of a stage, run by run of equal shares and of MLPs with equal units."""
    begin = stage.first_layer
    for run in stage.runs:
        layers = range(begin, begin + run.num_layers)
        for unit, group in groupby(layers, lambda layer: layer_class(model, layer).mlp.unit):
            first, *others = group
            name = f"layers {first}-{others[-1]}" if others else f"layer {first}"
            yield f"{name} with {run.kv_heads[member]} KV heads and {run.mlp_units[member] * unit} MLP channels"
        begin = layers.stop


def tensor_lines(plan: Plan, directory: Path, devices: list[str]) -> Iterator[str]:
    """Yield a line for each tensor in the images of devices; raise ImageError where an image is not the plan's."""
    record = read_record(plan, directory, devices)
    for device in devices:
        with opened(directory, device, record) as (descriptor, expected):
            _, slots = read_slots(plan, descriptor, directory, device, expected)
        for slot in slots:
            if not is_filler(slot.name):
                shape = " x ".join(map(str, slot.shape))
                yield f"{device}: {slot.name:36} {slot.dtype:5} {shape:16} {slot.nbytes:12} bytes"
