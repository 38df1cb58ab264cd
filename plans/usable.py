"""Which devices can run a model: the planner places nothing on the others, a plan is refused that does, and the runtime
opens none on another GPU.
"""

from collections.abc import Collection, Iterator, Mapping

from plans.schema import Inventory, Plan
from plans.violations import MOST_SHOWN, Violation, bad

LEAST_CAPABILITY = 80
"""Least compute capability of a GPU: the first whose tensor cores Triton compiles for."""


def capability_text(capability: int) -> str:
    """Return a compute capability as NVIDIA writes it: 8.9 of 89."""
    return f"{capability // 10}.{capability % 10}"


EXPECTED_CAPABILITY = f"at least {capability_text(LEAST_CAPABILITY)}, whose tensor cores the GPU kernels are for"


def runs_kernels(capability: int | None) -> bool:
    """Return True for a GPU that runs the kernels, and for one of which the compute capability is not known."""
    return capability is None or capability >= LEAST_CAPABILITY


def check_usable(plan: Plan, used: Collection[str]) -> Iterator[Violation]:
    """Yield what keeps the devices in use from running a model; others may be of any kind."""
    for i, device in enumerate(plan.inventory.devices):
        if device.kind == "cuda" and device.id in used and not runs_kernels(device.compute_capability):
            path = f"inventory.devices[{i}].compute_capability"
            expected = f"at least {LEAST_CAPABILITY} ({capability_text(LEAST_CAPABILITY)}): plan again, without it"
            yield bad(path, device.compute_capability, expected)


def unusable_devices(inventory: Inventory) -> dict[str, str]:
    """Return the devices that cannot run a model, by id, each with the reason in words."""
    return {
        device.id: f"{device.type} has compute capability {capability_text(capability)}, expected {EXPECTED_CAPABILITY}"
        for device in inventory.devices
        if device.kind == "cuda"
        and (capability := device.compute_capability) is not None
        and not runs_kernels(capability)
    }


def by_reason(unusable: Mapping[str, str]) -> list[str]:
    """Return a line for each reason, which begins with the ids of the devices that it is true of."""
    ids: dict[str, list[str]] = {}
    for name, reason in unusable.items():
        ids.setdefault(reason, []).append(name)
    return [f"{_listed(names)}: {reason}" for reason, names in ids.items()]


def _listed(names: list[str]) -> str:
    more = [f"... of {len(names)}"] if len(names) > MOST_SHOWN else []
    return ", ".join([*names[:MOST_SHOWN], *more])
