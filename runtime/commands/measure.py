"""Work of the command `bench`: loads the engine, times requests, and prints the figures."""

import dataclasses
import json
import os
from pathlib import Path

from plans.check import load
from plans.terminal import out
from runtime.commands import placement, report
from runtime.commands.loading import load_engine, stderr_status
from runtime.commands.options import to_stderr
from runtime.commands.step_times import Bench, measure
from runtime.errors import RequestError
from runtime.image.verify import check_images
from runtime.processes.torchrun import Torchrun


def bench(
    directory: Path,
    *,
    prompt_tokens: int,
    max_new_tokens: int,
    repeats: int,
    accept: int | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Run the command; raises what ``Engine.open`` raises."""
    plan = load(directory)
    if Torchrun.of(os.environ) is not None:
        raise RequestError("bench: not under torchrun, where no process sees the times of all ranks")
    wanted = Bench(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens, repeats=repeats, accept=accept)
    wanted.requests(plan)
    check_images(plan, directory, verify=False)
    devices = [device.id for device in plan.devices]
    if verbose:
        to_stderr(placement.plan_lines(plan, devices))
    if verbose > 1:
        to_stderr(placement.tensor_lines(plan, directory, devices))
    with stderr_status(quiet=quiet, torchrun=None) as status, load_engine(plan, directory, status) as engine:
        measured = measure(engine, wanted, status)
        status.end("done")
        if verbose:
            to_stderr(report.device_lines(plan, engine.started, 0))
            to_stderr(report.after_lines(plan, engine.completions, 0))
    if as_json:
        out(json.dumps(dataclasses.asdict(measured)))
        return
    for line in report.bench_lines(measured):
        out(line)
