"""Questions about the placement of a plan that several programs ask, with the refusals of what none of them does."""

from collections.abc import Iterable, Iterator

from planner.errors import InputError
from plans.codec import digest
from plans.quantized import layer_formats
from plans.schema import Device, Plan, Run, Stage, WeightFormat


def refused(program: str, reason: str) -> InputError:
    """Return the refusal of an export, to be raised."""
    return InputError(f"--export {program}: {reason}: it would be another placement")


def heading(program: str, plan: Plan) -> str:
    """Return the first comment of an export."""
    return f"# Nearest arguments of {program} for the plan {digest(plan)[:16]}; give the paths of your model."


def stage_devices(plan: Plan) -> tuple[Device, ...]:
    """Return the devices of the stages, in the order of execution."""
    return tuple(plan.device(name) for stage in plan.stages for name in stage.devices)


def check_apart(program: str, plan: Plan) -> None:
    """Raise InputError where a device is in two stages, or the devices are on several hosts."""
    names = [name for stage in plan.stages for name in stage.devices]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise refused(program, f"{twice} is in several stages")
    hosts = dict.fromkeys(plan.device(name).host for name in names)
    if len(hosts) > 1:
        raise refused(program, f"the layers are on several hosts, {', '.join(hosts)}")


def check_gpus(program: str, devices: Iterable[Device]) -> None:
    """Raise InputError where one of the devices is a CPU."""
    cpu = next((device.id for device in devices if device.kind == "cpu"), None)
    if cpu is not None:
        raise refused(program, f"layers are on {cpu}, a CPU")


def check_kv(program: str, stage: Stage) -> None:
    """Raise InputError where devices share the KV cache of a head by its positions, its channels or its sequences."""
    if max(stage.kv_subgroups) > 1 and stage.kv_axis != "heads":
        raise refused(program, f"{', '.join(stage.devices)} share KV heads by {stage.kv_axis}")


def visible(devices: Iterable[Device]) -> str:
    """Return the environment in which CUDA has these accelerators alone, in this order.

    Ordinals of an inventory are in the order of the PCI bus, as NVML has it.
    """
    names = ",".join(device.uuid or str(device.ordinal) for device in devices)
    return f"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={names}"


def runs(plan: Plan) -> Iterator[tuple[Stage, Run]]:
    """Yield each run of layers with its stage."""
    for stage in plan.stages:
        for run in stage.runs:
            yield stage, run


def drafted_levels(plan: Plan) -> int:
    """Return the depth of the plan's tree, which a chain of as many drafted tokens has too; 0 without a drafter."""
    return plan.options.tree.depth + 1 if plan.options.tree is not None else 0


def table_comments(plan: Plan, embed: str, head: str) -> Iterator[str]:
    """Yield comments on tables that a program puts elsewhere; ``embed``, ``head``: where it does, in words.

    Empty: it puts them where the plan has them.
    """
    for name, split, words in (("embedding", plan.embed, embed), ("lm_head", plan.head, head)):
        if words:
            yield f"# The plan has the {name} on {', '.join(split.devices)}; here it is {words}."


def formats(plan: Plan) -> tuple[WeightFormat, ...]:
    """Return the formats of the quantized weights of the model's layers, each once; empty where all are plain."""
    forms = (form for layers in plan.model.layers for form in layer_formats(layers).values())
    return tuple(dict.fromkeys(form for form in forms if form is not None))


def rounding_comments(program: str, plan: Plan) -> Iterator[str]:
    """Yield the comment that no other program has the weights that the compiler rounds."""
    if plan.options.weights is not None:
        yield (
            f"# The plan's weights are rounded to {plan.options.weights} when its images are compiled; {program} takes "
            "as many bytes only with a checkpoint that is quantized so."
        )


def command(*lines: str) -> str:
    """Return a shell command whose arguments are on lines of their own."""
    return " \\\n  ".join(lines)
