"""The check of a GPU, where there is none: its parts, its table, its exit codes, and what of it runs on a CPU."""

import inspect
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from runtime.decode.messages import Channel
from runtime.model.triton_kernels import launch
from tests.runtime.meta import CUDA, AsCuda, Watch
from tests.runtime.meta_steps import silent_messages

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import gpu_check  # noqa: E402
import gpu_parts  # noqa: E402
from gpu_measures import system  # noqa: E402
from gpu_measures.bench import Bench  # noqa: E402

ROWS = {
    "machine": ["torch", "copy: GB/s"],
    "attention": ["tree: error against float32"],
    "experts": ["60 rows: relative error, without a wait"],
    "memory": ["bytes of buffers"],
}
"""Some parts that run on a CPU within seconds, and rows of each."""


def ends(process: int) -> bool:
    """Return whether a process that was killed is gone, or a zombie, within some seconds."""
    status, until = Path(f"/proc/{process}/status"), time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if "Z (zombie)" in status.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def table(arguments: Sequence[str], tmp_path: Path) -> tuple[int, list[dict[str, str]]]:
    """Return the exit code and the rows of a run."""
    file = tmp_path / "rows.json"
    code = gpu_check.main([*arguments, "--json", str(file)])
    return code, json.loads(file.read_text())


def test_the_parts_take_ten_minutes_at_most_and_each_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(part.seconds for part in gpu_check.PARTS) <= gpu_check.MOST_S
    assert [part.name for part in gpu_check.PARTS] == list(gpu_parts.PARTS)
    assert gpu_check.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(gpu_parts.PARTS)


def test_the_table_of_what_needs_a_gpu_names_each_part() -> None:
    text = (TOOLS.parent / "runtime" / "README.md").read_text()
    rows = [line.split(" | ") for line in text.partition("## Not tried on a GPU")[2].partition("\n## ")[0].splitlines()]
    named = {name for row in rows if len(row) == 3 for name in re.findall("`([a-z][a-z0-9_]*)`", row[2])}
    assert named == set(gpu_parts.PARTS)


def test_what_a_part_prints_besides_its_rows_ends_no_other_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's line in braces, a byte that is no UTF-8, a row that is cut off; and rows are kept part by part."""
    program = tmp_path / "parts.py"
    program.write_text(
        "import json, os, pathlib, sys\n"
        f"kept = pathlib.Path({str(tmp_path / 'rows.json')!r})\n"
        "row = dict(what=sys.argv[1], predicted='', measured=str(kept.exists()), verdict='ok')\n"
        "print(json.dumps(row), '{\"level\": 1}', '{braces}', json.dumps(row)[:20], sep='\\n', flush=True)\n"
        "os.write(2, b'\\xff lost\\n')\n"
        "sys.exit(3 if sys.argv[1] == 'machine' else 0)\n"
    )
    monkeypatch.setattr(gpu_check, "PROGRAM", program)
    code, rows = table(["--only", "machine,attention"], tmp_path)
    assert (code, [(row["what"], row["verdict"]) for row in rows]) == (
        1, [("machine", "ok"), (gpu_check.PARTS[0].tries, "WRONG"), ("attention", "ok")]
    )  # fmt: skip
    assert rows[1]["measured"] == "exit code 3: \N{REPLACEMENT CHARACTER} lost"
    assert [row["measured"] for row in rows if row["verdict"] == "ok"] == ["False", "True"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_part_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = table(["--only", "machine,attention"], tmp_path)
    assert code == 5
    assert [(row["part"], row["measured"], row["verdict"]) for row in rows] == [
        ("machine", "no CUDA device", "not tried"),
        ("attention", "no CUDA device", "not tried"),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["part", "what", "predicted", "measured", "verdict"]


def test_parts_run_on_a_cpu_as_far_as_they_need_no_gpu(tmp_path: Path) -> None:
    code, rows = table(["--cpu", "--only", ",".join(ROWS)], tmp_path)
    assert [row for row in rows if row["verdict"] == "WRONG"] == []
    assert code == 0
    for part, expected in ROWS.items():
        assert set(expected) <= {row["what"] for row in rows if row["part"] == part}, part


def test_a_part_that_fails_or_takes_too_long_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "part.py"
    monkeypatch.setattr(gpu_check, "PROGRAM", program)
    program.write_text("raise RuntimeError('misaligned address')")
    (row,), code = gpu_check.run(gpu_check.PARTS[0], "cuda")
    assert (row.verdict, row.measured, code) == ("WRONG", "exit code 1: RuntimeError: misaligned address", 1)
    first = {"what": "a", "predicted": "1", "measured": "1", "verdict": "ok"}
    program.write_text(f"import time\nprint({json.dumps(first)!r}, flush=True)\ntime.sleep(60)")
    part = gpu_check.Part(name="hangs", seconds=3, tries="an end")
    rows, code = gpu_check.run(part, "cuda")
    assert [row.measured for row in rows] == ["1", "longer than 3 s"]
    assert code == 124


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--only", "machine,speed"])
    assert caught.value.code == 2
    assert "unknown part speed" in capsys.readouterr().err


GPU_PARTS = (
    "machine",
    "attention",
    "float8",
    "experts",
    "first_use",
    "steps",
    "launches",
    "memory",
    "graph",
    "products",
)
"""Parts whose work is that of a GPU alone."""
CALLS = {
    "set_sync_debug_mode": None, "reset_peak_memory_stats": None, "get_device_capability": (9, 0),
    "memory_allocated": 1 << 20, "max_memory_allocated": 1 << 20, "memory_reserved": 1 << 21,
    "mem_get_info": (1 << 36, 1 << 37), "memory_snapshot": [{"total_size": 1 << 20}], "graph_pool_handle": (0, 1),
}  # fmt: skip
"""Functions of torch.cuda that the parts call, and what they return here."""


class OnMeta(Bench):
    """A GPU whose tensors are on the meta device: everything is called, and nothing computed."""

    gpu = True


@contextmanager
def as_a_gpu(watch: Watch) -> Iterator[None]:
    """Let torch.cuda answer as if there were an H200; calls have to fit the signatures that it has."""
    h200 = mock.Mock(spec_set=["name", "major", "minor", "total_memory"])
    h200.configure_mock(name="NVIDIA H200", major=9, minor=0, total_memory=150_754_820_096)
    event = SimpleNamespace(device_type=SimpleNamespace(name="CUDA"), device_time=2.0)
    profiled = mock.MagicMock()
    profiled.__enter__.return_value.events.return_value = [event]

    @contextmanager
    def captured(graph: object, **options: object) -> Iterator[None]:
        inspect.signature(torch.cuda.graphs.graph.__init__).bind(None, graph, **options)
        yield

    with ExitStack() as patches:
        for name, result in CALLS.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, autospec=True, return_value=result))
        for target, name, value in (
            (torch.cuda, "get_device_properties", lambda device: h200), (torch.cuda, "graph", captured),
            (torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None)),
            (torch.profiler, "profile", mock.Mock(return_value=profiled)), (launch, "start", watch.start),
            (Tensor, "item", lambda tensor: 0.0), (Tensor, "unique", lambda tensor: tensor),
            (torch, "equal", lambda one, other: True),
            (Channel, "send_to_host", lambda channel: None),
        ):  # fmt: skip
            patches.enter_context(mock.patch.object(target, name, value))
        patches.enter_context(silent_messages(3))
        patches.enter_context(AsCuda(watch))
        yield


