"""Checks of every request before an endpoint sees it, and headers of every response.

- The key: a bearer token, compared in constant time, for everything but the page and ``/health``.
- Without a key: Host has, on a loopback address, only names of it, so that a page of the web whose name is made to
  point here (DNS rebinding) is refused; Origin is that of this server or none, so that no other page sends requests.
- Responses say that they are not to be guessed, framed or kept. There is no CORS.
"""

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serve.connection import MOST_HEADER_BYTES
from runtime.serve.metrics import Metrics
from runtime.serve.refusals import ApiError
from runtime.serve.settings import is_loopback

OPEN_PATHS = {"/", "/health"}
"""Paths without a key: the page asks for it."""
PATHS = {*OPEN_PATHS, "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"}
"""Paths that are counted by name; all others are counted as one."""
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


class Guard:
    """ASGI application around another one."""

    def __init__(self, app: ASGIApp, *, key: str | None, host: str, metrics: Metrics) -> None:
        """``key``: None where none is asked for; ``host``: address that the server listens on."""
        self._app, self._metrics = app, metrics
        self._key = None if key is None else _digest(key)
        self._names = {host, "localhost", "127.0.0.1", "::1"} if is_loopback(host) else set[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responses.labels(path if path in PATHS else "other", str(message["status"])).inc()
                message["headers"] = [*message.get("headers", []), *HEADERS.items()]
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
                raise ApiError(431, f"headers: expected at most {MOST_HEADER_BYTES} bytes", code="headers_too_large")
            self._check(path, {name: value.decode("latin-1") for name, value in scope["headers"]})
        except ApiError as error:
            await error.response()(scope, receive, answer)
            return
        await self._app(scope, receive, answer)

    def _check(self, path: str, headers: Mapping[bytes, str]) -> None:
        """Raise ApiError for a request that may not pass; ``headers``: by name in lower case."""
        if self._key is None:
            self._check_page(headers.get(b"host", ""), headers.get(b"origin"))
        elif path not in OPEN_PATHS:
            scheme, _, token = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(token.strip()), self._key):
                reason = "the key is not that of this server" if token else "there is no key"
                raise ApiError(401, f"{reason}: send the header Authorization: Bearer KEY", code="invalid_api_key")

    def _check_page(self, host: str, origin: str | None) -> None:
        """Raise ApiError for a request that a page of another server sent."""
        if self._names and host and _name(f"//{host}") not in self._names:
            message = f"Host: found {host[:100]!r}, expected a name of the loopback; with --api-key-file any is taken"
            raise ApiError(403, message, code="host_refused")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise ApiError(403, "Origin: requests of pages of other servers are refused", code="origin_refused")


def _digest(key: str) -> bytes:
    """Return the hash of a key: keys of any length take the same time to compare."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _name(address: str) -> str:
    """Return the host of an address, without its port; an empty text for one that is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
