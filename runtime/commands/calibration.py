"""Work of the command `calibrate`: measures, and prints the samples."""

import dataclasses
import json

from plans.terminal import out
from runtime.calibration.machine import measure


def calibrate(processes: int, within_s: int) -> None:
    """Run the command; raises MachineError."""
    out(json.dumps(dataclasses.asdict(measure(processes, within_s))))
