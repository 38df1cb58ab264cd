"""Bodies of requests: every field is read, accepted at a value that changes nothing, or refused by name."""

import inspect
import json
from typing import Any

import openai
import pytest

from runtime.serve.neutral import CHAT, COMPLETION, HINTS
from runtime.serve.protocol import ChatBody, CompletionBody, read_chat, read_completion
from runtime.serve.refusals import ApiError

CHAT_BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION_BODY = {"model": "m", "prompt": "Hi"}


def chat(**fields: Any) -> ChatBody:
    return read_chat(json.dumps(CHAT_BODY | fields).encode())


def completion(**fields: Any) -> CompletionBody:
    return read_completion(json.dumps(COMPLETION_BODY | fields).encode())


def test_what_clients_send_by_default_is_accepted() -> None:
    body = chat(
        user="u", store=False, metadata={"a": "b"}, parallel_tool_calls=True, frequency_penalty=0, presence_penalty=0.0,
        n=1, logit_bias={}, logprobs=False, top_logprobs=None, response_format={"type": "text"}, tools=[],
        tool_choice="auto", stop=None, stream_options=None, service_tier="auto", modalities=["text"], max_tokens=None,
    )  # fmt: skip
    assert body.messages[0].text == "Hi"
    assert (body.temperature, body.stop, body.max_tokens, body.stream) == (None, None, None, None)
    assert completion(best_of=1, echo=False, suffix=None, logprobs=None, n=1, user=None).prompt == ["Hi"]


def test_every_field_of_the_client_is_known() -> None:
    client = openai.OpenAI(api_key="-", base_url="http://localhost")
    own = {"extra_headers", "extra_query", "extra_body", "timeout"}
    for create, kind, neutral in (
        (client.chat.completions.create, ChatBody, CHAT),
        (client.completions.create, CompletionBody, COMPLETION),
    ):
        sent = set(inspect.signature(create).parameters) - own
        assert sent - set(kind.model_fields) - set(neutral) - set(HINTS) == set()


