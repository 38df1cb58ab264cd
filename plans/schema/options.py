"""What a plan was asked for: every option with its default written out."""

from dataclasses import dataclass
from typing import Literal

DType = Literal["bfloat16", "float16", "float32"]
KvDType = Literal["bfloat16", "float16", "float32", "float8_e4m3fn", "int8"]
RoundedWeights = Literal["int8", "int4-g128", "int4-g32", "fp8"]
"""Formats to which plain weights are rounded (``plans.quantized.ROUNDED``)."""

Strategy = Literal["latency", "balanced", "balanced_low_0", "sequential", "custom"]
KvAxis = Literal["heads", "context", "head_dim", "batch"]
"""Dimension of the KV cache that a subgroup divides; ``heads``: none, each KV head is on one device or repeated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """The draft token tree of one step, as eagle's ``total_token``, ``depth`` and ``top_k`` define it.

    ``total_token`` counts the root; there are ``depth + 1`` drafted levels. ``dynamic``: the ``total_token`` - 1 most
    probable nodes of those that beams of ``top_k`` find. ``static``: always the nodes of ``paths``; then the numbers
    follow from these.
    """

    kind: Literal["dynamic", "static"]
    total_token: int
    depth: int
    top_k: int
    """Width of a beam and children of a node; of a static tree one more than the largest rank."""
    paths: tuple[tuple[int, ...], ...] | None
    """Drafted nodes of a static tree, each as the ranks of its ancestors and its own among the children of their
    parents, from the root; by length, then in order. None in a dynamic tree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledTree:
    """A range of the schedule of draft trees, up to the next one's first number."""

    sequences: int
    """Least number of running sequences."""
    tree: Tree | None
    """Tree of a step; None: plain decoding, in which the drafter's caches are kept up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """One line of a device map: a piece of the model and the device it is to be on, whole."""

    module: str
    """``embed``, ``layers.<i>`` of each layer, ``head`` (final norm and lm_head), or ``draft``."""
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the request, with every default written out."""

    batch: int
    context: int
    """Positions of one sequence: prompt and new tokens together."""
    dtype: DType
    """Dtype of weights and activations."""
    weights: RoundedWeights | None = None
    """Format to which the plain weights of the model's layers are rounded; None: they are as in the checkpoint."""
    kv_dtype: KvDType
    """Dtype of the KV caches of base model and drafter."""
    prefill_chunk: int
    """Prompt tokens of one forward in prefill."""
    stall_timeout_s: int
    """Seconds without progress of a rank after which a run ends; a layer of a forward is progress."""
    strategy: Strategy
    """First objective, before the time of a step. ``latency``: none. ``balanced``: the most free memory on the fullest
    device. ``balanced_low_0``: the least on the first device, then as ``balanced``. ``sequential``: devices filled in
    order. ``custom``: the device map. All but ``latency`` put every layer whole on one device."""
    kv_axis: KvAxis | None
    """KV axis asked for in all stages; None: the solver chooses for each. For the drafter it always chooses."""
    custom: tuple[Pin, ...] | None
    """The device map of the strategy ``custom``; None otherwise."""
    gap_ppm: int
    """Accepted relative distance of objective and bound, in parts per million; 0: proven optimal."""
    within_ppm: int | None
    """Parts per million by which a step may exceed the bound so that fewer bytes move against an earlier plan; None: no
    earlier plan was given."""
    simplify_ppm: int
    """Parts per million by which a step may exceed the least for fewer devices in use and fewer different runs."""
    max_devices: int | None
    """Most devices in use; None: any number."""
    tree: Tree | None
    """Draft tree by which the placement is the best; None: plain decoding."""
    schedule: tuple[ScheduledTree, ...] | None = None
    """Draft trees by number of running sequences, ascending from 1; None: always ``tree``."""
    keep_draft: bool | None = None
    """True: with a schedule, the draft was to be kept where plain decoding is faster with all sequences."""
