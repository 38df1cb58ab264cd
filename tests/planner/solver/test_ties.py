"""Ties: devices that are not used have no part in the answer, and of equally fast ones free memory decides."""

import dataclasses
from functools import cache
from typing import Any

import pytest

from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.formulations import Formulations
from planner.request import Wanted, resolve
from planner.solver import solve as solver
from planner.solver.minimise import Settings
from planner.solver.problem import Answer, Block, Group, Option, Problem, Receive, Split
from planner.solver.restriction import Restriction
from planner.solver.search import Progress
from planner.solver.solve import solve
from planner.solver.ties import Near, settle_ties
from tests.planner.instances import ROOT, host, inventory_of
from tests.planner.tiny_problems import tiny_answer, tiny_problem

SLOW = Receive(same_ns=500, inside_ns=500, near_ns=500, far_ns=500)


def with_slow_host(problem: Problem, capacity_bytes: int) -> Problem:
    """Return the problem with one more host of one device, on which everything takes longer than any step."""
    device, site = len(problem.devices), len(problem.hosts)

    def split(kind_bytes: int) -> Split:
        return Split(shares=(1,), ns=100_000, bytes=(kind_bytes,))

    def more(block: Block) -> Block:
        slow = Option(devices=(device,), sites=(site,), splits=(split(1),), receive=SLOW, quantum_ns=1)
        axes = tuple(
            dataclasses.replace(axis, read_bytes=(*axis.read_bytes, 0), each_ps=(*axis.each_ps, 10**8))
            for axis in block.axes
        )
        return Block(options=(*block.options, slow), axes=axes)

    groups = [
        dataclasses.replace(group, site=group.site + (group.site >= site)) for group in problem.groups
    ]  # sites of several hosts come after all hosts
    slow_group = Group(
        devices=(device,),
        site=site,
        splits=tuple((split(1),) for _ in problem.kinds),
        hop_ns=500,
        network_hop_ns=500,
        first=SLOW,
        stage_bytes=(0,),
        quantum_ns=1,
    )
    return dataclasses.replace(
        problem,
        devices=(*problem.devices, "slow"),
        capacity_bytes=(*problem.capacity_bytes, capacity_bytes),
        hosts=(*problem.hosts, (device,)),
        alike=(*problem.alike, max(problem.alike) + 1),
        kinds=tuple(dataclasses.replace(kind, unit_ps=(*kind.unit_ps, 10**8)) for kind in problem.kinds),
        groups=(*groups, slow_group),
        counts=None if problem.counts is None else (*problem.counts, 0),
        first=more(problem.first),
        last=more(problem.last),
        tail=more(problem.tail) if problem.tail else None,
        message_ns=(*problem.message_ns, 0),
        awake_ns=(*problem.awake_ns, None),
        waits_ns=(*problem.waits_ns, ()),
        network_message_ns=problem.network_message_ns if len(problem.hosts) > 1 else 9,
    )


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_a_device_that_is_not_used_moves_nothing(start: int) -> None:
    """However much memory it has: neither times nor free memory are counted in units that depend on it."""
    compared = 0
    for seed in range(start, start + 20):
        problem, expected = tiny_problem(seed), tiny_answer(seed)
        if expected is None or problem.goal != "time":
            continue
        for capacity_bytes in (1, 1 << 40):
            solved = solve(with_slow_host(problem, capacity_bytes), Settings())
            assert solved is not None
            assert solved.objective_ns == expected.objective_ns, f"seed {seed}"
            assert solved.answer == expected.answer, f"seed {seed}"
            compared += 1
    assert compared


# ---- machines ----

INFINIBAND = {"class": "infiniband"}


@cache
def inputs(name: str) -> tuple[BaseInput, DraftInput | None]:
    """Return the model and the drafter of a committed plan, as bare configs."""
    base = load_base(ROOT / "plans" / name / "config.json")
    return base, load_draft(ROOT / "plans" / name / "draft" / "config.json", base)


def box(name: str, link: str, *types: str) -> dict[str, Any]:
    devices = [{"id": f"{name}-{number}", "type": type_name} for number, type_name in enumerate(types)]
    return host(name, *devices, links={"class": link})


