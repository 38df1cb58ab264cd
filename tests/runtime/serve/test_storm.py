"""Many clients at once, most of them unpleasant: nothing is lost or mixed, and all places are free in the end."""

import contextlib
import json
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest

from runtime import Engine
from tests.runtime.serve.live import HANG_S, KEY, LiveServer, request_bytes

CLIENTS, REQUESTS = 16, 200
PROMPTS = ("import os\n", "class A:\n", "x = ", "def f(a, b):\n    ", "for name in names:\n", '"""Return')
TOKENS = 16
MALFORMED = [
    b"", b"{", b"[]", b"null", b'{"model": "demo"}', b"\xff\xfe", b'{"model": "demo", "prompt": NaN}',
    b'{"model": "demo", "model": "demo", "prompt": "x"}', b'{"a": ' + b"[" * 60_000, b'{"prompt": "x"}',
    *(
        json.dumps({"model": "demo", "prompt": "x", **fields}).encode()
        for fields in (
            {"n": 2}, {"n": "1"}, {"max_tokens": 0}, {"max_tokens": -5}, {"max_tokens": 1e3}, {"max_tokens": 10**30},
            {"max_tokens": 600}, {"temperature": -1}, {"temperature": "0"}, {"top_p": 2}, {"top_k": 1.5},
            {"seed": True}, {"stop": [""]}, {"stop": ["a"] * 5}, {"stream": "yes"}, {"stream_options": {}},
            {"logprobs": 1}, {"echo": True}, {"prompt": []}, {"prompt": [-1]}, {"prompt": {"a": 1}},
            {"prompt": "\ud800"}, {"unknown": 1}, {"tools": [1]}, {"prompt": ""},
        )
    ),
]  # fmt: skip
"""Bodies that are answered with 400."""

Check = Callable[[random.Random], str]


class Storm:
    """Clients of one server, each kind of request a method that returns what became of it."""

    def __init__(self, server: LiveServer, expected: dict[tuple[str, int | None], str]) -> None:
        self.server, self.expected = server, expected
        self.client = server.client(retries=0)

    def wanted(self, draw: random.Random) -> tuple[dict[str, Any], str]:
        """Return the fields of a request, and the text that it gets alone."""
        prompt, seed = draw.choice(list(self.expected))
        sampling = {"temperature": 0} if seed is None else {"temperature": 1.0, "seed": seed}
        fields = {"model": "demo", "prompt": prompt, "max_tokens": TOKENS, **sampling}
        return fields, self.expected[prompt, seed]

    def whole(self, draw: random.Random) -> str:
        fields, text = self.wanted(draw)
        assert self.client.completions.create(**fields).choices[0].text == text
        return "answered"

    def stream(self, draw: random.Random) -> str:
        fields, text = self.wanted(draw)
        chunks = list(self.client.completions.create(**fields, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == text
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        return "answered"

    def cancelled(self, draw: random.Random) -> str:
        """Close a stream of the library after a few chunks."""
        fields, text = self.wanted(draw)
        with self.client.completions.create(
            **fields | {"max_tokens": 80}, extra_body={"ignore_eos": True}, stream=True
        ) as chunks:
            got = "".join(next(chunks).choices[0].text for _ in range(draw.randint(1, 3)))
        assert text.startswith(got) or got.startswith(text)
        return "left"

    def slow(self, draw: random.Random) -> str:
        """Read a few bytes at a time, with pauses, through small buffers."""
        fields, text = self.wanted(draw)
        received = b""
        with self._socket(small=True) as connection:
            connection.sendall(request_bytes(fields | {"stream": True}))
            while not received.endswith(b"0\r\n\r\n"):
                received += connection.recv(draw.randint(1, 700))
                time.sleep(draw.random() / 200)
        assert streamed(received) == text
        return "answered"

    def dropped(self, draw: random.Random) -> str:
        """Go away in the middle of the request, or before or in the middle of the stream, with or without a reset."""
        fields, _ = self.wanted(draw)
        content = request_bytes(fields | {"stream": True, "max_tokens": 80, "ignore_eos": True})
        with self._socket() as connection:
            connection.sendall(content[: draw.choice([20, len(content) - 3, len(content), len(content)])])
            if draw.random() < 0.5:
                select.select([connection], [], [], draw.random() / 2)
            if draw.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "left"

    def malformed(self, draw: random.Random) -> str:
        error = self.server.error("POST", "/v1/completions", draw.choice(MALFORMED))
        assert (error["status"], error["type"]) == (400, "invalid_request_error")
        return "refused"

    def stranger(self, draw: random.Random) -> str:
        key = draw.choice(["-", "x", KEY[:-1], KEY + "x", KEY.upper()])
        with self.server.client(key) as client, pytest.raises(openai.AuthenticationError):
            client.completions.create(model="demo", prompt="x")
        return "refused"

    @contextlib.contextmanager
    def _socket(self, *, small: bool = False) -> Any:
        with socket.socket() as connection:
            connection.settimeout(HANG_S)
            if small:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(self.server.address)
            yield connection


def streamed(received: bytes) -> str:
    """Return the text of a stream, as bytes of HTTP with chunks."""
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b" 200 OK" in head
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    events = [event.removeprefix("data: ") for event in body.decode().split("\n\n")]
    assert events[-2:] == ["[DONE]", ""]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-2])


def test_nothing_is_lost_mixed_or_left(server: LiveServer, alone: Engine) -> None:
    expected = {
        (prompt, seed): alone.generate(
            prompt, max_new_tokens=TOKENS, temperature=0.0 if seed is None else 1.0, seed=seed
        ).text
        for prompt in PROMPTS
        for seed in (None, 7)
    }
    storm = Storm(server, expected)
    kinds: list[Check] = [
        *([storm.whole] * 3), *([storm.stream] * 4), *([storm.cancelled] * 2), *([storm.slow] * 2),
        *([storm.dropped] * 4), *([storm.malformed] * 4), storm.stranger,
    ]  # fmt: skip
    process, lock = psutil.Process(server.process.pid), threading.Lock()
    numbers, outcomes, resident = iter(range(REQUESTS)), Counter[str](), list[int]()

    def serve(client: int) -> None:
        while True:
            with lock:
                if (number := next(numbers, None)) is None:
                    return
            draw = random.Random(number)
            outcome = kinds[number % len(kinds)](draw)
            with lock:
                outcomes[outcome] += 1
                resident.append(process.memory_info().rss)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(serve, range(CLIENTS)))
    assert sum(outcomes.values()) == REQUESTS
    assert outcomes["answered"] == sum(number % len(kinds) in (*range(7), 9, 10) for number in range(REQUESTS))
    deadline = time.monotonic() + HANG_S
    while server.metric("eagleplan_requests_running") or server.metric("eagleplan_requests_waiting"):
        assert time.monotonic() < deadline, "a place is still taken"
        time.sleep(0.05)
    assert server.metric("eagleplan_kv_rows_used") == 0
    fields, text = storm.wanted(random.Random(0))
    assert storm.client.completions.create(**fields).choices[0].text == text
    storm.client.close()
    while len(left := process.net_connections()) > 3:
        assert time.monotonic() < deadline, f"connections are left: {left}"
        time.sleep(0.05)
    assert max(resident[REQUESTS // 2 :]) - max(resident[: REQUESTS // 2]) < 32 << 20, "memory grows"
    assert not [line for line in server.lines if "Traceback" in line], server.lines
