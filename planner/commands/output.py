"""Where a build writes, and what it says of it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Where a build writes, and what it says of it."""

    directory: Path
    plan_only: bool
    """No images are compiled."""
    as_json: bool
    verbose: int
    """Number of -v."""
