"""The check of a GPU, where there is none: its parts, its table, its exit codes, and what of it runs on a CPU."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import gpu_check  # noqa: E402
import gpu_parts  # noqa: E402

MOST_S = 600
ROWS = {
    "machine": ["torch", "copy: GB/s"],
    "attention": ["tree: error against float32"],
    "experts": ["60 rows: relative error, without a wait"],
    "memory": ["bytes of buffers"],
    "graph": ["plain: tokens", "EAGLE, sampled: tokens"],
}
"""Some parts that run on a CPU within seconds, and rows of each."""


def table(arguments: Sequence[str], tmp_path: Path) -> tuple[int, list[dict[str, str]]]:
    """Return the exit code and the rows of a run."""
    file = tmp_path / "rows.json"
    code = gpu_check.main([*arguments, "--json", str(file)])
    return code, json.loads(file.read_text())


def test_the_parts_take_ten_minutes_at_most_and_each_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(part.seconds for part in gpu_check.PARTS) <= MOST_S
    assert [part.name for part in gpu_check.PARTS] == list(gpu_parts.PARTS)
    assert gpu_check.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(gpu_parts.PARTS)


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
