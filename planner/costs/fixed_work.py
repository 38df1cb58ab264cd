"""Time that depends on neither bytes nor arithmetic: kernels one after the other, and the host's part of an EAGLE step.

On a GPU it is proportional to the number of kernels: kernels of a few rows take 2 to 3 us each in a CUDA graph,
whatever they do. ``Device.overhead_ns`` is the time, beyond what the roofline counts, of the ENGINE_LAYER kernels that
a dense layer has in engines as those of ``tools/measured.yaml``. The runtime's own kernels are counted in
``plans.launches``. On a CPU, whose kernels are one call each, a block is a block. Constants marked *fitted* are so to
the rows of ``tools/measured.yaml`` marked ``fit``.

The runtime's steps are CUDA graphs, whose kernels wait for no launch. Between two of them the GPU waits for the host.
"""

from dataclasses import dataclass
from functools import cache

from planner.integers import ceil_div
from plans import cpu_times, launches
from plans.kv import KvShare
from plans.schema import Device, LayerClass, Mlp
from plans.step import score_blocks

ENGINE_LAYER = 15
"""Kernels of a dense layer of an engine: two norms, four products, rotary, cache, attention, activation, two
residuals."""
ENGINE_EXPERTS = 12
"""More of a layer with experts: router, top-k, sort, gathers, scatter, sum. Fitted."""
ENGINE_CHOICE, ENGINE_GROUPS, ENGINE_BIAS, ENGINE_CLAMP = 4, 6, 4, 5
"""More of a router with sigmoids or a correction: a copy in float32, correction, look-up of weights, factor; where it
picks groups first: two top-k, sum, mask; of experts with biases: their look-up and sum, of gate and up and of down; of
clamped gates and ups: bounds, factors, sum."""
ENGINE_EMBED, ENGINE_LM_HEAD, ENGINE_PASS = 20, 39, 60
"""Kernels before the layers, behind them, and of a drafter's pass besides its layers."""
ENGINE_TREE_STEP_NS = 1_500_000
"""Host time of an EAGLE step of an engine during which the GPU waits: reading what was accepted, building the tree,
launching what depends on it. Fitted."""

BETWEEN_STEPS_NS = 100_000
"""Host time between two steps of the runtime, drafted or plain, in which GPUs wait: read and record of the message, and
launch of the next graph; 0.08 ms of Python on a CPU, and the end of the wait. Texts and the ends of answers are the
host's while that step runs (``Stepper.go_ahead``); with a CPU in the plan, and over gloo, they come between, too."""

LAUNCH_NS = 5_500
"""Host time of a kernel's launch outside of a graph, which it takes where steps are not captured (``plans.graphs``): 5
to 6 us with torch; estimated."""

