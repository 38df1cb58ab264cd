"""Arguments of transformers' ``from_pretrained`` and accelerate's ``dispatch_model``: whole modules on devices."""

import json
from typing import Any

from planner.exports import placement
from planner.problem import device_map
from plans.schema import Plan

PROGRAM = "accelerate"


def export(plan: Plan) -> str:
    """Return one JSON object: ``device_map``, ``max_memory`` in bytes, ``dtype``, and what they do not express.

    Raise InputError for modules that are split, and for several hosts.
    """
    placement.check_apart(PROGRAM, plan)
    modules = {name: where for name, where in device_map.write(plan).items() if name != device_map.DRAFT}
    names = device_map.names(plan.inventory)
    not_expressed = [
        f"a KV cache of {plan.options.batch} x {plan.options.context} positions in {plan.options.kv_dtype}, which "
        "transformers allocates as it grows"
    ]
    if plan.options.weights is not None:
        not_expressed.append(f"weights rounded to {plan.options.weights}: give a checkpoint that is quantized so")
    if plan.draft is not None:
        not_expressed.append("the EAGLE head, which transformers does not decode with")
    content: dict[str, Any] = {
        "device_map": modules,
        "max_memory": {names[device.id]: device.capacity_bytes for device in plan.inventory.devices},
        "dtype": plan.options.dtype,
        "not_expressed": not_expressed,
    }
    return json.dumps(content, indent=2) + "\n"
