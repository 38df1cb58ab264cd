"""The error tree of the planner: each class knows the exit code that a command ends with.

    PlannerError              2
    ├── InputError            2   an input file, an option or a directory cannot be used
    │   ├── InventoryError    2   the inventory of devices is wrong
    │   ├── CheckpointError   2   a checkpoint is not what it claims, or not what its config implies
    │   ├── ConfigError       2   a config.json has a key or a value that no family computes
    │   └── OutputError       2   the place to write to is taken, or cannot be written
    ├── InfeasibleError       3   proven: the model does not fit
    ├── NotProvenError        3   the solver's limit was reached before the proof
    ├── ArtifactError         4   a file that belongs beside a plan is not there
    └── DetectionError        5   a GPU of this machine cannot be read or described
        └── NoGpuError        5   this machine has no GPU, or no driver for one

A plan, or an ``images.yaml``, that cannot be read raises ``plans.schema.PlanError`` (2). A message carries the path to
the datum, what was found, what was expected, and what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SLOW_STEP_NS = 10**9
"""A step that takes longer is slow: a person waits for every token."""


class PlannerError(Exception):
    """Any refusal of the planner."""

    exit_code = 2


class InputError(PlannerError):
    """An input file, an option or a directory that cannot be used."""


class InventoryError(InputError):
    """A wrong inventory of devices; the message starts with file and path (``hosts[0].devices[1].memory``)."""


class CheckpointError(InputError):
    """A checkpoint whose files, headers or tensors are not what they claim, or not what the config implies."""


class ValuesError(CheckpointError):
    """Values of a tensor that cannot be; the message starts with its name, before which the checkpoint is put."""


class ConfigError(InputError):
    """A ``config.json`` with a key, or a value, that no family computes."""


class OutputError(InputError):
    """A place to write to that holds something else, or cannot be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A single change of a refused request with which a placement exists: its plan has been built."""

    change: str
    """The change in words."""
    objective_ns: int
    """Predicted time of one step of the resulting plan."""
    args: tuple[str, ...] = ()
    """Options of ``build`` to append; each overrides an earlier one of its name. ``--gap`` is among them where the plan
    is not proven optimal within the limit."""
    inventory: str | None = None
    """Text of the whole changed inventory, to be given as ``--gpus``."""
    bound_ns: int | None = None
    """With a gap: proven lower bound of the step time; None where the plan is optimal."""

    @property
    def slow(self) -> bool:
        """True where a step takes more than a second, which few people wait for."""
        return self.objective_ns > SLOW_STEP_NS


class InfeasibleError(PlannerError):
    """A model that does not fit on the devices; the message says how many bytes are short, and where."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        short_bytes: Mapping[str, int],
        least_bytes: int = 0,
        changes: tuple[Change, ...] | None = None,
        undecided: tuple[str, ...] = (),
        untimed: tuple[str, ...] = (),
        estimates: tuple[str, ...] = (),
        tree: str | None = None,
    ) -> None:
        """Take missing bytes and remedies.

        ``short_bytes``: bytes by device, under the packing that the message names; ``least_bytes``: proven to be
        missing in all. ``changes``: single changes that make it fit, None where none were sought. ``undecided``: kinds
        of changes whose effect the limit left open; ``untimed``: kinds that make it fit with an unknown step time.
        ``estimates``: what would fit by its bytes, and is no option, in words. ``tree``: that of the changes' steps
        where a build chooses one, as ``--tree`` takes it.
        """
        super().__init__(message)
        self.short_bytes = dict(short_bytes)
        self.least_bytes = least_bytes
        self.undecided = undecided
        self.untimed = untimed
        self.estimates = estimates
        self.changes = changes
        self.tree = tree


class NotProvenError(PlannerError):
    """A search that reached its deterministic limit before the proof; the message says the gap."""

    exit_code = 3

    def __init__(self, message: str, *, objective_ns: int | None = None, bound_ns: int | None = None) -> None:
        """Take the step time of the best placement found and the proven lower bound; None where not known."""
        super().__init__(message)
        self.objective_ns = objective_ns
        self.bound_ns = bound_ns

    @property
    def gap(self) -> float | None:
        """Relative distance of step time and bound; 0 where the step is proven and a later objective is not."""
        if self.objective_ns is None or self.bound_ns is None:
            return None
        return (self.objective_ns - self.bound_ns) / max(1, self.objective_ns)


class ArtifactError(PlannerError):
    """A file that belongs beside a plan, and is not there."""

    exit_code = 4


class DetectionError(PlannerError):
    """A GPU of this machine that cannot be read, or described as an inventory, or a machine that is not measured."""

    exit_code = 5


class NoGpuError(DetectionError):
    """A machine without a GPU, or without a driver for one."""
