"""Arguments of ``llama-server``: whole layers on devices (``-sm layer``), or one group by one ratio (``-sm tensor``).

With ``-sm layer`` layer i of those on GPUs is on the first GPU whose part of ``-ts``, summed, exceeds i over their
number; the output (final norm and lm_head) counts as one more layer after the last. So numbers of layers reproduce a
plan exactly. Layers that ``-ngl`` leaves out are the first ones, on the CPU.
"""

import math
from collections.abc import Iterator

from planner.exports import placement
from plans.quantized import is_half
from plans.schema import Plan, Stage

PROGRAM = "llama.cpp"
KV_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "q8_0", "int8": "q8_0"}
"""Types of the KV cache; q8_0, 8 bits with a scale for each 32, is the nearest to 8-bit floats."""


def export(plan: Plan) -> str:
    """Return the command; raise InputError for several groups of devices, and for a CPU behind a GPU."""
    placement.check_apart(PROGRAM, plan)
    on_cpu = _layers_on_cpu(plan)
    stages = [stage for stage in plan.stages if plan.device(stage.devices[0]).kind == "cuda"]
    whole = all(len(stage.devices) == 1 for stage in plan.stages)
    if not whole and len(plan.stages) > 1:
        raise placement.refused(PROGRAM, "groups of devices follow one another, and llama.cpp divides layers over one")
    gpus = tuple(plan.device(name) for stage in stages for name in stage.devices)
    if not gpus:
        split = ["-ngl 0"]
    elif whole:
        _check_head(plan)
        counts = [stage.num_layers for stage in stages]
        counts[-1] += 1  # the output
        split = [f"-ngl {sum(counts)} -sm {'layer' if len(gpus) > 1 else 'none'}"]
        if len(gpus) > 1:
            split.append(f"-ts {','.join(map(str, counts))}")
    else:
        placement.check_gpus(PROGRAM, placement.stage_devices(plan))
        split = [f"-ngl all -sm tensor -ts {','.join(map(str, _ratio(plan, plan.stages[0])))}"]
    comments = [placement.heading("llama.cpp", plan), *_comments(plan, whole, on_cpu)]
    environment = f"{placement.visible(gpus)} " if gpus else ""
    cache = KV_TYPES[plan.options.kv_dtype]
    arguments = placement.command(
        f"{environment}llama-server -m MODEL.gguf",
        *split,
        f"-c {plan.options.context * plan.options.batch} -np {plan.options.batch} -ub {plan.options.prefill_chunk}",
        f"-fa on -ctk {cache} -ctv {cache} -fit off",
    )
    return "\n".join([*comments, arguments]) + "\n"


def _layers_on_cpu(plan: Plan) -> int:
    """Return the number of layers on a CPU, which are the first ones; raise InputError for any others."""
    kinds = [{plan.device(name).kind for name in stage.devices} for stage in plan.stages]
    cpus = [i for i, kind in enumerate(kinds) if "cpu" in kind]
    if any(len(kind) > 1 for kind in kinds) or cpus not in ([], [0]):
        raise placement.refused(PROGRAM, "layers on a CPU are not the first ones, or shared with a GPU")
    return sum(plan.stages[i].num_layers for i in cpus)


def _check_head(plan: Plan) -> None:
    """Raise InputError where the lm_head is not with the last layers."""
    last = plan.stages[-1].devices
    if plan.head.devices != last:
        raise placement.refused(
            PROGRAM, f"the lm_head is on {', '.join(plan.head.devices)}, the last layers on {', '.join(last)}"
        )


def _ratio(plan: Plan, stage: Stage) -> tuple[int, ...]:
    """Return the ratio of the devices' MLP units in all layers; raise InputError where KV heads have another."""
    placement.check_kv(PROGRAM, stage)
    units = tuple(sum(run.num_layers * run.mlp_units[i] for run in stage.runs) for i in range(len(stage.devices)))
    for run in stage.runs:
        heads = sum(run.kv_heads)
        if max(stage.kv_subgroups) == 1 and any(
            round(heads * share / sum(units)) != own for share, own in zip(units, run.kv_heads, strict=True)
        ):
            kv, mlp = (" : ".join(map(str, shares)) for shares in (run.kv_heads, run.mlp_units))
            raise placement.refused(
                PROGRAM, f"KV heads are {kv}, MLP units {mlp}, and llama.cpp has one ratio for both"
            )
    divisor = math.gcd(*units)
    return tuple(share // divisor for share in units)


def _comments(plan: Plan, whole: bool, on_cpu: int) -> list[str]:
    comments = list(placement.table_comments(plan, "in host memory", ""))
    comments.append(f"# Convert the model with convert_hf_to_gguf.py --outtype {KV_TYPES[plan.options.dtype]}.")
    comments += _quantized(plan)
    if on_cpu:
        comments.append(f"# The first {on_cpu} layers are on the CPU, as in the plan.")
    if not whole:
        comments.append("# -sm tensor is experimental; it rounds each tensor's shares by itself.")
    if plan.options.kv_dtype == "float8_e4m3fn":
        comments.append("# llama.cpp has no KV cache of 8-bit floats: q8_0 has integers, one scale for 32.")
    elif plan.options.kv_dtype == "int8":
        comments.append("# The KV cache has a scale for each head: llama.cpp's q8_0 has one for each 32 values.")
    if plan.draft is not None:
        comments.append(
            "# The EAGLE head is left out: llama.cpp drafts a chain, with a head converted to GGUF of its own."
        )
    return comments


def _quantized(plan: Plan) -> Iterator[str]:
    """Yield the comment on quantized weights, with the type of llama-quantize that has as many bits."""
    forms = placement.formats(plan)
    if not forms:
        return
    if all(form.code == "float4_e2m1" for form in forms):
        yield "# The converter keeps experts in MXFP4 as the plan has them."
        return
    half = all(is_half(form) for form in forms)
    nearest = ("Q4_1" if any(form.zeros for form in forms) else "Q4_0") if half else "Q8_0"
    codes = " and ".join(sorted({form.code for form in forms}))
    yield (
        f"# The plan's weights are in {codes}: convert the checkpoint before quantization, then llama-quantize to "
        f"{nearest}, which has as many bits in groups of 32, rounded anew, embedding and lm_head too."
    )
