"""The status of a command: an erasable line on a terminal, else lines after a second."""

import io
import subprocess
import sys
import time

from rich.console import Console

from runtime.commands.loading import QUIET_S, Status
from runtime.commands.report import start_line


def test_lines_begin_after_a_second_and_end_with_the_time() -> None:
    now, text = [0.0], io.StringIO()
    status = Status(Console(file=text, width=40), clock=lambda: now[0])
    status("loading torch")
    assert text.getvalue() == ""
    now[0] = QUIET_S
    status("loading [4] images")
    now[0] = 2.5
    status.end("first token")
    status("and nothing more")
    assert text.getvalue() == "loading [4] images ...\nfirst token in 2.5 s\n"


def test_a_fast_command_and_one_that_must_be_quiet_show_nothing() -> None:
    now, text = [0.0], io.StringIO()
    status = Status(Console(file=text), clock=lambda: now[0])
    status("loading torch")
    status.end("ready")
    assert text.getvalue() == ""
    quiet = Status(None, clock=lambda: now[0])
    now[0] = 10
    quiet("loading torch")
    quiet.end("ready")


def test_the_status_line_of_a_terminal_is_erased() -> None:
    text = io.StringIO()
    with Status(Console(file=text, force_terminal=True, width=40)) as status:
        status("loading torch")
        assert "loading torch ..." in text.getvalue()
        assert text.getvalue().rfind("\x1b[?25h") > text.getvalue().rfind("\x1b[?25l"), "the cursor is not hidden"
    assert text.getvalue().rstrip().endswith("\x1b[2K"), "the line is erased"
    assert "ready" not in text.getvalue()


def test_the_time_to_the_first_token_is_told_phase_by_phase() -> None:
    now = [5.0]
    status = Status(None, clock=lambda: now[0])
    kernels = "preparing the CPU kernels"
    for moment, phase in ((5.5, "loading torch"), (6.5, kernels), (6.6, f"{kernels} (compiling 1 of 1, once)")):
        now[0] = moment
        status(phase)
    now[0] = 6.75
    status.end("first token")
    assert start_line(status.begun, age_s=2.0) == (
        "first token 2.00 s after the start: 0.75 imports and checks, 1.00 loading torch, "
        "0.25 preparing the CPU kernels"
    )


def test_the_age_of_a_process_is_that_of_its_start() -> None:
    program = "from runtime.commands.report import process_age_s as age; import time; time.sleep(0.3); print(age())"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert 0.3 <= float(done.stdout) <= time.monotonic() - begin + 0.01


def test_a_phase_is_shown_once() -> None:
    text = io.StringIO()
    now = [0.0]
    status = Status(Console(file=text), clock=lambda: now[0])
    now[0] = 10
    for phase in ("preparing", "preparing", "loading", "preparing"):
        status(phase)
    assert text.getvalue() == "preparing ...\nloading ...\n"
