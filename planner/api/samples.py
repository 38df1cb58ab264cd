"""Samples that commands of the runtime take on this machine, as they print them in JSON."""

import json
import subprocess
import sys
from typing import Any

from planner.errors import DetectionError

LONGEST_S = 120
"""Time that one command may take, of which kernels that are compiled for the first time take half a minute."""
CALIBRATION_S = 40
"""Time after which ``calibrate`` ends by itself, with a reason."""
MODULE = "runtime"


def calibrated(processes: int) -> dict[str, Any]:
    """Return the samples of ``python -m runtime calibrate``."""
    return output("calibrate", "--processes", str(processes), "--within", str(CALIBRATION_S))


def joined(one: Any, other: Any, where: str = "") -> Any:
    """Return samples that have the times of two measurements, which are lists of numbers, and what both have alike.

    ``where`` names the datum. Raise DetectionError for what they have not alike, as where the cores were changed.
    """
    if isinstance(one, dict):
        return {name: joined(value, other[name], name) for name, value in one.items()}
    if isinstance(one, list):
        entries = bool(one) and isinstance(one[0], dict)
        return [joined(*pair) for pair in zip(one, other, strict=True)] if entries else one + other
    if one != other:
        raise DetectionError(f"{where}: found {one}, later {other}: the machine changed meanwhile: measure again")
    return one


def output(*arguments: str) -> dict[str, Any]:
    """Return the JSON that a command of the runtime prints; raise DetectionError where it prints none."""
    command = [sys.executable, "-m", MODULE, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DetectionError(f"the machine is too busy to be measured within {LONGEST_S} s: end other work") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DetectionError(f"`python {' '.join(command[1:3])} {arguments[0]}` ended with {done.returncode}: {reason}")
    data: dict[str, Any] = json.loads(done.stdout)
    return data
