"""The engine behind the server: its phases, prompts to requests, and their submission.

loading ──► ready ──► draining        each phase but ready answers 503
    └─────────┴──────────┴──► failed
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plans import codec
from plans.schema import Plan
from runtime.chat.template import ChatTemplate, TemplateMissing, Turn
from runtime.continuous import Batching, Event, Job, State
from runtime.errors import RequestError, RuntimeRefusal
from runtime.request import GenerateOptions, Request
from runtime.serve.metrics import Metrics
from runtime.serve.protocol import COMPLETION_TOKENS, Body, ChatBody, CompletionBody, Message
from runtime.serve.refusals import ApiError, of_refusal, unavailable
from runtime.serve.tokens import encode_within
from runtime.text import load_tokenizer

if TYPE_CHECKING:
    from runtime.engine import Engine

MOST_RETRY_S = 60
"""Longest time after which a refused request is asked to come again."""
EASE = 0.9
"""Weight of the past in the mean duration of requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Requests of one body, in the order of their choices."""

    requests: tuple[Request, ...]
    field: str
    """Field of the body that has the prompts."""


class Service:
    """A plan that is being loaded, then serves."""

    def __init__(self, plan: Plan, directory: Path, *, model: str) -> None:
        """Load tokenizer and chat template; raise RequestError where they cannot be used."""
        self.plan, self.model = plan, model
        self.fingerprint = codec.digest(plan)
        self.metrics = Metrics(self.state)
        self._tokenizer = load_tokenizer(directory)
        self._template: ChatTemplate | None = None
        with suppress(TemplateMissing):  # completions do without one
            self._template = ChatTemplate(directory)
        self._engine: Engine | None = None
        self._batching: Batching | None = None
        self._duration_s = 1.0

    @property
    def chats(self) -> bool:
        """True where the tokenizer has a chat template."""
        return self._template is not None

    def open(self, engine: "Engine", batching: Batching) -> None:
        """Serve from now on."""
        self._engine, self._batching = engine, batching

    def state(self) -> State | None:
        """Return how much is being served; None while the engine is loaded."""
        return None if self._batching is None else self._batching.state()

    def unready(self) -> ApiError | None:
        """Return the refusal of all requests in this phase; None where they are served."""
        state = self.state()
        if state is None:
            return unavailable("loading", "the model is being loaded: send it again later")
        if state.failure is not None:
            return unavailable("rank_failed", f"a device of the plan failed: {state.failure}")
        if state.draining:
            return unavailable("draining", "the server is ending: no more requests are taken")
        return None

    # ---- requests ----

    def chat(self, body: ChatBody) -> Prepared:
        """Return the request of a chat completion; raise ApiError. It takes time, so it has a thread."""
        self._check_model(body)
        if self._template is None:
            raise ApiError(400, "messages: the model has no chat template: use /v1/completions", param="messages")
        try:
            text = self._template.render([_turn(message) for message in body.messages])
        except RequestError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from error
        ids = self._ids(text, "messages", special=False)
        wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        return self._prepared(body, [ids], wanted, "messages")

    def completion(self, body: CompletionBody) -> Prepared:
        """Return the requests of a completion, one for each prompt; raise ApiError. It takes time, too."""
        self._check_model(body)
        prompts = [self._ids(prompt, "prompt") if isinstance(prompt, str) else prompt for prompt in body.prompt]
        wanted = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        return self._prepared(body, prompts, wanted, "prompt")

    def submit(self, request: Request, deliver: Callable[[Event], object], field: str) -> Job:
        """Have a request served; raise ApiError where it cannot be. ``deliver`` is called in the engine's thread."""
        assert self._batching is not None, "the service is ready"
        meter = self.metrics.meter()

        def metered(event: Event) -> None:
            meter(event)
            if not isinstance(event, str):
                self._duration_s = EASE * self._duration_s + (1 - EASE) * meter.elapsed_s
            deliver(event)

        try:
            return self._batching.submit(request, metered)
        except RuntimeRefusal as refusal:
            self.metrics.requests.labels("refused").inc()
            raise self.refusal(refusal, field) from refusal

    def refusal(self, refusal: RuntimeRefusal, field: str) -> ApiError:
        """Return a refusal of the engine as the interface has it."""
        return of_refusal(refusal, prompt_field=field, retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> int:
        """Return the time after which a place in the queue is likely to be free, in s."""
        state = self.state()
        turns = 1.0 if state is None else 1 / state.places
        return min(MOST_RETRY_S, max(1, math.ceil(self._duration_s * turns)))

    def _check_model(self, body: Body) -> None:
        if body.model != self.model:
            raise no_model(body.model, self.model)

    def _ids(self, text: str, field: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; raise ApiError where they are more than the context."""
        context = self.plan.options.context
        try:
            ids = encode_within(self._tokenizer, text, context, special=special)
        except RequestError as error:
            raise ApiError(400, f"{field}: {error}", param=field) from error
        if ids is None:
            raise _too_long(context, f"{field} alone is longer", field)
        return ids

    def _prepared(self, body: Body, prompts: Sequence[Sequence[int]], wanted: int | None, field: str) -> Prepared:
        assert self._engine is not None, "the service is ready"
        requests = []
        for ids in prompts:
            new_tokens = self._new_tokens(len(ids), wanted, field)
            options = GenerateOptions(
                max_new_tokens=new_tokens,
                temperature=1.0 if body.temperature is None else body.temperature,
                top_k=None if body.top_k is None else max(0, body.top_k),
                top_p=body.top_p,
                seed=body.seed,
                stop=body.stop,
                ignore_eos=bool(body.ignore_eos),
                reuse=True,
            )
            try:
                requests.append(self._engine.request(ids, **options))
            except RequestError as error:
                raise self.refusal(error, field) from error
        return Prepared(requests=tuple(requests), field=field)

    def _new_tokens(self, prompt_tokens: int, wanted: int | None, field: str) -> int:
        """Return the most new tokens of a request: as many as it names, else all that fit; raise ApiError."""
        context = self.plan.options.context
        if prompt_tokens + (wanted or 1) > context:
            needed = f"{prompt_tokens} of {field} and {wanted or 'at least 1'} new are {prompt_tokens + (wanted or 1)}"
            raise _too_long(context, needed, field)
        return wanted or context - prompt_tokens


def _too_long(context: int, reason: str, field: str) -> ApiError:
    message = f"the model's context has {context} tokens, {reason}: shorten {field} or ask for fewer new tokens"
    return ApiError(400, message, param=field, code="context_length_exceeded")


def _turn(message: Message) -> Turn:
    return Turn(role=message.role, content=message.text, name=message.name, tool_call_id=message.tool_call_id)


def no_model(name: str, served: str) -> ApiError:
    """Return the refusal of a model that is not served."""
    shown = name if name.isprintable() and len(name) <= 200 else repr(name[:200])
    return ApiError(
        404, f"the model {shown!r} does not exist: this server has {served!r}", param="model", code="model_not_found"
    )
