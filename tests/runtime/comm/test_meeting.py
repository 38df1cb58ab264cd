"""Ranks that meet under torchrun: plans are compared, and those of a machine open the memory of its first rank."""

import socket
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from plans import codec
from plans.schema import Plan
from runtime.comm.meeting import Rendezvous, connect, machines, shared_by_ranks
from runtime.comm.progress import Progress
from runtime.comm.shared_memory import address_of, unnamed_memory
from runtime.errors import MachineError, PeerError
from runtime.model import ops
from tests.plan_factory import group, make_device, make_model, make_plan

MODEL = make_model(num_layers=2)


def plan_on(*hosts: str) -> Plan:
    """Return a plan of one stage with a CPU device on each of the hosts, which may be the same."""
    devices = [make_device(name, host=host) for name, host in zip("abcd", hosts, strict=False)]
    names = [device.id for device in devices]
    return make_plan(MODEL, [group(MODEL, names, 2)], devices=devices)


@pytest.fixture
def store() -> TCPStore:
    ops.prepare_exchange(torch.float32)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def rank_1(plan: Plan, store: TCPStore) -> None:
    connect(plan, 1, Rendezvous(address=("127.0.0.1", store.port)), Progress(), ops.exchange).resources.close()


def test_the_ranks_of_a_host_share_memory() -> None:
    assert machines(plan_on("box", "box")) == {0: (0, 1), 1: (0, 1)}
    assert machines(plan_on("box", "other")) == {}
    with shared_by_ranks(plan_on("box", "box")) as (first, second):
        assert first == second
        assert first is not None
        assert Path(first).exists()


def test_a_rank_opens_the_memory_of_the_first_of_its_machine(store: TCPStore) -> None:
    plan = plan_on("box", "box")
    store.set("plan/0", codec.digest(plan))
    with unnamed_memory(2) as path:
        store.set("memory/0", address_of(path))
        rank_1(plan, store)


@pytest.mark.parametrize("address", ["00000000-0000-4000-8000-000000000000 1 2", "nonsense", "x" * 10_000])
def test_memory_on_another_machine_is_refused(address: str, store: TCPStore) -> None:
    plan = plan_on("box", "box")
    store.set("plan/0", codec.digest(plan))
    store.set("memory/0", address)
    with pytest.raises(MachineError) as caught:
        rank_1(plan, store)
    assert str(caught.value) == (
        "device b (rank 1) shares memory with a (rank 0) in the plan, and cannot open it: start the ranks of a host on "
        "one machine, as one user, in one container; hosts that are different machines have a network of another class "
        "than shm"
    )


def test_another_plan_is_named(store: TCPStore) -> None:
    plan = plan_on("box", "box")
    store.set("plan/0", "\x1b" + "0" * 100)
    with pytest.raises(PeerError, match=r"rank 0 has plan \\x1b0{15}, rank 1 [0-9a-f]{16}: give all hosts the same"):
        rank_1(plan, store)
