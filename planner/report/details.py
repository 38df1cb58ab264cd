"""The lines of ``-v`` and ``-vv``: the devices of an inventory, what each device of a plan holds, two plans compared.

Pure functions from plans to lines of text.
"""

from collections.abc import Iterator

from planner.report.view import TERM_TITLES, layer_range, part_times
from plans.format import format_bandwidth, format_bytes, format_flops, format_ns
from plans.schema import MEMORY_TERMS, Device, Inventory, Plan
from plans.step import layer_class
from plans.weights import held


def inventory_lines(inventory: Inventory) -> Iterator[str]:
    """Yield a heading and one line per device of an inventory."""
    hosts = len(inventory.hosts)
    yield f"Devices found: {len(inventory.devices)} on {hosts} host{'s' if hosts > 1 else ''}"
    for device in inventory.devices:
        yield f"  {device.id} on {device.host}: {_device_figures(device)}"


def _device_figures(device: Device) -> str:
    return (
        f"{device.type}, {format_bytes(device.memory_bytes)} of which {format_bytes(device.reserve_bytes)} reserved, "
        f"{format_bandwidth(device.bandwidth_bytes_per_s)}, {format_flops(device.flops_per_s)}, "
        f"{format_ns(device.overhead_ns)} of small kernels per layer"
    )


def device_details(plan: Plan) -> Iterator[str]:
    """Yield a heading and, per device in use, its parts of the step, tensors, KV cache and free memory."""
    tensors = dict.fromkeys((line.device for line in plan.memory), 0)
    for item in held(plan):
        tensors[item.device] += 1
    yield "Contents of each device"
    for line in plan.memory:
        device = plan.device(line.device)
        free = device.capacity_bytes - line.planned_bytes
        yield f"  {line.device}: {'; '.join(_parts_on(plan, line.device))}"
        yield (
            f"    {tensors[line.device]} tensors, {format_bytes(line.weights_bytes + line.draft_weights_bytes)}; "
            f"KV cache {format_bytes(line.kv_bytes + line.draft_kv_bytes)} for {plan.options.batch} x "
            f"{plan.options.context} positions in {plan.options.kv_dtype}; {format_bytes(free)} free"
        )


def _parts_on(plan: Plan, name: str) -> Iterator[str]:
    """Yield the parts of the step that a device computes, with its shares."""
    if name in plan.embed.devices:
        yield f"embed, {plan.embed.rows[plan.embed.devices.index(name)]} rows"
    for number, stage in enumerate(plan.stages):
        if name not in stage.devices:
            continue
        member, layer, runs = stage.devices.index(name), stage.first_layer, []
        for run in stage.runs:
            channels = run.mlp_units[member] * layer_class(plan.model, layer).mlp.unit
            shares = f"{run.kv_heads[member]} KV heads, {channels} MLP channels"
            runs.append(f"layers {layer_range(layer, run.num_layers)} with {shares}")
            layer += run.num_layers
        yield f"stage {number}: {', '.join(runs)}"
    if name in plan.head.devices:
        yield f"lm_head, {plan.head.rows[plan.head.devices.index(name)]} rows"
    if plan.draft_placement is not None and name in plan.draft_placement.devices:
        yield "draft"


def compared_memory(a: Plan, b: Plan) -> Iterator[str]:
    """Yield the memory terms of each device that differ between two plans, before and after."""
    before, after = ({line.device: line for line in plan.memory} for plan in (a, b))
    yield "Memory of each device, before -> after"
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        terms = []
        for term in MEMORY_TERMS:
            old_bytes, new_bytes = (getattr(line, f"{term}_bytes") if line else 0 for line in (old, new))
            if old_bytes != new_bytes:
                change = f"{'+' if new_bytes > old_bytes else '-'}{format_bytes(abs(new_bytes - old_bytes))}"
                terms.append(f"{TERM_TITLES[term]} {format_bytes(old_bytes)} -> {format_bytes(new_bytes)} ({change})")
        yield f"  {name}: {', '.join(terms) or 'unchanged'}"


def compared_times(a: Plan, b: Plan) -> Iterator[str]:
    """Yield the predicted time of each part of the step, before and after."""
    before, after = dict(part_times(a)), dict(part_times(b))
    yield "Predicted time of each part, before -> after"
    for name in dict.fromkeys((*before, *after)):
        times = [format_ns(parts[name]) if name in parts else "none" for parts in (before, after)]
        yield f"  {name}: {times[0]} -> {times[1]}"
