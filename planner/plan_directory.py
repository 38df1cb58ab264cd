"""Write the directory of a plan: ``plan.yaml``, the configs from which it was planned, and the tokenizer files.

    .plan.yaml.new  ►  configs and tokenizer files, each replaced in one step  ►  plan.yaml renamed into place

The new plan is written first under its temporary name, by which a half-written directory is recognised as a plan's and
may be written again; it takes its place last, so that a ``plan.yaml`` always has its other files beside it.
"""

from collections.abc import Iterable
from pathlib import Path

from planner import durable
from planner.errors import OutputError
from planner.families import BaseInput, DraftInput
from plans import codec
from plans.schema import Plan, PlanError
from plans.strict_yaml import load_yaml

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
BASE_CONFIG, DRAFT_CONFIG = "config.json", "draft/config.json"
"""The configs that were planned, from which a plan can be solved again."""
PLAN_FIELDS = {"schema", "inputs", "options", "inventory", "stages"}
"""Top-level fields that every version of ``plan.yaml`` has."""


def write(directory: Path, plan: Plan, base: BaseInput, draft: DraftInput | None) -> None:
    """Write a plan's directory; files that are unchanged are left alone. Raise OutputError."""
    refuse_foreign(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        plan_file, text = directory / codec.PLAN_FILE, codec.dumps(plan).encode()
        plan_changes = not _has(plan_file, text)
        if plan_changes:
            durable.write_synced(_temporary(plan_file), text)
        files = _files_beside(base, draft)
        if draft is not None:
            (directory / "draft").mkdir(exist_ok=True)
        _remove(directory / name for name in (*TOKENIZER_FILES, DRAFT_CONFIG) if name not in files)
        if draft is None and (directory / "draft").is_dir():
            (directory / "draft").rmdir()
        for name, content in files.items():
            file = directory / name
            if not _has(file, content):
                durable.replace(file, content, _temporary(file))
        if plan_changes:
            durable.put_in_place(_temporary(plan_file), plan_file)
    except OSError as error:
        raise OutputError(f"{directory}: cannot write the plan: {error}") from error


def refuse_foreign(directory: Path) -> None:
    """Raise OutputError unless ``directory`` is free or has a plan of any version, which may be half written."""
    file = directory / codec.PLAN_FILE
    if directory.is_dir():
        if any(directory.iterdir()) and not file.is_file() and not _temporary(file).is_file():
            raise OutputError(f"{directory}: holds something other than a plan (no plan.yaml): give another --out")
        if file.is_file() and not _is_plan(file):
            raise OutputError(f"{file}: is no plan, and would be overwritten: give another --out, or take it away")
    elif directory.exists() or directory.is_symlink():
        raise OutputError(f"{directory}: is not a directory: give another --out")


def _files_beside(base: BaseInput, draft: DraftInput | None) -> dict[str, bytes]:
    """Return the contents of the files beside ``plan.yaml``, by their names in the directory."""
    source = base.checkpoint.config_file.parent
    files = {name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).is_file()}
    files[BASE_CONFIG] = base.checkpoint.config_bytes
    if draft is not None:
        files[DRAFT_CONFIG] = draft.checkpoint.config_bytes
    return files


def _is_plan(file: Path) -> bool:
    """Return True if a file has the fields by which a plan of any version is recognised."""
    try:
        data = load_yaml(codec.read_document(file), str(file))
    except (PlanError, OSError):
        return False
    return isinstance(data, dict) and set(data) >= PLAN_FIELDS


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _has(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _temporary(file: Path) -> Path:
    """Return the name under which a file is written until it is complete."""
    return file.with_name(f".{file.name}.new")
