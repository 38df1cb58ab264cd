"""The certificate checks every constraint of an answer and prices every term."""

import dataclasses
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from planner.solver.certify import certify, devices_in_use
from planner.solver.problem import (
    Answer,
    Axis,
    Block,
    BlockAnswer,
    Group,
    Kind,
    Option,
    Problem,
    Receive,
    Split,
    StageAnswer,
)
from tests.planner.every_answer import every_answer, load_bytes, step_ns, value
from tests.planner.tiny_problems import in_quanta, tiny_problem

RECEIVE = Receive(same_ns=1, inside_ns=2, near_ns=300, far_ns=4000)
NOTHING = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)


def split(*shares: int, ns: int) -> Split:
    return Split(shares=shares, ns=ns, bytes=tuple(10 * share for share in shares))


def group(*devices: int, site: int, splits: tuple[tuple[Split, ...], ...]) -> Group:
    return Group(
        devices=devices,
        site=site,
        splits=splits,
        hop_ns=7,
        network_hop_ns=70,
        first=RECEIVE,
        stage_bytes=(5,) * len(devices),
        quantum_ns=1,
    )


def option(*devices: int, sites: tuple[int, ...], ns: int, receive: Receive = RECEIVE) -> Option:
    splits = (split(*(1 for _ in devices), ns=ns),)
    return Option(devices=devices, sites=sites, splits=splits, receive=receive, quantum_ns=1)


def axis(count: int, nbytes: int, *each_ps: int, shared: Any = None) -> Axis:
    return Axis(count=count, each_bytes=nbytes, read_bytes=(0,) * len(each_ps), each_ps=each_ps, shared=shared)


PROBLEM = Problem(
    devices=("a0", "a1", "b0"),
    capacity_bytes=(400, 300, 200),
    hosts=((0, 1), (2,)),
    alike=(0, 1, 2),
    kinds=(
        Kind(units=4, unit_bytes=2, unit_ps=(1000, 1500, 3000)),
        Kind(units=3, unit_bytes=1, unit_ps=(2000, 2000, 4000)),
    ),
    sequence=((0, 2), (1, 1)),
    groups=(
        group(0, 1, site=0, splits=((split(1, 2, ns=20), split(2, 1, ns=30)), (split(1, 2, ns=25),))),
        group(2, site=1, splits=((split(3, ns=50),), (split(3, ns=55),))),
        group(0, site=0, splits=((split(3, ns=40),), ())),
        group(1, site=0, splits=((split(3, ns=45),), (split(3, ns=46),))),
        group(0, 2, site=2, splits=((split(1, 2, ns=80),), (split(1, 2, ns=85),))),
        group(0, 1, site=0, splits=((split(1, 2, ns=20), split(2, 1, ns=30)), ())),
    ),
    ordered=False,
    counts=None,
    first=Block(
        options=(
            option(0, 1, sites=(0,), ns=9, receive=NOTHING),
            option(1, sites=(0,), ns=8, receive=NOTHING),
            option(2, sites=(1,), ns=8, receive=NOTHING),
        ),
        axes=(axis(4, 6, 400, 800, 1200),),
    ),
    last=Block(
        options=(
            option(2, sites=(1,), ns=13),
            option(0, 1, sites=(0,), ns=15),
            option(0, sites=(0,), ns=14),
        ),
        axes=(axis(5, 8, 100, 200, 300),),
    ),
    tail=Block(
        options=(
            option(2, sites=(1,), ns=60),
            option(0, 1, sites=(0,), ns=65),
            option(0, 1, 2, sites=(0, 1), ns=66),
        ),
        axes=(
            axis(2, 9, 500, 500, 700),
            axis(5, 8, 900, 900, 900, shared="last"),
            axis(4, 6, 1000, 1000, 1000, shared="first"),
        ),
    ),
    message_ns=(29, 31),
    awake_ns=(None, None),
    waits_ns=((), ()),
    network_message_ns=37,
    goal="time",
    most_devices=None,
    simplify_ppm=0,
    tie_ppm=0,
    spare=None,
)
ANSWER = Answer(
    stages=(
        StageAnswer(group=0, layers=((1, 1), (0,)), units=((5, 3), (0, 0))),
        StageAnswer(group=1, layers=((0,), (1,)), units=((0,), (3,))),
    ),
    first=BlockAnswer(option=0, split=0, shares=((3, 1),)),
    last=BlockAnswer(option=0, split=0, shares=((5,),)),
    tail=BlockAnswer(option=0, split=0, shares=((2,), None, (4,))),
)


