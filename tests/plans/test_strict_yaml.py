"""Strict YAML: plain data reads back equal, a scalar has one meaning, and no document costs much."""

import contextlib
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import codec
from plans.schema import PlanError
from plans.strict_yaml import MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_VALUES, dump_yaml, load_yaml

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(0, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
)
DATA = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@settings(max_examples=200, deadline=None)
@given(DATA)
def test_round_trip_of_plain_data(data: object) -> None:
    assert load_yaml(dump_yaml(data), "x.yaml") == data


ASCII = st.text(st.characters(codec="ascii"), max_size=12) | st.builds(
    str.__mul__, st.text("a'#\n", max_size=2), st.integers(0, 130)
)
NAMED = st.recursive(SCALARS | ASCII, lambda inner: st.lists(inner) | st.dictionaries(ASCII, inner), max_leaves=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMED, max_size=4) | st.dictionaries(ASCII, NAMED, max_size=4))
def test_the_text_is_the_same_without_libyaml(data: dict[str, object] | list[object]) -> None:
    fast = dump_yaml(data)
    with mock.patch.object(yaml, "__with_libyaml__", False):
        assert dump_yaml(data) == fast


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
@pytest.mark.parametrize("name", ["demo", "llama405b-16gpu"])
def test_a_plan_is_written_by_libyaml(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = codec.load(Path(__file__).parents[2] / "plans" / name)
    monkeypatch.delattr(yaml.emitter.Emitter, "emit")
    assert codec.is_canonical(Path(__file__).parents[2] / "plans" / name, plan)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.binary())
def test_any_bytes_are_read_or_refused(source: str | bytes) -> None:
    with contextlib.suppress(PlanError):
        load_yaml(source, "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "x.yaml: line 2: duplicate key 'a'"),
        ("a: {b: 1, b: 2}", "x.yaml: line 1: duplicate key 'b'"),
        ("? [1, 2]\n: 3", "x.yaml: line 1: found a sequence as a key, expected a string: quote it"),
        (
            "on: 1",
            "x.yaml: line 1: 'on' would be read as a truth value: write true or false, or quote it if a string is "
            "meant",
        ),
        ("true: 1", "x.yaml: line 1: found true or false as a key, expected a string: quote it"),
        ("a: &x 1", "x.yaml: line 1: anchors and aliases are not allowed"),
        ("a: 1\nb: *x", "x.yaml: line 2: anchors and aliases are not allowed"),
        ("<<: {a: 1}", "x.yaml: line 1: '<<' would be read as a merge: quote it if a string is meant"),
        ("a: 2026-01-01", "x.yaml: line 1: '2026-01-01' would be read as a timestamp: quote it if a string is meant"),
        ("a: !!str 1", "x.yaml: line 1: tags are not allowed, found 'tag:yaml.org,2002:str'"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "x.yaml: line 1: tags are not allowed, found 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: 1\n---\nb: 2", "x.yaml: line 2: a second document begins, expected one"),
        ("[" * 33 + "]" * 33, f"x.yaml: line 1: more than {MAX_DEPTH} nested collections"),
        (b"a: \xff", "x.yaml: not valid UTF-8: 'utf-8' codec can't decode byte 0xff in position 3: invalid start byte"),
        (b"a\0: \0", "x.yaml: not valid UTF-8: it has NUL bytes"),
        ("a:\n\t- 1", "x.yaml: line 2: found a tab, expected spaces: YAML indents by them alone"),
        ("a: 1\n\tb: 2", "x.yaml: line 2: found a tab, expected spaces: YAML indents by them alone"),
        ("a: @1", "x.yaml: line 1: found character that cannot start any token"),
        ("a: [1", "x.yaml: line 2: did not find expected ',' or ']'"),
        (
            "#" * (MAX_DOCUMENT_BYTES + 1),
            f"x.yaml: {MAX_DOCUMENT_BYTES + 1} bytes, expected at most {MAX_DOCUMENT_BYTES}",
        ),
    ],
)
def test_documents_that_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_yaml(text, "x.yaml")
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize(
    "text", ["# a{}b: 1\na: 1", "a: 'x{}y'", 'a: "x{}y"', "a: |\n  x{}y", "a: x{}", "{}", "a: [1, {}2]"]
)
def test_what_ends_a_line_in_yaml_1_1_alone_is_refused_wherever_it_stands(text: str, character: str) -> None:
    """PyYAML reads such a character in a comment as the end of it: what an editor shows as a comment has fields."""
    with pytest.raises(PlanError) as caught:
        load_yaml("h: 1\r\ni: 2\r# c\n" + text.format(character), "x.yaml")
    code = f"{ord(character):04X}"
    line = 4 + text.partition("{}")[0].count("\n")
    assert str(caught.value) == (
        f"x.yaml: line {line}: found the character U+{code}, which ends a line in YAML 1.1 and not in YAML 1.2, "
        f"expected line feeds alone: remove it, or write \\u{code.lower()} in double quotes if a string is to have it"
    )
    if "#" in text:
        assert yaml.safe_load(text.format(character)) == {"b": 1, "a": 1}
    assert load_yaml(f'a: "x\\u{code.lower()}y"', "x.yaml") == {"a": f"x{character}y"}
    assert load_yaml(dump_yaml({"a": character}), "x.yaml") == {"a": character}


