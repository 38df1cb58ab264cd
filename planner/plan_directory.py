"""Writes the directory of a plan: ``plan.yaml``, the given configs and the tokenizer files."""

import os
from collections.abc import Iterable
from pathlib import Path

from planner.errors import OutputError
from planner.families import BaseInput, DraftInput
from plans import codec
from plans.schema import Plan, PlanError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


def write(directory: Path, built: Plan, base: BaseInput, draft: DraftInput | None) -> None:
    """Write a plan's directory, ``plan.yaml`` last; raise OutputError where something else is in the way."""
    refuse_foreign(directory)
    source = base.checkpoint.config_file.parent
    given = {name: source / name for name in TOKENIZER_FILES if (source / name).is_file()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = codec.dumps(built).encode()
        unchanged = _has(directory / "plan.yaml", text)
        if not unchanged:
            _write_new(directory / "plan.yaml", text)  # first: by it is known whose a half-written directory is
        files = {name: file.read_bytes() for name, file in given.items()}
        files["config.json"] = base.checkpoint.config_bytes
        if draft is not None:
            (directory / "draft").mkdir(exist_ok=True)
            files["draft/config.json"] = draft.checkpoint.config_bytes
        _remove(directory / name for name in (*TOKENIZER_FILES, "draft/config.json") if name not in files)
        if draft is None and (directory / "draft").is_dir():
            (directory / "draft").rmdir()
        for name, content in files.items():
            if not _has(directory / name, content):
                _write_new(directory / name, content)
                _publish(directory / name)
        if not unchanged:
            _publish(directory / "plan.yaml")
    except OSError as error:
        raise OutputError(f"{directory}: cannot write the plan: {error}") from error


def refuse_foreign(directory: Path) -> None:
    """Raise OutputError unless ``directory`` is free, or has a plan, of whatever version, if only half written."""
    file = directory / "plan.yaml"
    if directory.is_dir():
        if any(directory.iterdir()) and not file.is_file() and not _new(file).is_file():
            raise OutputError(f"{directory}: holds something other than a plan (no plan.yaml): give another --out")
        if file.is_file() and not _is_plan(file):
            raise OutputError(f"{file}: is no plan, and would be overwritten: give another --out, or take it away")
    elif directory.exists() or directory.is_symlink():
        raise OutputError(f"{directory}: is not a directory: give another --out")


def _is_plan(file: Path) -> bool:
    """Whether it has the fields by which every version of a plan is known."""
    try:
        data = codec.load_yaml(codec.read_document(file), str(file))
    except (PlanError, OSError):
        return False
    return isinstance(data, dict) and {"schema", "inputs", "options", "inventory", "stages"} <= set(data)


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _has(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _new(file: Path) -> Path:
    """Where it is until it is whole."""
    return file.with_name(f".{file.name}.new")


def _write_new(file: Path, content: bytes) -> None:
    """On disk when this returns, but not yet in its place."""
    with _new(file).open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _publish(file: Path) -> None:
    """Put what was written into its place in one step, on disk when this returns."""
    _new(file).replace(file)
    handle = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
