"""Progress of a compile: at most one line per tenth of the bytes and per second, and always the last line."""

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from planner import cli
from planner.commands import progress
from planner.commands.progress import Lines, shown, trying
from tests.planner.images.two_stages import two_stages


def test_lines_have_bytes_rate_and_time_left() -> None:
    lines_written: list[str] = []
    now = [100.0]
    lines = Lines(lines_written.append, lambda: now[0])
    for second in range(1, 21):
        now[0] = 100.0 + second
        lines(second << 20, 20 << 20)
    assert len(lines_written) == 10
    assert lines_written[0] == "images: 2.0 MiB of 20.0 MiB, 1.0 MiB/s, 18 s left"
    assert lines_written[-1] == "images: 20.0 MiB of 20.0 MiB, 1.0 MiB/s in 20.0 s"


def test_a_quick_compile_has_one_line() -> None:
    lines_written: list[str] = []
    now = [100.0]
    lines = Lines(lines_written.append, lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.001
        lines(step << 20, 100 << 20)
    assert lines_written == ["images: 100.0 MiB of 100.0 MiB, 1000.0 MiB/s in 0.1 s"]


def test_a_terminal_has_a_bar_that_is_erased() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with shown(console, pytest.fail) as report:
        report(1 << 20, 4 << 20)
        assert cursor_is_shown(console)
        report(4 << 20, 4 << 20)
    assert isinstance(console.file, io.StringIO)
    assert "4.2/4.2 MB" in console.file.getvalue()


def test_quiet_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    command = ["compile", str(directory), "--model", str(base_dir), "--draft", str(draft_dir)]
    quiet = CliRunner().invoke(cli.main, [*command, "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")
    (directory / "a.safetensors").unlink()
    noisy = CliRunner().invoke(cli.main, command)
    assert (noisy.exit_code, noisy.stdout) == (0, "")
    assert "images: " in noisy.stderr
    assert "a.safetensors: " in noisy.stderr
    refused = CliRunner().invoke(cli.main, [*command, "--quiet", "--only", "z"])
    assert (refused.exit_code, "error: --only z" in refused.stderr) == (2, True)


def test_the_current_attempt_is_printed_after_a_second() -> None:
    lines_written: list[str] = []
    now = [100.0]
    with trying(Console(file=io.StringIO()), lines_written.append, lambda: now[0]) as tell:
        tell("a smaller batch")
        now[0] += 1.0
        tell("no draft")
    assert lines_written == ["nothing fits: trying what would help: no draft"]


def test_a_terminal_shows_the_current_attempt() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with trying(console, pytest.fail) as tell:
        tell("the host CPU of [box]")
        assert cursor_is_shown(console)
    assert isinstance(console.file, io.StringIO)
    assert "nothing fits: trying what would help" in console.file.getvalue()


def cursor_is_shown(console: Console) -> bool:
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    return text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
