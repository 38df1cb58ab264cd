"""Options of a server, and which addresses only this machine reaches."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from plans.schema import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Options of a server."""

    plan: Plan
    directory: Path
    model: str
    """Name of the model in requests."""
    host: str
    key: str | None
    """Key of all requests; None asks for none."""
    queue: int
    """Most requests that wait for a place."""


def is_loopback(host: str) -> bool:
    """Return True for an address or name that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
