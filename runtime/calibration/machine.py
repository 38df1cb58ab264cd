"""Processes of one machine that compute as the ranks of a plan do, and their messages through shared memory.

Products are timed in one process while the others sleep, as the stages of a pipeline run in turn, and in 2, 4, ... and
all of them at once, as a tensor-parallel group runs: these share the cores and the memory.

Measured in rounds, spread over the time, each of all products and messages; of the few times of one kind in a round the
least counts, so that other programs, which come and go, change little. The clock ends the rounds on a busy machine.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import TypeVar

import torch

from plans.cpu_times import SCORES
from runtime.calibration.rates import (
    BYTES,
    HELD,
    NAMES,
    PRODUCTS,
    ROW_ROWS,
    Held,
    Products,
    ScoreSpans,
    Span,
    Spans,
    scores,
)
from runtime.comm.groups import Group
from runtime.comm.shared_memory import SharedGroup, SharedMemory, unnamed_memory
from runtime.errors import MachineError
from runtime.model import ops

MESSAGES = (1 << 10, 1 << 16)
"""Bytes of a sum: one whose time is latency, and one of several rows of a large model."""
SUMS = 12
"""Sums of each size in a round."""
SUM_PRODUCTS = 2
"""Products of each process before a sum, as a layer has them: their weights drive what a sum wants, code and data, out
of the caches. A sum behind another took a third of the time."""
ROUNDS = 24
LEAST_ROUNDS = 2
ROUNDS_S, PART_OF_ROUNDS = 8, 0.25
"""Seconds, and the part of the time within which all is to be done, after the first of which no further round is begun,
but for the least."""
MESSAGE_PRODUCTS = 6
"""Products of the sender before a message, 1 ms, after which its receiver sleeps (``runtime.comm.shared_memory``). Who
has slept for longer wakes up later: on a virtual machine a message took 108 us after 0.3 ms, 117 after 1, 129 after 2.6
and 154 after 10; those of a plan come after 0.2 ms of an embedding to some 10 ms of stages."""
MESSAGES_OF_ROUND = 6
"""Such messages in a round."""

_Time = TypeVar("_Time")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """Times of an all-reduce among the first processes, one of each round.

    Of no more processes than cores the first quartile, from when the last of them comes until all have the sum. Of
    more, some of which wait for a core until another waits for the sum, that by which products with a sum behind them
    take longer than without: who has the sum late computes meanwhile, or lets another do so, and the next sum is no
    later for it.
    """

    members: int
    message_bytes: int
    times_ns: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What was measured."""

    cores: int
    processes: int
    threads: int
    """Of each process."""
    values: dict[Held, int]
    """Weights of a product."""
    cached_bytes: int
    """Of the weights that were read again and again."""
    products_ns: dict[int, dict[Held, dict[str, dict[int, list[int]]]]]
    """By the processes that compute at once, where the weights are, dtype and rows: time of a product on the slowest,
    the least of each round. Of more processes than cores, some of which wait for one, from the first begin to the last
    end."""
    rows_ns: dict[int, list[int]]
    """By the processes at once: time of a row in a layer besides products, as ``products_ns`` has theirs."""
    scores_ns: dict[int, dict[str, dict[int, list[int]]]]
    """By the processes at once, dtype and dims of a head: time of SCORES scores of attention, as ``rows_ns``."""
    sums: tuple[Sum, ...]
    message_ns: list[int]
    """Until a short message is with a process that sleeps: the median of each round. None with one process."""


