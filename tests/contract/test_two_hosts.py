"""Two hosts: torchrun with two nodes in network namespaces of their own decodes the tokens of one device."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plans.schema import Plan
from runtime import Engine
from tests.runtime.small import compiled_plan

ROOT = Path(__file__).parents[2]
NAMES = tuple(f"eagleplan-{os.getpid()}-{side}" for side in ("left", "right"))
ADDRESSES = ("10.213.7.1", "10.213.7.2")
pytestmark = pytest.mark.usefixtures("one_core")
PROMPT = (3, 1, 4, 1, 5)
COUNT = 24


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[tuple[str, ...]]:
    """Create two network namespaces joined by a pair of interfaces; yield their names."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "veth-left", "netns", NAMES[0], "type", "veth", "peer", "veth-right", "netns", NAMES[1])
        for name, interface, address in zip(NAMES, ("veth-left", "veth-right"), ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", interface)
            for device in (interface, "lo"):
                ip("-n", name, "link", "set", device, "up")
    except OSError as error:
        _remove()
        pytest.skip(f"no network namespaces here: {error}")
    yield NAMES
    _remove()


def _remove() -> None:
    for name in NAMES:
        with contextlib.suppress(OSError):
            ip("netns", "delete", name)


def torchrun(host: int, directory: Path, per_node: int, *more: str) -> subprocess.Popen[str]:
    """Start the torchrun node of a host inside its namespace."""
    command = [
        "ip", "netns", "exec", NAMES[host],
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(host),
        "--nproc-per-node", str(per_node), "--master-addr", ADDRESSES[0], "--master-port", "29417",
        "-m", "runtime", "run", str(directory), "--prompt-ids", ",".join(map(str, PROMPT)),
        "--max-new-tokens", str(COUNT), "--ignore-eos", "--json", *more,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_both_nodes(directory: Path, per_node: int, *more: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """Run run_both_nodes nodes; return exit code, stdout and stderr of each."""
    nodes = [torchrun(host, directory, per_node, *(more[host] if more else ())) for host in range(2)]
    results = []
    for node in nodes:
        out, err = node.communicate(timeout=120)
        results.append((node.returncode, out, err))
    return results


def test_two_hosts_give_the_tokens_of_one_device(hosts: tuple[str, ...], tmp_path: Path) -> None:
    alone, _ = compiled_plan(tmp_path / "one")
    with Engine.open(alone) as engine:
        one = engine.generate(PROMPT, max_new_tokens=COUNT, ignore_eos=True)
    directory, plan = two_hosts(tmp_path / "two")
    assert {device.host for device in plan.devices} == {"box0", "box1"}
    (left, right) = run_both_nodes(directory, 1)
    assert (left[0], right[0]) == (0, 0), (left[2], right[2])
    assert json.loads(left[1])["tokens"] == list(one.tokens)
    assert json.loads(left[1])["plan_digest"] != one.plan_digest
    assert right[1] == "", "only rank 0 prints the result"


def test_hosts_that_disagree_end_the_run(hosts: tuple[str, ...], tmp_path: Path) -> None:
    directory, _ = two_hosts(tmp_path)
    (left, right) = run_both_nodes(directory, 1, (), ("--no-draft",))
    assert left[0] != 0
    assert right[0] != 0
    assert "device b (rank 1) was given another request than a (rank 0)" in left[2] + right[2]


def two_hosts(directory: Path) -> tuple[Path, Plan]:
    """Compile a plan of two devices, one on each host."""
    return compiled_plan(directory, ("a", "b"), hosts=("box0", "box1"))