CPU_DIVIDED_BLOCKS = 3
"""More of a layer on a CPU where devices divide positions or dims of a head, in blocks, or where q, k and v, or gate
and up, have formats of their own: it is no longer one kernel. A
layer of the embedded model on two devices of an AVX2 processor took 0.85 to 1.2 ms then, and 0.23 to 0.33 otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Kernels of the blocks of a step on a GPU, and the time of the host."""

    layer: int
    merge: int
    """More of a layer whose attention does not merge its splits by itself."""
    experts: int
    """More of a layer with experts; the next four as ENGINE_CHOICE and those beside it."""
    choice: int
    groups: int
    bias: int
    clamp: int
    embed: int
    divided_embed: int
    """More where the tables of a vocabulary are divided."""
    lm_head: int
    drafter_pass: int
    """Of a pass besides its layers."""
    divided_pass: int
    """More where the tables of the drafter are divided."""
    draft: int
    """Once in a step with a drafter."""
    activation: int = 0
    """Fewer of a dense layer whose gate and up are in codes of one format."""
    split_qkv: int = 0
    """More of a layer whose q, k and v have formats of their own."""
    split_gate_up: int = 0
    """The same of gate and up."""
    between_steps_ns: int = 0
    """Time of every step in which GPUs wait for the host; it is counted with the lm_head, of which there is one."""
    tree_step_ns: int = 0
    """More of a step with a drafter."""

    def layer_ns(self, device: Device, layers: LayerClass, values: int = 0, *, merges: bool = False) -> int:
        """Return the fixed time of a layer, with that of rows of so many values of hidden states in all.

        ``merges``: another kernel merges the splits of the cache.
        """
        mlp, split = layers.mlp, (layers.attention.qkv_formats is not None, layers.mlp.gate_up_formats is not None)
        applies = mlp.kind != "moe" and mlp.gate_up_format is not None
        kernels = self.layer + merges * self.merge + self._of_experts(mlp) - applies * self.activation
        kernels += split[0] * self.split_qkv + split[1] * self.split_gate_up
        return _kernels_ns(device, kernels, 1 + any(split) * CPU_DIVIDED_BLOCKS) + cpu_times.rows_ns(device, values)

    def divided_ns(self, device: Device, share: KvShare, kv_rows: int, *, merges: bool = False) -> int:
        """Return what a layer takes longer where devices divide its KV cache, of which rows attend to ``kv_rows``;
        ``merges`` as of ``layer_ns``.
        """
        if share.parts == 1 or share.axis == "heads":
            return 0
        if device.kind == "cpu":
            return _kernels_ns(device, 0, CPU_DIVIDED_BLOCKS * (share.axis != "batch"))
        if share.axis != "head_dim":
            return _kernels_ns(device, launches.CONTEXT if share.axis == "context" else launches.BATCH, 0)
        kernels = launches.LAYER + launches.HEAD_DIM + launches.SCORES * _number_of_blocks(kv_rows)
        launched = max(LAUNCH_NS * kernels, _kernels_ns(device, kernels, 0))
        return launched - _kernels_ns(device, launches.LAYER + merges * launches.MERGE, 0)

    def _of_experts(self, mlp: Mlp) -> int:
        if mlp.kind != "moe":
            return 0
        router, kernels = mlp.router, self.experts
        if router is not None and (router.scores == "sigmoid" or router.correction):
            kernels += self.choice
        if router is not None and router.groups > 1:
            kernels += self.groups
        return kernels + self.bias * mlp.bias + self.clamp * (mlp.swiglu_limit is not None)

    def embed_ns(self, device: Device, members: int = 1) -> int:
        """Return the fixed time of the embedding on one of so many devices."""
        if device.kind == "cpu":
            return cpu_times.table_ns(device)
        return _kernels_ns(device, self.embed + self.divided_embed * (members > 1), 0)

    def lm_head_ns(self, device: Device, *, walks: bool) -> int:
        """Return the fixed time of the final norm, the lm_head, the walk, the commit, and of the host behind them.

        ``walks``: the step has a tree.
        """
        if device.kind == "cpu":
            return cpu_times.table_ns(device) + walks * cpu_times.tree_ns(device)
        return _kernels_ns(device, self.lm_head, 0) + self.between_steps_ns

    def pass_ns(
        self, device: Device, num_layers: int, values: int = 0, *, merges: bool = False, members: int = 1
    ) -> int:
        """Return the fixed time of one pass of a drafter with so many layers, on one of so many devices.

        ``values`` and ``merges`` as of a layer.
        """
        if device.kind == "cpu":
            layer_ns = device.overhead_ns + cpu_times.rows_ns(device, values)
            return cpu_times.pass_ns(device) + num_layers * layer_ns
        kernels = self.drafter_pass + self.divided_pass * (members > 1)
        return _kernels_ns(device, kernels + num_layers * (self.layer + merges * self.merge), 0)

    def draft_step_ns(self, device: Device) -> int:
        """Return the fixed time of a drafter's device once in a step; none of a CPU, which is the host."""
        return _kernels_ns(device, self.draft, 0) + (self.tree_step_ns if device.kind == "cuda" else 0)


CAPTURED = Kernels(
    layer=launches.LAYER, merge=launches.MERGE, experts=launches.EXPERTS, choice=launches.CHOICE, groups=0, bias=0,
    clamp=0,
    embed=launches.EMBED, divided_embed=launches.DIVIDED_TABLES, lm_head=launches.LM_HEAD,
    drafter_pass=launches.PASS, divided_pass=launches.DIVIDED_PASS, draft=launches.DRAFT,
    activation=launches.ACTIVATION, split_qkv=launches.SPLIT_QKV, split_gate_up=launches.SPLIT_GATE_UP,
    between_steps_ns=BETWEEN_STEPS_NS,
)  # fmt: skip
"""Of the runtime, whose steps are captured as CUDA graphs."""
ENGINE = Kernels(
    layer=ENGINE_LAYER, merge=0, experts=ENGINE_EXPERTS, choice=ENGINE_CHOICE, groups=ENGINE_GROUPS, bias=ENGINE_BIAS,
    clamp=ENGINE_CLAMP, embed=ENGINE_EMBED, divided_embed=0, lm_head=ENGINE_LM_HEAD, drafter_pass=ENGINE_PASS,
    divided_pass=0, draft=0, tree_step_ns=ENGINE_TREE_STEP_NS,
)  # fmt: skip
"""Of the engines of ``tools/measured.yaml``."""


@cache
def _number_of_blocks(kv_rows: int) -> int:
    return len(score_blocks(kv_rows))


def _kernels_ns(device: Device, kernels: int, cpu_blocks: int) -> int:
    if device.kind == "cuda":
        return ceil_div(device.overhead_ns * kernels, ENGINE_LAYER)
    return device.overhead_ns * cpu_blocks
