"""Serving: throughput and time to first token of our server beside `transformers serve`, at several numbers of clients.

    python tools/bench_serve.py MODEL [--draft HEAD] [--clients 1,4,16] [--tokens 64] [--rounds 3] [--json]

Both servers have the same checkpoint and dtype on one CPU device, and take turns within each round: the other one is
idle meanwhile. Each client asks one question after the other and streams the answer, greedy; tokens are those of the
usage that a stream ends with, of transformers those of its text. Figures are medians over rounds, ratios are of figures
of one round. transformers' server needs `pip install fastapi` beside what tools/setup installs.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
from tokenizers import Tokenizer

import planner
from plans.schema import DType

ROOT = Path(__file__).resolve().parents[1]
INVENTORY = "hosts: [{name: box, devices: [{id: cpu, type: cpu, memory: 8 GiB, bandwidth: 20 GB/s}]}]\n"
READY_S = 300
TOPICS = (
    "the sea", "a train", "glass", "the moon", "bread", "a bridge", "winter", "a river", "paper", "chess", "a garden",
    "iron", "the sun", "a city", "sleep", "a song",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One server at one number of clients."""

    server: str
    clients: int
    tokens_per_s: float
    """New tokens of all clients."""
    first_token_s: float
    """Median time from the request to the first text."""
    throughput_over_transformers: float
    first_token_over_transformers: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A running server."""

    name: str
    port: int
    model: str
    """Name of the model in requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer that was streamed."""

    first_s: float
    tokens: int


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="checkpoint with a chat template")
    parser.add_argument("--draft", type=Path, help="EAGLE head")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--requests", type=int, default=16, help="requests of a measurement; at least one per client")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--batch", type=int, default=4, help="batch of our plan")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if find_spec("fastapi") is None:
        sys.exit("error: `transformers serve` needs fastapi: pip install fastapi")
    rows = list(bench(arguments))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'server':14}{'clients':>8}{'tokens/s':>10}{'first token s':>15}{'throughput x':>14}{'first token x':>15}")
    for row in rows:
        print(
            f"{row.server:14}{row.clients:8}{row.tokens_per_s:10.1f}{row.first_token_s:15.2f}"
            f"{row.throughput_over_transformers:14.2f}{row.first_token_over_transformers:15.2f}"
        )


def bench(arguments: argparse.Namespace) -> Iterator[Figures]:
    """Yield the figures of both servers at each number of clients."""
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as running:
        plan = build(Path(place), arguments)
        servers = [
            running.enter_context(
                started("eagleplan", "bench", ["runtime", "serve", str(plan), "--model-name", "bench"])
            ),
            running.enter_context(started("transformers", str(arguments.model), theirs(arguments))),
        ]
        for server in servers:
            measure(server, 1, 2, arguments.tokens, tokenizer)
        for clients in map(int, arguments.clients.split(",")):
            requests = max(clients, arguments.requests)
            rounds = [
                [measure(server, clients, requests, arguments.tokens, tokenizer) for server in servers]
                for _ in range(arguments.rounds)
            ]
            for index, server in enumerate(servers):
                yield Figures(
                    server=server.name,
                    clients=clients,
                    tokens_per_s=statistics.median(pair[index][0] for pair in rounds),
                    first_token_s=statistics.median(pair[index][1] for pair in rounds),
                    throughput_over_transformers=statistics.median(pair[index][0] / pair[1][0] for pair in rounds),
                    first_token_over_transformers=statistics.median(pair[index][1] / pair[1][1] for pair in rounds),
                )


def build(place: Path, arguments: argparse.Namespace) -> Path:
    """Return the directory of a plan on one CPU device."""
    inventory = place / "inventory.yaml"
    inventory.write_text(INVENTORY)
    dtype: DType = arguments.dtype
    result = planner.plan(
        arguments.model, inventory=inventory, draft=arguments.draft, batch=arguments.batch, dtype=dtype, context=1024
    )
    plan = result.write(place / "plan")
    planner.compile(plan, model=arguments.model, draft=arguments.draft)
    return plan


def theirs(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of `python -m` for transformers' server."""
    model, dtype = str(arguments.model), arguments.dtype
    return ["transformers.cli.transformers", "serve", model, "--device", "cpu", "--dtype", dtype, "--host", "127.0.0.1"]


@contextlib.contextmanager
def started(name: str, model: str, command: list[str]) -> Iterator[Server]:
    """Yield a server that is ready, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    paths = [str(ROOT), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)], env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + READY_S
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"error: {name} did not start: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield Server(name=name, port=port, model=model)
        finally:
            process.terminate()
            process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def measure(server: Server, clients: int, requests: int, tokens: int, tokenizer: Tokenizer) -> tuple[float, float]:
    """Return new tokens per second of all clients, and the median time to the first text in s."""
    url = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=url, api_key="-", max_retries=0, timeout=600) as client:
        begin = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            answers = list(
                pool.map(lambda number: ask(client, server.model, number, tokens, tokenizer), range(requests))
            )
        wall_s = time.monotonic() - begin
    return sum(answer.tokens for answer in answers) / wall_s, statistics.median(answer.first_s for answer in answers)


def ask(client: openai.OpenAI, model: str, number: int, tokens: int, tokenizer: Tokenizer) -> Answer:
    """Stream one answer."""
    messages: Any = [{"role": "user", "content": f"Write a long story about {TOPICS[number % len(TOPICS)]}."}]
    begin, first_s, text, counted = time.monotonic(), 0.0, "", 0
    for chunk in client.chat.completions.create(
        model=model, messages=messages, max_tokens=tokens, temperature=0, stream=True
    ):
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            first_s = first_s or time.monotonic() - begin
            text += piece
        if chunk.usage is not None:
            counted = chunk.usage.completion_tokens
    return Answer(first_s=first_s, tokens=counted or len(tokenizer.encode(text, add_special_tokens=False).ids))


if __name__ == "__main__":
    main()
