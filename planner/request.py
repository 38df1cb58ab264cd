"""The request for a plan, and the options that follow from it with every default written out."""

from dataclasses import dataclass
from typing import Literal, get_args

from planner.costs import stall
from planner.costs.working_set import step_bytes
from planner.errors import ConfigError, InputError
from planner.families import BaseInput, DraftInput
from planner.families.config import saved_dtype
from planner.hardware.records import HardwareInventory
from plans.acceptance import Profile
from plans.check_inputs import MOST_MASK_VALUES, MOST_TREE, mask_values, path_problems, static_tree
from plans.format import quote
from plans.schema import DType, Inventory, KvAxis, KvDType, Options, Pin, Plan, RoundedWeights, Strategy, Tree
from plans.step import is_chain, tree_pool

DEFAULT_TREE = Tree(kind="dynamic", total_token=60, depth=7, top_k=10, paths=None)
"""Draft tree of EAGLE-2 and -3."""

PARALLEL_TREE = Tree(kind="dynamic", total_token=8, depth=6, top_k=1, paths=None)
"""Chain of a head that drafts all its tokens in one pass (P-EAGLE)."""

LEAST_CHAIN = Tree(kind="dynamic", total_token=2, depth=0, top_k=1, paths=None)
"""Smallest tree: a root with one drafted token."""

