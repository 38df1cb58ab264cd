"""A compile that does not reach its end, killed, signalled or on a full disk: complete images or the old ones."""

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.errors import OutputError
from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from plans.artifact import load_images
from plans.schema import Plan
from runtime.errors import ImageError
from runtime.image.verify import check_images
from tests.plan_factory import group, make_device, make_plan, write_base, write_draft
from tests.planner.images.two_stages import names, save, two_stages

IN_A_SMALL_ROOM = """
mount -t tmpfs -o size=$1 tmpfs "$2" && cp -a "$3/." "$2" && "$4" -m planner compile "$2" --model "$5" --draft "$6"
code=$?
diff -r "$3" "$2" && exit $code
"""


@pytest.mark.parametrize("short", ["images", "images.yaml"])
def test_a_disk_that_is_really_full(tmp_path: Path, short: str) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)
    (tmp_path / "room").mkdir()
    new = [directory / f"{name}.safetensors" for name in "bd"] if short == "images.yaml" else []
    pages = sum(-(-file.stat().st_size // 4096) for file in [*directory.iterdir(), *new])
    arguments = [str(4096 * pages), *map(str, (tmp_path / "room", directory, sys.executable, base_dir, draft_dir))]
    command = ["unshare", "-rm", "sh", "-c", IN_A_SMALL_ROOM, "sh", *arguments]
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    refusal = r"room/\.compile-b\.safetensors: cannot write \d+ bytes" if short == "images" else "room: cannot write"
    assert re.search(rf"{refusal}: No space left on device", result.stderr)
    assert result.stdout == "", "diff must print nothing: all files are the old ones and there are no others"


@pytest.mark.parametrize("call", ["write", "fsync", "posix_fallocate"])
def test_a_full_disk_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match=r"cannot write.*No space left on device"):
        compile_plan(directory, base_dir, draft_dir)
    monkeypatch.undo()
    check_images(plan, directory, verify=True)
    assert not list(directory.glob(".compile-*"))


def removed(directory: Path) -> None:
    for file in directory.glob(".compile-*"):
        file.unlink()


def obstructed(directory: Path) -> None:
    (directory / "d.safetensors").rename(directory / "other")
    (directory / "d.safetensors").mkdir()


@pytest.mark.parametrize("change", [removed, obstructed, shutil.rmtree], ids=lambda change: change.__name__)
def test_changes_of_the_directory_during_a_compile_are_reported(tmp_path: Path, change: Callable[[Path], None]) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)
    changes = iter([change])

    def change_directory(done: int, total: int) -> None:
        for change in changes:
            change(directory)

    with pytest.raises(OutputError, match="plan: cannot write: "):
        compile_plan(directory, base_dir, draft_dir, progress=change_directory)
    if directory.exists():
        check_images(plan, directory, verify=True, devices=["a", "b", "c"])


# ---- killed, two at once ----

COMPILE = """
import sys, time
from pathlib import Path
from planner.images import blocks, publish, reader as sources
from planner.images.compile import compile_plan
blocks.BLOCK_BYTES = 1 << 20
print("ready", flush=True)
sys.stdin.readline()
directory, base, draft = (None if name == "-" else Path(name) for name in sys.argv[1:4])
compile_plan(directory, base, draft)
print("done", flush=True)
"""


