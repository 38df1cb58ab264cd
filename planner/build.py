"""From inputs to a plan, and from a plan to its directory: what ``build`` and ``check`` share."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planner import device_map, silence
from planner.emit import emit
from planner.errors import ConfigError, InputError, OutputError
from planner.families import BaseInput, DraftInput, facts_of, load_base, load_draft
from planner.formulate import Formulation
from planner.inventory import parse_inventory
from planner.previous import Previous
from planner.problem import Problem, most_bytes, most_ps
from planner.search import Settings
from planner.shortage import infeasible
from planner.solve import Keep, Solved, fits, solve, solve_nearly
from plans import codec
from plans.facts import MOST_STALL_S, MOST_TREE
from plans.schema import (
    DTYPE_BYTES,
    DType,
    Inputs,
    Inventory,
    KvAxis,
    KvDType,
    Options,
    Pin,
    Plan,
    PlanError,
    Strategy,
    Tree,
)

DEFAULT_TREE = Tree(kind="dynamic", total_token=60, depth=7, top_k=10, paths=None)
STATIC_PATHS = (
    *((rank,) for rank in range(4)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
"""The tree of EAGLE-1: 25 drafted nodes in 5 levels."""

MOST_DEFAULT_CONTEXT = 8192
CONTEXT_STEP = 256

MOST_BYTES = 1 << 50
MOST_PS = 10**18

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


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
    """Default: as long as the slowest device needs, and no less than ``silence.LEAST_S``."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A plan, and how its proof went."""

    plan: Plan
    solved: Solved


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
        stall_timeout_s=wanted.stall_timeout_s or silence.LEAST_S,
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


def build(request: Request, settings: Settings, *, nearly: bool = False) -> Built:
    """The plan that was asked for; raise InputError, InfeasibleError or NotProvenError.

    ``nearly``: where it is not proven within the limit, that which a larger gap would give, with that gap.
    """
    dtype, inventory, wanted = understand(request)
    if wanted.context == "max":
        longest = longest_context(request.base, request.draft, inventory, wanted, dtype, settings)
        wanted = dataclasses.replace(wanted, context=longest)
    options = resolve(wanted, dtype, request.base, request.draft)
    built = plan(request.base, request.draft, inventory, options, settings, request.previous, nearly=nearly)
    return dataclasses.replace(built, plan=_patient(built.plan, wanted.stall_timeout_s))


def _patient(plan: Plan, asked_s: int | None) -> Plan:
    """The plan with a stall timeout that its devices can keep; raise InputError where one asked for is too short."""
    device, silence_ns = silence.longest_silence(plan)
    if silence_ns > MOST_STALL_S * 10**9:
        raise InputError(
            f"device {device} is predicted to compute {silence_ns / 1e9:.1f} s in one piece, and a run that is silent "
            f"for {MOST_STALL_S} s is taken to hang: leave the device out, or give a smaller --prefill-chunk"
        )
    if asked_s is None:
        stall_timeout_s = min(silence.stall_timeout_s(silence_ns), MOST_STALL_S)
        return dataclasses.replace(plan, options=dataclasses.replace(plan.options, stall_timeout_s=stall_timeout_s))
    if asked_s * 10**9 < silence_ns:
        raise InputError(
            f"--stall-timeout: found {asked_s}, device {device} is predicted to compute {silence_ns / 1e9:.1f} s in "
            f"one piece: give {silence.stall_timeout_s(silence_ns)}, or a smaller --prefill-chunk"
        )
    return plan


def understand(request: Request) -> tuple[DType, Inventory, Wanted]:
    """The dtype of the plan, the devices with their rates at that dtype, and what is wanted of them."""
    listed = parse_inventory(request.inventory, request.inventory_file)
    dtype = resolve_dtype(request.wanted, request.base, listed)
    inventory = parse_inventory(request.inventory, request.inventory_file, dtype)
    if request.device_map is None:
        return dtype, inventory, request.wanted
    if request.wanted.strategy != "custom":
        raise InputError(f"--device-map: the strategy is {request.wanted.strategy}, expected custom")
    draft = request.draft.draft if request.draft else None
    pins = device_map.read(request.device_map, request.device_map_file, request.base.model, draft, inventory)
    return dtype, inventory, dataclasses.replace(request.wanted, custom=pins)


def plan(
    base: BaseInput,
    draft: DraftInput | None,
    inventory: Inventory,
    options: Options,
    settings: Settings,
    previous: Plan | None = None,
    *,
    nearly: bool = False,
) -> Built:
    """Solve; raise InfeasibleError or NotProvenError."""
    formulation = formulate(base, draft, inventory, options)
    inputs = Inputs(
        base_config_sha256=base.config_sha256,
        base_tensors_sha256=base.tensors_sha256,
        draft_config_sha256=draft.config_sha256 if draft else None,
        draft_tensors_sha256=draft.tensors_sha256 if draft else None,
    )
    earlier = keep = None
    if options.within_ppm is not None:
        assert previous is not None, "an earlier plan is what is kept"
        if previous.model != base.model:
            raise InputError("--previous: a plan of another model: give one of this model")
        earlier = Previous(formulation, inputs, previous)
        keep = Keep(earlier=earlier, within_ppm=options.within_ppm)
    if nearly and keep is None:
        solved = solve_nearly(formulation.problem, settings)
    else:
        solved = solve(formulation.problem, settings, keep)
    if solved is None:
        raise infeasible(formulation.problem, settings)
    return Built(plan=emit(formulation, inputs, solved, earlier), solved=solved)


def formulate(base: BaseInput, draft: DraftInput | None, inventory: Inventory, options: Options) -> Formulation:
    """What the solver is given; raise InputError for what cannot be counted."""
    formulation = Formulation(
        model=base.model, draft=draft.draft if draft else None, options=options, inventory=inventory
    )
    _refuse_immense(formulation.problem)
    return formulation


