"""Which devices can run a model: the planner places nothing on the others, and a plan is refused that does.

What keeps a device from it is that of fused attention, the only one that a GPU runs.
"""

from collections.abc import Collection, Iterator, Mapping

from plans.dtypes import DTYPE_BYTES
from plans.schema import Device, Draft, Inventory, Model, Options, Plan
from plans.step import ATTENTION_ALIGN_BYTES
from plans.violations import MOST_SHOWN, Violation, bad

BFLOAT16_CAPABILITY = 80
"""Least compute capability on which fused attention takes bfloat16."""


def device_limits(
    path: str, device: Device, options: Options, model: Model, draft: Draft | None
) -> Iterator[Violation]:
    """Yield what keeps a device from running a model; ``path``: of the device."""
    if device.kind != "cuda":
        return
    capability = device.compute_capability
    if options.dtype == "bfloat16" and capability is not None and capability < BFLOAT16_CAPABILITY:
        expected = f"at least {BFLOAT16_CAPABILITY} for attention in bfloat16: plan with --dtype float16 to use it"
        yield bad(f"{path}.compute_capability", capability, expected)
    multiple = ATTENTION_ALIGN_BYTES // DTYPE_BYTES[options.dtype]
    attentions = [(f"model.layers[{i}].attention", layers.attention) for i, layers in enumerate(model.layers)]
    if draft is not None:
        attentions.append(("draft.attention", draft.attention))
    for where, attention in attentions:
        if attention.head_dim % multiple:
            expected = f"a multiple of {multiple}, as attention on a GPU takes in {options.dtype}"
            yield bad(f"{where}.head_dim", attention.head_dim, expected)


def check_usable(plan: Plan, used: Collection[str]) -> Iterator[Violation]:
    """Yield what keeps the devices in use from running the model, one of the model once; others may be of any kind."""
    shown: set[str] = set()
    for i, device in enumerate(plan.inventory.devices):
        for violation in device_limits(f"inventory.devices[{i}]", device, plan.options, plan.model, plan.draft):
            if device.id in used and violation.path not in shown:
                shown.add(violation.path)
                yield violation


def unusable_devices(inventory: Inventory, options: Options, model: Model, draft: Draft | None) -> dict[str, str]:
    """Return the devices that cannot run a model with these options, by id, each with the first reason in words."""
    unusable = {}
    for i, device in enumerate(inventory.devices):
        violation = next(device_limits(f"inventory.devices[{i}]", device, options, model, draft), None)
        if violation is not None:
            name = violation.path.rpartition(".")[2].replace("_", " ")
            unusable[device.id] = f"{name} {violation.value}, expected {violation.expected}"
    return unusable


def by_reason(unusable: Mapping[str, str]) -> list[str]:
    """Return a line for each reason, which begins with the ids of the devices that it is true of."""
    ids: dict[str, list[str]] = {}
    for name, reason in unusable.items():
        ids.setdefault(reason, []).append(name)
    return [f"{_listed(names)}: {reason}" for reason, names in ids.items()]


def _listed(names: list[str]) -> str:
    more = [f"... of {len(names)}"] if len(names) > MOST_SHOWN else []
    return ", ".join([*names[:MOST_SHOWN], *more])
