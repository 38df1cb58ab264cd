"""One TCP connection: uvicorn's HTTP/1.1 protocol with limits for senders that are slow and readers that do not read.

    connection ──► request line and headers ─────► body ──► answer ──► next request, or idle
                   headers_s, MOST_HEADER_BYTES    (app)    write_s    uvicorn's keep-alive, idle_s

A connection that is over a limit is aborted, and the request in it gets ``http.disconnect`` like one whose client went
away. Bytes that a reader does not take are at most those of one server-sent event and of the kernel's buffers: a
stream waits for them, and the answer's rest is text that the output's length bounds.
"""

import asyncio

from h11 import IDLE
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.serve.settings import Limits

MOST_HEADER_BYTES = 16 << 10
"""Bytes of a request line and headers."""


class Connection(H11Protocol):
    """A connection with time-outs."""

    limits = Limits()

    _headers_due: asyncio.TimerHandle | None = None
    _write_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Begin a connection; abort it where there are too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # what the kernel does not take is waited for
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._headers_due = self.loop.call_later(self.limits.headers_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Read bytes; from the first of a request its headers are due."""
        super().data_received(data)
        if self.conn.their_state is not IDLE:
            self._end_wait_for_headers()
        elif self._headers_due is None and not self.transport.is_closing():
            self._headers_due = self.loop.call_later(self.limits.headers_s, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for a reader."""
        super().pause_writing()
        if self._write_due is None:
            self._write_due = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: everything was read."""
        super().resume_writing()
        self._end_wait_for_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        super().connection_lost(exc)
        self._end_wait_for_headers()
        self._end_wait_for_reader()

    def _end_wait_for_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _end_wait_for_reader(self) -> None:
        if self._write_due is not None:
            self._write_due.cancel()
            self._write_due = None


def limited(limits: Limits) -> type[Connection]:
    """Return the type of the connections with these limits: uvicorn makes them."""

    class Limited(Connection):
        pass

    Limited.limits = limits
    return Limited
