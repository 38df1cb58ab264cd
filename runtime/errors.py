"""The error tree of the runtime: each class knows the exit code that a command ends with.

    RuntimeRefusal            2
    ├── RequestError          2   the plan cannot serve the request
    │   ├── QueueFull         2   as many requests wait as may
    │   └── Draining          2   no more requests are taken
    ├── ImageError            4   an image, or images.yaml, is not the plan's
    │   ├── ImageMissing      4
    │   ├── ImageTruncated    4
    │   ├── ImageDamaged      4
    │   └── ImageForeign      4
    ├── MachineError          5   the machine is not the plan's
    └── PeerError             5   another rank died, hung or disagrees
        └── MeetingError      5   the ranks did not connect, and none of them is to blame

A plan that cannot be read raises ``plans.schema.PlanError`` (2). A message carries the path to the datum, what was
found, what was expected, and what to do.
"""


class RuntimeRefusal(Exception):
    """Any refusal of the runtime: the request, a file or the machine is not what the plan needs."""

    exit_code = 2


class RequestError(RuntimeRefusal):
    """A request that this plan cannot serve: too long, malformed, or asking for what the plan does not have."""


class QueueFull(RequestError):
    """A request beyond those that may wait; ``waiting``: how many do."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests wait already, as many as may: send it again later")
        self.waiting = waiting


class Draining(RequestError):
    """A request that comes after the end of taking requests."""

    def __init__(self) -> None:
        super().__init__("no more requests are taken: those that run are served to their end")


class ImageError(RuntimeRefusal):
    """An image, or ``images.yaml``, that is not what the plan needs."""

    exit_code = 4


class ImageMissing(ImageError):
    """A file that is not there."""


class ImageTruncated(ImageError):
    """A file of another size than ``images.yaml`` records."""


class ImageDamaged(ImageError):
    """Bytes that are not those that were compiled."""


class ImageForeign(ImageError):
    """A whole file, but of another plan, another layout, or another slot table."""


class MachineError(RuntimeRefusal):
    """A machine that is not the plan's: a device is missing, of another type, or has too little memory."""

    exit_code = 5


class PeerError(RuntimeRefusal):
    """Another rank that died, hung, or was given another plan or request."""

    exit_code = 5


class MeetingError(PeerError):
    """Ranks that did not connect to each other, for a reason that none of them can tell."""
