"""Plain data as YAML: canonical text out, and in any document that has one meaning for every reader of YAML.

Documents are built from the parser's events by hand. yaml.safe_load would build the document first, and by then a few
bytes of nested aliases have become gigabytes (billion laughs), deep nesting has overflowed the stack, of duplicate keys
the last has silently won, and ``1:30`` has become 90, which is slow for long numbers. Here depth, number of values,
aliases, tags and duplicate keys are refused as the events come, and a plain scalar is null, true, false or a decimal
number, or else a string that neither YAML 1.1 nor 1.2 takes for something else; ``yes``, ``0x1F``, ``017``, ``1_000``,
``1:30``, ``1e5`` and ``.inf`` are refused. So are the characters that end a line, and with it a comment, in YAML 1.1
alone: an editor that follows YAML 1.2 shows as a comment what PyYAML reads as fields.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

import yaml

from plans.format import quote
from plans.schema import PlanError

MAX_DOCUMENT_BYTES = 1 << 20
"""Largest document that is parsed; a plan of 64 devices is below 100 kB."""
MAX_DEPTH = 32
"""Most nested collections; a plan has 6."""
MAX_VALUES = 200_000
"""Most scalars and collections of a document; a plan of 1000 devices has about 45 000."""
MAX_NUMBER = 64
"""Most characters of a number."""
MOST_KEY = 100
"""Most characters of a key that both emitters write alike; they differ from 123 on."""

# The same grammar either way; libyaml is twenty times faster, and the wheels have it.
_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_1_1 = yaml.resolver.Resolver()

_NAMED: dict[str, bool | None] = {"null": None, "true": True, "false": False}
_WORDS: dict[str, bool | None] = {"": None, "~": None, **_NAMED}
_WORDS |= {word.capitalize(): value for word, value in _NAMED.items()}
_WORDS |= {word.upper(): value for word, value in _NAMED.items()}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_POINT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]*([eE][-+][0-9]+)?")
_YAML_1_2_NUMBER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LINE_END = re.compile("\r\n?|\n")
_LINE_END_OF_1_1 = re.compile("[\x85\u2028\u2029]")
_DIGITS = re.compile(r"[-+.:_0-9a-fA-FxobXOB]*")
_NUMBER = ("number", "write a decimal number like 10 or 1.0e-05, or quote it")
_MEANINGS = {"int": _NUMBER, "float": _NUMBER, "bool": ("truth value", "write true or false, or quote it")}
"""Meaning of a type of YAML in words, and what to write instead."""


class _OtherText(Exception):
    """A string for which libyaml's emitter may write another text than PyYAML's."""


class _Dumper(yaml.SafeDumper):
    """Block style, except that a sequence of scalars stays on one line; never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _FastDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The same with libyaml's emitter, which takes a quarter of the time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, (list, dict)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


