"""Canonical YAML in and out: one text per plan, and an error with the path to the datum for everything else.

The records of :mod:`plans.schema` are the grammar: decoding walks their annotations, so a field is defined once.
:mod:`plans.strict_yaml` has the text of plain data.
"""

import dataclasses
import difflib
import errno
import functools
import hashlib
import math
import re
import types
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from plans.files import read_inside, read_regular
from plans.format import quote, shown
from plans.schema import SCHEMA_MAJOR, SCHEMA_MINOR, NewerSchemaError, Plan, PlanError
from plans.strict_yaml import MAX_DOCUMENT_BYTES, dump_yaml, load_yaml

T = TypeVar("T")

PLAN_FILE = "plan.yaml"
"""Name of a plan's file in its directory."""
FLEET_FILE = "fleet.yaml"
"""Name of a fleet's file in its directory."""


def read_document(file: Path, *, inside: bool) -> bytes:
    """Return the bytes of a document; raise PlanError for one that is too large, OSError for one that cannot be read.

    ``inside``: its directory may be a stranger's, so that no link may lead out of it; else the user named the file.
    """
    try:
        if inside:
            return read_inside(file.parent, file.name, MAX_DOCUMENT_BYTES)
        return read_regular(file, MAX_DOCUMENT_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise PlanError(f"{file}: {error.strerror}") from error


def encode(record: Any) -> Any:
    """Return a record as plain data; fields that are None are left out."""
    if dataclasses.is_dataclass(record):
        pairs = ((field.name, getattr(record, field.name)) for field in dataclasses.fields(record))
        return {name: encode(value) for name, value in pairs if value is not None}
    if isinstance(record, tuple):
        return [encode(item) for item in record]
    return record


def decode(kind: type[T], data: Any, where: str) -> T:
    """Return plain data as a record of ``kind``; raise PlanError with ``where`` and the path to what is wrong in it."""
    return _decode(kind, data, _Path(where))  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True, slots=True)
class _Path:
    """``plan.yaml: stages[0].devices`` while it is being walked."""

    where: str
    inner: str = ""

    def field(self, name: str) -> "_Path":
        return _Path(self.where, f"{self.inner}.{name}" if self.inner else name)

    def item(self, index: int) -> "_Path":
        return _Path(self.where, f"{self.inner}[{index}]")

    def refuse(self, problem: str) -> NoReturn:
        raise PlanError(f"{self.where}: {self.inner}: {problem}" if self.inner else f"{self.where}: {problem}")


def _decode(kind: Any, data: Any, path: _Path) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if data is None:
            return None
        (inner,) = (arg for arg in get_args(kind) if arg is not type(None))
        return _decode(inner, data, path)
    if origin is Literal:
        if type(data) is not str or data not in get_args(kind):
            path.refuse(f"found {_show(data)}, expected one of {', '.join(get_args(kind))}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            path.refuse(f"found {_show(data)}, expected a sequence")
        return tuple(_decode(get_args(kind)[0], item, path.item(i)) for i, item in enumerate(data))
    if dataclasses.is_dataclass(kind):
        return _decode_record(kind, data, path)
    return _decode_scalar(kind, data, path)


def _decode_scalar(kind: Any, data: Any, path: _Path) -> Any:
    if type(data) is not kind:
        path.refuse(f"found {_show(data)}, expected {_NAMES[kind]}")
    if kind is int and not 0 <= data < 1 << 63:
        path.refuse(f"found {_show(data)}, expected an integer from 0 to 2^63 - 1")
    if kind is float and not math.isfinite(data):
        path.refuse(f"found {data}, expected a finite number")
    if kind is str and not data.isprintable():
        path.refuse(f"found {quote(data)}, expected printable characters")
    return data


def _decode_record(kind: Any, data: Any, path: _Path) -> Any:
    if not isinstance(data, dict):
        path.refuse(f"found {_show(data)}, expected a mapping ({kind.__name__})")
    hints = _hints(kind)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(hints)}"
            path.field(shown(key)).refuse(f"unknown field, {known}")
    values = {}
    for name, hint in hints.items():
        if name not in data and type(None) not in get_args(hint):
            path.field(name).refuse("missing")
        values[name] = _decode(hint, data.get(name), path.field(name))
    return kind(**values)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


