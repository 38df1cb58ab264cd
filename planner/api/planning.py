"""Plans a model on an inventory: reads the inputs, solves, and holds the result."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from planner import plan_directory
from planner.build import build
from planner.demo_model import BASE, DEFAULT_HEAD
from planner.errors import InfeasibleError, InputError
from planner.families import BaseInput, DraftInput, load_base, load_draft, parse_aux_layers
from planner.hardware.inventory import load_inventory
from planner.hardware.records import HardwareInventory
from planner.problem.device_map import load_device_map
from planner.problem.device_map import read as read_device_map
from planner.remedies.explain import explain
from planner.request import MOST_POSITIONS, Objective, Request, Schedule, Wanted
from planner.solver.minimise import Settings
from planner.solver.solve import Solved
from planner.speculation.profiles import kept_profile, profile_beside, profile_of
from plans.acceptance import PPM, Profile
from plans.check import load
from plans.check_inputs import MOST_BATCH, MOST_DEVICES, MOST_STALL_S
from plans.format import quote
from plans.schema import DType, KvAxis, KvDType, Pin, Plan, RoundedWeights, Strategy, Tree

DEFAULTS = Wanted()
DEFAULT_WITHIN_PPM = 20_000
"""Relative increase of the step time that keeping an earlier plan's weights in place may cost, in parts per million."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanResult:
    """A plan with its proof and the checkpoints that it was made for."""

    plan: Plan
    solved: Solved
    """Proof: objective and bound in ns, each objective of the solver, seconds."""
    base: BaseInput
    draft: DraftInput | None
    """None: plain decoding, also where it is expected to be faster than any draft."""
    profile: Profile | None = None
    """Acceptance profile: that by which the tree was chosen, or of the drafter where it is not the shipped one."""

    @property
    def configs_without_tensors(self) -> tuple[Path, ...]:
        """Configs that were given without tensors: nothing can be compiled from them."""
        checkpoints = (self.base.checkpoint, *((self.draft.checkpoint,) if self.draft else ()))
        return tuple(checkpoint.config_file for checkpoint in checkpoints if checkpoint.tensors is None)

    def write(self, directory: str | Path) -> Path:
        """Write plan.yaml, the configs and the tokenizer to ``directory``; raise OutputError where it cannot be used.

        The images are compiled by :func:`planner.compile`.
        """
        plan_directory.write(Path(directory), self.plan, self.base, self.draft, self.profile)
        return Path(directory)


def plan(
    model: str | Path | None = None,
    *,
    inventory: str | Path,
    draft: str | Path | None = None,
    aux_layers: str | None = None,
    context: int | Literal["max"] | None = DEFAULTS.context,
    batch: int = DEFAULTS.batch,
    dtype: DType | None = DEFAULTS.dtype,
    weights: RoundedWeights | None = DEFAULTS.weights,
    kv_dtype: KvDType | None = DEFAULTS.kv_dtype,
    kv_axis: KvAxis | None = DEFAULTS.kv_axis,
    strategy: Strategy | Literal["auto"] | None = None,
    device_map: str | Path | None = None,
    tree: Tree | None = DEFAULTS.tree,
    prefill_chunk: int | None = DEFAULTS.prefill_chunk,
    stall_timeout_s: int | None = DEFAULTS.stall_timeout_s,
    gap: float = 0.0,
    previous: str | Path | None = None,
    within: float | None = None,
    simplify: float = DEFAULTS.simplify_ppm / PPM,
    max_devices: int | None = DEFAULTS.max_devices,
    objective: Objective | None = None,
    profile: str | Path | None = None,
    schedule: Schedule = DEFAULTS.schedule,
) -> PlanResult:
    """Return the plan of a model on an inventory; the arguments are the options of ``build``.

    ``model``, ``draft``: checkpoint directories, bare configs, or ``org/name[@revision]`` in the Hugging Face cache;
    without either, the demo model and its EAGLE head.
    ``weights``: format to which the model's plain weights are rounded, as ``int4-g32``.
    ``aux_layers``: layers of the model that an EAGLE-3 head reads, as text like ``inputs=2,18,33``.
    ``gap``: accept a placement proven to be within this fraction of the best. ``within``: with ``previous``, accept a
    step that is longer than the shortest by this fraction, 0.02 by default. ``simplify``: accept one that is longer by
    this fraction for fewer devices in use, then fewer different runs of layers. ``max_devices``: most devices in use.
    ``objective``: ``tokens`` chooses the draft tree, or none, by expected tokens per second (the default with a draft,
    unless ``tree`` or a strategy is given); ``step`` minimises the step of ``tree``. ``profile``: acceptance profile,
    by default that beside the config of ``draft``, or the published means of its kind.
    ``schedule``: with ``tokens`` and a batch, trees by number of running sequences: ``on``, ``off``, or ``keep``, with
    the draft although plain decoding is faster with all sequences.

    Raise InputError for what cannot be read or planned, InfeasibleError with the changes that would make it fit, or
    NotProvenError where the solver's limit ends the proof.
    """
    request = requested(
        model=model,
        inventory=inventory,
        draft=draft,
        aux_layers=aux_layers,
        context=context,
        batch=batch,
        dtype=dtype,
        weights=weights,
        kv_dtype=kv_dtype,
        kv_axis=kv_axis,
        tree=tree,
        prefill_chunk=prefill_chunk,
        stall_timeout_s=stall_timeout_s,
        gap=gap,
        simplify=simplify,
        max_devices=max_devices,
        objective=objective,
        profile=profile,
        schedule=schedule,
        strategy=strategy,
        device_map=device_map,
        previous=previous,
        within=within,
    )
    settings = Settings(gap_ppm=request.wanted.gap_ppm)
    try:
        return solved(request, settings)
    except InfeasibleError as error:
        raise explain(request, error, settings, lambda words: None) from error


