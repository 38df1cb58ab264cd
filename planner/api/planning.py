"""Plans a model on an inventory: reads the inputs, solves, and holds the result."""

from dataclasses import dataclass, replace
from pathlib import Path

from planner import plan_directory
from planner.api.options import BuildOptions, with_options_of
from planner.build import build
from planner.errors import InfeasibleError, InputError
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.hardware.inventory import load_inventory
from planner.hardware.records import HardwareInventory
from planner.problem.device_map import load_device_map
from planner.problem.device_map import read as read_device_map
from planner.remedies.explain import explain
from planner.request import Request
from planner.solver.minimise import Settings
from planner.solver.solve import Solved
from planner.speculation.profiles import kept_profile, profile_beside, profile_of
from plans.acceptance import Profile
from plans.check import load
from plans.schema import Pin, Plan

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


@with_options_of(BuildOptions)
def plan(options: BuildOptions) -> PlanResult:
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
    request = request_of(options)
    settings = Settings(gap_ppm=request.wanted.gap_ppm)
    try:
        return solved(request, settings)
    except InfeasibleError as error:
        raise explain(request, error, settings, lambda words: None) from error


def request_of(options: BuildOptions) -> Request:
    """Read the inputs and return the request; raise InputError for what cannot be read or contradicts itself."""
    wanted = options.wanted()
    earlier, within_ppm = _load_previous(options.previous, wanted.within_ppm, wanted.gap_ppm)
    base = load_base(options.base, wanted.weights)
    if options.aux_layers is not None and options.head is None:
        raise InputError("--aux-layers: there is no EAGLE head that would read them: give --draft")
    drafter = load_draft(options.head, base, aux_layers=options.aux_inputs) if options.head else None
    devices = load_inventory(Path(options.inventory))
    pins = _pins(Path(options.device_map), base, drafter, devices) if options.device_map else None
    wanted = replace(wanted, custom=pins, within_ppm=within_ppm)
    if drafter is None and options.profile is not None:
        raise InputError("--profile: there is no draft whose acceptance it could be: give --draft")
    acceptance = None if drafter is None else _acceptance(options.profile, drafter)
    return Request(base=base, draft=drafter, inventory=devices, wanted=wanted, profile=acceptance, previous=earlier)


def _acceptance(file: str | Path | None, drafter: DraftInput) -> Profile:
    """Return the acceptance profile in a file, else that beside the drafter's config, else the shipped one."""
    if file is not None:
        return profile_of(Path(file), drafter.draft, inside=False)
    return profile_of(profile_beside(drafter.checkpoint.config_file.parent), drafter.draft, inside=True)


def solved(request: Request, settings: Settings) -> PlanResult:
    """Solve a request; raise InputError, InfeasibleError without changes, or NotProvenError."""
    built = build(request, settings)
    draft = request.draft if built.plan.draft is not None else None
    profile = kept_profile(built.plan, request.profile)
    return PlanResult(plan=built.plan, solved=built.solved, base=request.base, draft=draft, profile=profile)


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