STATIC_PATHS = (
    *((rank,) for rank in range(4)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
"""Draft tree of EAGLE-1: 25 drafted nodes in 5 levels, each as the ranks on its path from the root."""

LEAST_TREE = {"total_token": 2, "depth": 0, "top_k": 1}
"""Smallest trees: a root with one drafted token."""

MOST_POSITIONS = 10**12
"""Largest number of positions that is an argument at all; the model's own limit is far below."""

MOST_WORKERS = 64
MOST_SOLVER_SEED = (1 << 31) - 1
"""Largest seed that CP-SAT takes."""

MOST_DEFAULT_CONTEXT = 8192
"""Positions at most where no context is asked for, whatever the model's limit."""


DEFAULT_SIMPLIFY_PPM = 5000
"""Relative increase of the step time that a simpler plan may cost where nothing else is asked for."""


Objective = Literal["tokens", "step"]
"""Goal of a plan: the most expected tokens per second, with a draft tree chosen for it or none, or the shortest step of
the tree that is asked for."""


Schedule = Literal["on", "off", "keep"]
"""Draft trees by number of running sequences: where there is something to schedule; one tree for all numbers; and with
the draft also where plain decoding is faster with all sequences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Options as they were asked for; None stands for the default, which the plan then states."""

    context: int | Literal["max"] | None = None
    """Positions of a sequence; ``max``: the most with which the model fits."""
    batch: int = 1
    """Sequences decoded at a time."""
    dtype: DType | None = None
    """Dtype of weights and activations; default: see :func:`resolve_dtype`."""
    weights: RoundedWeights | None = None
    """Format to which the model's weights are rounded; ``Request.base`` has it too. Default: none."""
    kv_dtype: KvDType | None = None
    """Dtype of the KV caches; default: ``dtype``."""
    tree: Tree | None = None
    """Draft token tree; default: DEFAULT_TREE where there is a drafter."""
    prefill_chunk: int | None = None
    """Prompt tokens of one forward pass."""
    stall_timeout_s: int | None = None
    """Seconds without progress that end a run; default: what the slowest device needs, at least ``stall.LEAST_S``."""
    strategy: Strategy = "latency"
    kv_axis: KvAxis | None = None
    """Axis along which the KV cache is divided; default: the solver's choice for each stage."""
    custom: tuple[Pin, ...] | None = None
    """Device map of the strategy ``custom``, as :func:`planner.problem.device_map.read` returns it."""
    gap_ppm: int = 0
    """Accepted relative distance of step time and bound, in parts per million."""
    within_ppm: int | None = None
    """Most by which a step may exceed the optimum to move less of an earlier plan, in parts per million."""
    simplify_ppm: int = DEFAULT_SIMPLIFY_PPM
    """Most by which a step may exceed the optimum for a simpler plan, in parts per million."""
    max_devices: int | None = None
    """Most devices in use; default: any number."""
    objective: Objective = "step"
    schedule: Schedule = "on"
    """With the objective ``tokens``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Inputs of one plan: the model, its drafter, the hardware, and the options asked for."""

    base: BaseInput
    draft: DraftInput | None
    inventory: HardwareInventory
    wanted: Wanted
    profile: Profile | None = None
    """Acceptance profile of the drafter."""
    previous: Plan | None = None
    """With ``wanted.within_ppm``: an earlier plan of the model, of which as much is kept as that allows."""


def tree_text(tree: Tree) -> str:
    """Return a dynamic tree as the option ``--tree`` takes it."""
    return f"total_token={tree.total_token},depth={tree.depth},top_k={tree.top_k}"


def resolve_request(request: Request) -> tuple[Options, Inventory]:
    """Return all options and the devices with their rates in the dtype, with ``max`` as the model's limit.

    Raise InputError for options that exclude each other or exceed the model.
    """
    dtype = resolve_dtype(request.wanted, request.base, request.inventory)
    options = resolve(request.wanted, dtype, request.base, request.draft)
    return options, inventory_for(request, options)


def inventory_for(request: Request, options: Options) -> Inventory:
    """Return the devices with their rates in the dtype, measured ones for as many bytes as a step reads."""
    if not any(device.measured for device in request.inventory.devices):
        return request.inventory.at(options.dtype)
    drafter = request.draft.draft if request.draft else None
    nbytes = step_bytes(request.base.model, drafter, options)
    return request.inventory.at(options.dtype, nbytes)


def resolve_dtype(wanted: Wanted, base: BaseInput, inventory: HardwareInventory) -> DType:
    """Return the dtype asked for, else float32 on CPUs alone, which lack 16-bit units, else the checkpoint's."""
    if wanted.dtype is not None:
        return wanted.dtype
    if all(device.kind == "cpu" for device in inventory.devices):
        return "float32"
    name = saved_dtype(base.checkpoint.config) or "bfloat16"
    dtype: DType
    for dtype in get_args(DType):
        if name == dtype:
            return dtype
    expected = ", ".join(get_args(DType))
    raise ConfigError(f"{base.checkpoint.config_file}: dtype: found {quote(name)}, expected one of {expected}")


def resolve(wanted: Wanted, dtype: DType, base: BaseInput, draft: DraftInput | None) -> Options:
    """Return options with every default written out, ``max`` as the model's limit; raise InputError for bad ones.

    The default context stays within the positions that the EAGLE head was trained for; published heads were trained
    for few. Beyond them it only drafts worse, so any context of the model may be asked for.
    """
    longest = base.max_positions
    default = min(longest, draft.max_positions if draft else longest, MOST_DEFAULT_CONTEXT)
    context = longest if wanted.context == "max" else wanted.context or default
    if context > longest:
        raise InputError(f"--context: found {context}, the model has {longest} positions")
    _check_objective(wanted, draft)
    if draft is None and wanted.tree is not None:
        raise InputError("--tree: there is no draft that would grow one: give --draft")
    if wanted.strategy == "custom" and wanted.custom is None:
        raise InputError("--strategy custom: no device map was given: --device-map FILE")
    tree = (wanted.tree or default_tree(draft)) if draft else None
    if wanted.objective == "tokens" and wanted.context != "max":
        tree = LEAST_CHAIN  # stands for the one that is chosen
    if tree is not None:
        _check_tree(tree, wanted.batch, draft)
    chunk = wanted.prefill_chunk or min(512, max(64, context // 8), context)
    if chunk > context:
        raise InputError(f"--prefill-chunk: found {chunk}, expected at most the context of {context}")
    return Options(
        batch=wanted.batch,
        context=context,
        dtype=dtype,
        weights=wanted.weights,
        kv_dtype=wanted.kv_dtype or dtype,
        prefill_chunk=chunk,
        stall_timeout_s=wanted.stall_timeout_s or stall.LEAST_S,
        strategy=wanted.strategy,
        kv_axis=wanted.kv_axis,
        custom=wanted.custom,
        gap_ppm=wanted.gap_ppm,
        within_ppm=wanted.within_ppm,
        simplify_ppm=wanted.simplify_ppm,
        max_devices=wanted.max_devices,
        tree=tree,
    )


def _check_objective(wanted: Wanted, draft: DraftInput | None) -> None:
    if wanted.objective != "tokens":
        if wanted.schedule == "keep":
            raise InputError("--schedule keep: a tree is asked for: leave --tree out, and give --objective tokens")
        return
    if wanted.schedule == "keep" and wanted.batch == 1:
        raise InputError("--schedule keep: there is one sequence: give --batch, or leave --schedule out")
    if draft is None:
        raise InputError("--objective tokens: there is no draft whose tree could be chosen: give --draft")
    if wanted.tree is not None:
        raise InputError("--objective tokens: chooses the tree: leave --tree out, or give --objective step")
    if wanted.strategy != "latency":
        raise InputError(
            f"--objective tokens: found --strategy {wanted.strategy}, whose goal comes before the step time: leave it "
            "out, or give --objective step"
        )


def default_tree(draft: DraftInput) -> Tree:
    """Return the tree of a head where none is asked for."""
    return DEFAULT_TREE if draft.draft.mask_token_id is None else PARALLEL_TREE


def _check_tree(tree: Tree, batch: int, draft: DraftInput | None) -> None:
    _check_nodes(tree)
    if (values := mask_values(tree, batch)) > MOST_MASK_VALUES:
        raise InputError(
            f"--tree: masks of {values} values for a batch of {batch}, expected at most {MOST_MASK_VALUES}: give fewer "
            "nodes, levels or children, or a smaller batch"
        )
    if draft is not None and draft.draft.mask_token_id is not None and not is_chain(tree):
        raise InputError(
            f"--tree: found {tree_text(tree) if tree.paths is None else 'a static tree'}, the head (P-EAGLE) drafts a "
            f"chain in one pass: give top_k=1 and a total_token of depth + 2, as in {tree_text(PARALLEL_TREE)}"
        )
    pool = tree_pool(tree)
    if tree.paths is None and tree.total_token - 1 > pool:
        raise InputError(
            f"--tree: total_token={tree.total_token} wants {tree.total_token - 1} drafted nodes, depth={tree.depth} "
            f"and top_k={tree.top_k} draft {pool} at most (top_k + depth * top_k^2)"
        )
    if draft is not None and tree.top_k > draft.draft.draft_vocab_size:
        raise InputError(f"--tree: top_k={tree.top_k}, the draft vocabulary has {draft.draft.draft_vocab_size} tokens")


def _check_nodes(tree: Tree) -> None:
    """Raise InputError for a tree whose numbers are out of range, or do not follow from its paths."""
    if (tree.kind == "static") != (tree.paths is not None):
        raise InputError(f"--tree: paths: found {quote(tree.paths)}, expected nodes exactly where the kind is static")
    for name, most in MOST_TREE.items():
        number, least = getattr(tree, name), LEAST_TREE[name]
        if type(number) is not int or not least <= number <= most:
            raise InputError(f"--tree: {name}: found {quote(number)}, expected a whole number from {least} to {most}")
    if tree.paths is None:
        return
    if not all(isinstance(path, tuple) and all(type(rank) is int for rank in path) for path in tree.paths):
        raise InputError(f"--tree: paths: found {quote(tree.paths)}, expected tuples of ranks")
    problem = next(path_problems(tree.paths), None)
    if problem is not None:
        raise InputError(f"--tree: paths: expected {problem}")
    if tree != static_tree(tree.paths):
        raise InputError(f"--tree: found {quote(tree)}, expected the numbers that follow from its paths")