def requested(
    *,
    model: str | Path | None,
    inventory: str | Path,
    draft: str | Path | None,
    aux_layers: str | None,
    context: int | Literal["max"] | None,
    batch: int,
    dtype: DType | None,
    weights: RoundedWeights | None,
    kv_dtype: KvDType | None,
    kv_axis: KvAxis | None,
    tree: Tree | None,
    prefill_chunk: int | None,
    stall_timeout_s: int | None,
    gap: float,
    simplify: float,
    max_devices: int | None,
    objective: Objective | None,
    profile: str | Path | None,
    schedule: Schedule,
    strategy: Strategy | Literal["auto"] | None = None,
    device_map: str | Path | None = None,
    previous: str | Path | None = None,
    within: float | None = None,
) -> Request:
    """Return the request of arguments as :func:`plan` has them; raise InputError."""
    for name, number, most in (
        ("batch", batch, MOST_BATCH),
        ("context", None if context == "max" else context, MOST_POSITIONS),
        ("prefill_chunk", prefill_chunk, MOST_POSITIONS),
        ("stall_timeout_s", stall_timeout_s, MOST_STALL_S),
        ("max_devices", max_devices, MOST_DEVICES),
    ):
        check_number(name, number, most)
    _check_name("dtype", dtype, get_args(DType))
    _check_name("weights", weights, get_args(RoundedWeights))
    _check_name("kv_dtype", kv_dtype, get_args(KvDType))
    _check_name("kv_axis", kv_axis, get_args(KvAxis))
    _check_name("objective", objective, get_args(Objective))
    _check_name("schedule", schedule, get_args(Schedule))
    strategy = "latency" if strategy == "auto" else strategy
    _check_name("strategy", strategy, get_args(Strategy))
    if tree is not None and not isinstance(tree, Tree):
        raise InputError(f"tree: found {quote(tree)}, expected a planner.Tree")
    if model is None and draft is None:
        draft = DEFAULT_HEAD
    wanted = Wanted(
        context=context,
        batch=batch,
        dtype=dtype,
        weights=weights,
        kv_dtype=kv_dtype,
        kv_axis=kv_axis,
        strategy=strategy_of(strategy, device_map),
        tree=tree,
        prefill_chunk=prefill_chunk,
        stall_timeout_s=stall_timeout_s,
        gap_ppm=_ppm("gap", gap, PPM - 1),
        within_ppm=None if within is None else _ppm("within", within, PPM),
        simplify_ppm=_ppm("simplify", simplify, PPM),
        max_devices=max_devices,
        objective=objective_of(objective, draft, tree, strategy_of(strategy, device_map)),
        schedule=schedule,
    )
    return request_of(
        wanted,
        profile=profile,
        model=model,
        draft=draft,
        aux_layers=_aux_layers(aux_layers),
        inventory=inventory,
        device_map=device_map,
        previous=previous,
    )


