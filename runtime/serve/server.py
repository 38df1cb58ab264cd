"""Server process: listens, loads the engine meanwhile, serves, and ends.

signal while loading, or one while serving and then all served ─► return
a rank died ─► its requests get 503 ─► PeerError
a second signal ─► exit at once with 128 + its number
"""

import asyncio
import contextlib
import logging
import math
import multiprocessing.util
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn

from plans.process import SIGNALLED, answered
from runtime.continuous import Batching
from runtime.errors import PeerError
from runtime.serve.app import application
from runtime.serve.connection import MOST_HEADER_BYTES, limited
from runtime.serve.service import Service
from runtime.serve.settings import Settings

if TYPE_CHECKING:
    from runtime.engine import Engine

T = TypeVar("T")

FAILED_S = 2.0
"""Seconds in which requests get the refusal of a rank that died, before the process ends."""
LOOK_S = 0.2
"""Seconds between looks at the ranks."""


Report = Callable[[str], object]
"""Called with a line for people."""


def run(settings: Settings, listener: socket.socket, load: Callable[[], "Engine"], report: Report) -> None:
    """Serve a plan until a signal; raise what ends it otherwise: what ``load`` raises, or PeerError.

    ``listener``: a bound socket. ``load``: returns the engine, and is called in a thread. Called in the main thread.
    """
    service = Service(settings.plan, settings.directory, model=settings.model)
    server = Server(service, settings, listener, load, report)
    try:
        with _ended_by_signals(server):
            asyncio.run(server.run())
    finally:
        server.close()
        multiprocessing.util._exit_function()  # type: ignore[attr-defined] # its files: commands end without atexit


class Server:
    """A server from its start to its end."""

    def __init__(
        self,
        service: Service,
        settings: Settings,
        listener: socket.socket,
        load: "Callable[[], Engine]",
        report: Report,
    ) -> None:
        self._service, self._settings, self._listener = service, settings, listener
        self._load_engine, self._report = load, report
        self._engine: Engine | None = None
        self._ending = False
        self._ended: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def end(self) -> bool:
        """Begin to end; return False where that has begun before. Called from a signal handler."""
        if self._ending:
            return False
        self._ending = True
        if self._loop is not None and self._ended is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        return True

    def close(self) -> None:
        """End the ranks."""
        if self._engine is not None:
            self._engine.close()

    async def run(self) -> None:
        """Serve until ``end``, and then to the end of what was begun; raises as the function ``run``."""
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        if self._ending:
            return
        http = http_server(self._service, self._settings)
        serving = asyncio.create_task(http.serve(sockets=[self._listener]))
        ended = asyncio.create_task(self._ended.wait())
        try:
            batching = await _first(in_thread(self._load), ended)
            if batching is not None:
                await self._serve(batching, ended)
            http.should_exit = True
            await serving
        except PeerError:
            http.should_exit = True
            await asyncio.wait([serving], timeout=FAILED_S)
            logging.disable()
            raise

    def _load(self) -> Batching:
        self._engine = self._load_engine()
        batching = self._engine.continuous(queue=self._settings.queue)
        self._service.open(self._engine, batching)
        return batching

    async def _serve(self, batching: Batching, ended: "asyncio.Future[Any]") -> None:
        """Serve until the end has begun, then what runs and waits; raise PeerError where a rank dies."""
        address = self._listener.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self._report(f"ready: http://{host}:{address[1]}")
        failed = asyncio.create_task(_failure(batching))
        try:
            if await _first(failed, ended) is None:
                state = batching.state()
                self._report(
                    f"ending: {state.running} requests run and {state.waiting} wait; a second signal ends them at once"
                )
                await _first(failed, asyncio.ensure_future(in_thread(batching.drain)))
            if failed.done():
                raise failed.result()
        finally:
            failed.cancel()


def http_server(service: Service, settings: Settings) -> "Http":
    """Return uvicorn's server of a service, with the limits of the settings."""
    limits = settings.limits
    return Http(
        uvicorn.Config(
            application(service, settings),
            http=limited(limits),
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            timeout_keep_alive=limits.idle_s,
            timeout_graceful_shutdown=math.ceil(limits.write_s) + 5,
        )
    )


class Http(uvicorn.Server):
    """uvicorn's server without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the process."""
        yield


async def _failure(batching: Batching) -> PeerError:
    """Wait until a rank has died, which may be while nobody is served."""
    while (failure := batching.state().failure) is None:
        await asyncio.sleep(LOOK_S)
    return PeerError(failure)


def in_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Return the result of work in a thread of its own, which a process that ends does not wait for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not result.cancelled():
            result.set_exception(error) if error is not None else result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value, error = None, None
        try:
            value = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True).start()
    return result


async def _first(work: "asyncio.Future[T]", other: "asyncio.Future[Any]") -> T | None:
    """Wait for either; return the result of ``work``, None where the other is first. Raises what it raises."""
    await asyncio.wait([work, other], return_when=asyncio.FIRST_COMPLETED)
    return work.result() if work.done() else None


@contextmanager
def _ended_by_signals(server: Server) -> Iterator[None]:
    """Begin the end of a server at the first SIGINT or SIGTERM, and exit at the second."""

    def handle(number: int, frame: FrameType | None) -> None:
        if not server.end():
            logging.disable()  # uvicorn would log every answer that is cut off
            sys.exit(SIGNALLED + number)

    with answered(signal.SIGTERM, handle), answered(signal.SIGINT, handle):
        yield
