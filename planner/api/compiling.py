"""Compiles the images of a plan."""

from collections.abc import Sequence
from pathlib import Path

from planner.demo_model import BASE, HEADS
from planner.images.compile import CompileReport, compile_plan
from planner.images.inputs import changes_first, check_default
from planner.images.stream import Progress
from plans import codec


def compile(  # noqa: A001 (planner.compile is its name)
    directory: str | Path,
    *,
    model: str | Path | None = None,
    draft: str | Path | None = None,
    only: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Compile the images of the plan in ``directory`` and return what was done.

    ``model``, ``draft``: checkpoint directories; without a model those of the demo model. ``only``: the name of a
    device or host whose images are compiled, or several. ``progress`` is called with the bytes that are done and all.

    Raise InputError where a checkpoint is not that of the plan, OutputError where an image cannot be written.
    """
    if model is None:
        plan = codec.load(Path(directory))
        with changes_first(Path(directory), plan):
            check_default(Path(directory), plan, BASE)
        if draft is None:
            draft = HEADS[plan.draft.kind] if plan.draft else None
    names = [only] if isinstance(only, str) else only
    return compile_plan(Path(directory), Path(model or BASE), Path(draft) if draft else None, names, progress)
