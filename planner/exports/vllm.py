"""Arguments of ``vllm serve``: equal tensor parallelism in stages of any number of layers."""

import json
import math

from planner.exports import placement
from plans.schema import Plan

PROGRAM = "vllm"
KV_DTYPES = {"float8_e4m3fn": "fp8_e4m3", "bfloat16": "bfloat16"}
"""Values of ``--kv-cache-dtype`` other than ``auto``, by the plan's."""


def export(plan: Plan) -> str:
    """Return the command; raise InputError for unequal shares or groups, CPUs, and shared KV heads."""
    devices = placement.stage_devices(plan)
    placement.check_gpus(PROGRAM, devices)
    placement.check_apart(PROGRAM, plan)
    sizes = sorted({len(stage.devices) for stage in plan.stages})
    if len(sizes) > 1:
        sizes_text = " and ".join(map(str, sizes))
        raise placement.refused(PROGRAM, f"stages have {sizes_text} devices, and vLLM's have one tensor parallel size")
    for stage, run in placement.runs(plan):
        placement.check_kv(PROGRAM, stage)
        for what, shares in (("KV heads", run.kv_heads), ("MLP units", run.mlp_units)):
            if len(set(shares)) > 1:
                shares_text = " + ".join(map(str, shares))
                raise placement.refused(
                    PROGRAM,
                    f"{', '.join(stage.devices)} have unequal shares, {shares_text} {what}, and vLLM's are equal",
                )
    lines = [placement.heading("vLLM", plan), *_comments(plan)]
    return "\n".join([*lines, placement.command(*_arguments(plan, sizes[0]))]) + "\n"


def _comments(plan: Plan) -> list[str]:
    first, last = plan.stages[0].devices, plan.stages[-1].devices
    embed = "" if _even(plan.embed.devices, plan.embed.rows, first) else f"divided equally over {', '.join(first)}"
    head = "" if _even(plan.head.devices, plan.head.rows, last) else f"divided equally over {', '.join(last)}"
    comments = [*placement.table_comments(plan, embed, head)]
    comments.append("# vLLM takes the memory that --gpu-memory-utilization leaves for its KV cache, not the plan's.")
    comments += placement.rounding_comments("vLLM", plan)
    if plan.draft is not None:
        levels = placement.drafted_levels(plan)
        comments.append(
            f"# vLLM drafts a chain of {levels} tokens, not a tree, and has the EAGLE head on the last stage."
        )
    if plan.options.kv_dtype != plan.options.dtype and plan.options.kv_dtype not in KV_DTYPES:
        comments.append(f"# vLLM has no KV cache of {plan.options.kv_dtype}: it is of {plan.options.dtype} here.")
    return comments


def _even(devices: tuple[str, ...], rows: tuple[int, ...], stage: tuple[str, ...]) -> bool:
    return devices == stage and len(set(rows)) == 1


def _arguments(plan: Plan, size: int) -> list[str]:
    options, devices = plan.options, placement.stage_devices(plan)
    environment = [placement.visible(devices)]
    if len(plan.stages) > 1:
        environment.append(f"VLLM_PP_LAYER_PARTITION={','.join(str(stage.num_layers) for stage in plan.stages)}")
    # One fraction for all devices: that of the device with the largest reserve, rounded down.
    fraction = min(math.floor(100 * device.capacity_bytes / device.memory_bytes) for device in devices)
    lines = [
        f"{' '.join(environment)} vllm serve MODEL",
        f"--tensor-parallel-size {size} --pipeline-parallel-size {len(plan.stages)}",
        f"--max-model-len {options.context} --max-num-seqs {options.batch}",
        f"--dtype {options.dtype} --gpu-memory-utilization {fraction / 100:.2f}",
    ]
    if options.kv_dtype != options.dtype and options.kv_dtype in KV_DTYPES:
        lines.append(f"--kv-cache-dtype {KV_DTYPES[options.kv_dtype]}")
    if plan.draft is not None and plan.draft_placement is not None:
        speculative = {
            "method": plan.draft.kind,
            "model": "EAGLE_HEAD",
            "num_speculative_tokens": placement.drafted_levels(plan),
            "draft_tensor_parallel_size": size if len(plan.draft_placement.devices) > 1 else 1,
        }
        lines.append(f"--speculative-config '{json.dumps(speculative)}'")
    return lines
