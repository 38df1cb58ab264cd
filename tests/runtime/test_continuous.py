"""Continuous batching as the engine offers it: places, the queue, threads, and the ends of ranks and engine."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from runtime import Engine
from runtime.continuous import Batching, Event
from runtime.errors import Draining, PeerError, QueueFull, RequestError
from runtime.generation import Generation
from runtime.request import Piece, Request
from tests.runtime.small import compiled_plan, write_tokenizer

pytestmark = pytest.mark.usefixtures("one_core")
WAIT_S = 60
PLACES = 3
CONTEXT = 2000


class Reader:
    """Receiver of the events of one request."""

    def __init__(self, batching: Batching, request: Request) -> None:
        self.events: list[Event] = []
        self._ended = threading.Event()
        self.job = batching.submit(request, self._take)

    def _take(self, event: Event) -> None:
        assert not self._ended.is_set(), "nothing comes behind the last event"
        self.events.append(event)
        if not isinstance(event, Piece):
            self._ended.set()

    def begun(self) -> None:
        """Wait for the first piece."""
        deadline = time.monotonic() + WAIT_S
        while not self.events:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def last(self) -> Event:
        """Wait for the end; return the last event."""
        assert self._ended.wait(WAIT_S)
        return self.events[-1]

    def result(self) -> Generation:
        """Wait for the end; return the whole output, which must be that of the pieces."""
        last = self.last()
        assert isinstance(last, Generation), last
        pieces = [event for event in self.events if isinstance(event, Piece)]
        assert "".join(pieces) == last.text
        assert tuple(token for piece in pieces for token in piece.tokens) == last.tokens
        assert tuple(piece.accepted for piece in pieces if piece.accepted is not None) == last.accept_lengths
        return last


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, one_core: None) -> Iterator[Engine]:
    directory, _ = compiled_plan(tmp_path_factory.mktemp("continuous"), context=CONTEXT, batch=PLACES)
    write_tokenizer(directory)
    with Engine.open(directory) as opened:
        yield opened


def test_requests_are_served_and_the_engine_afterwards(engine: Engine) -> None:
    requests = [engine.request([1, 2, 3 + number], max_new_tokens=9, ignore_eos=True) for number in range(5)]
    alone = [engine.serve(request).finished().tokens for request in requests]
    with engine.continuous() as batching:
        readers = [Reader(batching, request) for request in requests]
        assert [reader.result().tokens for reader in readers] == alone
        batching.drain()
        with pytest.raises(Draining):
            batching.submit(requests[0], print)
    assert engine.serve(requests[0]).finished().tokens == alone[0]


def test_cancelled_requests_end_and_a_full_queue_refuses(engine: Engine) -> None:
    long = engine.request([1, 2, 3], max_new_tokens=1900, ignore_eos=True)
    with engine.continuous(queue=2) as batching:
        running = [Reader(batching, long) for _ in range(PLACES)]
        for reader in running:
            reader.begun()
        waiting = [Reader(batching, long) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests wait already") as refusal:
            batching.submit(long, print)
        assert refusal.value.waiting == 2
        state = batching.state()
        assert (state.running, state.waiting, state.places, state.draining) == (PLACES, 2, PLACES, False)
        assert 3 * PLACES < state.kv_rows_used <= state.kv_rows == PLACES * CONTEXT
        waiting[0].job.cancel()
        assert waiting[0].result().tokens == ()
        running[1].job.cancel()
        assert 0 < len(running[1].result().tokens) < 1900
        waiting[1].begun()  # in the place that became free
        for reader in (*running, waiting[1]):
            reader.job.cancel()
            assert reader.result().finish == "cancelled"
        assert (batching.state().running, batching.state().waiting) == (0, 0)


def test_a_caller_that_raises_ends_its_own_request_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    request = engine.request([1, 2, 3], max_new_tokens=60, ignore_eos=True)
    alone, heard = engine.serve(request).finished().tokens, list[Event]()

    def deaf(event: Event) -> None:
        heard.append(event)
        raise ValueError("mine")

    def deaf_at_the_end(event: Event) -> None:
        if isinstance(event, Generation):
            raise KeyError(event.finish)

    with engine.continuous() as batching:
        batching.submit(request, deaf)
        batching.submit(request, deaf_at_the_end)
        readers = [Reader(batching, request) for _ in range(PLACES + 1)]
        assert [reader.result().tokens for reader in readers] == [alone] * len(readers)
        assert Reader(batching, request).result().tokens == alone
    assert [args.exc_type for args in raised] == [ValueError, KeyError]
    assert len(heard) == 1


def test_an_engine_serves_nothing_else_meanwhile_and_a_bad_request_is_refused_at_once(engine: Engine) -> None:
    with engine.continuous() as batching:
        for ask in (lambda: engine.generate([1]), engine.continuous):
            with pytest.raises(RequestError, match="the engine is serving another request"):
                ask()
        with pytest.raises(RequestError, match="max_new_tokens: found 0"):
            batching.submit(replace(engine.request([1]), max_new_tokens=0), print)
    stream = engine.stream([1, 2, 3], max_new_tokens=50)
    with pytest.raises(RequestError, match="the engine is serving another request"):
        engine.continuous()
    stream.close()


def test_many_threads_submit_and_nothing_is_mixed_or_kept(engine: Engine) -> None:
    requests = [
        engine.request([5, 6, 7, n % 7], max_new_tokens=5 + n % 3, temperature=n % 2, seed=n % 4, reuse=True)
        for n in range(42)
    ]
    alone = [engine.serve(replace(request, reuse=False)).finished().tokens for request in requests]
    process = psutil.Process()
    with engine.continuous(queue=len(requests)) as batching:

        def serve(number: int) -> Generation:
            return Reader(batching, requests[number]).result()

        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(serve, range(len(requests))))
            before = process.memory_info().rss
            again = list(pool.map(serve, range(len(requests))))
        assert process.memory_info().rss - before < 4 << 20
    for results in (first, again):
        assert [result.tokens for result in results] == alone
    assert sum(result.reused for result in again) > len(requests)


def test_a_request_that_is_served_alone_is_not_held_up_by_a_long_prompt(engine: Engine) -> None:
    """It gets a step for every chunk of the other one's prompt."""
    long = engine.request([1 + n % 40 for n in range(1900)], max_new_tokens=2)
    short = engine.request([1, 2, 3], max_new_tokens=40, ignore_eos=True)
    chunks = -(-1900 // engine.plan.options.prefill_chunk)
    with engine.continuous() as batching:
        served = Reader(batching, short)
        served.begun()
        other = Reader(batching, long)
        served.result()
        assert len(served.events) < chunks
        assert not other.events, "the long prompt is still being read"
        late = Reader(batching, short)
        late.result()
        assert not other.events, "so does one that comes later"
        assert len(other.result().tokens) == 2


def test_torchrun_is_refused(engine: Engine) -> None:
    engine._whole = False
    with pytest.raises(RequestError, match="continuous: not under torchrun"):
        engine.continuous()
    engine._whole = True


# ---- rank processes ----


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the plan of two devices; a rank that makes no progress for a second hangs."""
    directory, devices = tmp_path_factory.mktemp("several"), ("a", "b")
    return compiled_plan(directory, devices, context=CONTEXT, stall_timeout_s=1, batch=PLACES)[0]


def ranks() -> list[psutil.Process]:
    children = sorted(multiprocessing.active_children(), key=lambda child: child.name)
    return [psutil.Process(child.pid) for child in children if child.name.startswith("rank ")]


def test_ranks_that_have_nothing_to_do_wait_without_a_core_and_a_dead_one_is_seen(several: Path) -> None:
    with Engine.open(several) as engine, engine.continuous() as batching:
        request = engine.request([1, 2, 3], max_new_tokens=9)
        tokens = Reader(batching, request).result().tokens
        used = sum(sum(rank.cpu_times()[:2]) for rank in ranks())
        time.sleep(1.5)  # longer than a rank may stand still
        assert sum(sum(rank.cpu_times()[:2]) for rank in ranks()) - used < 0.3
        assert Reader(batching, request).result().tokens == tokens
        ranks()[1].kill()
        deadline = time.monotonic() + WAIT_S
        while batching.state().failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "was killed by SIGKILL" in str(batching.state().failure)
        with pytest.raises(PeerError, match="was killed by SIGKILL"):
            batching.submit(request, print)


@pytest.mark.parametrize(
    ("strike", "message"), [("kill", "was killed by SIGKILL"), ("suspend", "its process is stopped")]
)
def test_a_rank_that_dies_or_stops_ends_every_request(strike: str, message: str, several: Path) -> None:
    with Engine.open(several) as engine, engine.continuous() as batching:
        long = engine.request([1, 2, 3], max_new_tokens=1900, ignore_eos=True)
        readers = [Reader(batching, long) for _ in range(PLACES + 2)]
        readers[0].begun()
        getattr(ranks()[0], strike)()
        for reader in readers:
            assert isinstance(reader.last(), PeerError)
            assert message in str(reader.last())


def test_closing_the_engine_ends_every_request(several: Path) -> None:
    with Engine.open(several) as engine:
        batching = engine.continuous()
        long = engine.request([1, 2, 3], max_new_tokens=1900, ignore_eos=True)
        readers = [Reader(batching, long) for _ in range(PLACES + 2)]
        readers[0].begun()
        engine.close()
        assert {str(reader.last()) for reader in readers} == {"the engine was closed before the output ended"}
        batching.drain()