def start(directory: Path, base_dir: Path, draft_dir: Path | None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", COMPILE, str(directory), str(base_dir), str(draft_dir or "-")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def go(child: "subprocess.Popen[str]") -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_killed_at_any_moment_no_mixture_verifies(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 2000, "num_layers": 7}
    write_base(tmp_path / "old", **sizes, seed=1)  # type: ignore[arg-type]
    write_base(tmp_path / "new", **sizes, seed=2)  # type: ignore[arg-type]
    base = load_base(tmp_path / "old")
    devices = [make_device(name, memory_bytes=1 << 30) for name in "abcd"]
    groups = [group(base.model, ["a", "b"], 3), group(base.model, ["c", "d"], 4)]
    plan = make_plan(base.model, groups, inputs=inputs_of(base, None), devices=devices)
    directory = save(plan, tmp_path / "plan")
    artifacts = []
    for name in ("new", "old"):
        began = time.monotonic()
        compile_plan(directory, tmp_path / name, None)
        elapsed = time.monotonic() - began
        artifacts.append([image.blake3 for image in load_images(directory).images])
    generator = random.Random(0)
    outcomes = set()
    for _ in range(pytestconfig.getoption("--kills")):
        outcome = kill_and_look(plan, directory, tmp_path / "new", generator.uniform(0, 1.3 * elapsed), artifacts)
        outcomes.add(outcome)
        if outcome != "old":
            compile_plan(directory, tmp_path / "old", None)
    compile_plan(directory, tmp_path / "old", None)
    assert names(directory) == {"a", "b", "c", "d", "images.yaml", "plan.yaml", ".compiled"}, (
        "the next run removes the temporary files"
    )
    assert "old" in outcomes


def kill_and_look(plan: Plan, directory: Path, source: Path, delay: float, artifacts: list[list[str]]) -> str:
    """Kill a compile after a delay; return which artifact then verifies, ``old`` or ``new``, or ``refused``."""
    with start(directory, source, None) as child:
        go(child)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    try:
        check_images(plan, directory, verify=True)
    except ImageError:
        return "refused"
    digests = [image.blake3 for image in load_images(directory).images]
    assert digests in artifacts
    return ("new", "old")[artifacts.index(digests)]


def test_killed_between_any_two_renames_no_mixture_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    original = Path.rename
    for last in range(5):
        compile_plan(directory, base_dir, draft_dir)
        write_draft(draft_dir, seed=100 + last)
        calls = iter(range(10))

        def until(self: Path, target: Path, calls: "iter[int]" = calls, last: int = last) -> Path:  # type: ignore[valid-type]
            if next(calls) == last:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            return original(self, target)

        monkeypatch.setattr(Path, "rename", until)
        with pytest.raises(KeyboardInterrupt) if last < 4 else contextlib.nullcontext():
            compile_plan(directory, base_dir, draft_dir)
        monkeypatch.undo()
        with pytest.raises(ImageError) if last < 3 else contextlib.nullcontext():
            check_images(plan, directory, verify=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_leaves_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    before = names(directory)
    write_draft(draft_dir, seed=3)
    program = SLOW.format(number=int(number))
    command = [sys.executable, "-c", program, "compile", str(directory), "--model", str(base_dir)]
    result = subprocess.run([*command, "--draft", str(draft_dir)], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert names(directory) == before
    check_images(plan, directory, verify=True)


SLOW = """
import os, sys
from planner.cli import main
from planner.images.pipeline import Writer
original, sent = Writer.write, []

def write(self, piece):
    original(self, piece)
    if self.written_bytes > 10000 and not sent:
        sent.append(os.kill(os.getpid(), {number}))

Writer.write = write
main()
"""


def test_of_two_commands_at_once_the_second_is_refused(tmp_path: Path) -> None:
    """The second is refused even for other images, as one record lists all images."""
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    arguments = ["compile", str(directory), "--model", str(base_dir), "--draft", str(draft_dir), "--only"]
    program = SLOW.format(number=int(signal.SIGSTOP))
    with subprocess.Popen([sys.executable, "-c", program, *arguments, "a"], stderr=subprocess.DEVNULL) as first:
        assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])
        second = [sys.executable, "-m", "planner", *arguments, "c"]
        refused = subprocess.run(second, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
    assert (first.returncode, refused.returncode) == (0, 2)
    assert refused.stderr == f"error: {directory}: another command writes this plan: wait for it\n"
    check_images(plan, directory, verify=True, devices=["a"])
    assert not list(directory.glob(".compile-*"))
