"""All-reduce between processes through shared memory, against gloo, alternating in one run.

    python tools/bench_transport.py [--ranks 2] [--width 576] [--rows 1,4,16,60] [--repeats 400]

Times are medians and 90th percentiles in us, of the slowest rank; sums are compared bit for bit where there are two
ranks. Then: processor time of a rank that waits for 1 s, and how long it takes until a rank that sleeps has a message.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import click
import torch
import torch.distributed as dist

from runtime.comm.shared_memory import SharedGroup, SharedMemory, unnamed_memory
from runtime.model import ops

DTYPES = (torch.float32, torch.bfloat16)
PAUSE_S = 0.003
"""Time after which a rank that waits sleeps."""
Figures = dict[tuple[int, str], dict[str, list[float]]]


def alternating(
    sums: Mapping[str, Callable[[torch.Tensor], None]], message: torch.Tensor, repeats: int
) -> dict[str, list[float]]:
    """Return the times of each way to sum, in us, taken in turns of ten."""
    times: dict[str, list[float]] = {name: [] for name in sums}
    for _ in range(repeats // 10):
        for name, all_reduce in sums.items():
            for _ in range(10):
                began = time.perf_counter()
                all_reduce(message)
                times[name].append((time.perf_counter() - began) * 1e6)
                message.fill_(1)
    return times


def serve(
    rank: int, ranks: int, path: str, store: str, shapes: list[tuple[int, int]], repeats: int, pipe: Connection
) -> None:
    """Run one rank; send its figures: times of sums, processor time of a wait, and delays of messages in us."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    everyone = tuple(range(ranks))
    group = SharedGroup.of(SharedMemory(path, everyone, rank, ops.exchange), everyone, rank)
    figures: Figures = {}
    for rows, width in shapes:
        for dtype in DTYPES:
            message = (torch.randn(rows, width, generator=torch.Generator().manual_seed(rank)) * 4).to(dtype)
            ours, theirs = message.clone(), message.clone()
            group.all_reduce(ours)
            dist.all_reduce(theirs)
            assert ranks > 2 or torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), "sums differ"
            sums = {"gloo": dist.all_reduce, "shm": group.all_reduce}
            figures[rows, str(dtype).removeprefix("torch.")] = alternating(sums, message, repeats)
    dist.barrier()
    if rank == 0:
        time.sleep(1)
    began = time.process_time()
    group.all_reduce(torch.zeros(8))
    waited_s, delays = time.process_time() - began, []
    sent = torch.zeros(1, dtype=torch.float64)
    for _ in range(100):
        if rank == 0:
            time.sleep(PAUSE_S)
            sent[0] = time.perf_counter()
        group.broadcast(sent, 0)
        delays.append((time.perf_counter() - sent.item()) * 1e6)
    pipe.send((figures, waited_s, delays))
    dist.barrier()


def quantiles(times: list[float]) -> str:
    ordered = sorted(times)
    return f"{statistics.median(ordered):8.1f} {ordered[len(ordered) * 9 // 10]:8.1f}"


@click.command()
@click.option("--ranks", default=2, help="Processes.")
@click.option("--width", default=576, help="Values of a row.")
@click.option("--rows", default="1,4,16,60", help="Rows of the messages.")
@click.option("--repeats", default=400, help="Sums of each kind.")
def main(ranks: int, width: int, rows: str, repeats: int) -> None:
    """Compare the two transports on this machine."""
    shapes = [(int(number), width) for number in rows.split(",")]
    for dtype in DTYPES:
        ops.prepare_exchange(dtype)
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as directory, unnamed_memory(ranks) as path:
        store, pipes, processes = str(Path(directory) / "store"), [], []
        for rank in range(ranks):
            own, other = context.Pipe(duplex=False)
            arguments = (rank, ranks, path, store, shapes, repeats, other)
            processes.append(context.Process(target=serve, args=arguments, daemon=True))
            processes[-1].start()
            other.close()
            pipes.append(own)
        results = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
    print(f"all-reduce of {ranks} processes on {os.cpu_count()} cores, us: median and 90th percentile")
    print(f"{'rows':>5} {'dtype':>9} {'gloo':>17} {'shm':>17} {'ratio':>7}")
    for key in results[0][0]:
        slowest = {
            name: max((result[0][key][name] for result in results), key=statistics.median) for name in ("gloo", "shm")
        }
        ratio = statistics.median(slowest["gloo"]) / statistics.median(slowest["shm"])
        print(f"{key[0]:>5} {key[1]:>9} {quantiles(slowest['gloo'])} {quantiles(slowest['shm'])} {ratio:>7.1f}")
    print(f"processor time of a rank that waits 1 s: {max(waited for _, waited, _ in results[1:]) * 1e3:.1f} ms")
    print(f"until a rank that sleeps has a message, us: {quantiles(results[1][2])}")


if __name__ == "__main__":
    main()
