"""A server as its users have it: the command, in a process of its own, over a plan of the demo model."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai

import planner
from plans.schema import Tree

ROOT = Path(__file__).parents[3]
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
"""A chat template in the language of the demo model, which knows Python alone."""
KEY = "sk-a-key-of-the-tests"
HANG_S = 120
"""Seconds after which a server counts as hung, on a busy machine."""


def build_plan(directory: Path, *, devices: int = 1, batch: int = 4) -> Path:
    """Plan and compile the demo model, with a chat template, and return its directory."""
    listed = "".join(
        f"      - {{id: cpu{number}, type: cpu, memory: {200 // devices**2} MiB, bandwidth: 10 GB/s}}\n"
        for number in range(devices)
    )
    inventory = directory / "inventory.yaml"
    inventory.write_text(f"hosts:\n  - name: box\n    links: {{class: shm}}\n    devices:\n{listed}")
    tree = Tree(kind="dynamic", total_token=8, depth=3, top_k=3, paths=None)
    result = planner.plan(
        inventory=inventory, batch=batch, context=512, tree=tree, strategy="balanced" if devices > 1 else None
    )  # fmt: skip
    plan = result.write(directory / "demo")
    planner.compile(plan)
    (plan / "chat_template.jinja").write_text(TEMPLATE)
    return plan


class LiveServer:
    """A running server."""

    def __init__(self, plan: Path, *options: str, ready: bool = True, files: Path | None = None) -> None:
        """Start the command; ``ready``: wait until it serves; ``files``: where it has its temporary files."""
        command = [sys.executable, "-m", "runtime", "serve", str(plan), "--port", "0", *options]
        environment = (
            os.environ
            | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
            | ({} if files is None else {"TMPDIR": str(files)})
        )
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        """Lines of its stderr so far."""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = 0
        if ready:
            if not self._ready.wait(HANG_S) or self.process.poll() is not None:
                self.kill()
                raise AssertionError(f"it is not ready: {self.lines}")
            self.port = int(self._line("ready: ").rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))
                if line.startswith("ready: "):
                    self._ready.set()
        self._ready.set()

    def _line(self, beginning: str) -> str:
        matching = [line for line in self.lines if line.startswith(beginning)]
        assert matching, f"it printed {self.lines}"
        return matching[0]

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def client(self, key: str = KEY, retries: int = 0) -> openai.OpenAI:
        """Return a client of OpenAI's library."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=retries, timeout=HANG_S)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a response."""
        connection = http.client.HTTPConnection(*self.address, timeout=HANG_S)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {KEY}", **({"Content-Type": "application/json"} if content else {})}
        with contextlib.closing(connection):
            connection.request(method, path, content, sent | (headers or {}))
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def error(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the error object of a response, with its status."""
        status, _, content = self.ask(method, path, body, headers)
        error: dict[str, Any] = json.loads(content)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error | {"status": status}

    def metric(self, name: str) -> float:
        """Return a metric without labels."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        (value,) = (line.split()[1] for line in lines if line.split()[0] == name)
        return float(value)

    def connect(self) -> socket.socket:
        """Return a connection of no library."""
        return socket.create_connection(self.address, timeout=HANG_S)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code."""
        code = self.process.wait(HANG_S)
        self._reader.join(HANG_S)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.wait()


@contextlib.contextmanager
def live(plan: Path, *options: str) -> Iterator[LiveServer]:
    """Yield a server that serves; it must end well."""
    server = LiveServer(plan, *options)
    try:
        yield server
        assert server.end() == 0, server.lines
        assert not [line for line in server.lines if "Traceback" in line], server.lines
    finally:
        server.kill()


def request_bytes(body: Any, *, path: str = "/v1/completions", key: str = KEY) -> bytes:
    """Return the bytes of a request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
