"""Processes of one machine that compute at once, as the ranks of a plan do, and their sums through shared memory."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import torch

from runtime.calibration.rates import Products
from runtime.comm.shared_memory import SharedGroup, SharedMemory, unnamed_memory
from runtime.errors import MachineError
from runtime.model import ops

MESSAGES = (1 << 10, 1 << 16)
"""Bytes of a sum: one whose time is latency, and one of several rows of a large model."""
SUM_REPEATS = 60
LONGEST_WAIT_S = 60
"""Time after which a process that does not answer is taken to have died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """Times of an all-reduce among the first processes, of the slowest of them."""

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
    """By dtype and rows, of the slowest process each time."""
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
    together = context.Barrier(processes)
    with unnamed_memory(processes) as path:
        started = []
        for rank in range(processes):
            own, other = context.Pipe(duplex=False)
            arguments = (rank, threads, products, path, together, barriers, other)
            started.append((own, context.Process(target=_serve, args=arguments, daemon=True)))
            started[-1][1].start()
            other.close()
        try:
            results = [_received(own) for own, _ in started]
        finally:
            for _, process in started:
                process.kill()
                process.join()
    times, _ = results[0]
    slowest = {
        name: {rows: _slowest([result[0][name][rows] for result in results]) for rows in by_rows}
        for name, by_rows in times.items()
    }
    sums = tuple(
        Sum(
            members=members, message_bytes=nbytes, times_ns=_slowest([r[1][members, nbytes] for r in results[:members]])
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


Result = tuple[dict[str, dict[int, list[int]]], dict[tuple[int, int], list[int]]]
"""Times of products by dtype and rows, and of sums by members and bytes."""


def _received(pipe: Connection) -> Result:
    if not pipe.poll(LONGEST_WAIT_S):
        raise MachineError(f"a process that measures gave no answer for {LONGEST_WAIT_S} s: try again")
    try:
        result: Result = pipe.recv()
    except EOFError as error:
        raise MachineError("a process that measures died: is there enough memory?") from error
    return result


def _slowest(times: list[list[int]]) -> list[int]:
    return [max(turn) for turn in zip(*times, strict=True)]


def _serve(
    rank: int,
    threads: int,
    products: Products,
    path: str,
    together: Barrier,
    barriers: list[Barrier],
    pipe: Connection,
) -> None:
    """Measure in one of the processes, and send what it took."""
    torch.set_num_threads(threads)
    measured = products.samples(together.wait)
    sums: dict[tuple[int, int], list[int]] = {}
    memory = SharedMemory(path, tuple(range(together.parties)), rank, ops.exchange)
    for members, barrier in enumerate(barriers, 2):
        together.wait()
        if rank >= members:
            continue
        group = SharedGroup.of(memory, tuple(range(members)), rank)
        for nbytes, time_ns in _sums(group, barrier):
            sums.setdefault((members, nbytes), []).append(time_ns)
    together.wait()
    pipe.send((measured, sums))


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
