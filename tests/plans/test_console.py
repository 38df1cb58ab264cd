"""Error output as text and as JSON, from one description of an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plans.console import Refusal, error_data, refusals_reported, verbosity

ROOT = Path(__file__).parents[2]


def describe(error: BaseException) -> Refusal | None:
    if not isinstance(error, ValueError):
        return None
    return Refusal(exit_code=3, text=f"error: {error}", data=error_data(error, str(error), 3))


def test_a_refusal_has_text_json_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    endings: list[str] = []
    for as_json in (True, False):
        with pytest.raises(SystemExit) as end, refusals_reported(describe, as_json=as_json, ending=endings.append):
            raise ValueError("too small")
        output = capsys.readouterr()
        assert (end.value.code, output.err) == (3, "error: too small\n")
        assert bool(output.out) == as_json
        if as_json:
            error = {"type": "ValueError", "message": "too small", "exit_code": 3}
            assert json.loads(output.out) == {"error": error}
    assert endings == ["error: too small"] * 2


def test_ctrl_c_ends_with_130_and_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, refusals_reported(describe, as_json=True):
        raise KeyboardInterrupt
    assert (end.value.code, capsys.readouterr()) == (130, ("", "interrupted\n"))
    with pytest.raises(TypeError), refusals_reported(describe, as_json=True):
        raise TypeError


def test_a_refusal_on_closed_pipes_keeps_its_exit_code() -> None:
    code = (
        "from plans.console import *\n"
        "with refusals_reported(lambda error: Refusal(exit_code=4, text='x', data={}), as_json=True): raise ValueError"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == 4


@pytest.mark.parametrize(
    ("value", "count", "level"), [("1", 0, 1), ("2", 1, 2), ("1", 2, 2), ("", 0, 0), ("yes", 1, 1)]
)
def test_debug_is_verbosity(value: str, count: int, level: int) -> None:
    assert verbosity(count, {"DEBUG": value}) == level
    assert verbosity(count, {}) == count