def measure(processes: int, within_s: int) -> Samples:
    """Measure with so many processes, which share the cores of this machine.

    Raise MachineError where one dies, or is not done within so many seconds after the kernels are ready.
    """
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // processes)
    ops.prepare_exchange(torch.float32)
    torch.set_num_threads(1)  # OpenMP of a process that had threads does not start them again in its children
    products = Products()  # one for all: the kernels are ready, and the weights are in memory that the processes share
    ends = time.monotonic() + within_s  # not of the kernels, which are compiled once
    context = multiprocessing.get_context("fork")
    barriers = {members: context.Barrier(members) for members in range(2, processes + 1)}
    together, ended = context.Barrier(processes), context.Event()
    with unnamed_memory(processes) as path:
        started = []
        for rank in range(processes):
            own, other = context.Pipe(duplex=False)
            arguments = (rank, threads, products, path, together, ended, barriers, ends, within_s, other)
            started.append((own, context.Process(target=_serve, args=arguments, daemon=True)))
            started[-1][1].start()
            other.close()
        try:
            results = [_received(own, ends, within_s) for own, _ in started]
        finally:
            for _, process in started:
                process.kill()
                process.join()
    slowest = {
        at_once: {
            held: {name: _slowest(results[:at_once], (at_once, held, name), cores) for name in by_held[held]}
            for held in HELD
        }
        for at_once, by_held in results[0][0].products.items()
    }
    sums = tuple(
        Sum(
            members=members,
            message_bytes=nbytes,
            times_ns=[
                _sum_ns([own.sums[members] for own in of_round], nbytes, members > cores)
                for of_round in zip(*results[:members], strict=True)
            ],
        )
        for members in range(2, processes + 1)
        for nbytes in MESSAGES
    )
    return Samples(
        cores=cores,
        processes=processes,
        threads=threads,
        values=products.values,
        cached_bytes=BYTES["cached"],
        products_ns=slowest,
        rows_ns={
            at_once: [
                ns // ROW_ROWS
                for ns in _least(
                    [[own.rows[at_once] for own in rounds] for rounds in results[:at_once]], _time(at_once, cores)
                )
            ]
            for at_once in slowest
        },
        scores_ns={
            at_once: {name: _scores(results[:at_once], (at_once, name), cores) for name in NAMES} for at_once in slowest
        },
        sums=sums,
        message_ns=[round(statistics.median(own.messages)) for own in results[1]] if processes > 1 else [],
    )


def at_once(processes: int) -> tuple[int, ...]:
    """Return how many of so many processes compute at once: powers of two, and all."""
    return *(1 << bit for bit in range((processes - 1).bit_length())), processes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """Times of one process in ns."""

    products: dict[int, Spans]
    """By the processes at once that this one is among."""
    rows: dict[int, list[Span]]
    """The same, of rows besides products."""
    scores: dict[int, ScoreSpans]
    """The same, of attention."""
    sums: dict[int, dict[int, list[Span]]]
    """By members and bytes, of the groups that the process is in; of no bytes: of the products before each sum."""
    messages: list[int]
    """To the second process."""


def _received(pipe: Connection, ends: float, within_s: int) -> list[_Round]:
    if not pipe.poll(max(0.0, ends - time.monotonic())):
        raise MachineError(f"the machine is too busy to be measured within {within_s} s: end other work")
    try:
        result: list[_Round] = pipe.recv()
    except EOFError as error:
        raise MachineError("a process that measures died: is there enough memory?") from error
    return result


def _least(times: list[list[list[_Time]]], of_all: Callable[[Sequence[_Time]], int]) -> list[int]:
    """Return of each round the least time of all processes; ``times``: by process, round and turn."""
    return [min(map(of_all, zip(*of_round, strict=True))) for of_round in zip(*times, strict=True)]


def _slowest(results: Sequence[Sequence[_Round]], of: tuple[int, Held, str], cores: int) -> dict[int, list[int]]:
    """Return by rows the least time of each round of a product on all processes."""
    at_once, held, name = of
    spans = [[own.products[at_once][held][name] for own in rounds] for rounds in results]
    return {
        rows: [
            ns // PRODUCTS for ns in _least([[own[rows] for own in rounds] for rounds in spans], _time(at_once, cores))
        ]
        for rows in spans[0][0]
    }


def _scores(results: Sequence[Sequence[_Round]], of: tuple[int, str], cores: int) -> dict[int, list[int]]:
    """Return by dims of a head the least time of each round of SCORES scores on all processes."""
    at_once, name = of
    spans = [[own.scores[at_once][name] for own in rounds] for rounds in results]
    return {
        dims: [
            ns * SCORES // scores()
            for ns in _least([[own[dims] for own in rounds] for rounds in spans], _time(at_once, cores))
        ]
        for dims in spans[0][0]
    }


