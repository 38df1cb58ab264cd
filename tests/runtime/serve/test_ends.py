"""Begin and end of a server: loading, signals, a rank that dies, and what it refuses to start with."""

import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

import runtime.commands.serve as serve_command_module
from runtime.cli import commands
from runtime.commands.serving import serve
from runtime.errors import MachineError, RequestError
from tests.runtime.serve.live import HANG_S, LiveServer, build_plan, request_bytes

pytestmark = pytest.mark.usefixtures("one_core")

LONG = {"model": "demo", "prompt": "x = 1\n", "max_tokens": 250, "temperature": 0, "ignore_eos": True, "stream": True}
"""A request that takes a while."""


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory, one_core: None) -> Path:
    return build_plan(tmp_path_factory.mktemp("two"), devices=2, batch=1)


@pytest.fixture
def start(plan_dir: Path) -> Iterator[LiveServer]:
    server = LiveServer(plan_dir)
    yield server
    server.kill()


def begun(server: LiveServer) -> socket.socket:
    """Return a connection whose long answer has begun."""
    connection = server.connect()
    connection.sendall(request_bytes(LONG))
    received = b""
    while b"data: " not in received:
        received += connection.recv(1 << 16)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    received = b""
    with closing(connection):
        while data := connection.recv(1 << 16):
            received += data
    return received


def ranks(server: LiveServer) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    servers = [child for child in children if "forkserver" in " ".join(child.cmdline())]
    return sorted(servers[0].children(), key=lambda rank: rank.create_time()) if servers else []


def test_a_signal_serves_what_runs_and_waits_to_its_end(start: LiveServer) -> None:
    running, waiting = begun(start), begun(start)
    start.process.send_signal(signal.SIGTERM)
    while not [line for line in start.lines if line.startswith("ending: ")]:
        time.sleep(0.01)
    assert start.error("POST", "/v1/completions", LONG)["code"] == "draining"
    assert start.ask("GET", "/health")[::2] == (503, b'{"status": "draining"}')
    for connection in (running, waiting):
        received = rest(connection)
        assert b'"finish_reason":"length"' in received
        assert b"data: [DONE]\n\n" in received
    assert start.wait() == 0
    assert [line for line in start.lines if "Traceback" in line] == []


def test_a_second_signal_ends_it_at_once(start: LiveServer) -> None:
    connection = begun(start)
    start.process.send_signal(signal.SIGTERM)
    while not [line for line in start.lines if line.startswith("ending: ")]:
        time.sleep(0.01)
    assert start.end(signal.SIGINT) == 128 + signal.SIGINT
    assert b"[DONE]" not in rest(connection)
    assert [line for line in start.lines if "Traceback" in line] == []


def test_a_rank_that_dies_fails_its_requests_and_ends_the_server(two_devices: Path) -> None:
    server = LiveServer(two_devices, "--queue", "1")
    try:
        running = begun(server)
        waiting = server.connect()
        waiting.sendall(request_bytes(LONG))
        while server.metric("eagleplan_requests_waiting") < 1:
            time.sleep(0.01)
        status, headers, content = server.ask("POST", "/v1/completions", LONG)
        assert (status, json.loads(content)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(headers["retry-after"]) >= 1
        ranks(server)[1].kill()
        streamed, refusal = rest(running), rest(waiting)
        event = json.loads(streamed.split(b"data: ")[-1].split(b"\n\n")[0])
        assert event["error"]["code"] == "rank_failed"
        assert b"[DONE]" not in streamed
        assert b"503 Service Unavailable" in refusal
        assert b"was killed by SIGKILL" in refusal
        assert server.wait() == 5
        assert server.lines[-1].startswith("error: ")
        assert [line for line in server.lines if "Traceback" in line] == []
    finally:
        server.kill()


def test_it_listens_while_it_loads_and_ends_when_a_rank_dies_while_nobody_asks(
    two_devices: Path, tmp_path: Path
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = LiveServer(two_devices, "--port", str(port), ready=False, files=tmp_path)
    try:
        statuses: list[int] = []
        deadline = time.monotonic() + HANG_S
        while statuses[-1:] != [200]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            with suppress(ConnectionRefusedError), closing(HTTPConnection("127.0.0.1", port, timeout=HANG_S)) as asking:
                asking.request("GET", "/health")
                statuses.append(asking.getresponse().status)
        assert set(statuses) == {503, 200}
        children = psutil.Process(server.process.pid).children(recursive=True)
        ranks(server)[0].kill()
        assert server.wait() == 5
        assert "was killed by SIGKILL" in server.lines[-1]
        assert psutil.wait_procs(children, timeout=HANG_S)[1] == []
        assert list(tmp_path.iterdir()) == []
    finally:
        server.kill()


def test_it_may_be_ended_while_it_is_loaded(plan_dir: Path) -> None:
    server = LiveServer(plan_dir, ready=False)
    try:
        while not server.lines:
            time.sleep(0.01)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert server.end() == 0
        assert psutil.wait_procs(children, timeout=HANG_S)[1] == []
        assert [line for line in server.lines if "Traceback" in line] == []
    finally:
        server.kill()


def refused(plan: Path, **options: Any) -> str:
    """Return why the command refuses to start with these options."""
    given = {
        "host": "127.0.0.1", "port": 0, "api_key_file": None, "model_name": None, "queue": 64, "verify": True,
        "quiet": False, "verbose": 0,
    } | options  # fmt: skip
    with pytest.raises(RequestError) as refusal:
        serve(plan, **given)
    return str(refusal.value)


def test_options_that_are_refused(plan_dir: Path, tmp_path: Path) -> None:
    one_line = "expected one line of 1 to 4096 printable ASCII characters without spaces"
    for text in ("", "\n", "a b\n", "a\nb\n", "ä\n", "a" * 4097):
        (tmp_path / "key").write_text(text)
        assert one_line in refused(plan_dir, api_key_file=tmp_path / "key") or len(text) > 4096
    assert "cannot be read: No such file" in refused(plan_dir, api_key_file=tmp_path / "missing")
    assert "cannot be read:" in refused(plan_dir, api_key_file=tmp_path)
    for name in ("", "a\nb", "a" * 201):
        assert refused(plan_dir, model_name=name).endswith("expected 1 to 200 printable characters")
    assert refused(plan_dir, host="256.0.0.1").startswith("--host '256.0.0.1' --port 0: cannot listen: ")
    bare = tmp_path / "bare"
    shutil.copytree(plan_dir, bare, ignore=shutil.ignore_patterns("tokenizer.json"))
    assert refused(bare).endswith("tokenizer.json: not there, so the server cannot read or answer with text")


def test_a_port_in_use_and_a_key_that_others_can_read(
    plan_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    key.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = refused(plan_dir, port=taken.getsockname()[1], api_key_file=key)
    assert "cannot listen: Address already in use" in message
    warning = f"warning: {key}: every user of this machine can read the key: chmod 600 {key}\n"
    assert capsys.readouterr().err == warning


def test_a_library_that_is_not_installed_is_named(plan_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_command_module, "find_spec", lambda name: None if name == "uvicorn" else name)
    done = CliRunner().invoke(commands, ["serve", str(plan_dir)])
    assert isinstance(done.exception, MachineError)
    assert str(done.exception) == "serve: not installed: uvicorn: pip install 'eagleplan[serve]'"
