"""Processes started by torchrun: their environment, their exchange of progress, and the end of a run."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from plans.schema import Plan
from runtime import Engine
from runtime.errors import MachineError, PeerError
from runtime.processes.torchrun import Torchrun, interface_towards
from runtime.processes.torchrun_store import Exchange, tell_failure
from runtime.processes.watchdog import Sight
from tests.runtime.small import compiled_plan

ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "9"}
SIGHT = Sight(
    phase="verify", ticks=7, group="world", queued="", number=0, used_s=0.5, stopped=False, asked=1, served=0
)  # fmt: skip


def test_the_environment_of_torchrun_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Torchrun.of({}) is None
    assert Torchrun.of(ENVIRONMENT) == Torchrun(rank=1, world=2, host="h", port=9, serves=False)
    first = ENVIRONMENT | {"RANK": "0"}
    assert [Torchrun.of(first | {"TORCHELASTIC_USE_AGENT_STORE": serving}).serves for serving in ("True", "False")] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "x"}, "invalid literal"),
        ({"RANK": "2"}, "RANK: found 2, expected 0 to 1"),
        ({"MASTER_PORT": None}, "MASTER_PORT: not set"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: not set"),
    ],
)
def test_an_invalid_environment_of_torchrun_is_refused(change: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in (ENVIRONMENT | change).items() if value is not None}
    with pytest.raises(MachineError, match=message):
        Torchrun.of(environment)


def torchruns(count: int) -> list[Torchrun]:
    """Return the environments of ``count`` ranks on this host, without a store of torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [Torchrun(rank=rank, world=count, host="127.0.0.1", port=port, serves=rank == 0) for rank in range(count)]


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "the condition did not become true within 20 s"
        time.sleep(0.02)


def test_ranks_exchange_progress_and_the_first_failure_reaches_all() -> None:
    every = torchruns(3)
    exchanges = [Exchange(place, 5) for place in every]
    for number, exchange in enumerate(exchanges[:2]):
        exchange.own = replace(SIGHT, ticks=number)
    until(lambda: len(exchanges[2].others) == 2)
    assert [exchanges[2].others[rank].done for rank in range(2)] == [(0, 0.5), (1, 0.5)]
    assert 2 not in exchanges[0].others, "rank 2 has not sent its progress yet"
    tell_failure(every[1], "no image")
    exchanges[2].tell_failure("lost a peer")
    until(lambda: exchanges[0].failure and exchanges[2].failure)
    assert {exchange.failure for exchange in exchanges} == {"", "rank 1 ended the run: no image"}
    for exchange in reversed(exchanges):
        exchange.end()


def test_a_silent_rank_ends_the_run_and_a_finished_one_does_not() -> None:
    every = torchruns(3)
    exchanges = [Exchange(place, 1) for place in every[:2]]
    for exchange in exchanges:
        exchange.own = SIGHT
    until(lambda: all(exchange.others for exchange in exchanges))
    exchanges[1].end()
    until(lambda: not exchanges[0].others)
    time.sleep(1.5)
    assert exchanges[0].failure == ""
    TCPStore(every[2].host, every[2].port, wait_for_workers=False).set("rank/2", f"1 {SIGHT.dumps()}")
    until(lambda: exchanges[0].failure)
    assert exchanges[0].failure == "rank 2: nothing was heard of its process for 1 s"
    exchanges[0].end()


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    return compiled_plan(tmp_path_factory.mktemp("torchrun"), ("a", "b"), context=2000, stall_timeout_s=2)


def ended(directory: Path, hit: Callable[[int], None], places: list[Torchrun] | None = None) -> list[str]:
    """Run two processes, one per rank, call ``hit`` with the process id of rank 1, and return the error of each.

    ``places``: the environments of the ranks.
    """

    def serve(place: Torchrun) -> str:
        try:
            with Engine.open(directory, torchrun=place) as engine:
                engine.generate([1, 2, 3], max_new_tokens=1900, ignore_eos=True)
        except PeerError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(serve, place) for place in places or torchruns(2)]
        until(lambda: len(multiprocessing.active_children()) == 2)
        child = next(child for child in multiprocessing.active_children() if child.name.startswith("rank 1"))
        assert child.pid is not None
        hit(child.pid)
        messages = [future.result(60) for future in futures]
    assert multiprocessing.active_children() == []
    return messages


