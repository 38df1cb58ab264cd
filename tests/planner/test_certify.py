"""The certificate: every constraint of an answer is checked, every term is priced."""

import dataclasses
from collections.abc import Callable

import pytest

from planner.certify import certify, devices_in_use
from planner.problem import Answer, Column, Group, Problem, StageAnswer, Tail, TailAnswer, TailGroup


def column(*shares: int, ns: int) -> Column:
    return Column(shares=shares, ns=ns, bytes=tuple(10 * share for share in shares))


def group(*devices: int, host: int, columns: tuple[Column, ...]) -> Group:
    return Group(
        devices=devices,
        host=host,
        columns=columns,
        hop_ns=7,
        network_hop_ns=70,
        stage_bytes=(5,) * len(devices),
        first_ns=11,
        last_ns=13,
        last_bytes=(3,) * len(devices),
    )


PROBLEM = Problem(
    devices=("a0", "a1", "b0"),
    capacity_bytes=(400, 300, 200),
    hosts=((0, 1), (2,)),
    layers=3,
    units=4,
    unit_bytes=2,
    unit_ps=(1000, 1500, 3000),
    first_rows=4,
    first_row_bytes=6,
    last_rows=5,
    last_row_bytes=8,
    row_ps=(100, 200, 300),
    quantum_ns=1,
    groups=(
        group(0, 1, host=0, columns=(column(1, 2, ns=20), column(2, 1, ns=30))),
        group(2, host=1, columns=(column(3, ns=50),)),
        group(0, host=0, columns=(column(3, ns=40),)),
    ),
    tail=Tail(
        groups=(
            TailGroup(group=1, columns=(column(2, ns=60),), receive_ns=17, receive_inside_ns=2),
            TailGroup(group=0, columns=(column(1, 1, ns=35),), receive_ns=19, receive_inside_ns=4),
        ),
        units=2,
        unit_bytes=9,
        unit_ps=(500, 500, 700),
        first_rows=4,
        first_row_bytes=6,
        shares_first=True,
        last_rows=5,
        last_row_bytes=8,
        shares_last=True,
        row_ps=(900, 900, 900),
        network_ns=23,
    ),
    fixed_ns=1,
    message_ns=(29, 31),
    network_message_ns=37,
)
ANSWER = Answer(
    stages=(StageAnswer(group=0, layers=(1, 1), units=(5, 3)), StageAnswer(group=1, layers=(1,), units=(4,))),
    first_rows=(3, 1),
    last_rows=(5,),
    tail=TailAnswer(group=0, column=0, units=(2,), first_rows=(4,), last_rows=None),
)


def test_every_term_by_hand() -> None:
    found = certify(PROBLEM, ANSWER)
    assert found.stage_ns == (20 + 30 + 5, 50 + 12 + 70)
    assert (found.first_ns, found.last_ns) == (11, 13 + 2)
    assert found.tail_ns == 60 + 2 + 5 + 2  # its column, units, the base's rows read again, receiving inside
    assert found.message_ns == 29 + 37
    assert found.step_ns == 1 + 55 + 132 + 11 + 15 + 69 + 66
    assert found.load_bytes == (
        5 + 30 + 5 * 2 + 3 * 6,
        5 + 30 + 3 * 2 + 1 * 6,
        5 + 30 + 4 * 2 + 5 * 8 + 3 + 20 + 2 * 9 + 4 * 6,
    )
    assert devices_in_use(PROBLEM, ANSWER) == (0, 1, 2)
    assert found.free_bytes(PROBLEM, ANSWER) == 200 - found.load_bytes[2]


def test_the_tail_elsewhere_receives_over_the_network_and_has_copies() -> None:
    tail = TailAnswer(group=1, column=0, units=(1, 1), first_rows=None, last_rows=(5, 0))
    found = certify(PROBLEM, dataclasses.replace(ANSWER, tail=tail))
    assert found.tail_ns == 35 + 1 + 5 + 19 + 23
    assert found.load_bytes[0] == 63 + 10 + 9 + 5 * 8


def test_time_is_counted_in_whole_quanta() -> None:
    found = certify(dataclasses.replace(PROBLEM, quantum_ns=8), ANSWER)
    assert found.stage_ns == (50 + 8, 50 + 16 + 70)
    assert found.last_ns == 13 + 8


def _stage(position: int, **changes: object) -> Callable[[Answer], Answer]:
    def change(answer: Answer) -> Answer:
        stages = list(answer.stages)
        stages[position] = dataclasses.replace(stages[position], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(answer, stages=tuple(stages))

    return change


def _tail(**changes: object) -> Callable[[Answer], Answer]:
    def change(answer: Answer) -> Answer:
        assert answer.tail is not None
        return dataclasses.replace(answer, tail=dataclasses.replace(answer.tail, **changes))  # type: ignore[arg-type]

    return change


WRONG: dict[str, Callable[[Answer], Answer]] = {
    "a layer too many": _stage(1, layers=(2,), units=(8,)),
    "a layer too few": _stage(0, layers=(1, 0), units=(2, 2)),
    "a negative count of layers": _stage(0, layers=(3, -1)),
    "units missing": _stage(0, units=(5, 2)),
    "negative units": _stage(0, units=(9, -1)),
    "an empty stage": _stage(1, layers=(0,), units=(0,)),
    "a device twice": _stage(1, group=2),
    "rows missing": lambda answer: dataclasses.replace(answer, first_rows=(3, 0)),
    "rows too many": lambda answer: dataclasses.replace(answer, last_rows=(6,)),
    "negative rows": lambda answer: dataclasses.replace(answer, first_rows=(5, -1)),
    "no tail": lambda answer: dataclasses.replace(answer, tail=None),
    "units of the tail": _tail(units=(1,)),
    "negative units of the tail": _tail(group=1, units=(3, -1), last_rows=(5, 0), first_rows=(4, 0)),
    "rows of the tail": _tail(last_rows=(4,)),
    "negative rows of the tail": _tail(group=1, units=(1, 1), last_rows=(6, -1), first_rows=(4, 0)),
    "a shared table that is elsewhere": _tail(first_rows=None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_our_bug(name: str) -> None:
    with pytest.raises(AssertionError):
        certify(PROBLEM, WRONG[name](ANSWER))


def test_a_byte_too_much_is_our_bug() -> None:
    load = certify(PROBLEM, ANSWER).load_bytes
    certify(dataclasses.replace(PROBLEM, capacity_bytes=load), ANSWER)
    for device in range(3):
        tight = tuple(nbytes - (device == d) for d, nbytes in enumerate(load))
        with pytest.raises(AssertionError, match=f"{PROBLEM.devices[device]}: {load[device]} of {tight[device]} bytes"):
            certify(dataclasses.replace(PROBLEM, capacity_bytes=tight), ANSWER)


def test_a_host_is_entered_once() -> None:
    problem = dataclasses.replace(PROBLEM, groups=(*PROBLEM.groups, group(1, host=0, columns=(column(3, ns=1),))))
    stages = tuple(StageAnswer(group=index, layers=(1,), units=(4,)) for index in (2, 1, 3))
    answer = Answer(stages=stages, first_rows=(4,), last_rows=(5,), tail=ANSWER.tail)
    problem = dataclasses.replace(problem, capacity_bytes=(999, 999, 999))
    copies = TailAnswer(group=0, column=0, units=(2,), first_rows=(4,), last_rows=(5,))
    with pytest.raises(AssertionError, match="entered twice"):
        certify(problem, dataclasses.replace(answer, tail=copies))
    certify(problem, dataclasses.replace(answer, stages=(stages[0], stages[2], stages[1])))
