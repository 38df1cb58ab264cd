"""The ends of a program, or a command, that runs a plan of several devices: nothing is left of it, whatever ends it.

All processes are real. Those of a program are found by a mark in their environment, also where they have lost their
parent, and its files are in a temporary directory of its own. Times are limited only to detect a hang. What ends the
run and not the program is in ``test_endings``.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.runtime.small import compiled_plan, write_tokenizer

ROOT = Path(__file__).parents[3]
HANG_S = 60
"""Seconds after which a program counts as hung, on a busy machine."""
GONE_S = 10
"""Seconds after the end of a program in which its processes are gone, too."""

OPENED = """
import os, signal, sys, threading, time
import psutil
from plans.deferred import unused_deferred
with unused_deferred():  # half of the time of torch's import
    from runtime import Engine

def children(name):
    return [child for child in psutil.Process().children() if name in " ".join(child.cmdline())]

def ranks():
    return sorted(children("forkserver")[0].children(), key=lambda rank: (rank.create_time(), rank.pid))

def begin(engine):
    stream = engine.stream([1, 2, 3], max_new_tokens=19000, ignore_eos=True)
    next(stream)
    print("begun", flush=True)
    return stream
"""
ENGINE = "engine = Engine.open(sys.argv[1])\nstream = begin(engine)\n"
READ = "for _ in stream: pass\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The end of a program."""

    code: int
    output: str
    """Output after its stream had begun."""
    errors: str


