"""Chat template: renders a conversation as the prompt format that the model was trained on.

The template lies beside the tokenizer. It is Jinja, run in a sandbox, with the variables and functions that
transformers gives it: ``messages``, ``add_generation_prompt``, the special tokens by name, ``raise_exception``,
``strftime_now``, and a ``tojson`` that does not escape non-ASCII letters.
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
    """Chat template of a plan's tokenizer."""

    def __init__(self, directory: Path) -> None:
        """Load the template; raise RequestError where there is none, or none that can be read."""
        config_file = directory / CONFIG_FILE
        config = _read_config(config_file)
        source = _source(directory, config)
        if source is None:
            raise RequestError(
                f"{config_file}: chat_template: missing, and no {TEMPLATE_FILE} beside it: the tokenizer has no chat "
                "template, so prompt without --chat"
            )
        self._config_file = config_file
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
        """Return the text of a conversation, up to where the model's next turn begins; raise RequestError."""
        messages = [asdict(turn) for turn in turns]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except Exception as error:  # a template is a program and may raise anything
            raise RequestError(f"{self._config_file}: chat_template: {type(error).__name__}: {error}") from error


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
    """Return the source of the template, of several named ones that of the default; None where there is none."""
    file = directory / TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise RequestError(f"{file}: cannot be read: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template if isinstance(entry, dict) and "name" in entry}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token(name: str, value: Any) -> str | None:
    """Return the text of a special token, which the config has as a string or as a mapping; None for other fields."""
    if not name.endswith("_token"):
        return None
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
