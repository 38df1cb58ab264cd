"""Compile and render a chat template, in a process of its own with limits. A program, never imported by the runtime.

    python renderer.py SECONDS     one message per line of stdin, one answer per line of stdout, both JSON

    {"config": text or null, "map": ..., "source": ...} ─►  {"ready": true}, or {"error": reason, "of": ...}
    {"messages": [...], "add_generation_prompt": true}  ─►  {"text": ...},   or {"error": reason, "of": ...}

``of``: ``config``, ``map`` or ``template``, of which the reason speaks.

``config`` is the text of ``tokenizer_config.json``, ``map`` that of ``special_tokens_map.json``, whose fields take the
places of the config's where that has no ``added_tokens_decoder``, ``source`` that of ``chat_template.jinja``. The
template runs in a sandbox, with the variables and functions that transformers gives it: ``messages``,
``add_generation_prompt``, the special tokens by name, ``raise_exception``, ``strftime_now``, and a ``tojson`` that does
not escape non-ASCII letters.
"""

import datetime
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_MEMORY_BYTES = 512 << 20
"""Address space of this process; about a tenth is Python's and Jinja's."""
MOST_TEXT = 4 << 20
"""Characters of a rendered conversation."""
MOST_REASON = 300
MOST_NAME = 60
"""Characters of a name in a reason."""
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that any tokenizer may have."""
VARIABLES = ("messages", "add_generation_prompt", "tools", "documents")
NO_TOKEN = 'expected a text, or a mapping with "__type": "AddedToken" and a text as content'
NO_TEMPLATE = "missing"
"""Reason where there is no template: the reader of the answer says so in its own words."""


class Refused(Exception):
    """A config or template that is none; the text is the reason."""


class TemplateRefused(Refused):
    """A template that is none, or cannot be rendered: of the file that it was read from."""


class MapRefused(Refused):
    """A ``special_tokens_map.json`` that is none."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: what the assistant says, which training counts; rendered as it is.

    As in transformers its variables are its own.
    """

    tags = {"generation"}  # noqa: RUF012 (the base declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return the body as a block that is called."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Renderer:
    """A chat template with the special tokens of its tokenizer."""

    def __init__(self, config_text: str | None, map_text: str | None, source: str | None) -> None:
        config = {} if config_text is None else _parse(config_text)
        source = _default_template(config) if source is None else source
        self._tokens = _special_tokens(config)
        if map_text is not None and "added_tokens_decoder" not in config:
            kept = {name: config[name] for name in config if name not in STANDARD and name in self._tokens}
            self._tokens |= _of_map(map_text) | {name: text for name, text in kept.items() if isinstance(text, str)}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # the compiler of Jinja and that of Python have their own limits and errors
            raise TemplateRefused(f"not a template: {_reason(error)}") from error

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Return the text of a conversation, if so up to where the model's next turn begins; raise Refused."""
        try:
            text = self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._tokens)
        except Exception as error:  # a template is a program and may raise anything
            raise TemplateRefused(_reason(error)) from error
        if len(text) > MOST_TEXT:
            raise TemplateRefused(f"renders {len(text)} characters, expected at most {MOST_TEXT}")
        return text


def main() -> None:
    """Answer the messages of stdin until it ends; the argument is the processor time of one answer, in s."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    renderer: Renderer | None = None
    for line in sys.stdin:
        _allow_cpu(int(sys.argv[1]))
        message = json.loads(line)
        answer: dict[str, object]
        try:
            if renderer is None:
                renderer = Renderer(message["config"], message["map"], message["source"])
                answer = {"ready": True}
            else:
                answer = {"text": renderer.render(message["messages"], message["add_generation_prompt"])}
        except Refused as error:
            of = {TemplateRefused: "template", MapRefused: "map"}.get(type(error), "config")
            answer = {"error": str(error), "of": of}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def _allow_cpu(seconds: int) -> None:
    """Let this process have so many more seconds of processor time; SIGXCPU ends it after them."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, resource.RLIM_INFINITY))


def _parse(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"cannot be read: {_reason(error)}") from error
    if not isinstance(config, dict):
        raise Refused(f"found {type(config).__name__}, expected a mapping")
    return config


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise Refused(f"cannot be read: {json.dumps(name[:MOST_NAME])}: the name occurs twice")
        table[name] = value
    return table


def _refuse_constant(constant: str) -> NoReturn:
    raise Refused(f"cannot be read: found {constant}, which is not JSON")


def _default_template(config: dict[str, Any]) -> str:
    """Return the source of the template, of several named ones that of the default; raise Refused where there is none.

    transformers writes several as a list of mappings with ``name`` and ``template``.
    """
    template = config.get("chat_template")
    if isinstance(template, list):
        for position, entry in enumerate(template):
            name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(source, str):
                raise Refused(f"chat_template[{position}]: expected a mapping with the texts name and template")
            if any(other["name"] == name for other in template[:position]):
                raise Refused(
                    f"chat_template[{position}].name: found {json.dumps(name[:MOST_NAME])} a second time, expected a "
                    "template of each name: remove one"
                )
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None:
        raise Refused(NO_TEMPLATE)
    if not isinstance(template, str):
        raise Refused(f"chat_template: found {type(template).__name__}, expected a text or a list of named ones")
    return template


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return special tokens by name, as transformers has them; raise Refused for one that is no token.

    Those of every model, others whose name ends with ``_token``, and those of the mapping ``extra_special_tokens``,
    which come before any of the same name.
    """
    tokens: dict[str, str] = {}
    for name, value in config.items():
        text = _token(value)
        if name in STANDARD and text is None and value is not None:
            raise Refused(f"{name}: {NO_TOKEN}")
        if name.endswith("_token") and text is not None:
            tokens[name] = text
    field = "extra_special_tokens" if config.get("extra_special_tokens") else "additional_special_tokens"
    extra = config.get(field)
    if extra is not None and not isinstance(extra, dict | list):
        raise Refused(f"{field}: found {type(extra).__name__}, expected a list of tokens or a mapping of named ones")
    for name, value in extra.items() if isinstance(extra, dict) else ():
        if (text := _token(value)) is None:
            raise Refused(f"{field}.{name[:MOST_NAME]}: {NO_TOKEN}")
        if name in VARIABLES:
            raise Refused(f"{field}.{name}: a template has another variable of that name")
        tokens[name] = text
    return tokens


def _of_map(text: str) -> dict[str, str]:
    """Return the special tokens that ``special_tokens_map.json`` names; raise MapRefused for one that is no token."""
    try:
        fields = _parse(text)
    except Refused as error:
        raise MapRefused(str(error)) from error
    tokens: dict[str, str] = {}
    for name, value in fields.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and token is not None:
            if not isinstance(token, str):
                raise MapRefused(f"{name[:MOST_NAME]}: {NO_TOKEN}")
            tokens[name] = token
    return tokens


def _token(value: Any) -> str | None:
    """Return the text of a special token, which a config has as a string or an AddedToken; None for anything else."""
    text = value.get("content") if isinstance(value, dict) and value.get("__type") == "AddedToken" else value
    return text if isinstance(text, str) else None


def _reason(error: BaseException) -> str:
    """Return an error on one line of bounded length, with its class where the text alone would not tell."""
    text = " ".join(str(error).split())[:MOST_REASON]
    plain = isinstance(error, jinja2.TemplateSyntaxError | json.JSONDecodeError)
    return text if plain and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: object = "raise_exception is called without a message") -> NoReturn:
    raise jinja2.TemplateError(str(message))


if __name__ == "__main__":
    main()