_NAMES: dict[type, str] = {
    int: "an integer",
    str: "a string",
    bool: "true or false",
    float: "a number with a point, as in 1.0e-05",
}
_FOUND_NAMES = {**_NAMES, dict: "a mapping", list: "a sequence", type(None): "nothing", float: "a number"}


def _name(data: Any) -> str:
    return _FOUND_NAMES.get(type(data), type(data).__name__)


def _show(data: Any) -> str:
    if isinstance(data, bool):
        return str(data).lower()
    return quote(data) if isinstance(data, (str, int, float)) else _name(data)


def dumps(plan: Plan) -> str:
    """Return the canonical text of a plan."""
    return dump_yaml(encode(plan))


_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")


def loads(text: str | bytes, where: str = PLAN_FILE) -> Plan:
    """Read a plan; raise NewerSchemaError or PlanError (exit 2) with the path to the datum."""
    data = load_yaml(text, where)
    minor = _check_version(data, where)
    try:
        return decode(Plan, data, where)
    except PlanError as error:
        if minor <= SCHEMA_MINOR:
            raise
        versions = f"the plan has schema {data['schema']}, this program knows {SCHEMA_MAJOR}.{SCHEMA_MINOR}"
        raise PlanError(f"{error} ({versions}: update it)") from error


def _check_version(data: Any, where: str) -> int:
    """Return the minor version of a document that this program may read; raise PlanError for any other."""
    expected = f"expected a string like '{SCHEMA_MAJOR}.{SCHEMA_MINOR}'"
    if not isinstance(data, dict):
        raise PlanError(f"{where}: found {_show(data)}, expected a mapping (Plan)")
    if "schema" not in data:
        raise PlanError(f"{where}: schema: missing, {expected}")
    version = data["schema"]
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise PlanError(f"{where}: schema: found {_show(version)}, {expected}")
    major, minor = int(match[1]), int(match[2])
    if major > SCHEMA_MAJOR:
        raise NewerSchemaError(
            f"{where}: schema: the plan has version {version}, this program reads up to {SCHEMA_MAJOR}.x: "
            "update the program, or build the plan again with this one"
        )
    if major < SCHEMA_MAJOR:
        raise PlanError(f"{where}: schema: version {version} is older than {SCHEMA_MAJOR}.0: build the plan again")
    return minor


def load(directory: Path) -> Plan:
    """Read ``plan.yaml`` of a plan's directory."""
    file = directory / PLAN_FILE
    try:
        if directory.name in (PLAN_FILE, FLEET_FILE) and directory.is_file():
            raise PlanError(f"{directory}: found a file, expected the directory of a plan: give {directory.parent}")
        raw = read_document(file, inside=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        templates = sorted(str(plan.parent) for plan in directory.glob(f"*/{PLAN_FILE}"))
        if templates and (directory / FLEET_FILE).is_file():
            raise PlanError(
                f"{directory}: found a fleet, expected a plan: give that of one of its templates, "
                f"{' or '.join(templates)}"
            ) from error
        raise PlanError(
            f"{directory}: no plan.yaml here: give the directory of a plan, as `planner build` wrote it"
        ) from error
    except OSError as error:
        raise PlanError(f"{file}: cannot read: {error.strerror}") from error
    return loads(raw, str(file))


def is_canonical(directory: Path, plan: Plan) -> bool:
    """Return True where the file of a plan, read from this directory, has exactly the bytes of its canonical text."""
    return read_document(directory / PLAN_FILE, inside=True) == dumps(plan).encode()


def digest(plan: Plan) -> str:
    """Return the SHA-256 of the canonical text, in hex."""
    return hashlib.sha256(dumps(plan).encode()).hexdigest()