def test_every_term_by_hand() -> None:
    certificate = certify(PROBLEM, ANSWER)
    # Five units on a0 take 5 ns, but four units of one layer cannot be divided such that they take less than 3.
    assert certificate.stage_ns == (20 + 30 + 2 * 3 + 1, 55 + 12 + 70)
    assert certificate.first_ns == 9 + 2
    assert certificate.last_ns == 13 + 2 + 1
    assert certificate.tail_ns == 60 + 2 + 5 + 4 + 1  # split, own axis, shared axis read again, copied axis, receive
    assert certificate.message_ns == 29 + 37
    assert certificate.step_ns == 57 + 137 + 11 + 16 + 72 + 66
    assert certificate.load_bytes == (
        5 + 30 + 5 * 2 + 10 + 3 * 6,
        5 + 30 + 3 * 2 + 10 + 1 * 6,
        5 + 30 + 3 * 1 + 10 + 5 * 8 + 10 + 2 * 9 + 4 * 6,
    )
    assert devices_in_use(PROBLEM, ANSWER) == (0, 1, 2)


def test_time_is_counted_in_whole_quanta() -> None:
    certificate = certify(in_quanta(PROBLEM, 8), ANSWER)
    assert certificate.stage_ns == (56 + 8 + 1, 56 + 16 + 70)
    assert (certificate.first_ns, certificate.last_ns, certificate.tail_ns) == (9 + 8, 13 + 8 + 1, 60 + 8 + 8 + 8 + 1)


@pytest.mark.parametrize(
    ("option", "copy", "receives"),
    [(1, (4,), RECEIVE.inside_ns), (2, None, RECEIVE.far_ns)],
)
def test_the_first_stage_receives(option: int, copy: tuple[int] | None, receives: int) -> None:
    first = BlockAnswer(option=option, split=0, shares=((4,),))
    answer = _block("tail", shares=((2,), None, copy))(dataclasses.replace(ANSWER, first=first))
    assert certify(PROBLEM, answer).stage_ns[0] == 56 + receives


def test_a_block_receives_from_the_leader_of_the_link_before() -> None:
    last = BlockAnswer(option=1, split=0, shares=((5, 0),))
    wide = BlockAnswer(option=2, split=0, shares=((2, 0, 0), (5, 0, 0), (4, 0, 0)))
    certificate = certify(PROBLEM, dataclasses.replace(ANSWER, last=last, tail=wide))
    assert certificate.last_ns == 15 + 1 + RECEIVE.far_ns
    assert certificate.tail_ns == 66 + 1 + 5 + 4 + RECEIVE.inside_ns
    stages = (
        StageAnswer(group=2, layers=((2,), ()), units=((8,), (0,))),
        StageAnswer(group=3, layers=((0,), (1,)), units=((0,), (3,))),
    )
    last = BlockAnswer(option=2, split=0, shares=((5,),))
    certificate = certify(PROBLEM, dataclasses.replace(ANSWER, stages=stages, last=last, tail=wide))
    assert certificate.stage_ns == (80 + 8 + RECEIVE.inside_ns, 46 + 6 + 7)
    assert certificate.last_ns == 14 + 1 + RECEIVE.near_ns


def test_a_group_over_several_hosts_counts_as_a_site_of_its_own() -> None:
    wide = StageAnswer(group=4, layers=((2,), (1,)), units=((8, 0), (3, 0)))
    first = BlockAnswer(option=1, split=0, shares=((4,),))
    answer = dataclasses.replace(ANSWER, stages=(wide,), first=first)
    assert certify(PROBLEM, answer).stage_ns == (160 + 85 + 8 + 6 + RECEIVE.far_ns,)
    stages = (
        StageAnswer(group=3, layers=((1,), (0,)), units=((4,), (0,))),
        StageAnswer(group=4, layers=((1,), (1,)), units=((4, 0), (3, 0))),
    )
    assert certify(PROBLEM, dataclasses.replace(answer, stages=stages)).stage_ns[1] == 80 + 85 + 4 + 6 + 70


