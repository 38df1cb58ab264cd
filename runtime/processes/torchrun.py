"""Environment of a process that torchrun started: its rank, and the address of the run's store."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import psutil

from runtime.errors import MachineError


@dataclass(frozen=True, kw_only=True, slots=True)
class Torchrun:
    """Rank of this process among those that torchrun started, and where their key-value store is."""

    rank: int
    world: int
    """Number of processes."""
    host: str
    """Address of the store."""
    port: int
    serves: bool
    """True where this process must run the store: torchrun has none of its own, and this is rank 0."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Read the environment; return None where torchrun did not start this process. Raises MachineError."""
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
    """Return the network interface through which this host reaches an address; None where there is no route.

    gloo would take the interface that the host's name resolves to, which need not be the network between the hosts.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # a datagram socket sends nothing here, but has its own address now
            own = probe.getsockname()[0]
    except OSError:
        return None
    return next(
        (name for name, addresses in psutil.net_if_addrs().items() if any(own == known.address for known in addresses)),
        None,
    )
