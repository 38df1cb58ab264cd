"""Digest of the inputs of a plan and its images, without reading a header: the key of a cache of compiled plans."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from planner.checkpoints.checkpoint import INDEX, located
from planner.checkpoints.header import stamp
from planner.plan_directory import BASE_CONFIG, COPIED_FILES
from plans.acceptance import ACCEPTANCE
from plans.artifact import LAYOUT_VERSION
from plans.codec import encode
from plans.files import read_regular
from plans.strict_yaml import MAX_DOCUMENT_BYTES

PATTERNS = ("**/*.safetensors", "pytorch_model*.bin")
"""Files of tensors that a checkpoint may have."""
BESIDE_A_CONFIG = (ACCEPTANCE, *COPIED_FILES)
"""Files beside a config that are read too, also where the config alone was given."""
SOURCES = ("planner/**/*.py", "planner/hardware/*.yaml", "planner/speculation/profiles/*.yaml", "plans/**/*.py")
"""Files that plan and compile."""


def inputs_digest(checkpoints: Iterable[str | Path | None], documents: Iterable[str | Path], options: str) -> str:
    """Return the SHA-256 of all that determines a plan and the bytes of its images, in hex.

    ``checkpoints``: directories or bare configs, of which the state of each file counts (size, times, inode): no
    program can set the time of an inode's last change, so that a file which was written since gives another digest.
    ``documents``: inventory and device map, which count by content. ``options``: all others, as text. The sources of
    planner and format count, too. What is missing or cannot be read is for the planner to refuse.
    """
    states = [None if path is None else list(_states(located(Path(path)))) for path in checkpoints]
    contents = [_content_sha256(Path(file)) for file in documents]
    text = json.dumps([LAYOUT_VERSION, _sources_sha256(), states, contents, options])
    return hashlib.sha256(text.encode()).hexdigest()


def _states(path: Path) -> Iterator[list[object]]:
    """Yield name and state of each file that planning and compiling read of a checkpoint, or of a link to nowhere."""
    directory = path if path.is_dir() else path.parent
    found = _tensors_and_configs(path) if path.is_dir() else [path]
    for file in sorted({*found, *(directory / name for name in BESIDE_A_CONFIG)}):
        if os.path.lexists(file):
            status = file.stat() if file.exists() else file.lstat()
            yield [str(file.relative_to(directory)), status.st_dev, encode(stamp(status))]


def _tensors_and_configs(directory: Path) -> Iterator[Path]:
    yield from (directory / name for name in (BASE_CONFIG, INDEX))
    for pattern in PATTERNS:
        yield from directory.glob(pattern)


def _content_sha256(file: Path) -> str | None:
    try:
        return hashlib.sha256(read_regular(file, MAX_DOCUMENT_BYTES)).hexdigest()
    except OSError:
        return None


@cache
def _sources_sha256() -> str:
    """Return the SHA-256 of the sources that plan and compile: another version of them may give another plan."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for file in sorted(Path(__file__).parents[2].glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()
