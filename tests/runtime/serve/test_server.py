"""Endpoints of a server, asked by OpenAI's client: what they answer, and that it is what the engine says alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from plans import codec
from plans.check import load
from runtime import Engine
from runtime.serve.tokens import encode_within
from runtime.text import load_tokenizer
from tests.runtime.serve.live import KEY, LiveServer, request_bytes

PROMPT = "def parse(text):\n"


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with server.client() as connected:
        yield connected


def test_a_completion_is_what_the_engine_says(client: openai.OpenAI, alone: Engine, plan_dir: Path) -> None:
    expected = alone.generate(PROMPT, max_new_tokens=30)
    answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=30, temperature=0)
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, expected.text, "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt_ids)
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (30, 30 + len(expected.prompt_ids))
    assert answer.system_fingerprint == codec.digest(load(plan_dir))
    assert (answer.model, answer.object, answer.id[:5]) == ("demo", "text_completion", "cmpl-")


@pytest.mark.parametrize("seed", [None, 5])
def test_a_stream_has_the_text_of_the_whole(seed: int | None, client: openai.OpenAI, alone: Engine) -> None:
    options: Any = {"temperature": 0} if seed is None else {"temperature": 1.3, "top_p": 0.95, "seed": seed}
    expected = alone.generate(f"{PROMPT}\n", max_new_tokens=60, stop=["\n\n\n"], **options)
    messages: Any = [{"role": "user", "content": PROMPT}]
    stream = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=60, stop="\n\n\n", stream=True,
        stream_options={"include_usage": True}, **options,
    )  # fmt: skip
    *chunks, last = stream
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    reason = "length" if expected.finish == "length" else "stop"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), reason]
    assert {chunk.id for chunk in chunks} == {last.id}
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(expected.tokens)
    details = last.usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens == min(sum(expected.accept_lengths), len(expected.tokens))
    whole = client.chat.completions.create(model="demo", messages=messages, max_tokens=60, stop="\n\n\n", **options)
    assert (whole.choices[0].message.role, whole.choices[0].message.content) == ("assistant", expected.text)
    assert whole.choices[0].finish_reason == reason


def test_several_prompts_are_several_choices(client: openai.OpenAI, alone: Engine, plan_dir: Path) -> None:
    prompts = ["import os\n", "class A:\n", "x = "]
    expected = [alone.generate(prompt, max_new_tokens=12).text for prompt in prompts]
    answer = client.completions.create(model="demo", prompt=prompts, max_tokens=12, temperature=0)
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(expected))
    ids = [load_tokenizer(plan_dir).encode(prompt).ids for prompt in prompts]
    assert [
        choice.text
        for choice in client.completions.create(model="demo", prompt=ids, max_tokens=12, temperature=0).choices
    ] == expected
    texts = ["", "", ""]
    for chunk in client.completions.create(model="demo", prompt=prompts, max_tokens=12, temperature=0, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_defaults(client: openai.OpenAI, alone: Engine) -> None:
    """A completion has 16 new tokens, a chat as many as fit, and both are sampled, as with OpenAI."""
    assert client.completions.create(model="demo", prompt="x", seed=1).choices[0].text == (
        alone.generate("x", max_new_tokens=16, temperature=1.0, seed=1).text
    )
    messages: Any = [{"role": "user", "content": "x"}]
    answer = client.chat.completions.create(
        model="demo", messages=messages, temperature=0, extra_body={"ignore_eos": True}
    )  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.total_tokens == 512


def test_every_chunk_may_have_the_usage(server: LiveServer) -> None:
    body = {
        "model": "demo", "prompt": PROMPT, "max_tokens": 9, "temperature": 0, "stream": True,
        "stream_options": {"continuous_usage_stats": True},
    }  # fmt: skip
    status, headers, content = server.ask("POST", "/v1/completions", body)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *events, done, end = content.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    counts = [json.loads(event.removeprefix("data: "))["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 9


def test_the_prefix_is_reused(client: openai.OpenAI) -> None:
    prompt = "import re\nimport sys\n\n\nclass Reader:\n    pass\n"
    client.completions.create(model="demo", prompt=prompt, max_tokens=1)
    usage = client.completions.create(model="demo", prompt=f"{prompt}\n\nclass B", max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens


def test_refusals_are_those_of_the_client_library(server: LiveServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as no_model:
        client.completions.create(model="gpt-4", prompt="x")
    assert (no_model.value.param, no_model.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="demo", prompt=[5] * 500, max_tokens=13)
    assert (too_long.value.param, too_long.value.code) == ("prompt", "context_length_exceeded")
    messages: Any = [{"role": "user", "content": "x " * 600}]
    with pytest.raises(openai.BadRequestError) as chat_too_long:
        client.chat.completions.create(model="demo", messages=messages)
    assert (chat_too_long.value.param, chat_too_long.value.code) == ("messages", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match=r"prompt_ids\[1\]: found 99999, expected 0 to") as no_token:
        client.completions.create(model="demo", prompt=[5, 99999])
    assert no_token.value.param == "prompt"
    with pytest.raises(openai.BadRequestError) as top_p:
        client.completions.create(model="demo", prompt="x", top_p=0)
    assert top_p.value.param == "top_p"
    with pytest.raises(openai.BadRequestError) as empty:
        client.completions.create(model="demo", prompt="")
    assert empty.value.param == "prompt"
    with server.client("sk-wrong") as stranger, pytest.raises(openai.AuthenticationError) as wrong:
        stranger.completions.create(model="demo", prompt="x")
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError, match="unknown field, did you mean temperature"):
        client.completions.create(model="demo", prompt="x", extra_body={"temprature": 1})


def test_models(server: LiveServer, client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.owned_by) == ("demo", "eagleplan")
    assert client.models.retrieve("demo") == model
    assert json.loads(server.ask("GET", "/v1/models")[2])["data"][0]["max_model_len"] == 512
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")


def test_metrics_can_be_parsed_and_count(server: LiveServer, client: openai.OpenAI) -> None:
    before = server.metric("eagleplan_generated_tokens_total")
    client.completions.create(model="demo", prompt=PROMPT, max_tokens=25, temperature=0)
    families = {
        family.name: family
        for family in text_string_to_metric_families(server.ask("GET", "/metrics")[2].decode())
    }  # fmt: skip
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["eagleplan_generated_tokens_total"] == before + 25
    assert (values["eagleplan_up"], values["eagleplan_places"], values["eagleplan_kv_rows"]) == (1, 4, 4 * 512)
    assert values["eagleplan_time_to_first_token_seconds_count"] > 0
    assert values["eagleplan_time_between_tokens_seconds_count"] >= 24
    positions = [sample.value for sample in families["eagleplan_accepted_tokens"].samples if "total" in sample.name]
    assert positions == sorted(positions, reverse=True)
    assert positions[0] <= values["eagleplan_drafted_steps_total"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/v2", {}, 404, "unknown_url"),
        ("GET", "/v1/completions", {}, 405, "method_not_allowed"),
        ("OPTIONS", "/v1/completions", {"Origin": "http://a", "Access-Control-Request-Method": "POST"}, 405,
         "method_not_allowed"),
        ("POST", "/v1/completions", {"Content-Type": "text/plain"}, 415, None),
        ("POST", "/v1/completions", {"Content-Length": "99999999"}, 413, "body_too_large"),
        ("POST", "/v1/completions", {"Long": "x" * 60_000}, 431, "headers_too_large"),
        ("POST", "/v1/completions", {"Authorization": ""}, 401, "invalid_api_key"),
        ("POST", "/v1/completions", {"Authorization": f"Basic {KEY}"}, 401, "invalid_api_key"),
        ("POST", "/v1/completions", {"Authorization": f"Bearer {KEY}x"}, 401, "invalid_api_key"),
        ("POST", "/v1/completions", {"Authorization": f"Bearer {KEY[:-1]}"}, 401, "invalid_api_key"),
        ("GET", "/metrics", {"Authorization": "Bearer é"}, 401, "invalid_api_key"),
        ("GET", "/v1/models", {"Authorization": "Bearer"}, 401, "invalid_api_key"),
    ],
)  # fmt: skip
def test_a_request_that_no_endpoint_sees(
    method: str, path: str, headers: dict[str, str], status: int, code: str | None, server: LiveServer
) -> None:
    error = server.error(method, path, b"{}" if method == "POST" else None, headers)
    assert (error["status"], error["code"], error["type"]) == (status, code, "invalid_request_error")


def test_responses_are_not_guessed_framed_or_kept(server: LiveServer) -> None:
    for path in ("/", "/health", "/v2"):
        headers = server.ask("GET", path, headers={"Origin": "http://elsewhere"})[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.lower().startswith("access-control")]
    policy = server.ask("GET", "/", headers={"Authorization": ""})[1]["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_requests_of_one_connection_are_answered_in_turn(server: LiveServer) -> None:
    """Two requests that come together, as HTTP/1.1 allows, and then a third."""
    body = {"model": "demo", "prompt": "x = ", "max_tokens": 3, "temperature": 0}
    with server.connect() as connection:
        connection.sendall(request_bytes(body) * 2)
        received = b""
        while received.count(b'"object": "text_completion"') < 2 or not received.endswith(b"}"):
            received += connection.recv(1 << 16)
        connection.sendall(request_bytes(body))
        assert b"200 OK" in connection.recv(1 << 16)
    assert received.count(b"200 OK") == 2


def test_a_text_that_is_much_too_long_holds_nobody_up(server: LiveServer) -> None:
    """A text of millions of tokens is refused by its beginning; all others are tokenized as they are."""
    error = server.error("POST", "/v1/completions", {"model": "demo", "prompt": "ab cd " * 600_000})
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert error["message"].startswith("the model's context has 512 tokens, prompt alone is longer")


@pytest.mark.parametrize("text", ["a b\n" * 300, " " * 9000, "é" * 400, "", "x", "def f():\n    pass\n" * 60])
def test_ids_are_those_of_the_whole_text(text: str, plan_dir: Path) -> None:
    tokenizer = load_tokenizer(plan_dir)
    ids = tokenizer.encode(text).ids
    for most in (1, 10, 100, len(ids), len(ids) + 1, 10_000):
        assert encode_within(tokenizer, text, most, special=True) == (ids if len(ids) <= most else None)
