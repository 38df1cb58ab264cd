"""Options of a plan and of a fleet: the arguments of the Python interface and, parsed, of the command ``build``.

Each is checked here, when the record is made; that the files can be read, and the options fit what is in them, is
found out by :func:`planner.api.planning.request_of`.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from inspect import signature
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, get_args

from planner.demo_model import BASE, DEFAULT_HEAD
from planner.errors import InputError
from planner.families import parse_aux_layers
from planner.request import MOST_POSITIONS, MOST_SOLVER_SEED, MOST_WORKERS, Objective, Schedule, Wanted
from plans.acceptance import PPM
from plans.check_inputs import MOST_BATCH, MOST_CLIENTS, MOST_DEVICES, MOST_STALL_S
from plans.fleet import MICRO, MOST_MICROTOKENS
from plans.format import quote
from plans.schema import DType, KvAxis, KvDType, RoundedWeights, Strategy, Tree

DEFAULTS = Wanted()
NUMBERS = {
    "batch": MOST_BATCH,
    "context": MOST_POSITIONS,
    "prefill_chunk": MOST_POSITIONS,
    "stall_timeout_s": MOST_STALL_S,
    "max_devices": MOST_DEVICES,
}
"""Largest number of each option that is one from 1, where it is given."""
NAMES = {
    "dtype": get_args(DType),
    "weights": get_args(RoundedWeights),
    "kv_dtype": get_args(KvDType),
    "kv_axis": get_args(KvAxis),
    "objective": get_args(Objective),
    "schedule": get_args(Schedule),
    "strategy": (*get_args(Strategy), "auto"),
}
"""Values of each option that is one of several names, where it is given."""
FRACTIONS = {"gap": PPM - 1, "within": PPM, "simplify": PPM}
"""Largest value of each option that is a fraction, in parts per million."""

P = ParamSpec("P")
Options = TypeVar("Options")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a plan is to be of; None stands for the default. Raise InputError for a value that no plan can have."""

    model: str | Path | None = None
    """Checkpoint directory, bare config, or ``org/name[@revision]`` in the Hugging Face cache; default: the demo model.
    """
    _: KW_ONLY
    inventory: str | Path
    draft: str | Path | None = None
    """The same of the EAGLE head; default: none, and for the demo model its own."""
    aux_layers: str | None = None
    """Layers of the model that an EAGLE-3 head reads, as text like ``inputs=2,18,33``."""
    context: int | Literal["max"] | None = DEFAULTS.context
    batch: int | None = DEFAULTS.batch
    """Sequences decoded at a time; None: 1, in a fleet the best for each replica."""
    dtype: DType | None = DEFAULTS.dtype
    weights: RoundedWeights | None = DEFAULTS.weights
    """Format to which the model's plain weights are rounded, as ``int4-g32``."""
    kv_dtype: KvDType | None = DEFAULTS.kv_dtype
    kv_axis: KvAxis | None = DEFAULTS.kv_axis
    strategy: Strategy | Literal["auto"] | None = None
    """Default: ``custom`` with a device map, else ``latency``, of which ``auto`` is another name."""
    device_map: str | Path | None = None
    tree: Tree | None = DEFAULTS.tree
    prefill_chunk: int | None = DEFAULTS.prefill_chunk
    stall_timeout_s: int | None = DEFAULTS.stall_timeout_s
    gap: float = 0.0
    """A placement is accepted that is proven to be within this fraction of the best."""
    previous: str | Path | None = None
    """An earlier plan of the model, of which as much is kept as ``within`` allows."""
    within: float | None = None
    """With ``previous``: a step is accepted that is longer than the shortest by this fraction; default: 0.02."""
    simplify: float = DEFAULTS.simplify_ppm / PPM
    """A step is accepted that is longer by this fraction, for fewer devices, then fewer different runs of layers."""
    max_devices: int | None = DEFAULTS.max_devices
    objective: Objective | None = None
    """Default: ``tokens`` with a draft, unless ``tree`` or a strategy is given, else ``step``."""
    profile: str | Path | None = None
    """Acceptance profile; default: that beside the config of ``draft``, or the published means of its kind."""
    schedule: Schedule = DEFAULTS.schedule

    def __post_init__(self) -> None:
        for name, most in NUMBERS.items():
            value = getattr(self, name)
            check_number(name, None if (name, value) == ("context", "max") else value, most)
        for name, values in NAMES.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise InputError(f"{name}: found {quote(value)}, expected one of {', '.join(values)}")
        for name, most in FRACTIONS.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 <= value <= most / PPM) and (name, value) != ("within", None):
                raise InputError(f"{name}: found {quote(value)}, expected a fraction like 0.05")
        if self.tree is not None and not isinstance(self.tree, Tree):
            raise InputError(f"tree: found {quote(self.tree)}, expected a planner.Tree")
        if self.aux_layers is not None and self.aux_inputs is None:
            expected = "a text like inputs=2,18,33 or outputs=1,17,32"
            raise InputError(f"aux_layers: found {quote(self.aux_layers)}, expected {expected}")

    @property
    def base(self) -> Path:
        """The model, or the demo model."""
        return Path(self.model or BASE)

    @property
    def head(self) -> Path | None:
        """The EAGLE head, None for plain decoding."""
        if self.draft is None:
            return DEFAULT_HEAD if self.model is None else None
        return Path(self.draft)

    @property
    def aux_inputs(self) -> tuple[int, ...] | None:
        """``aux_layers`` by the layers whose inputs are read."""
        return parse_aux_layers(self.aux_layers) if isinstance(self.aux_layers, str) else None

    def wanted(self) -> Wanted:
        """Return the options without the files; raise InputError for a strategy beside a device map."""
        strategy = self._strategy()
        chooses = self.head is not None and self.tree is None and strategy == "latency"
        return Wanted(
            context=self.context,
            batch=self.batch or DEFAULTS.batch,
            dtype=self.dtype,
            weights=self.weights,
            kv_dtype=self.kv_dtype,
            kv_axis=self.kv_axis,
            strategy=strategy,
            tree=self.tree,
            prefill_chunk=self.prefill_chunk,
            stall_timeout_s=self.stall_timeout_s,
            gap_ppm=round(self.gap * PPM),
            within_ppm=None if self.within is None else round(self.within * PPM),
            simplify_ppm=round(self.simplify * PPM),
            max_devices=self.max_devices,
            objective=self.objective or ("tokens" if chooses else "step"),
            schedule=self.schedule,
        )

    def _strategy(self) -> Strategy:
        name = "latency" if self.strategy == "auto" else self.strategy
        if self.device_map is None:
            return name or DEFAULTS.strategy
        if name not in (None, "custom"):
            raise InputError(f"--device-map {self.device_map}: is strategy custom: leave --strategy {name} out")
        return "custom"