def request_of(
    wanted: Wanted,
    *,
    model: str | Path | None,
    draft: str | Path | None,
    aux_layers: tuple[int, ...] | None,
    inventory: str | Path,
    device_map: str | Path | None,
    previous: str | Path | None,
    profile: str | Path | None = None,
) -> Request:
    """Read the inputs and return the request; raise InputError for what cannot be read or contradicts itself.

    Without a ``model`` the demo model; without a ``draft`` plain decoding. ``wanted.custom`` is read from
    ``device_map``; ``wanted.within_ppm`` has a default where there is an earlier plan.
    """
    earlier, within_ppm = _load_previous(previous, wanted.within_ppm, wanted.gap_ppm)
    base = load_base(Path(model or BASE), wanted.weights)
    if aux_layers is not None and draft is None:
        raise InputError("--aux-layers: there is no EAGLE head that would read them: give --draft")
    drafter = load_draft(Path(draft), base, aux_layers=aux_layers) if draft else None
    devices = load_inventory(Path(inventory))
    pins = _pins(Path(device_map), base, drafter, devices) if device_map else None
    wanted = replace(wanted, custom=pins, within_ppm=within_ppm)
    if drafter is None and profile is not None:
        raise InputError("--profile: there is no draft whose acceptance it could be: give --draft")
    acceptance = None if drafter is None else _acceptance(profile, drafter)
    return Request(base=base, draft=drafter, inventory=devices, wanted=wanted, profile=acceptance, previous=earlier)


def _acceptance(file: str | Path | None, drafter: DraftInput) -> Profile:
    """Return the acceptance profile in a file, else that beside the drafter's config, else the shipped one."""
    if file is not None:
        return profile_of(Path(file), drafter.draft, inside=False)
    return profile_of(profile_beside(drafter.checkpoint.config_file.parent), drafter.draft, inside=True)


def objective_of(asked: Objective | None, draft: str | Path | None, tree: Tree | None, strategy: Strategy) -> Objective:
    """Return the objective: where none is asked for, tokens if nothing but the draft is given that decides of it."""
    if asked is not None:
        return asked
    return "tokens" if draft is not None and tree is None and strategy == "latency" else "step"


def solved(request: Request, settings: Settings) -> PlanResult:
    """Solve a request; raise InputError, InfeasibleError without changes, or NotProvenError."""
    built = build(request, settings)
    draft = request.draft if built.plan.draft is not None else None
    profile = kept_profile(built.plan, request.profile)
    return PlanResult(plan=built.plan, solved=built.solved, base=request.base, draft=draft, profile=profile)


def strategy_of(name: Strategy | None, device_map: str | Path | None) -> Strategy:
    """Return the strategy: ``custom`` with a device map, else the default where none is named."""
    if device_map is None:
        return name or DEFAULTS.strategy
    if name not in (None, "custom"):
        raise InputError(f"--device-map {device_map}: is strategy custom: leave --strategy {name} out")
    return "custom"


def _pins(device_map: Path, base: BaseInput, drafter: DraftInput | None, devices: HardwareInventory) -> tuple[Pin, ...]:
    """Return a device map as pins of the model's modules to the devices of an inventory."""
    data = load_device_map(device_map)
    return read_device_map(data, str(device_map), base.model, drafter.draft if drafter else None, devices.devices)


def _load_previous(previous: str | Path | None, within_ppm: int | None, gap_ppm: int) -> tuple[Plan | None, int | None]:
    """Return the earlier plan, and how much longer than the shortest a step may take to keep its weights in place."""
    if previous is None:
        if within_ppm is not None:
            raise InputError("--within: there is no earlier plan: give --previous")
        return None, None
    if gap_ppm:
        raise InputError("--previous: needs the proven shortest step, which --gap does not give: leave --gap out")
    return load(Path(previous)), DEFAULT_WITHIN_PPM if within_ppm is None else within_ppm


def _ppm(name: str, fraction: float, most: int) -> int:
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= most / PPM:
        raise InputError(f"{name}: found {quote(fraction)}, expected a fraction like 0.05")
    return round(fraction * PPM)


def _aux_layers(text: str | None) -> tuple[int, ...] | None:
    layers = parse_aux_layers(text) if isinstance(text, str) else None
    if text is not None and layers is None:
        raise InputError(f"aux_layers: found {quote(text)}, expected a text like inputs=2,18,33 or outputs=1,17,32")
    return layers


def check_number(name: str, number: int | None, most: int) -> None:
    """Raise InputError for what is given and is no integer from 1 to ``most``."""
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"{name}: found {quote(number)}, expected an integer{' or max' if name == 'context' else ''}")
    if not 1 <= number <= most:
        raise InputError(f"{name}: found {quote(number)}, expected 1 to {most}")


def _check_name(name: str, value: str | None, values: tuple[str, ...]) -> None:
    if value is not None and value not in values:
        raise InputError(f"{name}: found {quote(value)}, expected one of {', '.join(values)}")
