"""Checks the proof of a plan: its bounds, what a simpler plan would be, and the expected gain of its draft."""

import re
from collections.abc import Iterator

from plans.check_inputs import ROUNDING_PPM
from plans.check_model import is_pattern
from plans.schema import LayerClass, Model, Options, Plan
from plans.step import layer_class
from plans.violations import Violation, bad


def classes_of(model: Model, start: int, end: int) -> Iterator[LayerClass]:
    """Yield the classes of the layers from ``start`` to before ``end``, each once."""
    if model.pattern is not None:
        if is_pattern(model):
            stop = min(end, start + len(model.pattern), model.num_layers)
            yield from dict.fromkeys(layer_class(model, layer) for layer in range(start, stop))
        return
    first = 0
    for layers in model.layers:
        if max(start, first) < min(end, first + layers.num_layers):
            yield layers
        first += layers.num_layers


def check_proof(plan: Plan) -> Iterator[Violation]:
    proof, options = plan.proof, plan.options
    if proof.bound_ns > proof.least_ns:
        yield bad("proof.bound_ns", proof.bound_ns, f"at most the least step, {proof.least_ns}")
    elif proof.status == "OPTIMAL" and proof.bound_ns != proof.least_ns:
        yield bad("proof.bound_ns", proof.bound_ns, f"the least step, {proof.least_ns}, as the status is OPTIMAL")
    elif (proof.least_ns - proof.bound_ns) * 10**6 > options.gap_ppm * proof.least_ns:
        expected = f"within {options.gap_ppm} ppm of the least step, {proof.least_ns}"
        yield bad("proof.bound_ns", proof.bound_ns, expected)
    most_ns = most_step_ns(proof.least_ns, options)
    if not proof.least_ns <= proof.objective_ns <= most_ns:
        yield bad("proof.objective_ns", proof.objective_ns, f"from the least step, {proof.least_ns}, to {most_ns}")
    yield from _check_simplicity(plan)
    yield from _check_speculation(plan)
    if options.max_devices is not None and len(plan.memory) > options.max_devices:
        yield bad("memory", f"{len(plan.memory)} devices in use", f"at most {options.max_devices}")
    if not {entry.device for entry in plan.memory} <= {device.id for device in plan.inventory.devices}:
        return  # reported with the memory
    least = min((_free_bytes(plan, entry.device, entry.planned_bytes) for entry in plan.memory), default=0)
    if proof.min_free_bytes != least:
        yield bad("proof.min_free_bytes", proof.min_free_bytes, f"{least}, the least that a device in use has free")


def _check_speculation(plan: Plan) -> Iterator[Violation]:
    """Check that no other choice of the tree has more expected tokens per second than the plan's."""
    choice, path, whole = plan.speculation, "speculation", 10**6
    if choice is None:
        return
    ranges, predicted = len(plan.options.schedule or ()), len(choice.schedule or ())
    if ranges != predicted:
        yield bad(f"{path}.schedule", f"{predicted} steps", f"{ranges}, one for each range of options.schedule")
    if not re.fullmatch(r"[0-9a-f]{64}", choice.profile_sha256):
        yield bad(f"{path}.profile_sha256", choice.profile_sha256, "64 hexadecimal digits")
    if choice.acceptance_ppm < whole or (plan.draft is None and choice.acceptance_ppm > whole):
        expected = "1000000, as there is no draft" if plan.draft is None else "at least 1000000"
        yield bad(f"{path}.acceptance_ppm", choice.acceptance_ppm, expected)
    if plan.draft is None and choice.plain_ns != plan.proof.least_ns:
        yield bad(f"{path}.plain_ns", choice.plain_ns, f"the least step, {plan.proof.least_ns}")
    elif plan.options.keep_draft:
        return
    elif choice.acceptance_ppm * choice.plain_ns < whole * plan.proof.least_ns:
        yield bad(f"{path}.plain_ns", choice.plain_ns, "a step that gives no more tokens per second than the draft")
    other = choice.runner_up
    if other and other.acceptance_ppm * plan.proof.least_ns > choice.acceptance_ppm * other.least_ns:
        yield bad(f"{path}.runner_up.least_ns", other.least_ns, "a step that gives no more tokens per second")


def _check_simplicity(plan: Plan) -> Iterator[Violation]:
    """Check that nothing simpler is excluded than the plan is."""
    simplicity, options, path = plan.proof.simplicity, plan.options, "proof.simplicity"
    if simplicity is None:
        return
    if not options.simplify_ppm or options.gap_ppm:
        why = "a gap was accepted" if options.gap_ppm else "simplify_ppm is 0"
        yield bad(path, "bounds", f"nothing, as {why}")
    if not 1 <= simplicity.devices_bound <= len(plan.memory):
        yield bad(f"{path}.devices_bound", simplicity.devices_bound, f"from 1 to the {len(plan.memory)} in use")
    runs = different_runs(plan)
    if (simplicity.runs_bound is None) != (options.within_ppm is not None):
        expected = (
            "a number, as there is no earlier plan" if options.within_ppm is None else "nothing, as weights are kept"
        )
        yield bad(f"{path}.runs_bound", simplicity.runs_bound, expected)
    elif simplicity.runs_bound is not None and not 1 <= simplicity.runs_bound <= runs:
        yield bad(f"{path}.runs_bound", simplicity.runs_bound, f"from 1 to the {runs} of the plan")
    if simplicity.step_bound_ns > plan.proof.objective_ns:
        expected = f"at most the plan's step, {plan.proof.objective_ns}"
        yield bad(f"{path}.step_bound_ns", simplicity.step_bound_ns, expected)


def different_runs(plan: Plan) -> int:
    """Return how many different divisions the layers of a kind have in a stage, over all stages and kinds."""
    runs = set()
    for number, stage in enumerate(plan.stages):
        layer = stage.first_layer
        for run in stage.runs:
            for kind in classes_of(plan.model, layer, layer + run.num_layers):
                runs.add((number, kind.attention, kind.mlp, run.kv_heads, run.mlp_units))
            layer += run.num_layers
    return len(runs)


def most_step_ns(least_ns: int, options: Options) -> int:
    """Return the longest step of a plan where the least is known: options may allow more, and so does rounding."""
    ppm = max(options.simplify_ppm, options.within_ppm or 0, ROUNDING_PPM)
    return least_ns + least_ns * ppm // 10**6


def _free_bytes(plan: Plan, device_id: str, planned_bytes: int) -> int:
    device = plan.device(device_id)
    return device.capacity_bytes - planned_bytes
