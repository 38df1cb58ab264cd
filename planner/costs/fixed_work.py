"""Time that depends on neither bytes nor arithmetic: kernels one after the other, and the host's part of an EAGLE step.

``Device.overhead_ns`` is the time of the kernels of a dense layer beyond what the roofline counts. On a GPU the other
blocks are proportional to their number of kernels, as counted in the operations of the runtime (a captured graph does
not change the counts, and kernels of a few rows take 2 to 3 us each whatever they do). On a CPU, whose kernels are one
call each, a block is a block. Constants marked *fitted* are so to the rows of ``tools/measured.yaml`` marked ``fit``.
"""

from planner.integers import ceil_div
from plans.schema import Device, Mlp

LAYER_KERNELS = 15
"""Kernels of a dense layer: two norms, four products, rotary, cache, attention, activation, two residuals."""
EXPERT_KERNELS = 12
"""More kernels of a layer with experts: router, top-k, sort, gathers, scatter, sum. Fitted: engines fuse some of the 20
operations that the runtime has."""
CHOICE_KERNELS = 4
"""More kernels of a router with sigmoids or a correction: a copy in float32, correction, look-up of weights, factor."""
GROUP_KERNELS = 6
"""More kernels where a router picks groups first: two top-k, sum, mask."""
BIAS_KERNELS = 4
"""More kernels of experts with biases: their look-up and sum, of gate and up and of down."""
CLAMP_KERNELS = 5
"""More kernels of clamped gates and ups: bounds, factors, sum."""
EMBED_KERNELS = 20
"""Kernels before the layers: mask, look-up, positions, rotary tables, carried features."""
HEAD_KERNELS = 39
"""Kernels behind the layers: final norm, best tokens, walk over the tree, commit."""
PASS_KERNELS = 60
"""Kernels of a drafter's pass besides its layers: fc or norms, log-softmax, top-k of each row, scores, masks."""
TREE_STEP_NS = 1_500_000
"""Host time of an EAGLE step during which the GPU waits: reading what was accepted, building the tree, launching what
depends on it. Fitted."""

CPU_PASS_BLOCKS = 3
"""Fixed work of a drafter's pass on a CPU besides its layers, in blocks."""


def layer_ns(device: Device, mlp: Mlp) -> int:
    """Return the fixed time of a layer."""
    return _kernels_ns(device, LAYER_KERNELS + _expert_kernels(mlp), 1)


def _expert_kernels(mlp: Mlp) -> int:
    """Return the kernels that experts have more than a dense MLP."""
    if mlp.kind != "moe":
        return 0
    router, kernels = mlp.router, EXPERT_KERNELS
    if router is not None and (router.scores == "sigmoid" or router.correction):
        kernels += CHOICE_KERNELS
    if router is not None and router.groups > 1:
        kernels += GROUP_KERNELS
    return kernels + BIAS_KERNELS * mlp.bias + CLAMP_KERNELS * (mlp.swiglu_limit is not None)


def embed_ns(device: Device) -> int:
    """Return the fixed time of the embedding."""
    return _kernels_ns(device, EMBED_KERNELS, 1)


def lm_head_ns(device: Device) -> int:
    """Return the fixed time of the final norm, the lm_head and the walk over the tree."""
    return _kernels_ns(device, HEAD_KERNELS, 1)


def pass_ns(device: Device, num_layers: int) -> int:
    """Return the fixed time of one pass of a drafter with so many layers."""
    return _kernels_ns(device, PASS_KERNELS + num_layers * LAYER_KERNELS, CPU_PASS_BLOCKS + num_layers)


def tree_step_ns(device: Device) -> int:
    """Return the time of an EAGLE step in which a drafter's device waits for the host; a CPU is the host."""
    return TREE_STEP_NS if device.kind == "cuda" else 0


def _kernels_ns(device: Device, kernels: int, cpu_blocks: int) -> int:
    if device.kind == "cuda":
        return ceil_div(device.overhead_ns * kernels, LAYER_KERNELS)
    return device.overhead_ns * cpu_blocks