def test_values_are_read() -> None:
    body = chat(
        temperature=0, top_p=0.5, top_k=-1, seed=3, stop="x", max_completion_tokens=7, stream=True, ignore_eos=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert (body.temperature, body.top_p, body.top_k, body.seed) == (0.0, 0.5, -1, 3)
    assert (body.stop, body.max_completion_tokens, body.ignore_eos) == (["x"], 7, True)
    assert (body.with_usage, body.with_running_usage) == (True, False)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "developer", "content": parts}, {"role": "tool", "content": "", "tool_call_id": "t", "name": "n"}]
    first, second = chat(messages=turns).messages
    assert (first.role, first.text) == ("developer", "ab")
    assert (second.text, second.tool_call_id, second.name) == ("", "t", "n")
    answer = {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    assert chat(messages=[answer]).messages[0].text == "a"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_are_texts_or_ids(prompt: Any, prompts: list[Any]) -> None:
    assert completion(prompt=prompt).prompt == prompts


OUT = ", or leave it out"
ODD = "a\nb" * 66 + "cd"
TEXT = "expected a text or a list of text parts"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, f"n: not supported: found 2, expected 1 or null{OUT}"),
        ({"n": True}, f"n: not supported: found true, expected 1 or null{OUT}"),
        ({"logprobs": True}, f"logprobs: not supported: found true, expected false or null{OUT}"),
        ({"top_logprobs": 3}, f"top_logprobs: not supported: found 3, expected 0 or null{OUT}"),
        ({"frequency_penalty": 0.5}, f"frequency_penalty: not supported: found 0.5, expected 0 or null{OUT}"),
        ({"logit_bias": {"5": 1}}, f'logit_bias: not supported: found {{"5": 1}}, expected {{}} or null{OUT}'),
        ({"tools": [{"type": "function"}]}, f"tools: not supported: found a list of 1, expected [] or null{OUT}"),
        ({"tool_choice": "required"},
         f'tool_choice: not supported: found "required", expected "none" or "auto" or null{OUT}'),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported: found an object of 1 fields, "
         f'expected {{"type": "text"}} or null{OUT}'),
        ({"store": True}, f"store: not supported: found true, expected false or null{OUT}"),
        ({"user": 5}, "user: found 5, expected a text"),
        ({"max_token": 5}, "max_token: unknown field, did you mean max_tokens?"),
        ({"zzz": 5}, "zzz: unknown field"),
        ({ODD: 5}, f"{json.dumps(ODD[:80])}... of 200 characters: unknown field"),
        ({"model": None}, "model: found null, expected a text"),
        ({"stream": 1}, "stream: found 1, expected true or false"),
        ({"stream_options": {}}, "stream_options: only with stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x: unknown field"),
        ({"max_tokens": 0}, "max_tokens: found 0, expected at least 1"),
        ({"max_tokens": 1.5}, "max_tokens: found 1.5, expected a whole number"),
        ({"max_tokens": True}, "max_tokens: found true, expected a whole number"),
        ({"max_tokens": "5"}, 'max_tokens: found "5", expected a whole number'),
        ({"max_tokens": 10**40}, f"max_tokens: found an integer of 133 bits, expected at most {2**63 - 1}"),
        ({"max_tokens": 5, "max_completion_tokens": 5},
         "max_tokens and max_completion_tokens: give one of them, they say the same"),
        ({"temperature": -1}, "temperature: found -1, expected at least 0.0"),
        ({"temperature": 2.1}, "temperature: found 2.1, expected at most 2.0"),
        ({"temperature": "hot"}, 'temperature: found "hot", expected a number'),
        ({"top_p": 1.5}, "top_p: found 1.5, expected at most 1.0"),
        ({"top_k": -2}, "top_k: found -2, expected at least -1"),
        ({"seed": -1}, "seed: found -1, expected at least 0"),
        ({"stop": 5}, "stop: found 5, expected a text or a list of texts"),
        ({"stop": ""}, "stop[0]: found a text of 0, expected a text that is not empty"),
        ({"stop": ["a", 5]}, "stop[1]: found 5, expected a text"),
        ({"stop": list("abcde")}, "stop: found a list of 5, expected at most 4"),
        ({"stop": "x" * 257}, "stop[0]: found a text of 257, expected at most 256 characters"),
        ({"messages": []}, "messages: found [], expected at least 1"),
        ({"messages": "Hi"}, 'messages: found "Hi", expected a list'),
        ({"messages": ["Hi"]}, 'messages[0]: found "Hi", expected an object'),
        ({"messages": [{"role": "user"}]}, "messages[0].content: missing"),
        ({"messages": [{"role": "user", "content": None}]}, f"messages[0].content: found null, {TEXT}"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role: found \"robot\", expected 'system', "
         "'developer', 'user', 'assistant' or 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0].type: found \"image_url\", expected 'text'"),
        ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood: unknown field"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]},
         f"messages[0].tool_calls: not supported: found a list of 1, expected [] or null{OUT}"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_what_it_has_and_what_is_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        chat(**fields)
    error = refusal.value.body()["error"]
    assert (refusal.value.status, error["message"], error["type"]) == (400, message, "invalid_request_error")
    if "\n" not in error["param"]:
        assert message.startswith(error["param"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "prompt: found [], expected a text, token ids, or a list of 1 to 64 of either"),
        ({"prompt": 5}, "prompt: found 5, expected a text, token ids, or a list of 1 to 64 of either"),
        ({"prompt": [[]]}, "prompt: found a list of 1, expected texts, or lists of token ids that are not empty"),
        ({"prompt": [1, "a"]}, "prompt: found a list of 2, expected texts, or lists of token ids that are not empty"),
        (
            {"prompt": [[1], [True]]},
            "prompt: found a list of 2, expected texts, or lists of token ids that are not empty",
        ),
        (
            {"prompt": ["a"] * 65},
            "prompt: found a list of 65, expected a text, token ids, or a list of 1 to 64 of either",
        ),
        ({"echo": True}, f"echo: not supported: found true, expected false or null{OUT}"),
        ({"suffix": "a"}, f'suffix: not supported: found "a", expected "" or null{OUT}'),
        ({"logprobs": 0}, f"logprobs: not supported: found 0, expected null{OUT}"),
        ({"best_of": 2}, f"best_of: not supported: found 2, expected 1 or null{OUT}"),
        ({"messages": []}, "messages: unknown field"),
        ({"max_completion_tokens": 4}, "max_completion_tokens: unknown field, did you mean max_tokens?"),
    ],
)
def test_a_refusal_of_a_completion(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        completion(**fields)
    assert refusal.value.message == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: not JSON: Expecting value at character 0"),
        (b"{", "body: not JSON: Expecting property name enclosed in double quotes at character 1"),
        (b"[]", "body: expected a JSON object"),
        (b"5", "body: expected a JSON object"),
        (b"\xff{}", "body: not UTF-8 at byte 0"),
        ("{}".encode("utf-16"), "body: not UTF-8 at byte 0"),
        (b'{"a": NaN}', "body: not JSON: NaN is no number of JSON"),
        (b'{"a": -Infinity}', "body: not JSON: -Infinity is no number of JSON"),
        (b'{"a": 1, "a": 2}', 'body: the name "a" is there twice'),
        (b'{"x": {"a": 1, "b": 2, "a": 2}}', 'body: the name "a" is there twice'),
        (b'{"a": ' + b"[" * 100_000, "body: nested too deeply"),
        (b'{"a": ' + b'{"a":' * 100_000, "body: nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body: not JSON: Exceeds the limit (4300 digits) for integer string"),
        (b'{"model": "m"} x', "body: not JSON: Extra data at character 15"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
         "temperature: found Infinity, expected a finite number"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_json(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        read_chat(body)
    assert refusal.value.status == 400
    assert refusal.value.message.startswith(message)