def test_an_empty_document_is_nothing() -> None:
    assert load_yaml("", "x.yaml") is None
    assert load_yaml("# only a comment\n", "x.yaml") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("10", 10), ("-3", -3), ("+3", 3), ("1.5", 1.5), ("1.0e-05", 1e-05), ("-2.", -2.0)),
        *(("null", None), ("~", None), ("", None), ("True", True), ("FALSE", False)),
        *(("24 GiB", "24 GiB"), ("nvlink", "nvlink"), ("y", "y"), ("1:30 x", "1:30 x"), ("0.0.1", "0.0.1")),
        *(("cuda:1", "cuda:1"), ("'1:30'", "1:30"), ('"yes"', "yes"), ("deadbeef", "deadbeef")),
    ],
)
def test_a_scalar_is_a_decimal_number_a_word_or_a_string(text: str, value: object) -> None:
    loaded = load_yaml(f"a: {text}", "x.yaml")["a"]
    assert (loaded, type(loaded)) == (value, type(value))


def test_strings_that_plain_would_be_other_values_are_in_single_quotes() -> None:
    assert dump_yaml({"schema": "2.1", "a": ["1e5", "yes", "", "x", "a b"]}) == (
        "schema: '2.1'\na: ['1e5', 'yes', '', x, a b]\n"
    )


SURPRISING = (
    *("0x5", "1_0", "017", "08", "0b11", "0o17", "-0x1F", "1:30", "-1:30", "1:30:59.5", "190:20:30.15"),
    *("1e5", "1E-5", "1.0e5", ".5e3", "00.5", ".5", "1_0.5", ".inf", "-.INF", ".NaN", "+.inf"),
    *("yes", "No", "ON", "off", "1" * 5000, "-" + "7" * 65, "1" + ":1" * 300 + ".5", "1:" * 40 + "1"),
)


@pytest.mark.parametrize("text", SURPRISING)
def test_a_scalar_of_several_meanings_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"^x.yaml: line 2: '.*would be read as a .* if a string is meant$") as caught:
        load_yaml(f"a:\n  - {text}", "x.yaml")
    assert len(str(caught.value)) < 250
    assert load_yaml(dump_yaml({"a": [text]}), "x.yaml") == {"a": [text]}


def test_a_number_beyond_double_precision_is_refused() -> None:
    with pytest.raises(PlanError, match=r"^x.yaml: line 1: found 1.0e\+999, expected a number that is finite"):
        load_yaml("a: 1.0e+999", "x.yaml")


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789abefxoXO+-._: yYnNtrulTRUE~", max_size=12))
def test_a_plain_scalar_means_the_same_to_pyyaml(text: str) -> None:
    """A document that is accepted has the meaning that PyYAML's own loader gives to it."""
    try:
        loaded = load_yaml(f"[{text}]", "x.yaml")
    except PlanError:
        return
    assert repr(loaded) == repr(yaml.safe_load(f"[{text}]"))


MEBIBYTE = MAX_DOCUMENT_BYTES - 16
LARGE = {
    "base 60": "a: 1" + ":1" * (MEBIBYTE // 2),
    "digits": "a: " + "1" * MEBIBYTE,
    "underscores": "a: 1" + "_" * MEBIBYTE,
    "sequence": "[" + "a," * (MEBIBYTE // 2) + "]",
    "empty mappings": "[" + "{}," * (MEBIBYTE // 3) + "]",
    "lines": "- \n" * (MEBIBYTE // 3),
    "keys": "".join(f"k{i}:\n" for i in range(MEBIBYTE // 8)),
    "brackets": "[" * MEBIBYTE,
    "dashes": "- " * (MEBIBYTE // 2),
    "questions": "? " * (MEBIBYTE // 2),
    "one string": "a: '" + "x" * MEBIBYTE + "'",
    "plain words": "a: " + "x " * (MEBIBYTE // 2),
    "escapes": 'a: "' + "\\x41" * (MEBIBYTE // 4) + '"',
    "folded": "a: >\n" + " x\n" * (MEBIBYTE // 3),
    "comments": "#\n" * (MEBIBYTE // 2),
    "colons": "a: " + ": " * (MEBIBYTE // 2),
    "tag": "a: !" + "x" * MEBIBYTE,
    "anchor": "a: &" + "x" * MEBIBYTE,
    "key": "k" * MEBIBYTE + ": 1",
    "date": "a: 2026-01-01" + " " * MEBIBYTE + "x",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_document_of_a_mebibyte_is_read_or_refused_shortly(name: str) -> None:
    message = ""
    try:
        load_yaml(LARGE[name], "x.yaml")
    except PlanError as error:
        message = str(error)
    assert len(message) < 300


def test_the_number_of_values_is_bounded() -> None:
    assert len(load_yaml("[" + "1," * (MAX_VALUES - 1) + "]", "x.yaml")) == MAX_VALUES - 1
    with pytest.raises(PlanError, match=f"^x.yaml: line 1: more than {MAX_VALUES} values$"):
        load_yaml("[" + "1," * MAX_VALUES + "]", "x.yaml")
