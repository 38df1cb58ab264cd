"""``compile``: the images of a plan, as a command of its own and at the end of ``build``."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from safetensors import safe_open

from planner.api import compiling
from planner.commands import progress
from planner.commands.console import put, say
from planner.images.compile import CompileReport, RoundingReport
from plans import codec
from plans.artifact import is_filler
from plans.format import format_bytes
from plans.share_slots import DRAFT_PREFIX


def run(
    *,
    plan: Path,
    model: Path | None,
    draft: Path | None,
    only: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    verbose: int,
) -> None:
    """Compile the images of a plan from its checkpoints."""
    compiled = compile_images(plan, model, draft, only or None, quiet, verbose)
    if as_json:
        put({"plan": str(plan), **codec.encode(compiled)})


def compile_images(
    directory: Path,
    model: Path | None,
    draft: Path | None,
    only: tuple[str, ...] | None,
    quiet: bool = False,
    verbose: int = 0,
) -> CompileReport:
    """Compile, with a line for each image unless ``quiet``; return what was done."""
    with ends_cleanly(), progress.shown(Console(stderr=True), say) as report_to:
        report = None if quiet else report_to
        compiled = compiling.compile(directory, model=model, draft=draft, only=only, progress=report)
    if not quiet:
        for image in compiled.images:
            action = "unchanged" if image.reused else "written"
            say(f"{directory / image.file}: {format_bytes(image.size_bytes)} {action}, blake3 {image.blake3[:16]}")
        if compiled.rounding is not None:
            say(f"{directory}: {rounding_line(compiled.rounding)}")
        if compiled.missing:
            say(f"not compiled yet: {', '.join(compiled.missing)}")
    if verbose:
        for image in compiled.images:
            for line in image_lines(directory / image.file, verbose):
                say(line)
        say(f"read {format_bytes(compiled.read_bytes)}, wrote {format_bytes(compiled.written_bytes)}")
    return compiled


def rounding_line(errors: RoundingReport) -> str:
    """Return the errors of rounded weights in words."""
    place = "embedding or lm_head" if errors.most_layer is None else f"layer {errors.most_layer}"
    return (
        f"weights are rounded with a relative error of {errors.median_ppm / 10**4:.2g} %, at most "
        f"{errors.most_ppm / 10**4:.2g} % in {place} (median and largest of all in images.yaml)"
    )


def image_lines(file: Path, verbose: int) -> Iterator[str]:
    """Yield what an image holds, from its header: the number of slots, and with ``verbose`` > 1 each of them."""
    with safe_open(file, "numpy") as image:
        names = [name for name in image.keys() if not is_filler(name)]  # noqa: SIM118 (it is no mapping)
        drafter = sum(name.startswith(DRAFT_PREFIX) for name in names)
        yield f"{file}: {len(names) - drafter} slots of the model, {drafter} of the EAGLE head"
        if verbose > 1:
            for name in names:
                slot = image.get_slice(name)
                yield f"  {name}: {slot.get_dtype()}, {' x '.join(map(str, slot.get_shape()))}"


@contextmanager
def ends_cleanly() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that temporary files are removed as they are after Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    unhandled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def images_data(compiled: CompileReport) -> list[dict[str, Any]]:
    """Return the images of a report for ``--json``."""
    return [codec.encode(image) for image in compiled.images]
