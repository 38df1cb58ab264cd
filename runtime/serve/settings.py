"""Options of a server, and which addresses only this machine reaches."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from plans.schema import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Most that connections and requests may take."""

    connections: int = 512
    idle_s: int = 60
    """Seconds that a connection may be idle between requests."""
    headers_s: float = 10.0
    """Seconds from the connection, or the first byte of a later request, to the end of the headers."""
    body_s: float = 30.0
    """Seconds in which a body comes."""
    body_bytes: int = 4 << 20
    """Bytes of one body."""
    bodies_bytes: int = 64 << 20
    """Bytes of all bodies that are being received and read."""
    write_s: float = 30.0
    """Seconds in which a client takes what was sent to it."""


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
    limits: Limits = Limits()


def is_loopback(host: str) -> bool:
    """Return True for an address or name that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