@dataclass(frozen=True, slots=True)
class FleetOptions(BuildOptions):
    """What a fleet is to be of: the options of its plans but those of one placement, and what it is for."""

    _: KW_ONLY
    replicas: int | None = None
    """Number of replicas; default: as many as have the most tokens per second."""
    clients: int | None = None
    """Sequences that run at once on all replicas; default: one in each place."""
    min_tokens_per_s: float = 0.0
    """Least tokens per second of every sequence."""
    batch: int | None = None
    context: int | None = None
    simplify: float = 0.0
    strategy: None = dataclasses.field(init=False, default=None)
    device_map: None = dataclasses.field(init=False, default=None)
    previous: None = dataclasses.field(init=False, default=None)
    within: None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        BuildOptions.__post_init__(self)
        check_number("replicas", self.replicas, MOST_DEVICES)
        check_number("clients", self.clients, MOST_CLIENTS)
        number, most = self.min_tokens_per_s, MOST_MICROTOKENS / MICRO
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
            raise InputError(f"min_tokens_per_s: found {quote(number)}, expected a number from 0 to {most:g}")


def with_options_of(record: Callable[P, Options]) -> Callable[[Callable[[Options], Result]], Callable[P, Result]]:
    """Give a function of a record the arguments of the record, so that they are listed, typed and documented once."""

    def decorate(function: Callable[[Options], Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> Result:
            return function(record(*args, **options))

        own = signature(function)
        call.__signature__ = signature(record).replace(  # type: ignore[attr-defined] # what help() and inspect show
            return_annotation=own.return_annotation
        )
        return call

    return decorate


def check_search(workers: int, seed: int) -> None:
    """Raise InputError for threads or a seed that the solver does not take."""
    _check_integer("workers", workers, 1, MOST_WORKERS)
    _check_integer("seed", seed, 0, MOST_SOLVER_SEED)


def check_number(name: str, number: int | None, most: int) -> None:
    """Raise InputError for what is given and is no integer from 1 to ``most``."""
    if number is not None:
        _check_integer(name, number, 1, most)


def _check_integer(name: str, number: int, least: int, most: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"{name}: found {quote(number)}, expected an integer{' or max' if name == 'context' else ''}")
    if not least <= number <= most:
        raise InputError(f"{name}: found {quote(number)}, expected {least} to {most}")