def _sum_ns(spans: Sequence[Mapping[int, Sequence[Span]]], nbytes: int, crowded: bool) -> int:
    """Return the time of a sum of so many bytes in a round, as ``Sum`` has it; ``spans``: by process and bytes.

    ``crowded``: the processes are more than the cores. Otherwise the first quartile, since the least is one by chance.
    """
    every = [own[nbytes] for own in spans]
    ends: list[int] = [max(end for _, end in of_sum) for of_sum in zip(*every, strict=True)]
    if crowded:
        alone = [own[0] for own in spans]
        without_ns = _spanned([(own[0][0], own[-1][1]) for own in alone]) // len(alone[0])
        return max(1, (ends[-1] - ends[0]) // (len(ends) - 1) - without_ns)
    begins: list[int] = [max(begin for begin, _ in of_sum) for of_sum in zip(*every, strict=True)]
    return sorted(end - begin for begin, end in zip(begins, ends, strict=True))[len(ends) // 4]


def _time(at_once: int, cores: int) -> Callable[[Sequence[Span]], int]:
    """Return how long so many processes take for something that each of them does."""
    return _spanned if at_once > cores else _longest


def _longest(spans: Sequence[Span]) -> int:
    """Return the time of the slowest; that by which one begins after another is counted in sums."""
    return max(end - begin for begin, end in spans)


def _spanned(spans: Sequence[Span]) -> int:
    """Return the time from the first begin to the last end."""
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def _serve(
    rank: int,
    threads: int,
    products: Products,
    path: str,
    together: Barrier,
    ended: Event,
    barriers: dict[int, Barrier],
    ends: float,
    within_s: int,
    pipe: Connection,
) -> None:
    """Measure in one of the processes, and send what it took; the first says when the rounds end."""
    torch.set_num_threads(threads)
    memory = SharedMemory(path, tuple(range(together.parties)), rank, ops.exchange)
    groups = {members: _group(memory, members, rank) for members in range(2, together.parties + 1) if rank < members}
    products.samples(together.wait, 1)  # warms up
    last_round = ends - within_s + min(ROUNDS_S, PART_OF_ROUNDS * within_s)
    rounds = list[_Round]()
    while not ended.is_set():
        own, rows, scored = dict[int, Spans](), dict[int, list[Span]](), dict[int, ScoreSpans]()
        sums = dict[int, dict[int, list[Span]]]()
        for computing in at_once(together.parties):
            together.wait()
            if rank < computing:
                ready = partial(_meet, groups.get(computing))
                products.begin_at(rank, computing)
                own[computing], rows[computing] = products.samples(ready), products.row_samples(ready)
                scored[computing] = products.score_samples(ready)
        for members, barrier in barriers.items():
            together.wait()
            if members in groups:
                sums[members] = _sums(groups[members], barrier, products)
        together.wait()
        messages = list(_messages(groups[2], products)) if 2 in groups else []
        rounds.append(_Round(products=own, rows=rows, scores=scored, sums=sums, messages=messages))
        late = len(rounds) >= LEAST_ROUNDS and time.monotonic() > last_round
        if rank == 0 and (late or len(rounds) == ROUNDS):
            ended.set()
        together.wait()
    pipe.send(rounds)


def _group(memory: SharedMemory, members: int, rank: int) -> Group:
    """Return the group of the first processes, with what a rank reports of its collectives."""
    ranks = tuple(range(members))
    return Group(name="sum", ranks=ranks, rank=rank, handle=SharedGroup.of(memory, ranks, rank), waits=True)


def _meet(group: Group | None) -> None:
    """Wait until all of a group are here, and awake: who waits for the first message may fall asleep."""
    if group is not None:
        group.all_reduce(torch.zeros(1))
        group.all_reduce(torch.zeros(1))


def _messages(group: Group, products: Products) -> Iterator[int]:
    """Yield ns from the first process's sending of a short message until the second, which sleeps, has it."""
    sent = torch.zeros(MESSAGES[0] // 8, dtype=torch.int64)
    for _ in range(MESSAGES_OF_ROUND):
        if group.leads:
            products.work(MESSAGE_PRODUCTS)
            sent[0] = time.perf_counter_ns()
        group.broadcast(sent, 0)
        yield time.perf_counter_ns() - int(sent[0])


def _sums(group: Group, barrier: Barrier, products: Products) -> dict[int, list[Span]]:
    """Return by bytes the spans of sums, each behind products, as in a step; of no bytes those of products alone."""
    spans: dict[int, list[Span]] = {}
    for nbytes in (0, *MESSAGES):
        message = torch.zeros(nbytes // 4)
        add_up = group.sum_of(message) if nbytes else None
        barrier.wait()
        _meet(group)
        spans[nbytes] = []
        for _ in range(SUMS):
            began = time.perf_counter_ns()
            products.work(SUM_PRODUCTS)
            if add_up is not None:
                began = time.perf_counter_ns()
                add_up()
            spans[nbytes].append((began, time.perf_counter_ns()))
    return spans