@pytest.mark.parametrize("part", GPU_PARTS)
def test_a_part_calls_what_torch_has_on_a_gpu(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with as_a_gpu(Watch()):
        gpu_parts.PARTS[part](OnMeta(CUDA, small=True))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows
    assert all(row.keys() == {"what", "predicted", "measured", "verdict"} for row in rows)
    assert [row for row in rows if row["verdict"] == "not tried"] == []


def test_the_sanitizer_watches_small_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in its place prints what it was called with; without one the row says where it was looked for."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" > {tmp_path}/called\n'
                    'echo "========= ERROR SUMMARY: 2 errors"\nexit 9\n')  # fmt: skip
    tool.chmod(0o755)
    for path, measured, verdict in (
        (tmp_path, "ERROR SUMMARY: 2 errors, exit 9", "WRONG"),
        ("/none", "no compute-sanitizer in PATH, /usr/local/cuda/bin, /usr/local/cuda/compute-sanitizer", "not tried"),
    ):
        monkeypatch.setenv("PATH", f"{path}:/bin")
        gpu_parts.PARTS["sanitizer"](OnMeta(CUDA))
        row = json.loads(capsys.readouterr().out)
        assert (row["measured"], row["verdict"]) == (measured, verdict)
    caching, *options, program, first, second, small = (tmp_path / "called").read_text().split()
    assert (caching, options[0], first, second, small) == ("1", "--error-exitcode", "first_use", "experts", "--small")
    assert Path(program) == TOOLS / "gpu_parts.py"


def test_a_command_of_a_part_that_does_not_end_is_ended_with_what_it_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/child\nwait\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(system, "SANITIZER_S", 0.5)
    gpu_parts.PARTS["sanitizer"](OnMeta(CUDA))
    row = json.loads(capsys.readouterr().out)
    assert (row["measured"], row["verdict"]) == ("no end within 0.5 s", "not tried")
    assert ends(int((tmp_path / "child").read_text()))


def test_a_part_that_is_ended_ends_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program that ignores its end the whole group is ended."""
    program = tmp_path / "part.py"
    program.write_text(
        "import signal, sys\n"
        f"sys.path[:0] = ['{TOOLS}', '{TOOLS.parent}']\n"
        "from gpu_measures import system\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"system.ended(['/bin/sh', '-c', 'echo $$ > {tmp_path}/child; sleep 60'], 50)\n"
    )
    monkeypatch.setattr(gpu_check, "PROGRAM", program)
    rows, code = gpu_check.run(gpu_check.Part(name="sanitizer", seconds=15, tries="it"), "cuda")
    assert (code, [row.measured for row in rows]) == (124, ["longer than 15 s"])
    assert ends(int((tmp_path / "child").read_text()))


def test_a_part_that_does_not_fit_into_ten_minutes_any_more_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "MOST_S", 40)
    monkeypatch.setattr(gpu_check, "run", lambda part, device: ([], 0))
    _, rows = table(["--only", "machine,attention"], tmp_path)
    assert [(row["part"], row["measured"]) for row in rows] == [("attention", "40 s are over: run it with --only")]


def test_several_parts_are_run_at_small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    called = list[tuple[str, bool]]()
    for name in ("experts", "machine"):
        monkeypatch.setitem(gpu_parts.PARTS, name, lambda bench, name=name: called.append((name, bench.full)))
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", "experts", "machine", "--small"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_parts.main() == 0
    assert called == [("experts", False), ("machine", False)]
