"""Ranks that die, hang or fail to start end the run with an error that names them, and leave no process behind."""

import dataclasses
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from kill_ranks import strike
from plans.schema import Plan
from runtime import Engine
from runtime.comm.progress import Progress
from runtime.errors import ImageDamaged, MachineError, PeerError, RequestError
from runtime.processes.launch import main_module_hidden
from runtime.processes.machine import check_machine
from runtime.processes.rank_process import open_rank
from runtime.request import Request
from tests.runtime.small import compiled_plan

ROOT = Path(__file__).parents[3]
REQUEST = Request(prompt_ids=(1, 2, 3), max_new_tokens=400, draft=True, ignore_eos=True, stop=())


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    return compiled_plan(tmp_path_factory.mktemp("launch"), ("a", "b"), context=2000)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_all_ranks_end(victim: int, plan_dir: tuple[Path, Plan]) -> None:
    killed = rf"device {'ab'[victim]} \(rank {victim}\), while in '\w+', was killed by SIGKILL"
    with Engine.open(plan_dir[0]) as engine:
        stream = engine.serve(REQUEST)
        assert [next(stream), next(stream)]
        child = next(c for c in multiprocessing.active_children() if c.name.startswith(f"rank {victim} "))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(PeerError, match=killed):
            stream.finished()
        assert multiprocessing.active_children() == []
        with pytest.raises(PeerError, match=killed):
            engine.serve(REQUEST).finished()


def test_the_main_module_is_hidden_by_one_thread_at_a_time() -> None:
    main, start, inside = sys.modules["__main__"], threading.Barrier(4), list[int]()

    def hide(number: int) -> None:
        start.wait()
        for _ in range(50):
            with main_module_hidden():
                assert sys.modules["__main__"] is not main
                inside.append(number)
                time.sleep(0)
                assert inside.pop() == number

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(hide, number) for number in range(4)]:
            done.result()
    assert sys.modules["__main__"] is main


def test_engines_may_be_opened_by_several_threads(plan_dir: tuple[Path, Plan]) -> None:
    main = sys.modules["__main__"]

    def tokens(_: int) -> tuple[int, ...]:
        with Engine.open(plan_dir[0]) as engine:
            return engine.generate([1, 2, 3], max_new_tokens=4).tokens

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(tokens, range(2)))) == 1
    assert sys.modules["__main__"] is main


def test_a_stream_that_outlives_its_engine_does_not_block(plan_dir: tuple[Path, Plan]) -> None:
    with Engine.open(plan_dir[0]) as engine:
        stream = engine.serve(REQUEST)
        next(stream)
    with pytest.raises(RequestError, match="the engine was closed before the output ended"):
        stream.finished()
    with Engine.open(plan_dir[0]) as engine:
        stream = engine.serve(REQUEST)
        next(stream)
    stream.close()
    assert multiprocessing.active_children() == []


