"""Strict JSON: an object in UTF-8 without duplicate names or numbers that are none, of bounded depth."""

import json
from typing import Any, NoReturn

from runtime.serve.refusals import ApiError


class _Duplicate(ValueError):
    """A name that an object has twice."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the object that a body is; raise ApiError for any other body."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_once, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ApiError(400, f"body: not JSON: {error.msg} at character {error.pos}") from error
    except _Duplicate as error:
        raise ApiError(400, f"body: the name {json.dumps(error.args[0][:100])} is there twice") from error
    except RecursionError as error:
        raise ApiError(400, "body: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits, or NaN
        raise ApiError(400, f"body: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "body: expected a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of an object as a mapping; raise _Duplicate where a name is there twice."""
    names = dict(pairs)
    if len(names) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Duplicate(name)
            seen.add(name)
    return names


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
