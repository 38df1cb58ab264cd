"""A stranger on the ports of a run, with real sockets: the error says so, and blames no device."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.small import compiled_plan

ROOT = Path(__file__).parents[3]
STALL_S = 4

STRANGER = """
import socket, struct, sys, threading, time
from pathlib import Path
import psutil
from runtime import Engine
from runtime.errors import RuntimeRefusal
from runtime.image.slots import open_image
from runtime.processes import rank

def slowly(plan, directory, device, *others, **more):
    if device == "b":
        time.sleep(1)
    return open_image(plan, directory, device, *others, **more)

def connect(seconds, message):
    seen, sockets, until = set(), [], time.monotonic() + seconds
    while time.monotonic() < until:
        for child in psutil.Process().children():
            try:
                ports = {found.laddr[:2] for found in child.net_connections("tcp") if found.status == "LISTEN"}
            except psutil.Error:
                continue
            for port in ports - seen:
                seen.add(port)
                for number in range(12):
                    sockets.append(socket.create_connection(port))
                    sockets[-1].sendall(message(number))
    print(len(seen), flush=True)
    ended.set()
    time.sleep(60)

rank.open_image = slowly
messages = {"a pair's number": lambda number: struct.pack("<q", number), "bytes": lambda number: b"GET / HTTP/1.1" * 9}
ended = threading.Event()
threading.Thread(target=connect, args=(4, messages[sys.argv[2]]), daemon=True).start()
try:
    with Engine.open(Path(sys.argv[1]), method="fork") as engine:
        print("served", len(engine.generate([1, 2, 3], max_new_tokens=4).tokens))
except RuntimeRefusal as refusal:
    print(type(refusal).__name__, refusal)
ended.wait()
"""


@pytest.mark.parametrize("message", ["a pair's number", "bytes"])
def test_a_stranger_on_a_port_of_gloo_makes_the_run_fail_to_connect_or_changes_nothing(
    message: str, tmp_path: Path
) -> None:
    directory, _ = compiled_plan(tmp_path, ("a", "b"), stall_timeout_s=STALL_S, hosts=("left", "right"))
    lines, ports = visited(directory, message)
    assert ports > 0
    assert lines[0] == "served 4" or "another program may have connected to a port of the run" in lines[0]


def test_ranks_that_share_memory_listen_on_no_port(tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path, ("a", "b"), stall_timeout_s=STALL_S)
    assert visited(directory, "bytes") == (["served 4"], 0)


def visited(directory: Path, message: str) -> tuple[list[str], int]:
    """Return what a run of a plan says that a stranger visits, and the number of ports that he saw."""
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(directory), message],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if not line.isdecimal()]
    assert (len(lines), done.returncode) == (1, 0), done.stderr
    return lines, max((int(line) for line in done.stdout.splitlines() if line.isdecimal()), default=0)