class Program:
    """A program that runs until its stream has begun, and all that it starts."""

    def __init__(self, command: list[str], files: Path, begun: str) -> None:
        self._mark, self._files = uuid.uuid4().hex, files
        environment = os.environ | {"MARK": self._mark, "TMPDIR": str(files), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        seen = ""
        while not seen.endswith(begun):
            character = self.process.stdout.read(1)
            assert character, f"ended before it began: {self.process.communicate()[1]}"
            seen += character

    def fill_output(self) -> None:
        """Fill the pipe of its output, so that it waits in its next write until somebody reads."""
        pipe = os.open(f"/proc/{self.process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, b".")
        os.close(pipe)

    def end(self) -> End:
        """Wait for the end; assert that nothing is left of it."""
        try:
            output, errors = self.process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail("it hangs")
        deadline = time.monotonic() + GONE_S
        while (left := list(self.processes())) and time.monotonic() < deadline:
            time.sleep(0.05)
        names = [f"{process.status()} {process.cmdline()}" for process in left]
        self.kill()
        assert names == [], "processes are left"
        # multiprocessing makes pymp-*, for its fork server, and does not remove it where the program is killed;
        # torchrun never removes torchelastic_*
        foreign = ("pymp-", "torchelastic_")
        assert [file.name for file in self._files.iterdir() if not file.name.startswith(foreign)] == []
        return End(code=self.process.returncode, output=output, errors=errors)

    def processes(self) -> Iterator[psutil.Process]:
        """Yield the processes of the program that have not ended."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except psutil.Error:
                pass

    def kill(self) -> None:
        """Kill what is left."""
        for process in self.processes():
            process.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = compiled_plan(tmp_path_factory.mktemp("ways"), ("a", "b"), context=20000, stall_timeout_s=2)
    write_tokenizer(directory)
    return directory


@pytest.fixture
def start(plan_dir: Path, tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    """Start a program that has an engine, by its text."""
    programs: list[Program] = []

    def run(text: str) -> Program:
        programs.append(Program([sys.executable, "-u", "-c", OPENED + text, str(plan_dir)], tmp_path, "begun\n"))
        return programs[-1]

    yield run
    for program in programs:
        program.kill()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("with Engine.open(sys.argv[1]) as engine:\n    stream = begin(engine)\n    raise ValueError",
                     1, id="an error of the caller, inside with"),
        pytest.param(ENGINE + "raise ValueError", 1, id="an error of the caller, without with"),
        pytest.param("def fail():\n    engine = Engine.open(sys.argv[1])\n    stream = begin(engine)\n    1 / 0\n"
                     "try:\n    fail()\nexcept ZeroDivisionError as error:\n    kept = error\n",
                     0, id="an error of the caller that is kept with its frames"),
        pytest.param(ENGINE, 0, id="an open stream"),
        pytest.param("with Engine.open(sys.argv[1]) as engine:\n    stream = begin(engine)\n    sys.exit(3)",
                     3, id="sys.exit inside with"),
        pytest.param(ENGINE + "os._exit(7)", 7, id="os._exit"),
        pytest.param(ENGINE + "threading.Thread(target=list, args=(stream,), daemon=True).start()\ntime.sleep(0.3)",
                     0, id="a daemon thread that reads"),
        pytest.param("def serve():\n    with Engine.open(sys.argv[1]) as engine:\n        stream = begin(engine)\n"
                     "        next(stream)\n        raise ValueError\nthreading.Thread(target=serve).start()",
                     0, id="an error in a thread"),
        pytest.param(ENGINE + "ranks()[1].suspend()", 0, id="a stopped rank"),
        pytest.param(ENGINE + "children('resource_tracker')[0].kill()", 0, id="a killed resource tracker"),
    ],
)  # fmt: skip
def test_the_interpreter_exits(text: str, code: int, start: Callable[[str], Program]) -> None:
    end = start(text).end()
    assert end.code == code, end.errors


@pytest.mark.parametrize(
    ("text", "sent", "codes"),
    [
        (ENGINE + READ, signal.SIGINT, {-signal.SIGINT}),
        (ENGINE + READ, signal.SIGTERM, {-signal.SIGTERM}),
        (ENGINE + READ, signal.SIGHUP, {-signal.SIGHUP}),
        (ENGINE + READ, signal.SIGKILL, {-signal.SIGKILL}),
        (ENGINE + "[rank.suspend() for rank in ranks()]\n" + READ, signal.SIGKILL, {-signal.SIGKILL}),
        # the rank may also be found to be stopped before the signal arrives
        (ENGINE + "ranks()[1].suspend()\n" + READ, signal.SIGINT, {-signal.SIGINT, 1}),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "SIGKILL, all ranks stopped", "SIGINT, a rank stopped"],
)
def test_a_program_ends_at_a_signal(
    text: str, sent: signal.Signals, codes: set[int], start: Callable[[str], Program]
) -> None:
    program = start(text)
    time.sleep(0.5)
    program.process.send_signal(sent)
    assert program.end().code in codes


FORKED = """
import gc
from runtime.errors import RequestError

def fork(use):
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        use()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0

def refused(*uses):
    for use in uses:
        try:
            use()
        except RequestError as error:
            assert str(error) == (
                f"the engine was opened in process {os.getppid()}, from which this one was forked: use it there, or "
                "fork before it is opened"
            ), error
        else:
            os._exit(9)

def drop():
    global engine, stream
    del engine, stream
    gc.collect()

engine = Engine.open(sys.argv[1])
stream = begin(engine)
fork(lambda: sys.exit(0))
fork(drop)
fork(lambda: engine.close())
fork(lambda: (stream.close(), engine.stop()))
fork(lambda: refused(
    lambda: next(stream), lambda: engine.generate([1], max_new_tokens=1), lambda: engine.serve_batch([]),
    engine.continuous,
))
assert len([next(stream) for _ in range(50)]) == 50
stream.close()
with engine.continuous() as batching:
    fork(lambda: (refused(lambda: batching.submit(engine.request([1]), print)), batching.__exit__()))
assert len(engine.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True).tokens) == 4
"""


def test_forked_processes_leave_the_engine_of_their_parent_alone(start: Callable[[str], Program]) -> None:
    end = start(FORKED).end()
    assert (end.code, end.errors) == (0, "")


def command(plan_dir: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "runtime", "run", str(plan_dir), "--prompt-ids", "1,2", "--ignore-eos", "-q"),
        *("--max-new-tokens", "19000", *options),
    ]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, -signal.SIGHUP),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
@pytest.mark.parametrize("read", [True, False])
def test_a_command_ends_at_a_signal(
    read: bool, sent: signal.Signals, code: int, plan_dir: Path, tmp_path: Path
) -> None:
    """Also where the reader of its output does not read any more, so that it waits in a write."""
    program = Program(command(plan_dir), tmp_path, "a")
    try:
        if not read:
            program.fill_output()
            process, written = psutil.Process(program.process.pid), -1
            while written != (written := process.io_counters().write_chars):
                time.sleep(0.4)
            program.process.send_signal(sent)
            assert program.process.wait(HANG_S) == code
        else:
            program.process.send_signal(sent)
        assert program.end().code == code
    finally:
        program.kill()


def test_a_command_ends_where_nobody_reads_it_any_more(plan_dir: Path, tmp_path: Path) -> None:
    program = Program(command(plan_dir), tmp_path, "a")
    try:
        assert program.process.stdout is not None
        program.process.stdout.close()
        program.process.stdout = None
        end = program.end()
        assert (end.code, end.errors) == (1, "")
    finally:
        program.kill()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_command_ends_on_a_full_disk(options: tuple[str, ...], plan_dir: Path, tmp_path: Path) -> None:
    text = "exec " + " ".join(command(plan_dir, "--max-new-tokens", "50", *options)) + " >/dev/full"
    program = Program(["bash", "-c", f"echo begun; {text}"], tmp_path, "begun\n")
    try:
        end = program.end()
        assert (end.code, end.errors) == (1, "error: stdout: cannot write: No space left on device\n")
    finally:
        program.kill()


@pytest.mark.parametrize(
    "cause",
    [
        "nobody reads it",
        "SIGTERM",
        "SIGINT",
        "SIGKILL",
        "SIGKILL of a worker",
        "SIGKILL of a rank",
        "SIGSTOP of a rank",
    ],
)
def test_torchrun_ends(cause: str, plan_dir: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    words = [sys.executable, *launcher, "--master-port", str(port), *command(plan_dir)[1:]]
    program = Program(words, tmp_path, "a")
    try:
        workers = [child for child in psutil.Process(program.process.pid).children() if "runtime" in child.cmdline()]
        workers.sort(key=lambda worker: worker.pid)
        (rank,) = workers[1].children()
        if cause == "nobody reads it":
            assert program.process.stdout is not None
            program.process.stdout.close()
            program.process.stdout = None
        elif cause.endswith("of a worker"):
            workers[1].kill()
        elif cause.endswith("of a rank"):
            rank.send_signal(signal.Signals[cause.split(maxsplit=1)[0]])
        else:
            program.process.send_signal(signal.Signals[cause])
        end = program.end()
        assert end.code == (-signal.SIGKILL if cause == "SIGKILL" else 1)
        if cause.endswith("of a rank"):
            reason = "was killed by SIGKILL" if cause.startswith("SIGKILL") else "its process is stopped"
            assert reason in end.errors
            assert "device b (rank 1), while in" in end.errors
    finally:
        program.kill()