def _represent_str(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # Without a style PyYAML quotes what YAML 1.1 alone takes for another value, and folds at characters such as U+0085,
    # so that it would read back as another string.
    style = '"' if not data.isprintable() else "'" if _is_ambiguous(data) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


def _represent_plain_str(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    if not (data.isascii() and data.isprintable()):  # the emitters differ in what they escape beyond ASCII
        raise _OtherText
    return _represent_str(dumper, data)


def _represent_plain_dict(dumper: yaml.SafeDumper, data: dict[str, Any]) -> yaml.Node:
    if not all(0 < len(key) <= MOST_KEY for key in data):  # the emitters differ in keys that are empty or long
        raise _OtherText
    return dumper.represent_dict(data)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_str)
_FastDumper.add_representer(list, _represent_list)
_FastDumper.add_representer(dict, _represent_plain_dict)
_FastDumper.add_representer(str, _represent_plain_str)


def dump_yaml(data: dict[str, Any] | list[Any]) -> str:
    """Return canonical YAML of plain data: block style, sequences of scalars on a line, keys in the order given."""
    if yaml.__with_libyaml__:
        with suppress(_OtherText):
            return _dumped(data, _FastDumper, -1)
    return _dumped(data, _Dumper, math.inf)


def _dumped(data: dict[str, Any] | list[Any], dumper: Any, width: float) -> str:
    """Return the text of a dumper; ``width``: its only one that never folds a sequence or a string, however long."""
    return yaml.dump(data, Dumper=dumper, sort_keys=False, width=width, allow_unicode=True)


def load_yaml(text: str | bytes, where: str) -> Any:
    """Parse one YAML document, written by hand or by us; raise PlanError naming ``where`` and the line."""
    try:
        source = text.encode() if isinstance(text, str) else text
        decoded = source.decode()
    except UnicodeError as error:
        raise PlanError(f"{where}: not valid UTF-8: {error}") from error
    if len(source) > MAX_DOCUMENT_BYTES:
        raise PlanError(f"{where}: {len(source)} bytes, expected at most {MAX_DOCUMENT_BYTES}")
    if source[:2] == b"\xff\xfe" or b"\0" in source:  # YAML would guess UTF-16 of it
        raise PlanError(f"{where}: not valid UTF-8: it has NUL bytes")
    _check_line_ends(decoded, where)
    try:
        return _Document(yaml.parse(source, Loader=_Parser)).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        if mark is None:
            raise PlanError(f"{where}: {error.problem}") from error
        line = "".join(_LINE_END.split(decoded)[mark.line : mark.line + 1])  # the mark may be behind the last line
        tab = line[mark.column : mark.column + 1] == "\t"
        problem = "found a tab, expected spaces: YAML indents by them alone" if tab else error.problem
        raise PlanError(f"{where}: line {mark.line + 1}: {problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise PlanError(f"{where}: not valid YAML: {error}") from error


def _check_line_ends(text: str, where: str) -> None:
    """Raise PlanError for a character that ends a line in YAML 1.1 and not in YAML 1.2, wherever it stands."""
    if (end := _LINE_END_OF_1_1.search(text)) is not None:
        line = len(_LINE_END.findall(text, 0, end.start())) + 1
        raise PlanError(
            f"{where}: line {line}: found the character U+{ord(end[0]):04X}, which ends a line in YAML 1.1 and not in "
            f"YAML 1.2, expected line feeds alone: remove it, or write \\u{ord(end[0]):04x} in double quotes if a "
            "string is to have it"
        )


class _Document:
    """Reader of one document from its events."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._values = 0

    def read(self) -> Any:
        """Return the document as plain data; None where there is none."""
        next(self._events)  # the start of the stream
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        data = self._node(next(self._events), 0)
        next(self._events)  # the end of the document
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            _refuse(event, "a second document begins, expected one")
        return data

    def _node(self, event: Any, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            _refuse(event, f"more than {MAX_VALUES} values")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            _refuse(event, "anchors and aliases are not allowed")
        if event.tag is not None:
            _refuse(event, f"tags are not allowed, found {quote(event.tag)}")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event) if event.implicit[0] else event.value
        if depth == MAX_DEPTH:
            _refuse(event, f"more than {MAX_DEPTH} nested collections")
        return self._sequence(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth)

    def _sequence(self, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, str):
                _refuse(event, f"found {_name(key)} as a key, expected a string: quote it")
            if key in mapping:
                _refuse(event, f"duplicate key {quote(key)}")
            mapping[key] = self._node(next(self._events), depth + 1)
        return mapping


def _scalar(event: Any) -> Any:
    """Return the value of a plain scalar; refuse one that has another meaning in YAML 1.1 or 1.2."""
    text: str = event.value
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= MAX_NUMBER:
        if _WHOLE.fullmatch(text):
            return int(text)
        if _POINT.fullmatch(text):
            value = float(text)
            if not math.isfinite(value):
                _refuse(event, f"found {text}, expected a number that is finite in double precision")
            return value
    if kind := _other_meaning(text):
        meaning, remedy = _MEANINGS.get(kind, (kind, "quote it"))
        _refuse(event, f"{quote(text)} would be read as a {meaning}: {remedy} if a string is meant")
    return text


def _other_meaning(text: str) -> str | None:
    """Return the type that YAML 1.1 or 1.2 gives to a plain scalar which is none of ours; None for a string."""
    if len(text) > MAX_NUMBER:
        return "int" if text[:1] in "+-.0123456789" and _DIGITS.fullmatch(text) else None
    tag: str = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    kind = tag.rpartition(":")[2]
    if kind == "str":
        return "float" if _YAML_1_2_NUMBER.fullmatch(text) else None
    return kind


def _is_ambiguous(text: str) -> bool:
    """Return True for a string that has to be quoted because its plain text would be read as something else."""
    return text in _WORDS or _other_meaning(text) is not None


def _refuse(event: Any, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _name(data: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", dict: "a mapping", list: "a sequence"}
    return names.get(type(data), "nothing")
