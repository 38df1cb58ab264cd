"""Bodies of requests: the fields that this server has, with their ranges, and refusals that name the field.

bytes ─► parse_object ─► without_neutral ─► ChatBody or CompletionBody (pydantic, strict)
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from plans.numbers import MOST_INT64
from runtime.serve.neutral import CHAT, COMPLETION, MESSAGE, shown, without_neutral
from runtime.serve.refusals import ApiError
from runtime.serve.strict_json import parse_object

MOST_STOPS = 4
MOST_STOP_CHARACTERS = 256
"""Longest stop string, which other clients wait for: less than what an engine of one's own takes."""
MOST_PROMPTS = 64
"""Most prompts of one request."""
COMPLETION_TOKENS = 16
"""New tokens of a completion that names no number, as OpenAI has it."""

EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
}
"""Words for the expected value, by type of pydantic's error; others have pydantic's own."""


class Fields(BaseModel):
    """Fields of an object, all known, without conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Fields):
    """Parts of a stream beside its text."""

    include_usage: bool | None = None
    """A last chunk with the usage, and no choices."""
    continuous_usage_stats: bool | None = None
    """The usage so far in every chunk, as vLLM has it."""
    include_obfuscation: Literal[False] | None = None


class TextPart(Fields):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _parts(value: Any) -> Any:
    """Return a content that is a text as its only part."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "a text or a list of text parts")
    return value


def _texts(value: Any) -> Any:
    """Return one stop string as a list."""
    if value is not None and not isinstance(value, str | list):
        raise PydanticCustomError("stop", "a text or a list of texts")
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """Return a prompt as a list of prompts, each a text or token ids."""
    prompts = [value] if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])) else value
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= MOST_PROMPTS:
        raise PydanticCustomError("prompt", f"a text, token ids, or a list of 1 to {MOST_PROMPTS} of either")
    for prompt in prompts:
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and prompt and all(map(_is_id, prompt))):
            raise PydanticCustomError("prompt", "texts, or lists of token ids that are not empty")
    return prompts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Message(Fields):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[TextPart], BeforeValidator(_parts)]
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """Content of all parts."""
        return "".join(part.text for part in self.content)


Tokens = Annotated[int, Field(ge=1, le=MOST_INT64)] | None


class Body(Fields):
    """Fields that both endpoints have."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_INT64)] | None = None
    """-1, 0: from all tokens."""
    seed: Annotated[int, Field(ge=0, le=MOST_INT64)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]] | None,
        Field(max_length=MOST_STOPS),
        BeforeValidator(_texts),
    ] = None
    ignore_eos: bool | None = None

    @property
    def with_usage(self) -> bool:
        """True where the stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def with_running_usage(self) -> bool:
        """True where every chunk of the stream has the usage so far."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class ChatBody(Body):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens = None


class CompletionBody(Body):
    """Body of ``/v1/completions``."""

    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    """Prompts, each a text or token ids, though a request may have one without a list around it."""


B = TypeVar("B", bound=Body)


def read_chat(body: bytes) -> ChatBody:
    """Return the body of a chat completion; raise ApiError."""
    fields = without_neutral(parse_object(body), set(ChatBody.model_fields), CHAT)
    messages = fields.get("messages")
    if isinstance(messages, list):
        own = set(Message.model_fields)
        fields["messages"] = [
            without_neutral(message, own, MESSAGE, f"messages[{position}].") if isinstance(message, dict) else message
            for position, message in enumerate(messages)
        ]
    chat = _validated(ChatBody, fields)
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise ApiError(
            400, "max_tokens and max_completion_tokens: give one of them, they say the same", param="max_tokens"
        )
    return chat


def read_completion(body: bytes) -> CompletionBody:
    """Return the body of a completion; raise ApiError."""
    fields = without_neutral(parse_object(body), set(CompletionBody.model_fields), COMPLETION)
    return _validated(CompletionBody, fields)


def _validated(kind: type[B], fields: dict[str, Any]) -> B:
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0]) from error
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only with stream", param="stream_options")
    return body


def _refusal(error: ErrorDetails) -> ApiError:
    """Return the first error of a body with the path to the field, what it has, and what was expected."""
    path = ""
    for step in error["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    if error["type"] == "missing":
        return ApiError(400, f"{path}: missing", param=path, code="missing_required_parameter")
    if error["type"] == "extra_forbidden":
        return ApiError(400, f"{path}: unknown field", param=path, code="unknown_parameter")
    expected = EXPECTED.get(error["type"], error["msg"]).format(**error.get("ctx", {}))
    count = f" of {len(error['input'])}" if error["type"] in ("string_too_short", "string_too_long") else ""
    value = "a text" + count if count else shown(error["input"])
    return ApiError(400, f"{path}: found {value}, expected {expected}", param=path, code="invalid_value")
