"""Captured steps give the tokens of steps that are run: one plan as a GPU runs it, on a CPU, recorded and not.

Sequences begin and end between steps and change places, greedy and sampled, with one tree or another for their number.
Triton's interpreter runs the kernels of a GPU, slowly.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from planner.families import inputs_of
from plans.graphs import goes_ahead
from plans.schema import Plan, ScheduledTree, Tree
from runtime.comm.groups import Comm
from runtime.decode.graphs import Replay
from runtime.decode.messages import Notice
from runtime.decode.step import Stepper
from runtime.decode.work import Mode, Taken
from runtime.image.buffers import Memory
from runtime.image.slots import Image
from runtime.model import ops
from runtime.processes.inbox import Cancel, Inbox, Packet, Submit
from runtime.processes.schedule import Schedule, Served
from runtime.request import Request
from runtime.sampling import Sampling
from runtime.text import Output
from tests.contract import ranks
from tests.contract.checkpoints import CONTEXT, Checkpoints, compiled, write_checkpoints
from tests.contract.ranks import on_all_ranks
from tests.contract.recording import capture, recordable
from tests.plan_factory import group, make_device, make_plan

pytestmark = pytest.mark.usefixtures("one_core", "as_a_gpu")

CPU = torch.device("cpu")
TREE = Tree(kind="dynamic", total_token=5, depth=1, top_k=2, paths=None)
SMALL = Tree(kind="dynamic", total_token=3, depth=0, top_k=2, paths=None)
GREEDY, SAMPLED = None, Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=3)
OTHER = Sampling(temperature=1.2, top_k=None, top_p=None, seed=4)
Event = tuple[str, int, Sampling | None]
"""What happens to a sequence, its number, and its sampling where it begins."""


@pytest.fixture
def as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is a GPU in a plan be this CPU."""
    monkeypatch.setattr(ranks, "torch_device", lambda device: CPU)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("small"), layers=1, kinds=("eagle",))


def planned(
    checkpoints: Checkpoints, kind: str | None, devices: Sequence[str], schedule: tuple[ScheduledTree, ...] | None,
    *, gpus: bool, embed: str | None = None,
) -> Plan:  # fmt: skip
    """Return a plan of one stage; ``embed``: a CPU that has the embedding."""
    model, own = checkpoints.base.model, checkpoints.drafts[kind] if kind else None
    records = [make_device(name, memory_bytes=1 << 34) for name in devices]
    if gpus:
        records = [
            dataclasses.replace(record, type="gpu", kind="cuda", ordinal=number)
            for number, record in enumerate(records)
        ]
    records += [make_device(embed, memory_bytes=1 << 34)] if embed else []
    return make_plan(
        model, [group(model, devices, model.num_layers)], draft=own.draft if own else None,
        inputs=inputs_of(checkpoints.base, own), context=CONTEXT, prefill_chunk=4, batch=2, tree=TREE,
        schedule=schedule, devices=records, embed=[embed] if embed else None,
    )  # fmt: skip


