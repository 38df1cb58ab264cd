"""Times of the parts of a step on a rank, of messages with other parts and sums inside them, by a clock of our own."""

from unittest import mock

import pytest
import torch

from runtime.comm import progress
from runtime.comm.progress import Progress, Timings


class Clock:
    """Clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter_ns(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_part_has_its_sums_and_begins_with_the_message_that_it_receives(clock: Clock) -> None:
    with mock.patch.object(progress, "time", clock):
        rank = Progress()
        rank.timings = Timings(torch.device("cpu"))

        def collective(ns: int, *, inside: bool) -> None:
            with rank.collective("group", inside=inside, queued=False):
                clock.ns += ns

        clock.ns += 1  # while another rank works
        collective(20, inside=False)
        clock.ns += 300
        collective(1000, inside=True)

        def add_up() -> None:
            assert rank.status.group == b"group"
            clock.ns += 1500

        summed, ticks = rank.summing("group", add_up), rank.status.ticks
        summed()
        summed()
        assert (rank.status.group, rank.status.ticks) == (b"", ticks + 2)
        rank.lap("stages[0]")
        clock.ns += 50_000
        collective(600_000, inside=False)  # sent
        clock.ns += 7_000_000
        rank.lap("commit")
    assert rank.timings.parts == {"stages[0]": [(21, 4321)], "commit": [(654_321, 7_654_321)]}
    assert rank.timings.steps == [clock.ns]
    assert rank.timings.groups == {"group": 604_020}