def planned(name: str, *hosts: dict[str, Any]) -> tuple[Problem, Answer, int]:
    """Return the problem of a committed plan's model on other hosts, its answer, and the step time in ns."""
    base, head = inputs(name)
    inventory = inventory_of({"hosts": list(hosts), "network": INFINIBAND}, "bfloat16")
    problem = Formulations().of(base, head, inventory, resolve(Wanted(), "bfloat16", base, head)).problem
    solved = solve(problem, Settings())
    assert solved is not None
    return problem, solved.answer, solved.objective_ns


def parts(problem: Problem, answer: Answer) -> list[object]:
    """Return what is on which devices, by their names."""
    placed: list[object] = []
    for stage in answer.stages:
        names = [problem.devices[device] for device in problem.groups[stage.group].devices]
        placed.append((names, stage.layers, stage.units))
    blocks = zip(problem.blocks, (answer.first, answer.last, answer.tail), strict=True)
    for block, placement in blocks:
        assert placement is not None
        option = block.options[placement.option]
        placed.append(([problem.devices[d] for d in option.devices], option.splits[placement.split], placement.shares))
    return placed


H100 = ("h100-80g",) * 8


def test_hosts_that_are_not_used_do_not_move_layers() -> None:
    few = planned("llama405b-16gpu", *(box(f"box{n}", "nvlink", *H100) for n in range(2)))
    more = planned("llama405b-16gpu", *(box(f"box{n}", "nvlink", *H100) for n in range(4)))
    slow = box("a-slow-box", "pcie", "l4", "l4")
    other = planned("llama405b-16gpu", slow, *(box(f"box{n}", "nvlink", *H100) for n in range(2)))
    assert few[2] == more[2] == other[2]
    assert parts(*few[:2]) == parts(*more[:2]) == parts(*other[:2])


def test_equal_stages_get_layers_such_that_the_fullest_device_has_most_free_memory() -> None:
    """Any numbers of layers take equally long here, and their rounding does not tell them apart."""
    _, answer, _ = planned("llama405b-16gpu", *(box(f"box{n}", "nvlink", *H100) for n in range(2)))
    first, second = (stage.num_layers for stage in answer.stages)
    assert abs(first - second) <= 4, "the lm_head makes up for the difference"


def test_a_slow_device_beside_those_in_use_does_not_move_shares() -> None:
    four = ("a100-80g",) * 4
    problem, answer, _ = planned("llama70b-4gpu", box("box", "nvlink", *four))
    wider, with_more, _ = planned("llama70b-4gpu", box("box", "nvlink", *four, "l4"))
    assert parts(problem, answer) == parts(wider, with_more)


def test_a_processor_that_is_not_used_takes_no_memory_of_gpus() -> None:
    """The logits of a row take more bytes on a CPU: they are kept in float32 too, with the noise of sampling."""
    processor = {"id": "cpu", "type": "cpu", "memory": "64 GiB", "bandwidth": "40 GB/s"}
    gpus = box("box", "nvlink", "h200", "l40s")
    alone = planned("llama70b-4gpu", gpus)
    beside = planned("llama70b-4gpu", gpus | {"devices": [*gpus["devices"], processor]})
    apart = planned("llama70b-4gpu", gpus, host("other", processor, links={"class": "pcie"}))
    assert parts(*alone[:2]) == parts(*beside[:2]) == parts(*apart[:2])
    assert alone[2] == beside[2] == apart[2]
    (head,) = beside[0].last.axes
    of_cpu = beside[0].devices.index("cpu")
    assert head.read_bytes[of_cpu] > max(head.read_bytes[:of_cpu] + head.read_bytes[of_cpu + 1 :])
    assert set(head.read_bytes) - {head.read_bytes[of_cpu]} == set(alone[0].last.axes[0].read_bytes)


def test_where_breaking_ties_finds_nothing_it_is_sought_among_the_groups_of_the_fastest_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = tiny_problem(0)
    expected = solve(problem, Settings())
    assert expected is not None
    known: list[Restriction] = []

    def settled(progress: Progress, near: Near) -> tuple[Answer, int]:
        assert near.known is not None
        known.append(near.known())
        return settle_ties(progress, dataclasses.replace(near, tie_limit=0.0))

    monkeypatch.setattr(solver, "settle_ties", settled)
    for workers in (1, 2):
        solved = solve(problem, Settings(workers=workers))
        assert solved is not None
        assert solved.objective_ns == expected.objective_ns
        assert {stage.group for stage in solved.answer.stages} <= set(known[-1].groups)
    assert known[0] == known[1]
