"""Plans in the cache: reused by a second call, built anew after any change, whole whatever happens meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import eagleplan
import planner
from eagleplan import kept
from planner.errors import CheckpointError, InfeasibleError, InputError, OutputError
from planner.speculation.profiles import SHIPPED
from plans.artifact import Image, load_images
from runtime.errors import ImageError, RequestError
from tests.plan_factory import write_base, write_draft
from tests.runtime.small import write_tokenizer

ROOT = Path(__file__).parents[2]
INVENTORY = "{hosts: [{name: box, devices: [{id: cpu0, type: cpu, memory: %s, bandwidth: 20 GB/s}]}]}"
PROGRAM = """if True:
    import sys
    from pathlib import Path
    from eagleplan import kept
    directory = Path(sys.argv[1])
    def report(phase):
        print(phase, flush=True)
        if phase in sys.argv[2:]:
            sys.stdin.readline()
    options = dict(model=directory / "base", draft=directory / "head", inventory=directory / "inventory.yaml")
    print(kept.plan(directory / "cache", options={"context": 48}, report=report, **options), flush=True)
"""


class Inputs:
    """A model, its head and an inventory, and the phases of the last call."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.cache = directory, directory / "cache"
        self.base, self.head, self.inventory = directory / "base", directory / "head", directory / "inventory.yaml"
        write_base(self.base, num_layers=8)
        write_tokenizer(self.base)
        write_draft(self.head)
        self.inventory.write_text(INVENTORY % "1 GiB")
        self.phases: list[str] = []

    def plan(self, **options: object) -> Path:
        self.phases = []
        return kept.plan(
            self.cache,
            model=self.base,
            draft=self.head,
            inventory=self.inventory,
            options={"context": 48} | options,
            report=self.phases.append,
        )

    def start(self, *waits: str) -> "subprocess.Popen[str]":
        """Start a process that plans and compiles, and waits for a line at the beginning of these phases."""
        command = [sys.executable, "-c", PROGRAM, str(self.directory), *waits]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tools")))}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def written(file: Path) -> tuple[int, ...]:
    """Return what changes when a file is written, and not when it is read."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_a_second_call_uses_what_the_first_has_compiled(inputs: Inputs) -> None:
    directory = inputs.plan()
    assert inputs.phases == ["planning", "compiling the images"]
    before = {file: written(file) for file in directory.rglob("*")}
    assert (inputs.plan(), inputs.phases) == (directory, [])
    assert {file: written(file) for file in directory.rglob("*")} == before
    assert planner.check(directory).clean
    assert sorted(file.name for file in directory.parent.iterdir()) == ["lock", "plan"]


def test_a_kept_plan_is_opened_without_the_solver(inputs: Inputs) -> None:
    inputs.plan()
    process = inputs.start("never")
    out, _ = process.communicate(timeout=60)
    assert out.splitlines() == [str(inputs.plan())]
    program = f"{PROGRAM}\n    assert not {{'ortools', 'torch'}} & set(sys.modules)\n"
    command = [sys.executable, "-c", program, str(inputs.directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tools")))}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def changes(inputs: Inputs) -> Iterator[str]:
    """Change one input after the other."""
    weights = inputs.base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    status = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    yield "a bit of the weights, with the time of the last write set back"
    file = inputs.head / "model.safetensors"
    shutil.copy2(file, inputs.directory / "copy")
    (inputs.directory / "copy").replace(file)
    yield "a head that was replaced by one of the same bytes"
    shutil.copy(SHIPPED / "eagle3.yaml", inputs.head / "acceptance.yaml")
    yield "an acceptance profile of the head"
    (inputs.base / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    yield "a file that was not there before"
    config = inputs.base / "config.json"
    config.write_text(config.read_text().replace("{", '{"bos_token_id": 3, ', 1))
    yield "the config"
    inputs.inventory.write_text(INVENTORY % "2 GiB")
    yield "the inventory"


def test_any_change_leads_to_another_directory(inputs: Inputs) -> None:
    plans = [inputs.plan()]
    for change in changes(inputs):
        plans.append(inputs.plan())
        assert inputs.phases[0] == "planning", change
    plans += [inputs.plan(context=40), inputs.plan(strategy="balanced"), inputs.plan(tree=eagleplan.tree(top_k=4))]
    plans.append(inputs.plan(weights="int8"))
    assert all((image.rounding is not None) == (plan == plans[-1]) for plan in plans for image in images_of(plan))
    assert len(set(plans)) == len(plans)
    assert all((directory / "images.yaml").is_file() for directory in plans), "what was built before is still there"


def images_of(plan: Path) -> tuple[Image, ...]:
    return load_images(plan).images


def test_a_device_map_counts_by_its_content(inputs: Inputs) -> None:
    (inputs.directory / "map.yaml").write_text("{'': cpu0}")
    first = inputs.plan(device_map=inputs.directory / "map.yaml")
    (inputs.directory / "map.yaml").rename(inputs.directory / "other.yaml")
    assert inputs.plan(device_map=inputs.directory / "other.yaml") == first
    assert inputs.phases == []


def test_two_processes_compile_once(inputs: Inputs) -> None:
    first = inputs.start("compiling the images")
    assert first.stdin is not None and first.stdout is not None  # noqa: PT018
    assert [first.stdout.readline() for _ in range(2)] == ["planning\n", "compiling the images\n"]
    second = inputs.start()
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting for the process that compiles the same plan\n"
    first.stdin.write("\n")
    first.stdin.flush()
    (one, _), (two, _) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert one == two == f"{inputs.plan()}\n"
    assert inputs.phases == []


def test_what_a_killed_process_leaves_is_made_again(inputs: Inputs) -> None:
    for phase in ("planning", "compiling the images"):
        process = inputs.start(phase)
        assert process.stdout is not None
        while process.stdout.readline() != f"{phase}\n":
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        (entry,) = (inputs.cache / "plans").iterdir()
        assert not (entry / "plan").exists()
    (entry / "new").mkdir(exist_ok=True)
    (entry / "new" / "rest").write_text("of a killed process")
    assert inputs.plan() == entry / "plan"
    assert sorted(file.name for file in entry.iterdir()) == ["lock", "plan"]


@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.7])
def test_a_kill_at_any_moment_leaves_all_or_nothing(inputs: Inputs, seconds: float) -> None:
    process = inputs.start()
    time.sleep(seconds)
    process.kill()
    process.communicate(timeout=60)
    for plans in (inputs.cache / "plans").glob("*/plan"):
        assert (plans / "images.yaml").is_file()
    assert (inputs.plan() / "images.yaml").is_file()


def test_an_input_that_changes_meanwhile_is_refused(inputs: Inputs) -> None:
    def change(phase: str) -> None:
        if phase == "compiling the images":
            write_tokenizer(inputs.base)

    arguments = {"model": inputs.base, "draft": inputs.head, "inventory": inputs.inventory}
    with pytest.raises(InputError, match="an input changed while it was compiled: run again"):
        kept.plan(inputs.cache, options={"context": 48}, report=change, **arguments)
    assert not list((inputs.cache / "plans").glob("*/plan"))
    assert (inputs.plan() / "images.yaml").is_file()


def test_refusals_are_those_of_the_planner_and_of_the_runtime(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"gpus": inputs.inventory, "cache_dir": inputs.cache}
    model = {"draft": inputs.head, "context": 48} | places
    with pytest.raises(CheckpointError, match="none: found nothing, expected a checkpoint's directory"):
        eagleplan.open(inputs.directory / "none", **places)
    with pytest.raises(InputError, match="no such file"):
        eagleplan.open(inputs.base, gpus=inputs.directory / "none.yaml", cache_dir=inputs.cache)
    with pytest.raises(InputError, match="strategy: found 'fastest', expected one of latency, balanced"):
        eagleplan.open(inputs.base, strategy="fastest", **places)
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature', did you mean 'temperature'"):
        eagleplan.run(inputs.base, prompt="a", temprature=1.0, **places)
    with pytest.raises(TypeError, match="unexpected keyword argument 'temperature'"):
        eagleplan.open(inputs.base, temperature=1.0, **places)
    with pytest.raises(RequestError, match="chat: the prompt is token ids"):
        eagleplan.run(inputs.base, prompt=[1], chat=True, **places)
    assert not list((inputs.cache / "plans").glob("*/plan")), "refused before anything is compiled"
    with pytest.raises(RequestError, match="the tokenizer has no chat template"):
        eagleplan.run(inputs.base, prompt="a", chat=True, **model)
    small = inputs.directory / "small.yaml"
    small.write_text(INVENTORY % "100 KiB")
    with pytest.raises(InfeasibleError, match="no placement fits"):
        eagleplan.open(inputs.base, gpus=small, cache_dir=inputs.cache)
    (inputs.directory / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(inputs.directory / "file"))
    with pytest.raises(OutputError, match=r"file/eagleplan: cannot write: Not a directory: give another cache_dir"):
        eagleplan.open(inputs.base, gpus=inputs.inventory)


def test_a_damaged_image_is_refused_with_what_to_do(inputs: Inputs) -> None:
    arguments = {"draft": inputs.head, "gpus": inputs.inventory, "cache_dir": inputs.cache, "context": 48}
    text = eagleplan.run(inputs.base, prompt="abc", max_new_tokens=4, **arguments).text
    (entry,) = (inputs.cache / "plans").iterdir()
    image = entry / "plan" / "cpu0.safetensors"
    image.write_bytes(image.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ImageError, match=rf"remove {entry}, and it is compiled again"):
        eagleplan.open(inputs.base, **arguments)
    shutil.rmtree(entry)
    assert eagleplan.run(inputs.base, prompt="abc", max_new_tokens=4, **arguments).text == text


def test_this_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter([INVENTORY % "1 GiB", INVENTORY % "2 GiB"])
    monkeypatch.setattr(planner, "machine_identity", lambda: "one", raising=False)
    monkeypatch.setattr(planner, "detect", lambda: type("Detected", (), {"text": next(texts)}), raising=False)
    first = kept.this_machine(tmp_path)
    assert kept.this_machine(tmp_path) == first
    assert first.read_text() == INVENTORY % "1 GiB"
    monkeypatch.setattr(planner, "machine_identity", lambda: "another", raising=False)
    assert kept.this_machine(tmp_path).read_text() == INVENTORY % "2 GiB"
    assert len(list((tmp_path / "machines").iterdir())) == 2


def test_the_place_is_that_of_the_standard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in ((str(tmp_path / "x"), "x/eagleplan"), ("", ".cache/eagleplan"), ("a", ".cache/eagleplan")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert kept.directory(None) == tmp_path / expected
    assert (tmp_path / ".cache" / "eagleplan").stat().st_mode & 0o077 == 0