def test_a_rank_that_is_stopped_is_named_on_all_hosts(plan_dir: tuple[Path, Plan]) -> None:
    for message in ended(plan_dir[0], lambda pid: os.kill(pid, signal.SIGSTOP)):
        assert "device b (rank 1), while in" in message
        assert "made no progress for 2 s: its process is stopped" in message


def test_a_rank_that_dies_is_named_on_all_hosts(plan_dir: tuple[Path, Plan]) -> None:
    def later(pid: int) -> None:
        time.sleep(1.5)
        os.kill(pid, signal.SIGKILL)

    for message in ended(plan_dir[0], later):
        assert "device b (rank 1), while in" in message
        assert "was killed by SIGKILL" in message


MALFORMED = [
    ("failure", "{{{"),
    ("failure", '{"rank": 1}'),
    ("failure", '[7, "of no rank of the run"]'),
    ("failure", "[" * 100_000),
    ("failure", "9" * 5000),
    ("failure", b"\xff\xfe"),
    ("failure", " " * (1 << 21)),
    ("rank/1", ""),
    ("rank/1", "hello"),
    ("rank/1", "3 {}"),
    ("rank/1", b"3 \xff"),
    ("rank/1", "3 " + "[" * 100_000),
    ("rank/1", "x " + SIGHT.dumps()),
    ("rank/1", "3 " + SIGHT.dumps().replace("verify", "sleep")),
]


@pytest.mark.parametrize(("key", "value"), MALFORMED)
def test_a_malformed_value_in_the_store_is_the_reason_of_the_end(key: str, value: str | bytes) -> None:
    (place, _) = torchruns(2)
    exchange = Exchange(place, 5)
    exchange.own = SIGHT
    until(lambda: exchange._connected)
    TCPStore(place.host, place.port, wait_for_workers=False).set(key, value)
    until(lambda: exchange.failure)
    expected = f"the store of the run, at 127.0.0.1:{place.port}, has a malformed value: {key}: found b"
    assert exchange.failure.startswith(expected)
    assert "\n" not in exchange.failure
    assert len(exchange.failure) < 600
    exchange.end()


def test_nobody_waits_for_a_store_that_does_not_answer() -> None:
    """It accepts connections and says nothing, as one that is stopped, or behind a firewall, may do."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = Torchrun(rank=1, world=2, host="127.0.0.1", port=mute.getsockname()[1], serves=False)
        teller = threading.Thread(target=tell_failure, args=(place, "no image"), daemon=True)
        teller.start()
        teller.join(20)
        assert not teller.is_alive()


def test_a_message_in_the_store_is_shown_without_control_characters() -> None:
    (place, _) = torchruns(2)
    exchange = Exchange(place, 5)
    until(lambda: exchange._connected)
    TCPStore(place.host, place.port, wait_for_workers=False).set("failure", json.dumps([1, "a\x1b[2Jb\nc"]))
    until(lambda: exchange.failure)
    assert exchange.failure == "rank 1 ended the run: a\\x1b[2Jb\nc"
    exchange.end()


def test_a_stranger_who_writes_to_the_store_ends_the_run_with_that_reason(plan_dir: tuple[Path, Plan]) -> None:
    places = [replace(place, serves=False) for place in torchruns(2)]
    store = TCPStore(places[0].host, places[0].port, is_master=True, wait_for_workers=False)  # as torchrun has one

    def write(_: int) -> None:
        until(lambda: all(store.check([f"rank/{rank}"]) for rank in range(2)))
        store.set("failure", "{{{")

    for message in ended(plan_dir[0], write, places):
        assert "has a malformed value: failure: found b'{{{', expected a rank and a message" in message


def test_an_address_is_reached_through_an_interface() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no.such.host.invalid") is None
