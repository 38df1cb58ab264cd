"""Routes of the server: each endpoint from a request to its response."""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from runtime.serve.answers import Answer
from runtime.serve.guard import Guard
from runtime.serve.metrics import CONTENT_TYPE
from runtime.serve.protocol import Body, ChatBody, CompletionBody, read_chat, read_completion
from runtime.serve.refusals import ApiError
from runtime.serve.service import Prepared, Service, no_model
from runtime.serve.settings import Limits, Settings
from runtime.serve.shapes import Shape

B = TypeVar("B", bound=Body)

READERS = 2
"""Threads that read bodies and tokenize."""
PAGE = Path(__file__).with_name("page.html")


def application(service: Service, settings: Settings) -> ASGIApp:
    """Return the ASGI application of a service."""
    endpoints = Endpoints(service, settings.limits)
    app = Starlette(
        routes=[
            Route("/", endpoints.page, methods=["GET"]),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.completion, methods=["POST"]),
        ],
        exception_handlers={ApiError: _refused, HTTPException: _unknown, ClientDisconnect: _left, Exception: _bug},
    )
    app.router.redirect_slashes = False
    return Guard(app, key=settings.key, host=settings.host, metrics=service.metrics)


class Endpoints:
    """Endpoints of a service."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service, self._limits = service, limits
        self._created = int(time.time())
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._received_bytes = 0
        """Bytes of bodies that are being received and read."""
        self._page = PAGE.read_bytes()
        self._policy = content_policy(self._page.decode())

    async def page(self, request: Request) -> Response:
        """Return the page to type into."""
        return Response(self._page, headers={"content-security-policy": self._policy}, media_type="text/html")

    async def health(self, request: Request) -> Response:
        """Return 200 where requests are served, 503 with the reason where they are not."""
        refusal = self._service.unready()
        return _json({"status": "ok"}) if refusal is None else _json({"status": refusal.code}, 503)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics."""
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        """Return the only model."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Return a model by name."""
        if (name := request.path_params["name"]) != self._service.model:
            raise no_model(name, self._service.model)
        return _json(self._model())

    def _model(self) -> dict[str, object]:
        return {
            "id": self._service.model,
            "object": "model",
            "created": self._created,
            "owned_by": "eagleplan",
            "max_model_len": self._service.plan.options.context,
            "chat": self._service.chats,
        }

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""

        def prepare(content: bytes) -> tuple[ChatBody, Prepared]:
            body = read_chat(content)
            return body, self._service.chat(body)

        body, prepared = await self._prepared(request, prepare)
        shape = Shape(kind="chat", model=self._service.model, fingerprint=self._service.fingerprint)
        return Answer(self._service, body, prepared, shape)

    async def completion(self, request: Request) -> Response:
        """Continue prompts."""

        def prepare(content: bytes) -> tuple[CompletionBody, Prepared]:
            body = read_completion(content)
            return body, self._service.completion(body)

        body, prepared = await self._prepared(request, prepare)
        shape = Shape(kind="text", model=self._service.model, fingerprint=self._service.fingerprint)
        return Answer(self._service, body, prepared, shape)

    async def _prepared(self, request: Request, prepare: Callable[[bytes], tuple[B, Prepared]]) -> tuple[B, Prepared]:
        """Return a body and its requests; raise ApiError."""
        if (refusal := self._service.unready()) is not None:
            raise refusal
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"Content-Type: found {kind[:100]!r}, expected application/json")
        async with self._received(request) as content:
            read = await asyncio.get_running_loop().run_in_executor(self._readers, prepare, content)
        if (refusal := self._service.unready()) is not None:
            raise refusal
        return read

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a request, which counts as received until the context ends; raise ApiError."""
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.body_bytes:
            raise self._too_large()
        content = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.body_s):
                    async for piece in request.stream():
                        self._take(content, piece)
            except TimeoutError as error:
                raise ApiError(408, f"body: not there after {self._limits.body_s:g} s", code="body_timeout") from error
            yield bytes(content)
        finally:
            self._received_bytes -= len(content)

    def _take(self, content: bytearray, piece: bytes) -> None:
        """Append a piece to a body; raise ApiError where it, or all bodies together, are too large."""
        content += piece
        self._received_bytes += len(piece)
        if len(content) > self._limits.body_bytes:
            raise self._too_large()
        if self._received_bytes > self._limits.bodies_bytes:
            message = "the bodies of other requests are being received: send it again later"
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=1)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"body: expected at most {self._limits.body_bytes} bytes", code="body_too_large")


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "it is the handler of this class"
    return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
    """Return the refusal of a path or method that no route has."""
    assert isinstance(error, HTTPException), "it is the handler of this class"
    url = f"{request.method} {request.url.path[:200]}"
    headers = error.headers or {}
    if error.status_code == 405:
        message, code = f"{url}: expected {headers.get('Allow', 'another method')}", "method_not_allowed"
    else:
        message, code = f"{url}: there is no such path", "unknown_url"
    response = ApiError(error.status_code, message, code=code).response()
    response.headers.update(headers)
    return response


async def _left(request: Request, error: Exception) -> Response:
    """Return what nobody reads: the client went away while it sent its body."""
    return ApiError(400, "the client has gone away").response()


async def _bug(request: Request, error: Exception) -> Response:
    """Return what a client gets where this server has a bug; its traceback goes to stderr."""
    return ApiError(500, "the server failed: its log says why", kind="server_error").response()


def content_policy(page: str) -> str:
    """Return the Content-Security-Policy of the page: its own script and style by digest, requests to this server."""

    def digests(tag: str) -> str:
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