def _stage(position: int, **changes: object) -> Callable[[Answer], Answer]:
    def change(answer: Answer) -> Answer:
        stages = list(answer.stages)
        stages[position] = dataclasses.replace(stages[position], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(answer, stages=tuple(stages))

    return change


def _block(name: str, **changes: object) -> Callable[[Answer], Answer]:
    def change(answer: Answer) -> Answer:
        block = dataclasses.replace(getattr(answer, name), **changes)
        return dataclasses.replace(answer, **{name: block})  # type: ignore[arg-type]

    return change


WRONG: dict[str, Callable[[Answer], Answer]] = {
    "a layer too many": _stage(1, layers=((0,), (2,)), units=((0,), (6,))),
    "a layer too few": _stage(0, layers=((1, 0), (0,)), units=((2, 2), (0, 0))),
    "a layer of another kind": _stage(0, layers=((1, 0), (1,)), units=((2, 2), (3, 0))),
    "layers in another order": lambda answer: dataclasses.replace(answer, stages=answer.stages[::-1]),
    "a negative count of layers": _stage(0, layers=((3, -1), (0,))),
    "a split too few": _stage(0, layers=((2,), (0,))),
    "units missing": _stage(0, units=((5, 2), (0, 0))),
    "units of another kind": _stage(0, units=((5, 2), (1, 0))),
    "negative units": _stage(0, units=((9, -1), (0, 0))),
    "negative units of a kind without layers": _stage(0, units=((5, 3), (1, -1))),
    "negative units of a kind without splits": _stage(0, group=5, layers=((1, 1), ()), units=((5, 3), (1, -1))),
    "units of one member": _stage(1, units=((0, 0), (3, 0))),
    "an empty stage": lambda answer: dataclasses.replace(
        answer,
        stages=(*answer.stages, StageAnswer(group=1, layers=((0,), (0,)), units=((0,), (0,)))),
    ),
    "no stages": lambda answer: dataclasses.replace(answer, stages=()),
    "a device twice": _stage(1, group=3),
    "pieces missing": _block("first", shares=((3, 0),)),
    "pieces too many": _block("last", shares=((6,),)),
    "negative pieces": _block("first", shares=((5, -1),)),
    "pieces of a device too many": _block("last", shares=((5, 0),)),
    "an axis too few": _block("tail", shares=((2,), None)),
    "no tail": lambda answer: dataclasses.replace(answer, tail=None),
    "pieces of the tail missing": _block("tail", shares=((1,), None, (4,))),
    "negative pieces of the tail": _block("tail", option=1, shares=((3, -1), (5, 0), (4, 0))),
    "a copy with pieces missing": _block("tail", shares=((2,), None, (3,))),
    "an axis that is its own and is not dealt": _block("tail", shares=(None, None, (4,))),
    "a shared axis that is elsewhere": _block("tail", shares=((2,), None, None)),
    "a copy of an axis that is here": _block("tail", shares=((2,), (5,), (4,))),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_answer_is_an_assertion_error(name: str) -> None:
    """Capacities are ample, so that the invalid part alone is the reason."""
    problem = dataclasses.replace(PROBLEM, capacity_bytes=(9999, 9999, 9999))
    certify(problem, ANSWER)
    with pytest.raises(AssertionError):
        certify(problem, WRONG[name](ANSWER))


def test_a_byte_above_a_capacity_is_an_assertion_error() -> None:
    load = certify(PROBLEM, ANSWER).load_bytes
    certify(dataclasses.replace(PROBLEM, capacity_bytes=load), ANSWER)
    for device in range(3):
        tight = tuple(nbytes - (device == d) for d, nbytes in enumerate(load))
        with pytest.raises(AssertionError, match=f"{PROBLEM.devices[device]}: {load[device]} of {tight[device]} bytes"):
            certify(dataclasses.replace(PROBLEM, capacity_bytes=tight), ANSWER)


def _three_stages(*groups: int) -> Answer:
    """Return an answer with three stages of one layer; the first member of each group has all units."""
    stages = []
    for position, index in enumerate(groups):
        splits = PROBLEM.groups[index].splits
        of_kind = (1, 0) if position < 2 else (0, 1)
        members = len(PROBLEM.groups[index].devices)
        layers = tuple((n,) + (0,) * (len(c) - 1) if c else () for n, c in zip(of_kind, splits, strict=True))
        units = tuple((n * k.units,) + (0,) * (members - 1) for n, k in zip(of_kind, PROBLEM.kinds, strict=True))
        stages.append(StageAnswer(group=index, layers=layers, units=units))
    return dataclasses.replace(ANSWER, stages=tuple(stages))


def test_a_site_is_entered_once() -> None:
    with pytest.raises(AssertionError, match="entered twice"):
        certify(PROBLEM, _three_stages(2, 1, 3))
    certify(PROBLEM, _three_stages(2, 3, 1))


def test_ordered_stages_are_in_the_order_of_groups() -> None:
    ordered = dataclasses.replace(PROBLEM, ordered=True)
    certify(ordered, ANSWER)
    with pytest.raises(AssertionError):
        certify(ordered, _three_stages(2, 3, 1))


def test_groups_run_the_given_counts_of_layers() -> None:
    certify(dataclasses.replace(PROBLEM, counts=(2, 1, 0, 0, 0, 0)), ANSWER)
    for counts in ((1, 2, 0, 0, 0, 0), (3, 0, 0, 0, 0, 0)):
        with pytest.raises(AssertionError):
            certify(dataclasses.replace(PROBLEM, counts=counts), ANSWER)


def test_it_agrees_with_the_field_definitions_of_the_problem() -> None:
    """Compare answers of random problems, feasible and infeasible, optimal or not."""
    checked = {True: 0, False: 0}
    for seed in range(60):
        problem = tiny_problem(seed)
        for answer in islice(every_answer(problem), 0, 2000, 25):
            fits = value(problem, answer) is not None
            checked[fits] += 1
            if not fits:
                with pytest.raises(AssertionError, match="bytes"):
                    certify(problem, answer)
                continue
            priced = certify(problem, answer)
            assert priced.step_ns == step_ns(problem, answer), f"seed {seed}: {answer}"
            assert list(priced.load_bytes) == load_bytes(problem, answer)
            terms = (
                *priced.stage_ns,
                priced.first_ns,
                priced.last_ns,
                priced.tail_ns,
                priced.message_ns,
            )
            assert sum(terms) == priced.step_ns
    assert min(checked.values()) >= 300