def _refuse_immense(problem: Problem) -> None:
    """Raise InputError where sums would leave 64 bits: some figure is off by many orders of magnitude."""
    for name, nbytes in zip(problem.devices, problem.capacity_bytes, strict=True):
        if nbytes > MOST_BYTES:
            raise InputError(f"device {name}: memory of {nbytes} bytes, expected at most 1024 TiB")
    if most_bytes(problem) > MOST_BYTES:
        raise InputError("model, --batch and --context together take more than 1024 TiB: one of them is out of range")
    if most_ps(problem) > MOST_PS:
        unit_ps = [max(times) for times in zip(*(kind.unit_ps for kind in problem.kinds), strict=True)]
        slowest = problem.devices[unit_ps.index(max(unit_ps))]
        raise InputError(
            "a step could take more than 11 days: a bandwidth, flops, overhead or latency of the inventory is in the "
            f"wrong unit; the slowest device is {slowest}"
        )


def longest_context(
    base: BaseInput, draft: DraftInput | None, inventory: Inventory, wanted: Wanted, dtype: DType, settings: Settings
) -> int:
    """The largest context that fits: the model's own, or a multiple of 256 of which the next one is proven not to fit.

    Bytes only grow with the context, so it is found by bisection. Raises InfeasibleError where not even the least fits.
    """
    longest = resolve(wanted, dtype, base, draft).context

    def problem(context: int) -> Problem:
        options = resolve(dataclasses.replace(wanted, context=context), dtype, base, draft)
        return formulate(base, draft, inventory, options).problem

    if fits(problem(longest), settings):
        return longest
    least = least_step(wanted)
    steps = largest(least, -(-longest // CONTEXT_STEP) - 1, lambda n: fits(problem(n * CONTEXT_STEP), settings))
    if steps is None:
        raise infeasible(problem(min(least * CONTEXT_STEP, longest)), settings)
    return steps * CONTEXT_STEP


def least_step(wanted: Wanted) -> int:
    """The least context that ``max`` tries, in steps of 256: a prefill chunk is at most the context."""
    return -(-(wanted.prefill_chunk or 1) // CONTEXT_STEP)


def largest(least: int, most: int, works: Callable[[int], bool]) -> int | None:
    """The largest n in ``least`` … ``most`` that works, where all below one that works do; None: none does."""
    low, high = least - 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low if low >= least else None


def replan(directory: Path, frozen: Plan, settings: Settings) -> Plan:
    """The plan that the inputs recorded in ``directory`` lead to; no weights are needed.

    One that kept as much of an earlier plan as was allowed is to keep all of itself.
    """
    base = load_base(directory / "config.json")
    draft = None
    if frozen.draft is not None:
        draft = load_draft(directory / "draft" / "config.json", base, facts_of(frozen.draft))
    return plan(base, draft, frozen.inventory, frozen.options, settings, frozen).plan


def write(directory: Path, built: Plan, base: BaseInput, draft: DraftInput | None) -> None:
    """Write a plan's directory, ``plan.yaml`` last; raise OutputError where something else is in the way."""
    refuse_foreign(directory)
    source = base.checkpoint.config_file.parent
    given = {name: source / name for name in TOKENIZER_FILES if (source / name).is_file()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = codec.dumps(built).encode()
        unchanged = _has(directory / "plan.yaml", text)
        if not unchanged:
            _write_new(directory / "plan.yaml", text)  # first: by it is known whose a half-written directory is
        files = {name: file.read_bytes() for name, file in given.items()}
        files["config.json"] = base.checkpoint.config_bytes
        if draft is not None:
            (directory / "draft").mkdir(exist_ok=True)
            files["draft/config.json"] = draft.checkpoint.config_bytes
        _remove(directory / name for name in (*TOKENIZER_FILES, "draft/config.json") if name not in files)
        if draft is None and (directory / "draft").is_dir():
            (directory / "draft").rmdir()
        for name, content in files.items():
            if not _has(directory / name, content):
                _write_new(directory / name, content)
                _publish(directory / name)
        if not unchanged:
            _publish(directory / "plan.yaml")
    except OSError as error:
        raise OutputError(f"{directory}: cannot write the plan: {error}") from error


def refuse_foreign(directory: Path) -> None:
    """Raise OutputError unless ``directory`` is free, or has a plan, of whatever version, if only half written."""
    file = directory / "plan.yaml"
    if directory.is_dir():
        if any(directory.iterdir()) and not file.is_file() and not _new(file).is_file():
            raise OutputError(f"{directory}: holds something other than a plan (no plan.yaml): give another --out")
        if file.is_file() and not _is_plan(file):
            raise OutputError(f"{file}: is no plan, and would be overwritten: give another --out, or take it away")
    elif directory.exists() or directory.is_symlink():
        raise OutputError(f"{directory}: is not a directory: give another --out")


def _is_plan(file: Path) -> bool:
    """Whether it has the fields by which every version of a plan is known."""
    try:
        data = codec.load_yaml(codec.read_document(file), str(file))
    except (PlanError, OSError):
        return False
    return isinstance(data, dict) and {"schema", "inputs", "options", "inventory", "stages"} <= set(data)


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _has(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _new(file: Path) -> Path:
    """Where it is until it is whole."""
    return file.with_name(f".{file.name}.new")


def _write_new(file: Path, content: bytes) -> None:
    """On disk when this returns, but not yet in its place."""
    with _new(file).open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _publish(file: Path) -> None:
    """Put what was written into its place in one step, on disk when this returns."""
    _new(file).replace(file)
    handle = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
