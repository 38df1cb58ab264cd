"""Tests of the brute force: against enumeration of every Answer, and against sums made by hand."""

import dataclasses
from itertools import islice

import pytest

from planner.solver.problem import Axis, Block, Group, Kind, Option, Problem, Receive, Split
from tests.planner.brute_force import best
from tests.planner.every_answer import every_answer, value
from tests.planner.tiny_problems import in_quanta, tiny_problem

FEW = 800


def test_brute_force_equals_enumeration() -> None:
    seen = []
    for seed in range(120):
        problem = tiny_problem(seed)
        answers = list(islice(every_answer(problem), FEW))
        if len(answers) < FEW:
            values = [priced for answer in answers if (priced := value(problem, answer)) is not None]
            assert best(problem) == min(values, default=None), f"seed {seed}"
            seen.append((problem, bool(values)))
    assert len(seen) >= 30
    assert {problem.goal for problem, fits in seen if fits} == {"time", "balance", "fill"}
    assert any(problem.spare is not None for problem, _ in seen)
    assert {fits for _, fits in seen} == {True, False}
    assert {len(problem.kinds) for problem, _ in seen} == {1, 2}
    assert {len(problem.hosts) for problem, _ in seen} == {1, 2}


RECEIVE = Receive(same_ns=1, inside_ns=2, near_ns=30, far_ns=400)


def _group(device: int, ns: int, nbytes: int) -> Group:
    split = Split(shares=(1,), ns=ns, bytes=(nbytes,))
    return Group(
        devices=(device,),
        site=0,
        splits=((split,),),
        hop_ns=50,
        network_hop_ns=6000,
        first=RECEIVE,
        stage_bytes=(5,),
        quantum_ns=1,
    )


def _block(*devices: int, count: int) -> Block:
    split = Split(shares=(1,), ns=7, bytes=(2,))
    options = tuple(Option(devices=(d,), sites=(0,), splits=(split,), receive=RECEIVE, quantum_ns=1) for d in devices)
    return Block(
        options=options, axes=(Axis(count=count, each_bytes=3, read_bytes=(0, 0), each_ps=(1000, 2000), shared=None),)
    )


BY_HAND = Problem(
    devices=("fast", "slow"),
    capacity_bytes=(100, 100),
    hosts=((0, 1),),
    alike=(0, 1),
    kinds=(Kind(units=2, unit_bytes=4, unit_ps=(1000, 3000)),),
    sequence=((0, 3),),
    groups=(_group(0, 100, 10), _group(1, 200, 10)),
    ordered=False,
    counts=None,
    first=_block(0, count=2),
    last=_block(0, 1, count=3),
    tail=None,
    message_ns=(1000,),
    awake_ns=(None,),
    waits_ns=((),),
    network_message_ns=0,
    goal="time",
    most_devices=None,
    simplify_ppm=0,
    tie_ppm=0,
    spare=None,
)
# All on the fast device: 3 layers of 100 + 2 units of 1, first 7 + 2, last 7 + 3, two receives on the same device.
# The device then holds 5 + 3 * (10 + 2 * 4) + (2 + 2 * 3) + (2 + 3 * 3) = 78 bytes, 67 without the last block.
ALL_ON_FAST = 306 + 9 + 10 + 2
# The last block on the slow device: 7 + 3 * 2, a receive from another device of the host, one message.
LAST_ON_SLOW = 306 + 9 + 13 + 1 + 30 + 1000
# A second stage on the slow device, a layer of 200 + 2 * 3 after a hop, and the last block there: 34 bytes.
LAYER_ON_SLOW = 204 + 206 + 50 + 9 + 13 + 1 + 1 + 1000
# Two layers on the slow device, 5 + 2 * 18 = 41 bytes; both blocks on the fast one, 5 + 18 + 8 + 11 = 42 bytes.
LAYERS_ON_SLOW = 102 + 412 + 50 + 9 + 10 + 1 + 30 + 1000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"capacity_bytes": (78, 100)}, (ALL_ON_FAST, 1)),
        ({"capacity_bytes": (77, 100)}, (LAST_ON_SLOW, 1)),
        ({"capacity_bytes": (66, 100)}, (LAYER_ON_SLOW, 2)),
        ({"capacity_bytes": (66, 22)}, None),
        ({"counts": (2, 1), "ordered": True}, (LAYER_ON_SLOW, 2)),
        ({"goal": "fill"}, (-3, 0, ALL_ON_FAST, 1)),
        ({"goal": "fill", "capacity_bytes": (66, 100)}, (-2, -1, LAYER_ON_SLOW, 2)),
        ({"goal": "balance"}, (-58, LAYERS_ON_SLOW, 2)),
        ({"goal": "balance", "spare": 1}, (0, -22, ALL_ON_FAST, 1)),
        ({"goal": "balance", "spare": 1, "capacity_bytes": (77, 100)}, (11, -10, LAST_ON_SLOW, 1)),
        # Granules of four bytes: 11 loaded bytes round up to three granules, 10 free bytes round down to two.
        ({"goal": "balance", "spare": 1, "capacity_bytes": (77, 8192)}, (3, -2, LAST_ON_SLOW, 1)),
    ],
)
def test_by_hand(changes: dict[str, object], expected: tuple[int, ...] | None) -> None:
    assert best(dataclasses.replace(BY_HAND, **changes)) == expected  # type: ignore[arg-type]


def test_time_is_counted_in_whole_quanta() -> None:
    assert best(in_quanta(BY_HAND, 4)) == (300 + 8 + 7 + 4 + 7 + 4 + 2, 1)
