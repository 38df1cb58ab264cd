"""Refusals of the supervisor: what ended a run is raised to each caller as an exception of its own."""

import queue
import traceback

import pytest

from runtime.errors import PeerError, RuntimeRefusal
from runtime.processes.supervisor import Received, Supervisor


def test_a_refusal_that_is_raised_again_has_no_frames_of_earlier_callers() -> None:
    supervisor = object.__new__(Supervisor)  # without ranks and threads
    supervisor._events = queue.SimpleQueue[Received | RuntimeRefusal]()
    supervisor._events.put(PeerError("rank 1 of 2, device b, was killed"))
    raised = []
    for _ in range(3):
        with pytest.raises(PeerError, match=r"^rank 1 of 2, device b, was killed$") as refusal:
            supervisor.next()
        raised.append(refusal.value)
    assert len({id(error) for error in raised}) == 3
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in raised}) == 1
