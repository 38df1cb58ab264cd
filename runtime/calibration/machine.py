"""Processes of one machine that compute at once, as the ranks of a plan do, and their sums through shared memory.

Measured in rounds, spread over the time, each of all products and sums; of the few times of one kind in a round the
least counts, so that other programs, which come and go, change little. The clock ends the rounds on a busy machine.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event

import torch

from runtime.calibration.rates import Products
from runtime.comm.shared_memory import SharedGroup, SharedMemory, unnamed_memory
from runtime.errors import MachineError
from runtime.model import ops

MESSAGES = (1 << 10, 1 << 16)
"""Bytes of a sum: one whose time is latency, and one of several rows of a large model."""
SUM_REPEATS = 12
"""Sums of each size in a round."""
ROUNDS = 8
LEAST_ROUNDS = 4
LONGEST_S = 25
"""Time after which no further round is begun, but for the least."""
LONGEST_WAIT_S = 60
"""Time after which a process that does not answer is taken to have died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """Times of an all-reduce among the first processes, of the slowest of them: the least of each round."""

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
    values: dict[int, int]
    """Weights of a product, by rows."""
    products_ns: dict[str, dict[int, list[int]]]
    """By dtype and rows, of the slowest process each time: the least of each round."""
    sums: tuple[Sum, ...]


def measure(processes: int) -> Samples:
    """Measure with so many processes, which share the cores of this machine; raise MachineError where one dies."""
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // processes)
    ops.prepare_exchange(torch.float32)
    torch.set_num_threads(1)  # OpenMP of a process that had threads does not start them again in its children
    products = Products()  # one for all: the kernels are ready, and the weights are in memory that the processes share
    context = multiprocessing.get_context("fork")
    barriers = [context.Barrier(members) for members in range(2, processes + 1)]
    together, ended = context.Barrier(processes), context.Event()
    with unnamed_memory(processes) as path:
        started = []
        for rank in range(processes):
            own, other = context.Pipe(duplex=False)
            arguments = (rank, threads, products, path, together, ended, barriers, other)
            started.append((own, context.Process(target=_serve, args=arguments, daemon=True)))
            started[-1][1].start()
            other.close()
        try:
            results = [_received(own) for own, _ in started]
        finally:
            for _, process in started:
                process.kill()
                process.join()
    slowest = {
        name: {rows: _least([[r.products[name][rows] for r in own] for own in results]) for rows in by_rows}
        for name, by_rows in results[0][0].products.items()
    }
    sums = tuple(
        Sum(
            members=members,
            message_bytes=nbytes,
            times_ns=_least([[r.sums[members, nbytes] for r in own] for own in results[:members]]),
        )
        for members in range(2, processes + 1)
        for nbytes in MESSAGES
    )
    return Samples(
        cores=cores,
        processes=processes,
        threads=threads,
        values=products.values,
        products_ns=slowest,
        sums=sums,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """Times of one process in ns."""

    products: dict[str, dict[int, list[int]]]
    """By dtype and rows."""
    sums: dict[tuple[int, int], list[int]]
    """By members and bytes, of the groups that the process is in."""


def _received(pipe: Connection) -> list[_Round]:
    if not pipe.poll(LONGEST_WAIT_S):
        raise MachineError(f"a process that measures gave no answer for {LONGEST_WAIT_S} s: try again")
    try:
        result: list[_Round] = pipe.recv()
    except EOFError as error:
        raise MachineError("a process that measures died: is there enough memory?") from error
    return result


def _least(times: list[list[list[int]]]) -> list[int]:
    """Return of each round the least time of the slowest process; ``times``: by process, round and turn."""
    return [min(map(max, zip(*of_round, strict=True))) for of_round in zip(*times, strict=True)]


def _serve(
    rank: int,
    threads: int,
    products: Products,
    path: str,
    together: Barrier,
    ended: Event,
    barriers: list[Barrier],
    pipe: Connection,
) -> None:
    """Measure in one of the processes, and send what it took; the first says when the rounds end."""
    torch.set_num_threads(threads)
    memory = SharedMemory(path, tuple(range(together.parties)), rank, ops.exchange)
    groups = {
        members: SharedGroup.of(memory, tuple(range(members)), rank)
        for members in range(2, together.parties + 1)
        if rank < members
    }
    products.samples(together.wait)  # warms up
    began, rounds = time.monotonic(), list[_Round]()
    while not ended.is_set():
        own, sums = products.samples(together.wait), dict[tuple[int, int], list[int]]()
        for members, barrier in enumerate(barriers, 2):
            together.wait()
            for nbytes, time_ns in _sums(groups[members], barrier) if members in groups else ():
                sums.setdefault((members, nbytes), []).append(time_ns)
        rounds.append(_Round(products=own, sums=sums))
        late = len(rounds) >= LEAST_ROUNDS and time.monotonic() - began > LONGEST_S
        if rank == 0 and (late or len(rounds) == ROUNDS):
            ended.set()
        together.wait()
    pipe.send(rounds)


def _sums(group: SharedGroup, barrier: Barrier) -> Iterator[tuple[int, int]]:
    """Yield bytes and ns of sums, taken in turns; each follows the one before at once, as in a step."""
    messages = {nbytes: torch.zeros(nbytes // 4) for nbytes in MESSAGES}
    barrier.wait()
    for repeat in range(SUM_REPEATS):
        for nbytes, message in messages.items():
            began = time.perf_counter_ns()
            group.all_reduce(message)
            if repeat:
                yield nbytes, time.perf_counter_ns() - began
