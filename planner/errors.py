"""The error tree of the planner: each class knows the exit code that a command ends with.

A message carries the path to the datum, what was found, what was expected, and what to do.
"""

from collections.abc import Mapping


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


class InfeasibleError(PlannerError):
    """The model does not fit on the devices; the message says how many bytes are short, and where."""

    exit_code = 3

    def __init__(self, message: str, short_bytes: Mapping[str, int]) -> None:
        """``short_bytes``: of each device, under the placement that misses least."""
        super().__init__(message)
        self.short_bytes = dict(short_bytes)


class NotProvenError(PlannerError):
    """The solver reached its deterministic limit before the proof; the message says the gap."""

    exit_code = 3


class ArtifactError(PlannerError):
    """A compiled artifact is missing, damaged or belongs to another plan."""

    exit_code = 4


class MachineError(PlannerError):
    """The machine is not the one of the plan."""

    exit_code = 5
