"""The tokenizer of a plan against PreTrainedTokenizerFast of transformers on the same files."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from planner.demo_model import BASE
from runtime.errors import RequestError
from runtime.request import token_ids
from runtime.tokenizer import PlanTokenizer
from tests.runtime.small import write_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|endoftext|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEXTS = ("def f(x):\n    return x", "", "naïve café 😀", "  two  spaces", "a<|endoftext|>b")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "import os"}]
Pair = tuple[PlanTokenizer, Any]


@pytest.fixture(scope="module", params=["plain", "with a template that adds tokens"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a tokenizer and transformers' of the same files: the demo's, and one that begins texts with a token."""
    directory = tmp_path_factory.mktemp("tokenizer")
    data = json.loads((BASE / "tokenizer.json").read_text())
    if request.param != "plain":
        first = {"Sequence": {"id": "A", "type_id": 0}}
        special = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        data["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, first],
            "pair": [first, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": special},
        }
    (directory / "tokenizer.json").write_text(json.dumps(data))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
        "eos_token": "<|endoftext|>",
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return PlanTokenizer(directory), PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_a_text_has_the_ids_of_transformers(pair: Pair, text: str, special: bool) -> None:
    own, reference = pair
    expected = reference(text, add_special_tokens=special)
    encoded = own(text, add_special_tokens=special)
    assert encoded.input_ids == encoded["input_ids"] == expected.input_ids
    assert encoded.attention_mask == expected.attention_mask
    assert own.encode(text, add_special_tokens=special) == reference.encode(text, add_special_tokens=special)
    assert own([text, "x"]).input_ids == reference([text, "x"]).input_ids


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_tensors_have_the_shape_of_transformers(pair: Pair, text: str) -> None:
    own, reference = pair
    for one in (text, [text], [text, text]):
        encoded, expected = own(one, return_tensors="pt"), reference(one, return_tensors="pt")
        assert encoded.input_ids.dtype == expected.input_ids.dtype
        assert torch.equal(encoded.input_ids, expected.input_ids)
        assert torch.equal(encoded.attention_mask, expected.attention_mask)
    assert torch.equal(own.encode(text, return_tensors="pt"), reference.encode(text, return_tensors="pt"))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip", [True, False])
def test_ids_of_any_kind_are_decoded_as_by_transformers(pair: Pair, text: str, skip: bool) -> None:
    own, reference = pair
    ids = reference(text).input_ids
    expected = reference.decode(ids, skip_special_tokens=skip)
    row = torch.tensor([ids], dtype=torch.int64)
    for kind in (ids, tuple(ids), [ids], row, row[0], row.numpy(), iter(ids)):
        assert own.decode(kind, skip_special_tokens=skip) == expected
    assert own.batch_decode([ids, row]) == reference.batch_decode([ids, ids])


@pytest.mark.parametrize("prompt", [True, False])
def test_a_conversation_is_that_of_transformers(pair: Pair, prompt: bool) -> None:
    own, reference = pair
    for options in ({"tokenize": False}, {}, {"return_dict": False}, {"return_tensors": "pt"}):
        expected = reference.apply_chat_template(MESSAGES, add_generation_prompt=prompt, **options)
        answer = own.apply_chat_template(MESSAGES, add_generation_prompt=prompt, **options)
        if options in ({"tokenize": False}, {"return_dict": False}):
            assert answer == expected
        elif options:
            assert torch.equal(answer.input_ids, expected.input_ids)
        else:
            assert answer.input_ids == expected.input_ids


def test_tokens_and_their_names_are_those_of_transformers(pair: Pair) -> None:
    own, reference = pair
    assert own.special_tokens_map == reference.special_tokens_map
    for name in ("bos_token", "eos_token", "pad_token", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"):
        assert getattr(own, name) == getattr(reference, name)
    assert len(own) == len(reference)
    for tokens in ("import", "<|endoftext|>", "no such token", ["import", "no such token"]):
        assert own.convert_tokens_to_ids(tokens) == reference.convert_tokens_to_ids(tokens)
    for ids in (0, 300, [0, 300, 301]):
        assert own.convert_ids_to_tokens(ids) == reference.convert_ids_to_tokens(ids)
    assert own.decode(numpy.int64(300)) == own.decode(torch.tensor(300)) == own.decode(300) == reference.decode(300)


def test_what_tokenizers_return_is_a_prompt_as_a_whole(pair: Pair) -> None:
    own, reference = pair
    expected = tuple(reference("import os").input_ids)
    for encoded in (
        own("import os"),
        own(["import os"]),
        own("import os", return_tensors="pt"),
        reference("import os"),
    ):
        assert token_ids(encoded) == expected


def test_what_cannot_be_encoded_or_decoded_is_refused_in_a_line(pair: Pair, tmp_path: Path) -> None:
    own, _ = pair
    refusals = (
        (lambda: own(["a b c", "x"], return_tensors="pt"), "return_tensors: texts of .* tokens: nothing is padded"),
        (lambda: own("x", return_tensors="tf"), "return_tensors: found 'tf', expected 'pt' or None"),
        (lambda: own([1, 2]), "text: found int, expected a text"),
        (lambda: own("\udcff"), "prompt: character 0 is none"),
        (lambda: own.decode([1 << 40]), r"token_ids\[0\]: found 1099511627776, expected a token id"),
        (lambda: own.decode([-1]), r"token_ids\[0\]: found -1"),
        (lambda: own.decode("text"), "prompt: found str"),
        (lambda: own.decode([[1], [2]]), "found 2 rows, expected one"),
        (lambda: own.apply_chat_template([{"role": "user"}]), r"messages\[0\]: expected a mapping"),
        (lambda: own.apply_chat_template(["hello"]), r"messages\[0\]: expected a mapping"),
    )
    for call, message in refusals:
        with pytest.raises(RequestError, match=message):
            call()
    write_tokenizer(tmp_path)
    bare = PlanTokenizer(tmp_path)
    assert (bare.special_tokens_map, bare.eos_token_id) == ({}, None)
    with pytest.raises(RequestError, match="the tokenizer has no chat template"):
        bare.apply_chat_template(MESSAGES)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(RequestError, match=r"tokenizer_config\.json: found list, expected a mapping"):
        _ = PlanTokenizer(tmp_path).eos_token
    for value in (5, ["a"], {"content": "a"}, {"__type": "AddedToken", "content": 5}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        with pytest.raises(RequestError, match=r"tokenizer_config\.json: eos_token: found \w+, expected a text, or"):
            _ = PlanTokenizer(tmp_path).eos_token
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "a"}, "bos_token": None}))
    assert PlanTokenizer(tmp_path).special_tokens_map == {"eos_token": "a"}
