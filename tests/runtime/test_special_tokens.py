"""Special tokens that the files beside a tokenizer name, against PreTrainedTokenizerFast on the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from runtime.chat.template import ChatTemplate, Turn
from runtime.errors import RequestError
from runtime.tokenizer import PlanTokenizer
from tests.runtime.small import write_tokenizer

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEXTS = ("a<s>b", "<s><e>a <e>b", "abcab<i>", "a<s> <p>a", "<e", "ab<p><p>c")
FLAGS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), st.booleans())
)
CONTENT = st.sampled_from(["<s>", "<e>", "<p>", "<i>", "a", "ab"])


def added(kind: str | None = "AddedToken") -> st.SearchStrategy[dict[str, Any]]:
    """Return mappings that are tokens; ``kind``: their ``__type``."""
    of_kind = {} if kind is None else {"__type": kind}
    return st.builds(lambda content, flags: of_kind | {"content": content} | flags, CONTENT, FLAGS)


NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token")
CONFIGS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(NAMES[:4], st.none() | CONTENT | added())
    | {"image_token": CONTENT}
    | dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), st.lists(CONTENT | added(), max_size=2))
    | {"added_tokens_decoder": st.dictionaries(st.integers(0, 60).map(str), added(None), max_size=2)},
)
MAPS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(NAMES, st.none() | CONTENT | added(None))
    | dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), st.lists(CONTENT, max_size=2)),
)


@given(
    own=st.lists(added(None), max_size=2),
    config=st.none() | CONFIGS,
    special=st.none() | MAPS,
    legacy=st.none() | st.dictionaries(CONTENT, st.integers(0, 60), max_size=3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_are_those_of_transformers(
    own: list[dict[str, Any]],
    config: dict[str, Any] | None,
    special: dict[str, Any] | None,
    legacy: dict[str, int] | None,
    tmp_path: Path,
) -> None:
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens([AddedToken(**token) for token in own])
    tokenizer.save(str(file))
    for name, fields in ((CONFIG, config), (MAP, special), (ADDED, legacy)):
        (tmp_path / name).unlink(missing_ok=True)
        if fields is not None:
            (tmp_path / name).write_text(json.dumps(fields))
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    answer = PlanTokenizer(tmp_path)
    names = {name: text for name, text in reference.special_tokens_map.items() if name in answer.special_tokens_map}
    assert answer.special_tokens_map == names
    assert len(answer) == len(reference)
    for text in TEXTS:
        ids = reference(text).input_ids
        assert answer(text).input_ids == ids
        for skip in (False, True):
            assert answer.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("decoder", [False, True])
def test_a_template_has_the_tokens_of_the_map_where_transformers_has_them(decoder: bool, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    table = {"added_tokens_decoder": {"50": {"content": "<s>"}}} if decoder else {}
    template = "{{ bos_token }}{{ eos_token }}{{ image_token }}{{ messages[0].content }}"
    (tmp_path / CONFIG).write_text(json.dumps({"bos_token": "a", "eos_token": "b", "chat_template": template} | table))
    tokens = {"bos_token": {"content": "<s>", "lstrip": True}, "pad_token": None, "image_token": "<i>"}
    (tmp_path / MAP).write_text(json.dumps(tokens))
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = reference.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert ChatTemplate(tmp_path).render([Turn(role="user", content="x")]) == expected
    assert expected == ("abx" if decoder else "<s>b<i>x")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (MAP, "[]", "found list, expected a mapping"),
        (MAP, "{", "cannot be read: "),
        (MAP, '{"eos_token": 5}', "eos_token: found int, expected a text, or an AddedToken"),
        (
            MAP,
            '{"eos_token": {"content": "a", "lstrip": 1}}',
            "eos_token: found dict, expected a text, or an AddedToken",
        ),
        (MAP, '{"additional_special_tokens": [5]}', "additional_special_tokens: found int, expected a text, or"),
        (MAP, '{"additional_special_tokens": 5}', "additional_special_tokens: found int, expected a list of tokens"),
        (MAP, '{"eos_token": "a\\ud800"}', "eos_token: found half of a surrogate pair, expected a text"),
        (CONFIG, '{"added_tokens_decoder": {"1": {"content": "\\udc00"}}}', "added_tokens_decoder.1: found half of a"),
        (CONFIG, '{"added_tokens_decoder": []}', None),
        (CONFIG, '{"added_tokens_decoder": ["a"]}', "added_tokens_decoder: expected a mapping of ids to tokens"),
        (CONFIG, '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder: expected a mapping of ids to tokens"),
        (CONFIG, '{"added_tokens_decoder": {"1": "a"}}', "added_tokens_decoder.1: expected a mapping with a text"),
        (CONFIG, '{"added_tokens_decoder": {"1": {}}}', "added_tokens_decoder.1: found dict, expected a text"),
        (ADDED, '{"<s>": "5"}', "'<s>': found '5', expected the token's id"),
        (ADDED, '{"\\ud800": 5}', "'\\ud800': found half of a surrogate pair, expected a text"),
        (ADDED, "[]", "found list, expected a mapping"),
        (CONFIG, '{"extra_special_tokens": "a"}', "extra_special_tokens: found str, expected a list of tokens"),
    ],
)
def test_what_is_no_token_is_refused_with_its_file(
    file: str, content: str, message: str | None, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / file).write_text(content)
    if message is None:
        assert PlanTokenizer(tmp_path)("ab").input_ids == [0, 1]
        return
    with pytest.raises(RequestError) as refusal:
        PlanTokenizer(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / file}: {message}")


def test_a_template_names_the_map_that_is_none(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"chat_template": "x"}))
    for content, message in (("[]", "found list, expected a mapping"), ('{"eos_token": 5}', "eos_token: expected")):
        (tmp_path / MAP).write_text(content)
        with pytest.raises(RequestError) as refusal:
            ChatTemplate(tmp_path)
        assert str(refusal.value).startswith(f"{tmp_path / MAP}: {message}")
