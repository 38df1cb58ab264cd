"""Fleets: an inventory divided into replicas with a plan each; built, checked and compared."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from planner.api.checking import Repeated
from planner.api.options import FleetOptions, check_search, with_options_of
from planner.api.planning import request_of
from planner.errors import InfeasibleError, InputError
from planner.fleet import directory as fleet_directory
from planner.fleet.build import BuiltFleet, build_fleet
from planner.fleet.templates import FleetInput
from planner.integers import ceil_div
from planner.request import Request, resolve_request
from planner.solver.minimise import Settings
from plans.check_inputs import MOST_BATCH
from plans.codec import FLEET_FILE
from plans.diff import Difference
from plans.fleet import MICRO, Fleet, FleetRequest, is_canonical
from plans.fleet_diff import LoadedFleet, fleet_differences, fleet_summary, load_with_plans
from plans.schema import Plan

MOST_EQUAL = 8
"""Replicas up to which one may have just as many places as its part of the clients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a fleet is for."""

    replicas: int | None = None
    """Number of replicas; None: any."""
    clients: int | None = None
    """Sequences that run at once; None: one in every place of every replica."""
    min_tokens_per_s: float = 0.0
    """Least tokens per second of every sequence."""
    batch: int | None = None
    """Places of every replica; None: 1, or with ``clients`` the best for each (:func:`_batches`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetResult:
    """A fleet with its plans, and what it was made from."""

    built: BuiltFleet
    given: FleetInput

    @property
    def fleet(self) -> Fleet:
        """The division."""
        return self.built.fleet

    @property
    def plans(self) -> dict[str, Plan]:
        """The plans, by template."""
        return self.built.plans

    @property
    def loaded(self) -> LoadedFleet:
        """Fleet and plans, as :func:`read_fleet` returns them."""
        return LoadedFleet(fleet=self.fleet, plans=self.plans)

    def write(self, directory: str | Path) -> Path:
        """Write fleet.yaml, the inputs, and each template's plan; raise OutputError where it cannot be used."""
        fleet_directory.write(Path(directory), self.built, self.given)
        return Path(directory)


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetCheck(Repeated):
    """A fleet, and the one that its inputs lead to."""

    file: ClassVar[str] = FLEET_FILE
    before: LoadedFleet
    again: LoadedFleet


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetDiff:
    """Two fleets compared."""

    before: LoadedFleet
    after: LoadedFleet
    differences: tuple[Difference, ...]
    """Every datum of the fleets and their plans that differs, and the replicas that changed."""

    @property
    def equal(self) -> bool:
        """True where fleets and plans are equal."""
        return not self.differences

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines that ``diff`` prints: tokens/s, replicas and templates that changed, every difference."""
        return fleet_summary(self.before, self.after)


@with_options_of(FleetOptions)
def plan_fleet(options: FleetOptions) -> FleetResult:
    """Return the division of an inventory into replicas of a model: what ``build --replicas`` makes.

    ``replicas``: how many, by default as many as have the most tokens per second. ``clients``: sequences that run
    at once on all of them, by default one in each place. ``min_tokens_per_s``: of every sequence. ``batch``: places
    of each replica, by default 1, or with ``clients`` the best number for each, and steps are priced by what runs
    then. ``max_devices``: of a replica. ``gap``: accept a division proven to be within this fraction of the best.
    The others are as for :func:`planner.plan`.

    Raise InputError, InfeasibleError or NotProvenError as that does.
    """
    asked = Asked(
        replicas=options.replicas,
        clients=options.clients,
        min_tokens_per_s=options.min_tokens_per_s,
        batch=options.batch,
    )
    return divided(request_of(options), asked, Settings())


def divided(request: Request, asked: Asked, settings: Settings) -> FleetResult:
    """Divide the inventory of a request; raise InputError, InfeasibleError or NotProvenError.

    The batch of ``request.wanted`` counts for nothing: ``asked`` has it.
    """
    wanted = request.wanted
    for option, value, usual in (
        ("--strategy", wanted.strategy, "latency"),
        ("--context max", wanted.context == "max", False),
        ("--previous", wanted.within_ppm, None),
    ):
        if value != usual:
            raise InputError(
                f"{option}: is of one placement, and --replicas divides devices over several: leave it out"
            )
    if asked.clients is not None and asked.clients < (asked.replicas or 1):
        raise InputError(
            f"--clients: found {asked.clients}, expected at least one for each of {asked.replicas} replicas"
        )
    batches = _batches(asked)
    single = replace(wanted, batch=batches[0], gap_ppm=0)  # the gap is of the division, its plans are proven
    options, inventory = resolve_request(replace(request, wanted=single))
    fleet_request = FleetRequest(
        options=options,
        tree_chosen=wanted.objective == "tokens",
        schedule=wanted.objective == "tokens" and wanted.schedule != "off",
        keep_draft=wanted.objective == "tokens" and wanted.schedule == "keep",
        batches=batches,
        stall_timeout_s=wanted.stall_timeout_s,
        replicas=asked.replicas,
        clients=asked.clients,
        min_microtokens_per_s=round(asked.min_tokens_per_s * MICRO),
        gap_ppm=wanted.gap_ppm,
        solver_limit=float(settings.limit),
    )
    given = FleetInput(base=request.base, draft=request.draft, profile=request.profile, inventory=inventory)
    exact = replace(settings, gap_ppm=0)
    return FleetResult(built=build_fleet(given, fleet_request, exact), given=given)


def _batches(asked: Asked) -> tuple[int, ...]:
    """Return the numbers of places that a replica may have.

    Two to each doubling, so that few places are free at any load; and what each of few equal replicas has of the
    clients. Of many it is near one of the former, with a replica more or less.
    """
    if asked.batch is not None or asked.clients is None:
        return (asked.batch or 1,)
    most = min(MOST_BATCH, asked.clients)
    octaves = (1 << n for n in range(most.bit_length()))
    halves = (octave * half // 2 for octave in octaves for half in (2, 3))
    replicas = range(1, MOST_EQUAL + 1) if asked.replicas is None else (asked.replicas,)
    equal = (ceil_div(asked.clients, number) for number in replicas)
    return tuple(sorted({most, *(places for places in (*halves, *equal) if places <= most)}))


def check_fleet(directory: str | Path, *, workers: int = 1, seed: int = 0) -> FleetCheck:
    """Divide the inventory of a fleet again from its own inputs, and compare fleet and plans; no weights are read.

    Raise as :func:`planner.check` does.
    """
    check_search(workers, seed)
    directory = Path(directory)
    before = load_with_plans(directory)
    fleet = before.fleet
    settings = Settings(workers=workers, seed=seed, limit=fleet.request.solver_limit)
    try:
        built = build_fleet(fleet_directory.read_input(directory, fleet), fleet.request, settings)
    except InfeasibleError as error:
        raise InfeasibleError(f"{directory}: {error}", error.short_bytes, error.least_bytes) from error
    again = LoadedFleet(fleet=built.fleet, plans=built.plans)
    return FleetCheck(
        before=before,
        again=again,
        differences=fleet_differences(before, again),
        canonical=is_canonical(directory, fleet),
    )


def read_fleet(directory: str | Path) -> LoadedFleet:
    """Read a fleet with its plans by template; raise PlanError where there is none, or it contradicts itself."""
    return load_with_plans(Path(directory))


def diff_fleets(before: LoadedFleet | str | Path, after: LoadedFleet | str | Path) -> FleetDiff:
    """Compare two fleets, or the fleets in two directories; raise PlanError as :func:`read_fleet` does."""
    old, new = (fleet if isinstance(fleet, LoadedFleet) else read_fleet(fleet) for fleet in (before, after))
    return FleetDiff(before=old, after=new, differences=fleet_differences(old, new))
