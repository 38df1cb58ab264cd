"""Collectives through shared memory, between processes: their values, their order of sums, and how a rank waits."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from plans import shared_memory as layout
from runtime.comm import shared_memory
from runtime.comm.groups import Group
from runtime.comm.shared_memory import SharedGroup, SharedMemory, address_of, path_of, unnamed_memory
from runtime.errors import MachineError, PeerError
from runtime.model import ops
from runtime.model.kernels.elements import ELEMENTS

DTYPES = shared_memory.SUMMED
UNSUMMED = (torch.int64, torch.uint8)
"""Dtypes of words and of packed messages."""
SHAPES = ((1,), (3, 7), (60, 576), (70001,))
"""Messages of one element; of no multiple of a vector; of several pieces; of more pieces than slots."""


def groups_of(path: str, ranks: int, rank: int) -> Callable[..., SharedGroup]:
    memory = SharedMemory(path, tuple(range(ranks)), rank, ops.exchange)
    return lambda *members: SharedGroup.of(memory, members or tuple(range(ranks)), rank)


def values(rank: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the message of a rank: any rank can make that of another one."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(rank)) * 4
    return (drawn.abs() if dtype in UNSUMMED else drawn).to(dtype)


def run(ranks: int, work: Callable[..., object]) -> list[object]:
    """Return what ``work(group of, rank)`` returns in each of so many processes that share memory."""
    for dtype in DTYPES:
        ops.prepare_exchange(dtype)
    context = multiprocessing.get_context("fork")

    def serve(rank: int, pipe: Connection, path: str) -> None:
        try:
            torch.set_num_threads(1)
            pipe.send(work(groups_of(path, ranks, rank), rank))
        except BaseException:
            pipe.send(AssertionError(traceback.format_exc()))

    with unnamed_memory(ranks) as path:
        pipes, processes = [], []
        for rank in range(ranks):
            own, other = context.Pipe(duplex=False)
            processes.append(context.Process(target=serve, args=(rank, other, path), daemon=True))
            processes[-1].start()
            pipes.append(own)
        try:
            results = [pipe.recv() if pipe.poll(60) else AssertionError("a rank hangs") for pipe in pipes]
        finally:
            for process in processes:
                process.kill()
    for result in results:
        if isinstance(result, AssertionError):
            raise result
    return results


@pytest.mark.parametrize("ranks", [2, 3])
def test_collectives_have_the_values_of_all_ranks(ranks: int) -> None:
    def work(group_of: Callable[..., SharedGroup], rank: int) -> None:
        group, turned = group_of(), group_of(*reversed(range(ranks)))
        for dtype in (*DTYPES, *UNSUMMED):
            for shape in SHAPES:
                own, every = values(rank, dtype, shape), [values(other, dtype, shape) for other in range(ranks)]
                for members, order in ((group, every), (turned, every[::-1])):
                    if dtype in DTYPES:
                        total = own.clone()
                        members.all_reduce(total)
                        expected = order[0]
                        for value in order[1:]:
                            expected = expected + value
                        assert torch.equal(total, expected), (dtype, shape)
                    gathered = own.new_empty(ranks, *shape)
                    members.all_gather(own, gathered)
                    assert torch.equal(gathered, torch.stack(order)), (dtype, shape)
                for source in range(ranks):
                    copy = own.clone()
                    group.broadcast(copy, source)
                    assert torch.equal(copy, every[source]), (dtype, shape)

    run(ranks, work)


def test_there_is_a_sum_of_every_dtype_that_kernels_know_and_of_no_other() -> None:
    assert set(DTYPES) == set(ELEMENTS)
    with unnamed_memory(1) as path:
        group = groups_of(path, 1, 0)()
        for dtype in (*UNSUMMED, torch.bool, torch.int32):
            with pytest.raises(AssertionError, match=rf"{dtype} has no sum through shared memory"):
                group.all_reduce(torch.ones(3, dtype=dtype))


def test_a_sum_of_two_has_the_bits_of_gloo(tmp_path: Path) -> None:
    def work(group_of: Callable[..., SharedGroup], rank: int) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 2), rank=rank, world_size=2)
        for dtype in DTYPES:
            special = [float("inf"), -0.0, 0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny, 3e-8]
            for own in (values(rank, dtype, (60, 576)), torch.tensor(special if rank else special[::-1], dtype=dtype)):
                ours, theirs = own.clone(), own.clone()
                group_of().all_reduce(ours)
                dist.all_reduce(theirs)
                assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), dtype

    run(2, work)


def test_a_sum_that_is_written_down_once_is_taken_again_and_again() -> None:
    def work(group_of: Callable[..., SharedGroup], rank: int) -> None:
        handle = group_of()
        group = Group(name="stages[0]", ranks=(0, 1), rank=rank, handle=handle, waits=True)
        for dtype in DTYPES:
            total = torch.empty(3, 7, dtype=dtype)
            add_up = group.sum_of(total)
            for turn in range(5):
                total.fill_(turn + 10 * rank)
                add_up()
                assert torch.equal(total, torch.full_like(total, 2 * turn + 10))

    run(2, work)


def test_a_sum_with_a_nan_is_a_nan() -> None:
    def work(group_of: Callable[..., SharedGroup], rank: int) -> None:
        for dtype in DTYPES:
            total = torch.full((9,), float("nan") if rank else 1.0, dtype=dtype)
            group_of().all_reduce(total)
            assert total.isnan().all()

    run(2, work)


def test_many_messages_of_several_groups_are_neither_lost_nor_mixed() -> None:
    """Senders go on while receivers sleep; pairs, a hop and the world take turns, as in a step."""

    def work(group_of: Callable[..., SharedGroup], rank: int) -> None:
        pair = group_of(*((0, 1) if rank < 2 else (2, 3)))
        world, hop = group_of(0, 1, 2, 3), group_of(0, 2) if rank in (0, 2) else None
        for step in range(300):
            total = torch.full((5 + step % 3000,), float(rank + step))
            pair.all_reduce(total)
            assert (total == 2 * step + (1 if rank < 2 else 5)).all()
            message = torch.full((7,), step if rank == 0 else -1)
            if hop is not None:
                hop.broadcast(message, 0)
                assert (message == step).all()
            if rank == 3 and step % 100 == 0:
                time.sleep(0.01)
            spoken = torch.full((step + 1,), step if rank == step % 4 else -1)
            world.broadcast(spoken, step % 4)
            assert (spoken == step).all()

    run(4, work)


def test_a_rank_that_waits_uses_no_processor_time() -> None:
    def work(group_of: Callable[..., SharedGroup], rank: int) -> float:
        message, group = torch.zeros(5), group_of()
        group.all_reduce(message)
        if rank == 0:
            time.sleep(1)
        began = time.process_time()
        group.all_reduce(message)
        return time.process_time() - began

    waited = run(2, work)[1]
    assert isinstance(waited, float)
    assert waited < 0.1


def test_a_rank_that_takes_no_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "TIMEOUT_NS", 1)
    ops.prepare_exchange(torch.float32)
    with unnamed_memory(2) as path:
        group = groups_of(path, 2, 0)()
        with pytest.raises(RuntimeError, match=r"rank 1 took no part for 0 s"):
            group.all_reduce(torch.zeros(3))
        summed = Group(name="stages[0]", ranks=(0, 1), rank=0, handle=group, waits=True).sum_of(torch.zeros(3))
        with pytest.raises(PeerError, match=r"group stages\[0\] \(ranks 0, 1\): rank 1 took no part for 0 s"):
            summed()


def test_words_that_a_stranger_wrote_lead_nowhere() -> None:
    """Whatever the shared words are, slots are inside of an outbox, and only what was asked for is written."""
    ops.prepare_exchange(torch.float32)
    with unnamed_memory(2) as path:
        memory = SharedMemory(path, (0, 1), 0, ops.exchange)
        memory._segment[memory.outbox.nbytes :] = 255
        channel = memory._segment[memory.outbox.nbytes + layout.CHANNELS_OFFSET :].view(torch.int32)
        channel[0] = 7
        around = torch.full((12,), 5.0)
        SharedGroup.of(memory, (0, 1), 0).broadcast(around[4:8], 1)
        assert (around[:4] == 5).all()
        assert (around[8:] == 5).all()


def test_the_memory_has_no_name_and_a_fixed_size() -> None:
    before = sorted(Path("/dev/shm").iterdir())
    with unnamed_memory(3) as path:
        assert path_of(address_of(path)) == path
        with Path(path).open("r+b") as file, pytest.raises(PermissionError):
            file.truncate(1)
        assert sorted(Path("/dev/shm").iterdir()) == before
        with pytest.raises(MachineError, match="is not a file of"):
            SharedMemory(path, (0, 1), 0, ops.exchange)
    with pytest.raises(FileNotFoundError):
        SharedMemory(path, (0, 1, 2), 0, ops.exchange)


@pytest.mark.parametrize("address", ["", "x", "a 1 2", "4194305 1 2", "a b c d", "../../etc 1 2"])
def test_an_address_of_another_machine_or_of_a_stranger_is_none(address: str) -> None:
    assert path_of(address) is None


def test_a_file_with_a_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(bytes(2 * layout.outbox_bytes(2)))
    with pytest.raises(MachineError, match="without a name"):
        SharedMemory(str(file), (0, 1), 0, ops.exchange)
