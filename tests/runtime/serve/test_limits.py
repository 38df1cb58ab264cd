"""Limits of a server, with small values: what slow senders, silent readers and many bodies at once get."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from plans.check import load
from runtime import Engine
from runtime.serve.server import Http, http_server
from runtime.serve.service import Service
from runtime.serve.settings import Limits, Settings
from tests.runtime.serve.live import HANG_S, request_bytes

SHORT_S = 0.2
REQUEST: dict[str, Any] = {"model": "demo", "prompt": "x = ", "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def service(plan_dir: Path, one_core: None) -> Iterator[Service]:
    opened = Service(load(plan_dir), plan_dir, model="demo")
    with Engine.open(plan_dir) as engine:
        batching = engine.continuous(queue=4)
        opened.open(engine, batching)
        yield opened
        batching.drain()


@contextmanager
def serving(service: Service, limits: Limits) -> Iterator[tuple[Http, int]]:
    """Yield a server with these limits, and its port; what it sends is in small buffers."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        settings = Settings(
            plan=service.plan, directory=Path(), model="demo", host="127.0.0.1", key=None, queue=4, limits=limits
        )
        http = http_server(service, settings)
        thread = threading.Thread(target=lambda: asyncio.run(http.serve(sockets=[listener])), daemon=True)
        thread.start()
        wait_until(lambda: http.started)
        yield http, listener.getsockname()[1]
        http.should_exit = True
        thread.join(HANG_S)
        assert not thread.is_alive()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(port: int, *, receive_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(HANG_S)
    connection.connect(("127.0.0.1", port))
    return connection


def answer(connection: socket.socket) -> tuple[int, Any]:
    """Return status and body of the next response."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = (int(line.split()[1]) for line in head.lower().splitlines() if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(1 << 16)
    return int(head.split()[1]), json.loads(body)


def test_a_body_that_does_not_come_in_time_is_refused(service: Service) -> None:
    with serving(service, Limits(body_s=SHORT_S)) as (_, port), connect(port) as connection:
        connection.sendall(request_bytes(REQUEST)[:-3])
        status, body = answer(connection)
        assert (status, body["error"]["code"]) == (408, "body_timeout")
        assert body["error"]["message"] == f"body: not there after {SHORT_S:g} s"


def test_headers_that_do_not_come_in_time_end_the_connection(service: Service) -> None:
    with serving(service, Limits(headers_s=SHORT_S)) as (_, port), connect(port) as connection:
        connection.sendall(request_bytes(REQUEST)[:20])
        assert connection.recv(1) == b""


def test_a_body_of_as_many_bytes_as_allowed_is_read_and_a_larger_one_refused(service: Service) -> None:
    content = json.dumps(REQUEST).encode()
    with serving(service, Limits(body_bytes=len(content))) as (_, port), connect(port) as connection:
        connection.sendall(request_bytes(content))
        assert answer(connection)[0] == 200
        connection.sendall(request_bytes(content + b" "))
        status, body = answer(connection)
        assert (status, body["error"]["code"]) == (413, "body_too_large")
        assert body["error"]["message"] == f"body: expected at most {len(content)} bytes"


def test_all_bodies_together_are_bounded_until_one_is_gone(service: Service) -> None:
    content = json.dumps(REQUEST).encode()
    with serving(service, Limits(bodies_bytes=2 * len(content) - 3)) as (_, port):
        with connect(port) as slow, connect(port) as other:
            slow.sendall(request_bytes(content)[:-2])
            while True:  # until the bytes of the slow one have arrived
                other.sendall(request_bytes(content))
                status, body = answer(other)
                if status != 200:
                    break
            assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
            slow.sendall(content[-2:])
            assert answer(slow)[0] == 200
        with connect(port) as again:
            again.sendall(request_bytes(content))
            assert answer(again)[0] == 200


def test_a_client_that_does_not_read_is_cut_off_and_its_request_ends(service: Service) -> None:
    stream = REQUEST | {"max_tokens": 400, "ignore_eos": True, "stream": True}
    with serving(service, Limits(write_s=SHORT_S)) as (http, port), connect(port, receive_bytes=2048) as connection:
        connection.sendall(request_bytes(stream))
        wait_until(lambda: http.server_state.connections)
        wait_until(lambda: not http.server_state.connections)
        received = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(1 << 16):
                received += data
        assert b"[DONE]" not in received
        wait_until(lambda: (state := service.state()) is not None and not state.running)


def test_of_too_many_connections_the_last_is_closed(service: Service) -> None:
    with serving(service, Limits(connections=1)) as (_, port), connect(port) as first:
        first.sendall(request_bytes(REQUEST))
        assert answer(first)[0] == 200
        with connect(port) as second, suppress(ConnectionError):
            second.sendall(request_bytes(REQUEST))
            assert second.recv(1) == b""
        first.sendall(request_bytes(REQUEST))
        assert answer(first)[0] == 200
