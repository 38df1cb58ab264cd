"""Counts of requests that two threads share."""

import threading

from runtime.processes.requests import Requests


def test_requests_are_open_until_every_completion_was_read() -> None:
    requests = Requests(range(2))
    assert (requests.open, requests.counts(0)) == (False, (0, 0))
    requests.ask(2)
    requests.ask(1)
    requests.finish(1)
    assert requests.open
    assert [requests.counts(rank) for rank in range(2)] == [(3, 0), (3, 1)]
    for rank in (0, 1, 1, 0, 1, 0):
        assert requests.open
        requests.read(rank)
    assert not requests.open
    requests.ask(1)
    requests.abandon()
    assert not requests.open


def test_counts_of_several_threads_add_up() -> None:
    requests = Requests([3])
    threads = [threading.Thread(target=lambda: [requests.finish(3) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert requests.counts(3) == (0, 2000)