def test_an_error_of_a_rank_is_raised_with_its_own_type(plan_dir: tuple[Path, Plan], tmp_path: Path) -> None:
    for file in plan_dir[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    image = tmp_path / "b.safetensors"
    image.write_bytes(image.read_bytes()[:-8] + bytes(range(8)))
    with pytest.raises(ImageDamaged, match=r"b\.safetensors: BLAKE3"):
        Engine.open(tmp_path)


COMMAND = ("-m", "runtime", "run", "{}", "--prompt-ids", "1,2", "--max-new-tokens", "1900")
PROGRAM = (
    "-c",
    "from runtime import Engine\nfor piece in Engine.open('{}').stream((1, 2), max_new_tokens=1900): print(piece)",
)


@pytest.mark.parametrize(
    ("arguments", "count", "signals", "code"),
    [(COMMAND, 2, signal.SIGINT, 130), (COMMAND, 2, signal.SIGKILL, -9), (PROGRAM, 4, signal.SIGKILL, -9)],
)
def test_no_rank_outlives_its_parent(
    arguments: tuple[str, ...], count: int, signals: signal.Signals, code: int, plan_dir: tuple[Path, Plan]
) -> None:
    """A stopped rank ends too when its parent is killed; a program also has a fork server and a resource tracker."""
    command = [sys.executable, "-u", *(argument.format(plan_dir[0]) for argument in arguments)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    assert parent.stdout.read(1)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == count
    if signals == signal.SIGKILL:
        children[-1].suspend()
    parent.send_signal(signals)
    assert parent.wait(20) == code
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_rank_counts_gpus_as_a_plan_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets the order before it asks for its device, and so before CUDA reads it."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    directory, plan = compiled_plan(tmp_path)
    gpu = dataclasses.replace(plan.devices[0], kind="cuda", ordinal=99)
    plan = dataclasses.replace(plan, inventory=dataclasses.replace(plan.inventory, devices=(gpu,)))
    with pytest.raises(MachineError, match="cuda:99 is not there"):
        open_rank(plan, directory, 0, None, Progress())
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_machine_that_differs_from_the_plan_is_refused(plan_dir: tuple[Path, Plan]) -> None:
    plan = plan_dir[1]
    line = dataclasses.replace(plan.memory[0], kv_bytes=1 << 50)
    small = dataclasses.replace(plan, memory=(line, *plan.memory[1:]))
    with pytest.raises(MachineError, match=r"host box0 has \d+ bytes of memory, its CPU devices are planned with"):
        check_machine(small, small.devices[0])
    missing = dataclasses.replace(plan.devices[0], kind="cuda", ordinal=99)
    with pytest.raises(MachineError, match="cuda:99 is not there"):
        check_machine(plan, missing)


def test_ranks_hit_at_random_moments_end_the_run(tmp_path: Path) -> None:
    """Strike twice; `tools/kill_ranks.py` repeats this as often as one likes."""
    directory, plan = compiled_plan(tmp_path, ("a", "b"), context=2000, stall_timeout_s=2)
    for seed in (3, 5):
        assert strike(directory, random.Random(seed), slack_s=60).complaint == ""
    assert plan.options.stall_timeout_s == 2


def test_a_rank_that_is_stopped_between_two_requests_is_named(tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path, ("a", "b"), stall_timeout_s=1)
    with Engine.open(directory) as engine:
        engine.generate([1, 2, 3], max_new_tokens=2)
        children = psutil.Process().children(recursive=True)
        max(children, key=lambda child: (child.create_time(), child.pid)).suspend()  # numbers of processes start again
        time.sleep(2)  # without a request the stall time-out does not run
        message = r"device b \(rank 1\), while in 'waiting', made no progress for 1 s: its process is stopped"
        with pytest.raises(PeerError, match=message):
            engine.generate([1, 2, 3], max_new_tokens=2)


HANGS = """
import sys, time
from pathlib import Path
from runtime import Engine
from runtime.processes import rank
from runtime.errors import PeerError
from runtime.image.slots import open_image
from runtime.decode.step import Stepper

commit = Stepper._commit

def in_a_step(stepper, *taken):
    commit(stepper, *taken)
    if stepper._comm.rank == 1:
        time.sleep(600)

def while_loading(plan, directory, device, *others, **more):
    if device == "b":
        time.sleep(600)
    return open_image(plan, directory, device, *others, **more)

Stepper._commit = in_a_step
for _ in range(2):
    try:
        with Engine.open(Path(sys.argv[1]), method="fork") as opened:
            opened.generate([1, 2, 3], max_new_tokens=400)
    except PeerError as error:
        print(error)
    rank.open_image = while_loading
"""


def test_a_rank_that_hangs_is_named_and_all_ranks_end(tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path, ("a", "b"), context=2000, stall_timeout_s=1)
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(directory)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == ([
        "device b (rank 1), while in 'commit', made no progress for 1 s: it hangs; others wait: a in group embed",
        "device b (rank 1), while in 'reading its image', made no progress for 1 s: it hangs",
    ], "")  # fmt: skip
