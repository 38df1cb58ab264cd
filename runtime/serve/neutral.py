"""Fields that clients send by default and that this server does not have: each is accepted at the values that change
nothing, and refused by name at any other.

To accept one more, add a row. A field that is in no table and no body is unknown and refused, too.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from runtime.serve.refusals import ApiError

TEXT, OBJECT = (str, "a text"), (dict, "an object")
HINTS: Mapping[str, tuple[type, str]] = {
    "user": TEXT,
    "safety_identifier": TEXT,
    "prompt_cache_key": TEXT,
    "metadata": OBJECT,
}
"""Fields whose value says nothing about the answer, with the type that it has; null is accepted, too."""

COMMON: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "response_format": ({"type": "text"},),
    "echo": (False,),
    "prompt_cache_retention": (),
    "prompt_cache_options": (),
    "moderation": (),
}
"""Values that change nothing, beside null, of fields that both endpoints accept."""

CHAT: Mapping[str, tuple[Any, ...]] = {
    **COMMON,
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
COMPLETION: Mapping[str, tuple[Any, ...]] = {**COMMON, "logprobs": (), "suffix": ("",)}

MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
}
"""Fields of a message that clients send back with the answer of an assistant."""
MOST_SHOWN = 80
"""Most characters of a refused text in a message."""
MOST_INNER = 8
"""Most numbers of a refused list in a message."""


def without_neutral(
    fields: Mapping[str, Any], own: set[str], neutral: Mapping[str, tuple[Any, ...]], path: str = ""
) -> dict[str, Any]:
    """Return the fields that a body has; raise ApiError for an unknown one, and one at a value that changes something.

    ``own``: names of those that it has; ``path``: what comes before a name in a message.
    """
    for name, value in fields.items():
        if name in own:
            continue
        if name in HINTS and not path:
            if value is not None and not isinstance(value, HINTS[name][0]):
                raise ApiError(400, f"{name}: found {shown(value)}, expected {HINTS[name][1]}", param=name)
        elif name not in neutral:
            nearest = get_close_matches(name[:MOST_SHOWN], [*own, *neutral], n=1)
            raise ApiError(
                400,
                f"{path}{_name(name)}: unknown field" + (f", did you mean {nearest[0]}?" if nearest else ""),
                param=f"{path}{name}",
                code="unknown_parameter",
            )
        elif value is not None and not any(_equal(value, nothing) for nothing in neutral[name]):
            expected = " or ".join([*map(json.dumps, neutral[name]), "null"])
            raise ApiError(
                400,
                f"{path}{name}: not supported: found {shown(value)}, expected {expected}, or leave it out",
                param=f"{path}{name}",
                code="unsupported_parameter",
            )
    return {name: value for name, value in fields.items() if name in own}


def _equal(value: Any, other: Any) -> bool:
    """Return True for equal values of JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def shown(value: Any) -> str:
    """Return a value as JSON, and its beginning alone where it is long."""
    if isinstance(value, str) and len(value) > MOST_SHOWN:
        return f"{json.dumps(value[:MOST_SHOWN])}... of {len(value)} characters"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        inner = list(value.values()) if isinstance(value, dict) else value
        if len(inner) > MOST_INNER or any(isinstance(entry, list | dict | str) for entry in inner):
            return f"a list of {len(inner)}" if isinstance(value, list) else f"an object of {len(inner)} fields"
    return json.dumps(value)


def _name(name: str) -> str:
    """Return a field's name as a message shows it."""
    return name if name.isprintable() and 0 < len(name) <= MOST_SHOWN else shown(name)
