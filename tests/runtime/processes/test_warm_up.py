"""The phase of first uses: what it runs, how long it may take, and that nothing of it stays."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from plans.graphs import POOL, RESERVED_BYTES
from plans.schema import Plan
from runtime.comm.host_work import HostWork
from runtime.comm.progress import PHASES, Progress
from runtime.decode.graphs import CudaCapture, Graphs, Shape
from runtime.errors import MachineError
from runtime.image.buffers import Memory
from runtime.processes import rank as rank_module
from runtime.processes.rank import Rank, needs_warm_up
from runtime.processes.watchdog import LOOK_S, STOPPED_S, WARM_UP_S, Sight, Watch
from runtime.request import Request
from tests.plan_factory import make_device
from tests.runtime.small import compiled_plan

ROOT = Path(__file__).parents[3]
REQUEST = Request(prompt_ids=(3, 1, 4), max_new_tokens=12, draft=True, ignore_eos=True, stop=(), reuse=True)


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    return compiled_plan(tmp_path_factory.mktemp("warm"))


class Phases(Progress):
    """Progress that records each phase that its watcher would see, and each that a step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.begun: list[str] = []

    def begin(self, phase: str) -> None:  # type: ignore[override]
        super().begin(phase)  # type: ignore[arg-type]
        self.begun.append(phase)
        self.seen.append(PHASES[self.status.phase])


def test_each_kind_of_step_is_run_once_in_a_phase_of_its_own(
    plan_dir: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, plan = plan_dir
    progress = Phases()
    with Rank.open(plan, directory, progress=progress) as rank:
        assert progress.seen == ["reading its image", "meeting the other ranks", "warming up", "waiting"]
        expected = rank.generate(REQUEST)
    monkeypatch.setattr(rank_module, "needs_warm_up", lambda plan: True)
    progress = Phases()
    with Rank.open(plan, directory, progress=progress) as rank:
        assert sorted(set(progress.seen)) == ["meeting the other ranks", "reading its image", "waiting", "warming up"]
        assert progress.seen[-1] == "waiting"
        steps = [phase for phase in progress.begun if phase in ("prefill", "verify", "draft", "commit")]
        each = ["prefill", "draft", *["verify", "draft", "commit"] * 3]
        assert steps == each * 4, "drafted and plain, greedy and sampled; the third verify is captured on a GPU"
        result = rank.generate(REQUEST)
    assert result.tokens == expected.tokens
    assert result.reused == 0
    assert result.measured_bytes == expected.measured_bytes


def test_nothing_of_it_is_reused(plan_dir: tuple[Path, Plan]) -> None:
    directory, plan = plan_dir
    with Rank.open(plan, directory) as rank:
        rank.warm_up()
        assert rank.generate(replace(REQUEST, prompt_ids=(0, 0, 0))).reused == 0


def test_a_plan_with_a_gpu_is_warmed_up_on_all_its_devices(plan_dir: tuple[Path, Plan]) -> None:
    plan = plan_dir[1]
    assert not needs_warm_up(plan)
    gpu = replace(make_device("a"), kind="cuda")
    assert needs_warm_up(replace(plan, inventory=replace(plan.inventory, devices=(gpu,))))


SEVERAL = """
import sys
from pathlib import Path
from plans.deferred import unused_deferred
with unused_deferred():  # half of the time of torch's import
    from runtime import Engine
    from runtime.processes import rank
for warm in (False, True):
    rank.needs_warm_up = lambda plan: warm
    with Engine.open(Path(sys.argv[1]), method="fork") as engine:
        print(*engine.generate([3, 1, 4], max_new_tokens=12).tokens)
"""


def test_several_ranks_warm_up_together(tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path, ("a", "b"))
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, str(directory)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert (len(lines), done.stderr) == (2, "")
    assert lines[0] == lines[1]


def test_it_has_a_time_out_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("runtime.processes.watchdog.time.monotonic", lambda: now[0])
    stall_s = 2
    warming = Sight(
        phase="warming up", ticks=1, group="", queued="", number=0, used_s=0.0, stopped=False, asked=0, served=0
    )  # fmt: skip
    waits = replace(warming, phase="waiting")

    def ends_after(*sights: Sight) -> float:
        watch, begin = Watch(("a", "b"), stall_s, 0), now[0]
        while (complaint := watch.complaint(sights)) is None:
            now[0] += LOOK_S
        assert str(complaint).startswith("device a (rank 0), while in 'warming up', made no progress for")
        return now[0] - begin

    assert ends_after(warming, waits) == stall_s + WARM_UP_S
    assert ends_after(replace(warming, stopped=True), waits) == STOPPED_S


def test_the_peak_of_what_came_before_is_not_measured(
    plan_dir: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator of a GPU is replaced, as there is none."""
    memory = Memory(plan_dir[1], "a", torch.device("cpu"))
    memory.buffer("message")
    planned = memory.measured()
    memory._device = torch.device("cuda", 0)
    allocated, peak = 100, [5000]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, allocated))
    assert memory.measured()["buffers"] == planned["buffers"] + 4900
    memory.begin_measuring()
    assert memory.measured() == planned
    peak[0] = 130
    assert memory.measured()["buffers"] == planned["buffers"] + 30


def test_measuring_begins_with_the_engine_and_before_its_first_uses(
    plan_dir: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(rank_module, "needs_warm_up", lambda plan: True)
    monkeypatch.setattr(Memory, "begin_measuring", lambda memory: done.append("measuring begins"))
    monkeypatch.setattr(Rank, "warm_up", lambda rank: done.append("warm-up"))
    with Rank.open(plan_dir[1], plan_dir[0]):
        assert done == ["measuring begins", "warm-up"]


def test_captured_steps_that_take_more_than_is_planned_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever one is captured. The graphs of a GPU and their pool are replaced, as there is none."""
    taken, captured = [1000 + RESERVED_BYTES], []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: captured.append(1)))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda pool: [{"total_size": taken[0]}])
    capture = CudaCapture(torch.device("cuda", 0), "a", 1000)
    graphs, shape = (
        Graphs(capture, Progress(), HostWork()),
        Shape(drafted=False, accept=None, places=1, tree=None, sampled=False),
    )
    for _ in range(3):
        graphs.step(shape, lambda: None)
    assert (graphs.count, len(captured)) == (1, 2)
    taken[0] += 1
    other = replace(shape, places=2)
    graphs.step(other, lambda: None)
    with pytest.raises(MachineError, match=rf"^device a: captured steps take .* at most 1000, which .*{POOL}"):
        graphs.step(other, lambda: None)
