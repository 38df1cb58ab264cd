"""Refusals of the HTTP interface: OpenAI's error object and the status it comes with.

{"error": {"message": ..., "type": ..., "param": field or null, "code": ... or null}}
"""

import json
from typing import Any

from starlette.responses import Response

from runtime.errors import Draining, PeerError, QueueFull, RequestError, RuntimeRefusal

INVALID = "invalid_request_error"
UNAVAILABLE = "service_unavailable"
MOST_PARAM = 100
"""Most characters of a field's name in ``param``."""


class ApiError(Exception):
    """A request that is answered with an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """``kind``: the field ``type``. ``retry_after_s``: the header Retry-After; None sends none."""
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.retry_after_s = status, message, kind, code, retry_after_s
        self.param = None if param is None else param[:MOST_PARAM]

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the response of a request that is refused before its answer begins."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        # ASCII, because what is quoted may have lone surrogates, which are no UTF-8
        return Response(json.dumps(self.body()), self.status, headers, media_type="application/json")


def unavailable(code: str, message: str) -> ApiError:
    """Return the refusal of a server that takes no requests now."""
    return ApiError(503, message, kind=UNAVAILABLE, code=code)


def of_refusal(refusal: RuntimeRefusal, *, prompt_field: str, retry_after_s: int) -> ApiError:
    """Return a refusal of the engine as the interface has it; ``prompt_field``: field that has the prompt."""
    message = str(refusal)
    if isinstance(refusal, QueueFull):
        return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s)
    if isinstance(refusal, Draining):
        return unavailable("draining", message)
    if isinstance(refusal, PeerError):
        return unavailable("rank_failed", f"a device of the plan failed: {message}")
    if isinstance(refusal, RequestError):
        field = message.partition(":")[0].partition("[")[0]
        param = field if field in ("temperature", "top_p", "top_k", "seed", "stop") else prompt_field
        return ApiError(400, message, param=param)
    return unavailable("failed", message)
