"""Records of what a person asks for, and the options that follow from them with every default written out."""

from dataclasses import dataclass
from typing import Any, Literal

from planner.costs import stall
from planner.errors import ConfigError, InputError
from planner.families import BaseInput, DraftInput
from plans.check_inputs import MOST_TREE
from plans.schema import DTYPE_BYTES, DType, Inventory, KvAxis, KvDType, Options, Pin, Plan, Strategy, Tree

DEFAULT_TREE = Tree(kind="dynamic", total_token=60, depth=7, top_k=10, paths=None)


STATIC_PATHS = (
    *((rank,) for rank in range(4)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
"""The tree of EAGLE-1: 25 drafted nodes in 5 levels."""


MOST_DEFAULT_CONTEXT = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a person asked for; None: the default, which the plan then states."""

    context: int | Literal["max"] | None = None
    batch: int = 1
    dtype: DType | None = None
    kv_dtype: KvDType | None = None
    """Default: the dtype."""
    tree: Tree | None = None
    prefill_chunk: int | None = None
    stall_timeout_s: int | None = None
    """Default: as long as the slowest device needs, and no less than ``stall.LEAST_S``."""
    strategy: Strategy = "latency"
    kv_axis: KvAxis | None = None
    """Default: the solver's choice, stage by stage."""
    custom: tuple[Pin, ...] | None = None
    """The device map of the strategy ``custom``."""
    gap_ppm: int = 0
    within_ppm: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Everything that a plan is made of, as it was given."""

    base: BaseInput
    draft: DraftInput | None
    inventory: Any
    """Plain data of the inventory file: rates of its devices depend on the dtype."""
    inventory_file: str
    """Its name in messages."""
    wanted: Wanted
    """Without ``custom``: that is read from ``device_map``, whose devices are those of the inventory."""
    device_map: Any = None
    """Plain data of the file of the strategy ``custom``; None: none was given."""
    device_map_file: str = ""
    previous: Plan | None = None
    """With ``wanted.within_ppm``: an earlier plan of the model, of which as much is kept as that allows."""


def resolve_dtype(wanted: Wanted, base: BaseInput, inventory: Inventory) -> DType:
    """The dtype asked for, else float32 on CPUs alone, which have no units for the halves, else the checkpoint's."""
    if wanted.dtype is not None:
        return wanted.dtype
    if all(device.kind == "cpu" for device in inventory.devices):
        return "float32"
    config = base.checkpoint.config
    found = config.get("dtype", config.get("torch_dtype", "bfloat16"))
    for known in DTYPE_BYTES:
        if found == known:
            return known  # type: ignore[return-value]
    expected = ", ".join(DTYPE_BYTES)
    raise ConfigError(f"{base.checkpoint.config_file}: dtype: found {found!r}, expected one of {expected}")


def resolve(wanted: Wanted, dtype: DType, base: BaseInput, draft: DraftInput | None) -> Options:
    """Options with every default written out, ``max`` as the model's limit; raise InputError for what cannot be.

    The default keeps to the positions that the EAGLE head was trained for, of which published heads name few; beyond
    them it only drafts worse, so that any context of the model's may be asked for.
    """
    longest = base.max_positions
    default = min(longest, draft.max_positions if draft else longest, MOST_DEFAULT_CONTEXT)
    context = longest if wanted.context == "max" else wanted.context or default
    if context > longest:
        raise InputError(f"--context: found {context}, the model has {longest} positions")
    if draft is None and wanted.tree is not None:
        raise InputError("--tree: there is no draft that would grow one: give --draft")
    if wanted.strategy == "custom" and wanted.custom is None:
        raise InputError("--strategy custom: no device map was given: --device-map FILE")
    tree = (wanted.tree or DEFAULT_TREE) if draft else None
    if tree is not None:
        _check_tree(tree, draft)
    chunk = wanted.prefill_chunk or min(512, max(64, context // 8), context)
    if chunk > context:
        raise InputError(f"--prefill-chunk: found {chunk}, expected at most the context of {context}")
    return Options(
        batch=wanted.batch,
        context=context,
        dtype=dtype,
        kv_dtype=wanted.kv_dtype or dtype,
        prefill_chunk=chunk,
        stall_timeout_s=wanted.stall_timeout_s or stall.LEAST_S,
        strategy=wanted.strategy,
        kv_axis=wanted.kv_axis,
        custom=wanted.custom,
        gap_ppm=wanted.gap_ppm,
        within_ppm=wanted.within_ppm,
        tree=tree,
    )


def _check_tree(tree: Tree, draft: DraftInput | None) -> None:
    for name, most in MOST_TREE.items():
        if getattr(tree, name) > most:
            raise InputError(f"--tree: {name}: found {getattr(tree, name)}, expected at most {most}")
    pool = tree.top_k + tree.depth * tree.top_k**2
    if tree.paths is None and tree.total_token - 1 > pool:
        raise InputError(
            f"--tree: total_token={tree.total_token} wants {tree.total_token - 1} drafted nodes, depth={tree.depth} "
            f"and top_k={tree.top_k} draft {pool} at most (top_k + depth * top_k^2)"
        )
    if draft is not None and tree.top_k > draft.draft.draft_vocab_size:
        raise InputError(f"--tree: top_k={tree.top_k}, the draft vocabulary has {draft.draft.draft_vocab_size} tokens")