def played(
    plan: Plan, directory: Path, events: Sequence[Event], *, captured: bool
) -> tuple[list[list[int]], int, int, int]:
    """Return the tokens of each sequence, how many steps were captured and replayed, and of how many pieces."""

    def play(image: Image, comm: Comm) -> tuple[list[list[int]], int, int, int]:
        pieces = 0

        @contextmanager
        def counted_capture() -> Iterator[Replay]:
            nonlocal pieces
            pieces += 1
            with capture() as replay:
                yield replay

        captures = captured and plan.devices[comm.rank].kind == "cuda"
        with torch.inference_mode():
            memory = Memory(plan, plan.devices[comm.rank].id, CPU)
            stepper = Stepper(plan, image, memory, comm, CPU, counted_capture if captures else None)
        replays, ran = 0, stepper._compute

        def counted(*args: object) -> None:
            nonlocal replays
            replays -= 1
            ran(*args)  # type: ignore[arg-type]

        stepper._compute = counted  # type: ignore[method-assign]
        tokens: list[list[int]] = [[] for event, *_ in events if event == "begin"]
        places: dict[int, int] = {}
        stepper.enter(Mode(draft=stepper.drafts, accept=None))
        for event, number, sampling in events:
            if event == "begin":
                free = [place for place in range(2) if place not in places.values()]
                prompt = (5 + number, 17, 30, 2, 6)[: 3 + number]
                places[number], _ = stepper.begin(prompt, sampling, free, reuse=False)
                while not stepper.prefill(places[number]):
                    pass
            elif event == "end":
                stepper.end(places.pop(number))
            else:
                for turn in range(number):
                    taken: dict[int, Taken]
                    notice = Notice(stop=turn % 2 == 0, packets=turn)
                    taken, agreed = stepper.step(partial(Notice, stop=notice.stop, packets=notice.packets))
                    assert agreed == notice
                    replays += 1
                    for sequence, place in places.items():
                        tokens[sequence] += taken[place].tokens
        return tokens, stepper.graphs.count, replays + stepper.graphs.count, pieces

    with recordable():
        first, *others = on_all_ranks(plan, directory, play)
    assert all(other[0] == first[0] for other in others)
    assert all(other == first for other in others) or not all(device.kind == "cuda" for device in plan.devices)
    return first


CASES: dict[str, tuple[str | None, tuple[str, ...], tuple[ScheduledTree, ...] | None, list[Event]]] = {
    "joins and ends": ("eagle", ("a",), None, [
        ("begin", 0, GREEDY), ("step", 4, None), ("begin", 1, SAMPLED), ("step", 3, None), ("end", 0, None),
        ("step", 2, None), ("begin", 2, GREEDY), ("step", 1, None), ("end", 1, None), ("step", 2, None),
    ]),
    "a tree for each number, two devices": ("eagle", ("a", "b"), (
        ScheduledTree(sequences=1, tree=TREE), ScheduledTree(sequences=2, tree=SMALL)
    ), [("begin", 0, GREEDY), ("begin", 1, GREEDY), ("step", 5, None), ("end", 0, None), ("step", 5, None)]),
    "a CPU has the embedding": (None, ("a",), None, [
        ("begin", 0, GREEDY), ("step", 4, None), ("begin", 1, SAMPLED), ("step", 4, None),
    ]),
    "plain": (None, ("a",), None, [
        ("begin", 0, OTHER), ("step", 3, None), ("begin", 1, SAMPLED), ("step", 4, None), ("end", 0, None),
        ("step", 2, None),
    ]),
}  # fmt: skip


COUNTS = {
    "joins and ends": (3, 5, 3), "a tree for each number, two devices": (2, 4, 2), "plain": (2, 5, 2),
    "a CPU has the embedding": (2, 4, 6),
}  # fmt: skip
"""Shapes, replays, and pieces: with a CPU a shape has one before the embedding is sent, one up to the step message, and
one behind it."""


