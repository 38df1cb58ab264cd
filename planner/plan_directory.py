"""Write the directory of a plan: ``plan.yaml``, the configs from which it was planned, and the tokenizer files.

    .plan.yaml.new  ►  configs and tokenizer files, each replaced in one step  ►  plan.yaml renamed into place

The new plan is written first under its temporary name, by which a half-written directory is recognised as a plan's and
may be written again; it takes its place last, so that a ``plan.yaml`` always has its other files beside it.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from planner.checkpoints.formats import MOST_SIDE_BYTES, OF_MODELOPT
from planner.directory_lock import LOCK, held
from planner.errors import CheckpointError, OutputError
from planner.families import BaseInput, DraftInput
from plans import codec, durable
from plans.acceptance import ACCEPTANCE, Profile, dump_profile
from plans.files import kind_of, read_inside, resolved_inside
from plans.schema import Plan, PlanError
from plans.strict_yaml import load_yaml

TOKENIZER_FILES = {
    "tokenizer.json": 64 << 20,
    "tokenizer_config.json": 12 << 20,
    "special_tokens_map.json": 1 << 20,
    "added_tokens.json": 1 << 20,
    "tokenizer.model": 64 << 20,
    "chat_template.jinja": 1 << 20,
    "generation_config.json": 1 << 20,
}
"""Files with words and settings of tokenizers, with the most bytes of each."""
COPIED_FILES = {**TOKENIZER_FILES, OF_MODELOPT: MOST_SIDE_BYTES}
"""Files that are copied from the directory of the base model."""
DRAFT_DIRECTORY = "draft"
BASE_CONFIG, DRAFT_CONFIG = "config.json", f"{DRAFT_DIRECTORY}/config.json"
"""The configs that were planned, from which a plan can be solved again."""
PLAN_FIELDS = {"schema", "inputs", "options", "inventory", "stages"}
"""Top-level fields that every version of ``plan.yaml`` has."""


def write(
    directory: Path, plan: Plan, base: BaseInput, draft: DraftInput | None, profile: Profile | None = None
) -> None:
    """Write a plan's directory, with the acceptance ``profile`` of its drafter.

    Unchanged files are left alone, so that a directory which has all of them may be read-only. Raise OutputError, or
    CheckpointError.
    """
    refuse_foreign(directory)
    files = _files_beside(base, draft)
    if profile is not None:
        files[ACCEPTANCE] = dump_profile(profile).encode()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with held(directory):
            _write(directory, codec.dumps(plan).encode(), files, drafts=draft is not None)
    except OSError as error:
        raise OutputError(f"{directory}: cannot write the plan: {error.strerror or error}") from error


def _write(directory: Path, text: bytes, files: dict[str, bytes], *, drafts: bool) -> None:
    """Write ``plan.yaml`` with ``text``, and the files beside it by their names; raise OSError."""
    plan_file = directory / codec.PLAN_FILE
    plan_changes = not _has(plan_file, text)
    if plan_changes:
        durable.write_synced(_temporary(plan_file), text)
    if drafts:
        (directory / DRAFT_DIRECTORY).mkdir(exist_ok=True)
    _remove(directory / name for name in (*COPIED_FILES, DRAFT_CONFIG, ACCEPTANCE) if name not in files)
    if not drafts and (directory / DRAFT_DIRECTORY).is_dir():
        (directory / DRAFT_DIRECTORY).rmdir()
    for name, content in files.items():
        file = directory / name
        if not _has(file, content):
            durable.replace(file, content, _temporary(file))
    if plan_changes:
        durable.put_in_place(_temporary(plan_file), plan_file)


def refuse_foreign(directory: Path) -> None:
    """Raise OutputError unless ``directory`` is free or has a plan of any version, which may be half written."""
    file = directory / codec.PLAN_FILE
    if directory.is_dir():
        if file.exists() and not file.is_file():
            raise OutputError(f"{file}: found {kind_of(file)}, expected a plan: give another --out, or take it away")
        others = any(entry.name != LOCK for entry in directory.iterdir())
        if others and not file.is_file() and not _temporary(file).is_file():
            raise OutputError(f"{directory}: holds something other than a plan (no plan.yaml): give another --out")
        if file.is_file() and not _is_plan(file):
            raise OutputError(f"{file}: is no plan, and would be overwritten: give another --out, or take it away")
        inner = directory / DRAFT_DIRECTORY
        if os.path.lexists(inner) and not stat.S_ISDIR(inner.lstat().st_mode):
            raise OutputError(f"{inner}: a link or a file, expected a directory: take it away, or give another --out")
    elif directory.exists() or directory.is_symlink():
        raise OutputError(f"{directory}: is not a directory: give another --out")


def draft_config(directory: Path) -> Path:
    """Return the file of the drafter's config beside a plan; raise CheckpointError where a link leads elsewhere.

    The directory ``draft`` may be such a link too.
    """
    file = directory / DRAFT_CONFIG
    try:
        resolved_inside(directory, DRAFT_CONFIG)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot read: {error.strerror}") from error
    return file


def _files_beside(base: BaseInput, draft: DraftInput | None) -> dict[str, bytes]:
    """Return the contents of the files beside ``plan.yaml``, by their names; raise CheckpointError."""
    config_file = base.checkpoint.config_file
    source = config_file.parent
    files: dict[str, bytes] = {}
    for name, most in COPIED_FILES.items():
        if name == OF_MODELOPT and config_file.name != BASE_CONFIG:
            continue  # not read there, as it would be beside the plan
        try:
            files[name] = read_inside(source, name, most)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{source / name}: cannot read: {error.strerror}") from error
    files[BASE_CONFIG] = base.checkpoint.config_bytes
    if draft is not None:
        files[DRAFT_CONFIG] = draft.checkpoint.config_bytes
    return files


def _is_plan(file: Path) -> bool:
    """Return True if a file has the fields by which a plan of any version is recognised."""
    try:
        data = load_yaml(codec.read_document(file, inside=True), str(file))
    except (PlanError, OSError):
        return False
    return isinstance(data, dict) and set(data) >= PLAN_FIELDS


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        if os.path.lexists(file):  # in a read-only directory, to unlink nothing fails too
            file.unlink()


def _has(file: Path, content: bytes) -> bool:
    """Return True if a file is there with this content, itself and no link to another."""
    if not os.path.lexists(file):
        return False
    status = file.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == len(content) and file.read_bytes() == content


def _temporary(file: Path) -> Path:
    """Return the name under which a file is written until it is complete."""
    return file.with_name(f".{file.name}.new")
