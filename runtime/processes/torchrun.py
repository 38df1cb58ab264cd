"""What torchrun told the process that it started, and the way to the others."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import psutil

from runtime.errors import MachineError


@dataclass(frozen=True, kw_only=True, slots=True)
class Torchrun:
    """What torchrun told this process: which rank is its own, of how many, and where the store is."""

    rank: int
    world: int
    host: str
    port: int
    serves: bool
    """The store is this process's matter, since torchrun has none: then the process of rank 0 has it."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """As the environment has it; None where torchrun did not start this process. Raises MachineError."""
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return None
        try:
            rank, world, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
            host = environment["MASTER_ADDR"]
        except KeyError as error:
            raise MachineError(
                f"{error.args[0]}: not set, though RANK and WORLD_SIZE are: start with torchrun"
            ) from error
        except ValueError as error:
            raise MachineError(f"RANK, WORLD_SIZE, MASTER_PORT: {error}: start with torchrun") from error
        if not 0 <= rank < world:
            raise MachineError(f"RANK: found {rank}, expected 0 to {world - 1}: start with torchrun")
        serves = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return cls(rank=rank, world=world, host=host, port=port, serves=serves)


def interface_towards(address: str) -> str | None:
    """The network interface through which this host reaches another one, or itself; None where none is known.

    gloo would take the one that the host's name resolves to, which need not be that of the network between the hosts.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    return next(
        (name for name, addresses in psutil.net_if_addrs().items() if any(own == known.address for known in addresses)),
        None,
    )