@pytest.mark.parametrize("case", CASES)
def test_a_replay_is_the_step(case: str, small: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens are those of the CPU kernels, which run every step."""
    kind, devices, schedule, events = CASES[case]
    embed = "z" if "CPU" in case else None
    on_cpus, on_gpus = (planned(small, kind, devices, schedule, gpus=gpus, embed=embed) for gpus in (False, True))
    expected, none, *_ = played(on_cpus, compiled(tmp_path / "cpu", on_cpus, small, kind), events, captured=False)
    monkeypatch.setattr(ops, "is_cpu", lambda x: False)
    directory = compiled(tmp_path / "gpu", on_gpus, small, kind)
    tokens, *counts = played(on_gpus, directory, events, captured=True)
    assert none == 0
    assert tokens == expected
    assert tuple(counts) == COUNTS[case], "what is not replayed proves nothing"
    assert min(len(set(text)) for text in tokens) > 1


Job = tuple[tuple[int, ...], Sampling | None, int]
"""Prompt, sampling, and most new tokens."""
SENT: dict[int, list[Job]] = {
    0: [((5, 17, 30), GREEDY, 14), ((6, 17, 30, 2), SAMPLED, 9)], 3: [((9, 1, 4), OTHER, 12)],
    5: [((5, 17, 30, 2, 6), GREEDY, 9), ((6, 17, 30, 2, 11), OTHER, 10)],
}  # fmt: skip
"""Jobs by the turn before which they are sent: more than there are places for."""
CANCELLED = {9: 3}
"""A job by the turn before which it is cancelled."""


def scheduled(
    plan: Plan, directory: Path, eos: tuple[int, ...], *, captured: bool
) -> tuple[list[tuple[list[int], str | None]], int, int]:
    """Return the tokens and the end of each job, how many steps went ahead, and how many of them while a job ended."""

    def play(image: Image, comm: Comm) -> tuple[list[tuple[list[int], str | None]], int, int]:
        with torch.inference_mode():
            memory = Memory(plan, plan.devices[comm.rank].id, CPU)
            stepper = Stepper(plan, image, memory, comm, CPU, capture if captured else None)
        outputs: list[Output] = []
        inbox, ahead, unneeded, turns = Inbox(), 0, 0, 0

        def opened(submit: Submit) -> Served:
            outputs.append(Output(submit.request, eos, None))
            return Served(submit.job, submit.request, outputs[-1])

        schedule = Schedule(stepper, 2, inbox, stopped=lambda: False, opened=opened, agreed=lambda request: request)
        number = 0
        while turns <= max(*SENT, *CANCELLED) or schedule.busy:
            packet: Packet = tuple(
                Submit(job=number + more, request=request_of(*job)) for more, job in enumerate(SENT.get(turns, []))
            )
            number += len(packet)
            if turns in CANCELLED:
                packet += (Cancel(job=CANCELLED[turns]),)
            if packet:
                inbox.put(packet)
            turns += 1
            if packet or schedule.busy:
                turn = schedule.turn()
                assert turn is not None
                ahead += stepper._ahead is not None
                unneeded += stepper._ahead is not None and bool(turn.ended)
        return [(output.tokens, output.finish) for output in outputs], ahead, unneeded

    with recordable():
        first, *others = on_all_ranks(plan, directory, play)
    assert all(other == first for other in others)
    return first


def request_of(prompt: tuple[int, ...], sampling: Sampling | None, tokens: int) -> Request:
    return Request(
        prompt_ids=prompt, max_new_tokens=tokens, draft=True, ignore_eos=False, stop=(), sampling=sampling, reuse=True
    )


@pytest.mark.parametrize("case", [("eagle", ("a",)), (None, ("a",)), (None, ("a", "b"))])
def test_steps_that_go_ahead_change_no_answer(
    case: tuple[str | None, tuple[str, ...]], small: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers end by a token, a length and a cancel, while others go on, wait and take their places."""
    kind, devices = case
    on_cpus, on_gpus = (planned(small, kind, devices, None, gpus=gpus) for gpus in (False, True))
    assert (goes_ahead(on_cpus), goes_ahead(on_gpus)) == (False, True)
    directory = compiled(tmp_path / "cpu", on_cpus, small, kind)
    free, *_ = scheduled(on_cpus, directory, (), captured=False)
    eos = (free[2][0][7],)
    expected, *none = scheduled(on_cpus, directory, eos, captured=False)
    monkeypatch.setattr(ops, "is_cpu", lambda x: False)
    answers, ahead, unneeded = scheduled(on_gpus, compiled(tmp_path / "gpu", on_gpus, small, kind), eos, captured=True)
    assert none == [0, 0]
    for (tokens, finish), (others, _) in zip(answers, expected, strict=True):
        count = min(len(tokens), len(others))
        assert tokens[:count] == others[:count]
        assert finish == "cancelled" or len(tokens) == len(others)
    assert [finish for _, finish in answers] == [finish for _, finish in expected]
    assert {finish for _, finish in answers} == {"eos", "length", "cancelled"}
    assert ahead > 3
    assert unneeded > 0 or kind, "a drafted step gives an answer more than one token, and these are short"
