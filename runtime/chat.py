"""A conversation as the prompt that a model was trained on: the chat template beside the tokenizer.

The template is Jinja, run in a sandbox, with the variables and functions that transformers gives it: ``messages``,
``add_generation_prompt``, the special tokens by name, ``raise_exception``, ``strftime_now``, and ``tojson`` that leaves
letters as they are.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.errors import RequestError

CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatTemplate:
    """The template of a plan's tokenizer."""

    def __init__(self, directory: Path) -> None:
        """Raises RequestError where there is no template, or none that can be read."""
        config_file = directory / CONFIG_FILE
        config = _read_config(config_file)
        source = _source(directory, config)
        if source is None:
            raise RequestError(
                f"{config_file}: chat_template: missing, and no {TEMPLATE_FILE} beside it: the tokenizer has no chat "
                "template, so prompt without --chat"
            )
        self._where = config_file
        self._tokens = {name: text for name, value in config.items() if (text := _token(name, value)) is not None}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise RequestError(f"{config_file}: chat_template: not a template: {error}") from error

    def render(self, turns: Sequence[Turn]) -> str:
        """The text of a conversation, up to where the model's next turn begins; raise RequestError where it cannot."""
        messages = [asdict(turn) for turn in turns]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except Exception as error:  # a template is a program, which may fail like any other
            raise RequestError(f"{self._where}: chat_template: {type(error).__name__}: {error}") from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise RequestError(f"{file}: found {type(config).__name__}, expected a mapping")
    return config


def _source(directory: Path, config: dict[str, Any]) -> str | None:
    """Of several named templates the default one."""
    file = directory / TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise RequestError(f"{file}: cannot be read: {error}") from error
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found if isinstance(entry, dict) and "name" in entry}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token(name: str, value: Any) -> str | None:
    """The text of a special token, which is written as a string or as a mapping."""
    if not name.endswith("_token"):
        return None
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
