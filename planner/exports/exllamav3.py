"""Arguments of exllamav3's loader: layers in order over devices, or one group with shares by memory (``-tp``).

exllamav3 measures what it loads: ``-gs`` limits the GiB of each device, and a device is filled before the next. The
plan's own bytes as limits lead to its layers, but for what the two programs need beside weights and KV cache.
"""

import math

from planner.exports import placement
from plans.schema import Plan

PROGRAM = "exllamav3"
GIB = 1 << 30


def export(plan: Plan) -> str:
    """Return the arguments; raise InputError for CPUs, several groups, and KV heads that devices share."""
    devices = placement.stage_devices(plan)
    placement.check_gpus(PROGRAM, devices)
    placement.check_apart(PROGRAM, plan)
    whole = all(len(stage.devices) == 1 for stage in plan.stages)
    if not whole and len(plan.stages) > 1:
        raise placement.refused(PROGRAM, "groups of devices follow one another, and exllamav3 divides layers over one")
    for stage in plan.stages:
        placement.check_kv(PROGRAM, stage)
    if whole and plan.head.devices != plan.stages[-1].devices:
        head, last = ", ".join(plan.head.devices), ", ".join(plan.stages[-1].devices)
        raise placement.refused(PROGRAM, f"the lm_head is on {head}, the last layers on {last}")
    planned = {line.device: line.planned_bytes for line in plan.memory}
    limits = ",".join(f"{math.ceil(100 * planned[device.id] / GIB) / 100:.2f}" for device in devices)
    options = plan.options
    lines = [
        f"{placement.visible(devices)} python examples/chat.py -m MODEL",
        f"-gs {limits}" + ("" if whole else " -tp -tpb nccl"),
        f"-cs {options.context * options.batch}" + (" -cq 8" if options.kv_dtype in ("float8_e4m3fn", "int8") else ""),
    ]
    return "\n".join([placement.heading("exllamav3", plan), *_comments(plan, whole), placement.command(*lines)]) + "\n"


def _comments(plan: Plan, whole: bool) -> list[str]:
    comments = list(placement.table_comments(plan, "in host memory", "" if whole else "divided by memory"))
    comments.append("# -gs are the plan's GiB on each device; raise one where the loader runs out of it.")
    if not whole:
        comments.append("# With -tp exllamav3 divides each layer by the memory that is left: near the plan's shares.")
    comments.append("# exllamav3 computes in float16, and its KV cache is float16 or quantized (-cq).")
    comments += placement.rounding_comments(PROGRAM, plan)
    if plan.draft is not None:
        comments.append("# The EAGLE head is left out: -dm takes a whole small model, -mtp the model's own head.")
    return comments
