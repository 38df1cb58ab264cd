"""Continuous batching: each request says what it says alone, whenever it comes, and whoever else is served."""

import threading
from collections.abc import Iterator

import pytest

from runtime import Engine
from runtime.continuous import Batching, Event
from runtime.errors import Draining, QueueFull
from runtime.generation import Generation
from runtime.request import Piece, Request
from tests.runtime.small import compiled_plan, write_tokenizer

pytestmark = pytest.mark.usefixtures("one_core")
WAIT_S = 60


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

    def result(self) -> Generation:
        """Wait for the end; return the whole output, which must be that of the pieces."""
        assert self._ended.wait(WAIT_S)
        last = self.events[-1]
        assert isinstance(last, Generation), last
        pieces = [event for event in self.events if isinstance(event, Piece)]
        assert "".join(pieces) == last.text
        assert tuple(token for piece in pieces for token in piece.tokens) == last.tokens
        assert tuple(piece.accepted for piece in pieces if piece.accepted is not None) == last.accept_lengths
        return last


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, one_core: None) -> Iterator[Engine]:
    directory, _ = compiled_plan(tmp_path_factory.mktemp("continuous"), context=2000)
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
        first = Reader(batching, long)
        while not first.events:
            pass
        others = [Reader(batching, long) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests wait already") as refusal:
            batching.submit(long, print)
        assert refusal.value.waiting == 2
        assert (batching.state().running, batching.state().waiting) == (1, 2)
        for reader in (first, *others):
            reader.job.cancel()
        assert {reader.result().finish for reader in (first, *others)} == {"cancelled"}
        assert (batching.state().running, batching.state().waiting) == (0, 0)
