"""Affine bounds of bytes in the solver: never below the exact bytes, above them by alignment at most."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.costs import memory
from planner.costs.memory import Affine, affine
from planner.costs.shares import BaseShares
from planner.problem.formulate import Formulation
from planner.solver.certify import certify, devices_in_use
from planner.solver.minimise import Settings
from planner.solver.solve import solve
from plans import slot_bytes
from plans.artifact import ALIGNMENT_BYTES
from plans.buffer import Buffer
from plans.buffers import OUTBOX, device_buffers, lm_head_buffers, with_graph_pool
from plans.dtypes import DTYPE_BYTES
from plans.quantized import ROUNDED
from plans.schema import DType, Options
from tests.plan_factory import TREE, make_draft, make_model
from tests.planner.instances import EQUAL, UNLIKE, formulation, planned

DTYPES = st.sampled_from(sorted(DTYPE_BYTES))
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 9), st.integers(1, 20))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.booleans(), st.booleans(), DTYPES)
def test_mlp_bounds_hold_for_any_sizes(sizes: tuple[int, int, int], bias: bool, leader: bool, dtype: DType) -> None:
    hidden, units, unit = sizes
    model = make_model(hidden_size=hidden, intermediate_size=units * unit, unit=unit, mlp_bias=bias)
    (layer,) = model.layers
    assert layer.mlp.units == units
    bound = memory.layer_mlp(model, dtype, layer, leader)
    _holds(bound, [slot_bytes.mlp_bytes(model, dtype, layer, n, leader) for n in range(units + 1)], slack_slots=4)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 3), st.booleans(), DTYPES)
def test_draft_mlp_bounds_hold(sizes: tuple[int, int, int], layers: int, leader: bool, dtype: DType) -> None:
    hidden, units, unit = sizes
    model = make_model(num_layers=8, hidden_size=hidden, intermediate_size=units * unit, unit=unit)
    draft = make_draft(model, kind="eagle", num_layers=layers)
    bound = memory.draft_mlp(draft, dtype, leader)
    _holds(
        bound, [slot_bytes.draft_mlp_bytes(draft, dtype, n, leader) for n in range(units + 1)], slack_slots=4 * layers
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 60), DTYPES, st.booleans(), st.sampled_from([None, "int8", "zeros"]))
def test_table_bounds_hold(hidden: int, vocab: int, dtype: DType, tied: bool, head: str | None) -> None:
    form = None if head is None else ROUNDED["int8"]
    if form is not None and head == "zeros":
        form = replace(form, group=32, zeros=True)
    model = replace(make_model(hidden_size=hidden, vocab_size=vocab, tied_head=tied), head_format=form)
    deep = make_model(num_layers=8, hidden_size=hidden, vocab_size=vocab)
    draft = make_draft(deep, draft_vocab_size=vocab)
    reading = make_draft(deep, kind="eagle")  # the base's tables
    of_embed, count = form if tied else None, 1 if form is None else 2 + form.zeros
    for exact, own in (
        (lambda n: slot_bytes.embed_bytes(model, dtype, n), of_embed),
        (lambda n: slot_bytes.lm_head_bytes(model, dtype, n), form),
        (lambda n: slot_bytes.draft_lm_head_bytes(model, draft, dtype, n), None),
        (lambda n: slot_bytes.draft_embed_bytes(model, reading, dtype, n), of_embed),
        (lambda n: slot_bytes.draft_lm_head_bytes(model, reading, dtype, n), form),
    ):
        bound = memory.table(exact, vocab, hidden, dtype, own)
        _holds(bound, [exact(n) for n in range(vocab + 1)], slack_slots=count)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 60), st.integers(1, 4), DTYPES, st.booleans(), st.booleans())
def test_head_bounds_hold_with_their_buffers(
    hidden: int, vocab: int, group: int, dtype: DType, tree: bool, gpu: bool
) -> None:
    model = make_model(hidden_size=hidden, vocab_size=vocab)
    options = Options(
        batch=1,
        context=64,
        dtype=dtype,
        kv_dtype=dtype,
        prefill_chunk=16,
        stall_timeout_s=8,
        strategy="latency",
        kv_axis=None,
        custom=None,
        gap_ppm=0,
        within_ppm=None,
        simplify_ppm=0,
        max_devices=None,
        tree=TREE if tree else None,
    )

    def buffers(n: int) -> tuple[Buffer, ...]:
        def of(own: Options) -> tuple[Buffer, ...]:
            return lm_head_buffers(model, None, own, rows=n, group_size=group, receives=True, leads=True, gpu=gpu)

        return with_graph_pool(of, options) if gpu else of(options)

    shares = BaseShares(model=model, draft=None, options=options)
    fixed, slope = shares.head_bytes(group, gpu).fixed, shares.head_table.slope + shares.head_bytes(group, gpu).slope
    for n in range(vocab + 1):
        exact = (
            slot_bytes.lm_head_bytes(model, dtype, n) + slot_bytes.norm_bytes(model, dtype) + memory.total(buffers(n))
        )
        assert fixed + n * slope >= exact


def _holds(bound: Affine, exact: list[int], *, slack_slots: int) -> None:
    for n, nbytes in enumerate(exact):
        assert 0 <= bound.fixed + n * bound.slope - nbytes <= 2 * slack_slots * ALIGNMENT_BYTES


def test_aligned_shares_are_counted_exactly() -> None:
    model = make_model(hidden_size=128, intermediate_size=512, unit=64, vocab_size=100)
    (layer,) = model.layers
    bound = memory.layer_mlp(model, "bfloat16", layer, True)
    assert [bound.fixed + n * bound.slope for n in range(9)] == [
        slot_bytes.mlp_bytes(model, "bfloat16", layer, n, True) for n in range(9)
    ]


def test_a_bound_below_the_exact_bytes_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="below"):
        affine(lambda n: 10_000 * n, most=4, slope=1, slots=1)


@pytest.mark.parametrize("data", [EQUAL, UNLIKE], ids=["equal", "unlike"])
@pytest.mark.parametrize("head", ["eagle3", "eagle1", None])
def test_planned_bytes_are_at_most_the_bytes_in_the_solver(data, head) -> None:
    problem_of: Formulation = formulation(data, head)
    solved = solve(problem_of.problem, Settings(workers=1))
    assert solved is not None
    certificate = certify(problem_of.problem, solved.answer)
    plan = planned(data, head).plan
    numbers = {problem_of.problem.devices[index]: index for index in devices_in_use(problem_of.problem, solved.answer)}
    assert sorted(numbers) == [line.device for line in plan.memory]
    for line in plan.memory:
        index = numbers[line.device]
        outbox = sum(buffer.nbytes for buffer in device_buffers(plan, line.device) if buffer.name == OUTBOX)
        room = problem_of.problem.capacity_bytes[index]
        assert line.planned_bytes - outbox <= certificate.load_bytes[index] <= room
        assert outbox <= plan.device(line.device).capacity_bytes - room
        assert (line.weights_bytes, line.draft_weights_bytes) == slot_bytes.weights_bytes(plan, line.device)
