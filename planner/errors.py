"""The error tree of the planner: each class knows the exit code that a command ends with.

A message carries the path to the datum, what was found, what was expected, and what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass


class PlannerError(Exception):
    """Any refusal of the planner."""

    exit_code = 2


class InputError(PlannerError):
    """Something that was given cannot be used: an input file, an option, a directory."""


class InventoryError(InputError):
    """The inventory of devices is wrong; the message starts with file and path (``hosts[0].devices[1].memory``)."""


class CheckpointError(InputError):
    """A checkpoint's files, headers or tensors are not what they claim, or not what the config implies."""


class ConfigError(InputError):
    """A ``config.json`` has a key, or a value, that no family here computes."""


class OutputError(InputError):
    """The place to write to holds something else, or cannot be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A single change of what was given to ``build``, with which a placement exists: it has been solved."""

    change: str
    """In words."""
    objective_ns: int
    """Predicted time of one step of the plan that comes out."""
    args: tuple[str, ...] = ()
    """Options to add to those that were given; each overrides what was given for it. ``--gap`` is among them where no
    more is proven within the limit."""
    inventory: str | None = None
    """The whole changed inventory file, for ``--gpus``."""
    bound_ns: int | None = None
    """Where a gap is accepted: no placement takes less."""


class InfeasibleError(PlannerError):
    """The model does not fit on the devices; the message says how many bytes are short, and where."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        short_bytes: Mapping[str, int],
        least_bytes: int = 0,
        changes: tuple[Change, ...] | None = None,
        undecided: tuple[str, ...] = (),
        untimed: tuple[str, ...] = (),
    ) -> None:
        """``short_bytes``: of each device, under the packing that the message names; ``least_bytes``: in all, proven.

        ``changes``: every single change that makes it fit; None: none was looked for. ``undecided``: kinds of changes
        of which the limit left open whether they do; ``untimed``: of those that do, how fast a step then is.
        """
        super().__init__(message)
        self.short_bytes = dict(short_bytes)
        self.least_bytes = least_bytes
        self.undecided = undecided
        self.untimed = untimed
        self.changes = changes


class NotProvenError(PlannerError):
    """The solver reached its deterministic limit before the proof; the message says the gap."""

    exit_code = 3

    def __init__(self, message: str, *, objective_ns: int | None = None, bound_ns: int | None = None) -> None:
        """``objective_ns``: step time of the best placement found; ``bound_ns``: none takes less; None: not known."""
        super().__init__(message)
        self.objective_ns = objective_ns
        self.bound_ns = bound_ns

    @property
    def gap(self) -> float | None:
        """Relative distance of the two; 0 where the step time is proven, and an objective after it is not."""
        if self.objective_ns is None or self.bound_ns is None:
            return None
        return (self.objective_ns - self.bound_ns) / max(1, self.objective_ns)


class ArtifactError(PlannerError):
    """A compiled artifact is missing, damaged or belongs to another plan."""

    exit_code = 4


class MachineError(PlannerError):
    """The machine is not the one of the plan."""

    exit_code = 5
