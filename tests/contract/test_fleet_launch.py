"""Two replicas on the loopback behind a real nginx, as ``show --launch`` starts them: one is killed, requests go on."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from planner.cli import main
from tests.planner.instances import ROOT, cpu, host

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
"""Path of nginx, which Debian installs in /usr/sbin; None where there is none."""
pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx on this machine: apt-get install nginx")

MACHINE = {"hosts": [host("127.0.0.1", cpu("cpu0", 200), cpu("cpu1", 200))]}
HANG_S = 300
CLIENTS, REQUESTS = 4, 12


def planner(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(own.getsockname()[1]) for own in sockets]


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return int(response.status) == 200
    except OSError:
        return False


def wait_for(port: int, path: str) -> None:
    deadline = time.monotonic() + HANG_S
    while not answers(port, path):
        assert time.monotonic() < deadline, f"{port}{path} does not answer"
        time.sleep(0.1)


def complete(port: int) -> str:
    """Return the greedy continuation of a prompt."""
    body = {"model": "fleet", "prompt": "def parse(", "max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=HANG_S) as response:
        text: str = json.load(response)["choices"][0]["text"]
        return text


def served(port: int) -> float:
    """Return how many requests a server has ended."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("eagleplan_requests_total{"))


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump(MACHINE))
    options = ("--context", 128, "--replicas", 2, "--batch", 2, "--no-draft")
    planner("build", "--gpus", tmp_path / "inventory.yaml", *options, "--out", tmp_path / "fleet")
    planner("show", tmp_path / "fleet", "--launch")
    return tmp_path / "fleet"


@pytest.fixture
def replicas(fleet: Path, tmp_path: Path) -> Iterator[list[tuple[subprocess.Popen[bytes], int]]]:
    """Start both servers by their scripts, on free ports."""
    program = tmp_path / "bin" / "eagleplan"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m runtime "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    scripts = sorted((fleet / "launch" / "127.0.0.1").glob("replica-*.sh"))
    running = []
    try:
        for script, port in zip(scripts, free_ports(len(scripts)), strict=True):
            command = [str(script), "--port", str(port), "--quiet"]
            running.append((subprocess.Popen(command, env=environment, start_new_session=True), port))
        for _, port in running:
            wait_for(port, "/health")
        yield running
    finally:
        for process, _ in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def front(fleet: Path, replicas: list[tuple[subprocess.Popen[bytes], int]], tmp_path: Path) -> Iterator[int]:
    """Start nginx with the rendered file, in which only ports are changed; yield its port."""
    assert NGINX is not None
    (port,) = free_ports(1)
    text = (fleet / "launch" / "nginx.conf").read_text()
    for number, (_, own) in enumerate(replicas):
        text = re.sub(rf"server 127.0.0.1:{8001 + number} ", f"server 127.0.0.1:{own} ", text)
    (tmp_path / "fleet.conf").write_text(text.replace("127.0.0.1:8000;", f"127.0.0.1:{port};"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\npid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {tmp_path}/fleet.conf;\n}}\n"
    )
    log = tmp_path / "error.log"
    process = subprocess.Popen([NGINX, "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path), "-e", str(log)])
    try:
        wait_for(port, "/health")
        yield port
    finally:
        process.terminate()
        process.wait(HANG_S)


def test_a_replica_is_killed_and_requests_go_on(
    front: int, replicas: list[tuple[subprocess.Popen[bytes], int]]
) -> None:
    texts: list[str] = []
    errors: list[OSError] = []
    killed = threading.Event()

    def client() -> None:
        for number in range(REQUESTS):
            if number == REQUESTS // 2:
                killed.wait(HANG_S)
            try:
                texts.append(complete(front))
            except OSError as error:
                errors.append(error)

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    deadline = time.monotonic() + HANG_S
    while len(texts) < CLIENTS and time.monotonic() < deadline:  # while some are decoding on both
        time.sleep(0.01)
    (first, port), (_, other) = replicas
    assert served(port) > 0
    assert served(other) > 0
    os.killpg(first.pid, signal.SIGKILL)
    killed.set()
    for thread in clients:
        thread.join(HANG_S)
    assert errors == []
    assert len(texts) == CLIENTS * REQUESTS
    assert len(set(texts)) == 1, "both replicas have one plan"
    assert not answers(port, "/health")
    assert complete(front) == texts[0]
