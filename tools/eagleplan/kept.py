"""Plans that are kept in the user's cache, each in a directory named by the digest of what determines it.

    eagleplan/
      machines/<digest>.yaml    inventory of this machine, as measured once
      plans/<digest>/lock       held by the process that plans and compiles
      plans/<digest>/new/       the plan while it is compiled; removed where its process was killed
      plans/<digest>/plan/      the plan with its images, renamed into place when all is there; never changed again

A checkpoint, an inventory or an option that changes leads to another digest, so what is kept is never out of date, and
an engine that is open never sees its files replaced. Nothing is removed by itself: a directory of ``plans`` may be.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import planner
from planner.errors import InputError, OutputError

Report = Callable[[str], object]
"""Called with each phase, as it begins."""
VARIABLE = "XDG_CACHE_HOME"


def ignore(phase: str) -> None:
    """Report no phase."""


def directory(cache_dir: str | Path | None) -> Path:
    """Return the directory of all that is kept, made if need be; raise OutputError."""
    home = os.environ.get(VARIABLE, "")
    base = (
        Path(home) if home.startswith("/") else Path.home() / ".cache"
    )  # relative ones are ignored, says the standard
    path = base / "eagleplan" if cache_dir is None else Path(cache_dir)
    with _output_errors(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def this_machine(cache: Path, report: Report = ignore) -> Path:
    """Return an inventory file of this machine; the same one as long as the machine has the same devices.

    Raise DetectionError where a GPU cannot be read, OutputError.
    """
    name = hashlib.sha256(planner.machine_identity().encode()).hexdigest()
    file = cache / "machines" / f"{name}.yaml"
    if file.is_file():
        return file
    report("detecting the devices of this machine")
    text = planner.detect().text
    with _output_errors(file):
        file.parent.mkdir(exist_ok=True)
        new = file.with_name(f".{file.name}.{os.getpid()}.new")
        new.write_text(text)
        try:
            file.hardlink_to(new)  # of two processes that measure at once, the first one's figures count for both
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return file


def plan(
    cache: Path,
    *,
    model: str | Path | None,
    draft: str | Path | None,
    inventory: Path,
    options: Mapping[str, Any],
    report: Report = ignore,
) -> Path:
    """Return the directory of a compiled plan; plan and compile it unless it is kept.

    Raise the errors of ``planner.plan`` and ``planner.compile``, OutputError, and InputError where an input changes
    meanwhile.
    """
    digest = _digest(model, draft, inventory, options)
    entry = cache / "plans" / digest
    if not (entry / "plan").is_dir():
        with _locked(entry, report):
            if not (entry / "plan").is_dir():  # another process may have made it
                _make(entry, model, draft, inventory, options, report)
                if _digest(model, draft, inventory, options) != digest:
                    shutil.rmtree(entry / "new")
                    raise InputError(f"{model or 'the demo model'}: an input changed while it was compiled: run again")
                with _output_errors(entry):
                    (entry / "new").rename(entry / "plan")
    return entry / "plan"


def _digest(model: str | Path | None, draft: str | Path | None, inventory: Path, options: Mapping[str, Any]) -> str:
    others = {name: value for name, value in options.items() if name != "device_map"}
    documents = [inventory, *(options[name] for name in ("device_map",) if options.get(name) is not None)]
    return planner.inputs_digest([model, draft], documents, repr(sorted(others.items())))


def _make(
    entry: Path,
    model: str | Path | None,
    draft: str | Path | None,
    inventory: Path,
    options: Mapping[str, Any],
    report: Report,
) -> None:
    """Plan and compile in ``new``, on disk when this returns."""
    new = entry / "new"
    with _output_errors(new):
        if new.is_dir():
            shutil.rmtree(new)
    report("planning")
    result = planner.plan(model, draft=draft, inventory=inventory, **options)
    report("compiling the images")
    planner.compile(result.write(new), model=model, draft=draft)


@contextmanager
def _locked(entry: Path, report: Report) -> Iterator[None]:
    """Hold an entry against other processes and threads; the lock ends with its process, however that ends."""
    with _output_errors(entry):
        entry.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(entry / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for the process that compiles the same plan")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write: {error.strerror}: give another cache_dir, or set {VARIABLE}"
        ) from error
