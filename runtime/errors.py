"""Why the runtime refuses to run: one tree, each error with the exit code a command ends with."""


class RuntimeRefusal(Exception):
    """Reality differs from the plan, or from what can be run; the message names the datum."""

    exit_code = 2


class RequestError(RuntimeRefusal):
    """The request cannot be served by this plan: too long, malformed, or asking for what the plan does not have."""


class ImageError(RuntimeRefusal):
    """An image, or ``images.yaml``, is not what the plan needs."""

    exit_code = 4


class ImageMissing(ImageError):
    """The file is not there."""


class ImageTruncated(ImageError):
    """The file has another size than ``images.yaml`` records."""


class ImageDamaged(ImageError):
    """The bytes are not those that were compiled."""


class ImageForeign(ImageError):
    """A whole file, but of another plan, another layout, or another slot table."""


class MachineError(RuntimeRefusal):
    """The machine is not the plan's: a device is missing, of another type, or has too little memory."""

    exit_code = 5


class PeerError(RuntimeRefusal):
    """Another rank died, hung, or disagrees."""

    exit_code = 5
