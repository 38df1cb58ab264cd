"""Products with quantized weights are those with their values, and each row has the same bits among any others."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plans.schema import WeightFormat
from runtime.model import ops, weights
from runtime.model.triton_kernels.products import COUNTERS
from tests.runtime.model.kernels.touched import checked_run

FLOAT4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FORMS = [
    WeightFormat(code="int4", group=32, zeros=False, scale="bfloat16"),
    WeightFormat(code="int4", group=64, zeros=True, scale="float16"),
    WeightFormat(code="int4", group=None, zeros=False, scale="float32"),
    WeightFormat(code="int8", group=None, zeros=False, scale="float16"),
    WeightFormat(code="int8", group=32, zeros=True, scale="bfloat16"),
    WeightFormat(code="int8", group=None, zeros=True, scale="bfloat16"),
    WeightFormat(code="int4", group=None, zeros=True, scale="float16"),
    WeightFormat(code="float8_e4m3fn", group=64, zeros=False, scale="float32"),
    WeightFormat(code="float8_e4m3fn", group=None, zeros=False, scale="bfloat16"),
    WeightFormat(code="float4_e2m1", group=32, zeros=False, scale="float8_e8m0"),
]
INT4 = [form for form in FORMS if form.code == "int4"]


def random_weight(form: WeightFormat, outputs: int, inputs: int, seed: int) -> tuple[weights.Coded, Tensor]:
    """Return a weight in codes, and its values by the format's description (plans/FORMAT.md)."""
    rng = torch.Generator().manual_seed(seed)
    half, group = form.code in ("int4", "float4_e2m1"), form.group or inputs
    count = -(-inputs // group)
    codes = torch.randint(0, 256, (outputs, inputs // 2 if half else inputs), dtype=torch.uint8, generator=rng)
    if form.code == "float8_e4m3fn":
        codes[(codes & 127) == 127] = 3  # no NaN
    each = codes
    if half:
        each = torch.empty((outputs, inputs), dtype=torch.uint8)
        for column in range(inputs):
            byte = codes[:, 16 * (column // 32) + column % 16]
            each[:, column] = byte & 15 if column % 32 < 16 else byte >> 4
    zeros = torch.randint(0, 16 if half else 256, (outputs, count), dtype=torch.uint8, generator=rng)
    if form.scale == "float8_e8m0":
        scales = torch.randint(90, 150, (outputs, count), dtype=torch.uint8, generator=rng)
        factors = torch.exp2(scales.float() - 127)
    else:
        scales = (torch.rand((outputs, count), generator=rng) + 0.1).to(getattr(torch, form.scale))
        factors = scales.float()
    factors = factors.repeat_interleave(group, 1)[:, :inputs]
    if form.code == "float8_e4m3fn":
        values = each.view(torch.float8_e4m3fn).float() * factors
    elif form.code == "float4_e2m1":
        values = FLOAT4[(each & 7).int()] * torch.where(each > 7, -1.0, 1.0) * factors
    else:
        points = zeros.float() if form.zeros else torch.full((outputs, count), 8.0 if half else 128.0)
        values = (each.float() - points.repeat_interleave(group, 1)[:, :inputs]) * factors
    kept = zeros if form.zeros else None
    counters = torch.zeros(COUNTERS, dtype=torch.int32)
    own = weights.Coded(form=form, codes=codes, scales=scales, zeros=kept, inputs=inputs, counters=counters)
    return own, values


def largest(form: WeightFormat, weight: weights.Coded, values: Tensor) -> Tensor:
    """Return magnitudes of which a kernel may leave a rounding: codes and zero points times scales, float64."""
    if form.code not in ("int4", "int8"):
        return values.double().abs()
    of_group = values.reshape(values.shape[0], -1, min(form.group or weight.inputs, weight.inputs))
    scales = weight.scales.double().unsqueeze(-1)
    return (of_group.double().abs() + scales * (32 if form.code == "int4" else 512)).view_as(values)


@settings(max_examples=80, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rows=st.integers(1, 20),
    blocks=st.integers(1, 18),
    rest=st.integers(0, 31),
    outputs=st.integers(1, 39),
    threads=st.sampled_from([1, 2]),
    added=st.sampled_from([None, 1, "rows"]),
    alone=st.tuples(st.integers(0, 19), st.integers(1, 7)),
    seed=st.integers(0, 99),
)
def test_products_are_those_with_the_values_and_a_row_has_the_same_bits_among_any_others(
    form: WeightFormat, dtype: torch.dtype, rows: int, blocks: int, rest: int, outputs: int, threads: int,
    added: str | int | None, alone: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    inputs = 32 * blocks + (rest if form.code in ("int8", "float8_e4m3fn") and form.group is None else 0)
    if form.group == 64:
        inputs = 64 * blocks
    weight, values = random_weight(form, outputs, inputs, seed)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, inputs), generator=rng).to(dtype)
    more = None if added is None else torch.randn((rows if added == "rows" else 1, outputs), generator=rng).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    first = min(alone[0], rows - 1)
    some = slice(first, min(first + alone[1], rows))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "_run", checked_run)
            found = weights.product(x, weight, more)
            part = weights.product(x[some], weight, more if more is None or more.shape[0] == 1 else more[some])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(part, found[some])
    addend = torch.zeros(1, outputs, dtype=torch.float64) if more is None else more.double()
    expected = x.double() @ values.double().t() + addend
    bound = 2.0**-21 * (x.double().abs() @ largest(form, weight, values).t()) + torch.finfo(dtype).eps * expected.abs()
    assert ((found.double() - expected).abs() <= bound).all()


def reordered(weight: weights.Coded, seed: int, missing: int = 0) -> weights.Coded:
    """Return a weight whose columns are multiplied with others of x, and the first ``missing`` with none."""
    rng = torch.Generator().manual_seed(seed)
    columns = weight.inputs - missing
    order = torch.cat([torch.full((missing,), -1), torch.randperm(columns, generator=rng)]).int()
    return replace(weight, order=order[torch.randperm(weight.inputs, generator=rng)].contiguous(), inputs=columns)


def gathered(x: Tensor, order: Tensor) -> Tensor:
    """Return the columns of x in an order; 0 where there is none."""
    return torch.where(order >= 0, x[:, order.clamp(min=0).long()], torch.zeros((), dtype=x.dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_in_another_order_have_the_bits_of_x_in_that_order(form: WeightFormat, dtype: torch.dtype) -> None:
    """Also where some have no column of x, and where x has an infinity that no column reads."""
    weight, _ = random_weight(form, 23, 192, 3)
    own = reordered(weight, 5, missing=40)
    assert own.order is not None
    for rows, threads in ((1, 1), (3, 2), (14, 2)):
        x = torch.randn((rows, 152), generator=torch.Generator().manual_seed(rows)).to(dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "_run", checked_run)
            patch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            found = weights.product(x, own)
        assert torch.equal(found, weights.product(gathered(x, own.order), weight))


@pytest.mark.parametrize("blocks", [8, 16, 17])
@pytest.mark.parametrize("form", [form for form in FORMS if form.group is None and form.code != "int4"])
def test_a_last_block_that_is_not_whole_has_the_scale_of_its_row(form: WeightFormat, blocks: int) -> None:
    """One block more than vectors of scales have, of 8 and of 16 lanes."""
    weight, values = random_weight(form, 7, 32 * blocks + 8, 0)
    for rows in (1, 3, 8):
        x = torch.randn((rows, weight.inputs), generator=torch.Generator().manual_seed(rows))
        torch.full((400_000,), 1e3)  # what memory has that nobody wrote
        found = weights.product(x, weight, None)
        exact, most = x.double() @ values.double().t(), x.double().abs() @ values.double().abs().t()
        assert ((found.double() - exact).abs() <= 1e-5 * most).all()


@pytest.mark.parametrize("form", FORMS)
def test_grouped_products_have_the_bits_of_each_group_alone(form: WeightFormat) -> None:
    experts = [random_weight(form, 10, 64, seed)[0] for seed in range(3)]
    zeros = [expert.zeros for expert in experts if expert.zeros is not None]
    together = weights.Coded(
        form=form,
        codes=torch.stack([expert.codes for expert in experts]),
        scales=torch.stack([expert.scales for expert in experts]),
        zeros=torch.stack(zeros) if zeros else None,
        inputs=64,
    )
    assert together.shape == (3, 10, 64)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    index, ends = torch.tensor([6, 0, 1, 1, 3]), torch.tensor([2, 2, 5])
    found = weights.grouped(x, index, together, ends)
    parts = [weights.product(x[index[:2]], experts[0]), weights.product(x[index[2:]], experts[2])]
    assert torch.equal(found, torch.cat(parts))


@pytest.mark.parametrize("blocks", [1, 2, 7])
@pytest.mark.parametrize("form", INT4)
def test_products_with_int4_are_off_by_a_little_of_the_largest_of_each_block(form: WeightFormat, blocks: int) -> None:
    """Magnitudes of x from 2 ** -40 to 2 ** 40 in every block, and blocks of zeros."""
    inputs = 32 * blocks * (form.group or 32) // 32
    weight, values = random_weight(form, 9, inputs, blocks)
    rng = torch.Generator().manual_seed(blocks)
    x = torch.randn((4, inputs), generator=rng) * torch.exp2(torch.randint(-40, 41, (4, inputs), generator=rng).float())
    x[1, :32], x[2] = 0, 0
    found = weights.product(x, weight)
    of_blocks = x.double().abs().view(4, -1, 32)
    most = of_blocks.amax(2, keepdim=True).expand_as(of_blocks).reshape(4, inputs)
    bound = 2.0**-21 * (most @ largest(form, weight, values).t())
    assert ((found.double() - x.double() @ values.double().t()).abs() <= bound).all()
    assert (found[2] == 0).all()


@pytest.mark.parametrize(("form", "unit"), [*((form, 1.0) for form in INT4), (INT4[0], 2.0**-120)])
def test_products_with_int4_are_off_by_a_little_of_the_largest_whatever_its_weight(
    form: WeightFormat, unit: float
) -> None:
    """In the second block of x one value is 10 ** 6 times the others, and its weights are zero."""
    weight, values = random_weight(form, 9, 128, 0)
    points = torch.full((9, 1), 8, dtype=torch.uint8) if weight.zeros is None else weight.zeros
    codes = weight.codes.clone()
    codes[:, 16 + 5] = codes[:, 16 + 5] & 0xF0 | points[:, 0]  # of column 37
    values[:, 37] = 0
    coded = weights.Coded(form=form, codes=codes, scales=weight.scales, zeros=weight.zeros, inputs=128)
    x = torch.randn((4, 128), generator=torch.Generator().manual_seed(0)) * 1e-2 * unit
    x[:, 37] = 1e4 * unit
    exact = x.double() @ values.double().t()
    most = x.double().abs().view(4, -1, 32).amax(2).repeat_interleave(32, 1)
    off = (2.0**-22 * most).clamp(min=2.0**-127 if unit < 1 else 0) @ values.double().abs().t()
    added = values.double().abs() if weight.zeros is None else largest(form, coded, values)
    rounded = 2.0**-22 * x.double().abs() @ added.t()
    assert ((weights.product(x, coded).double() - exact).abs() <= off + rounded).all()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_products_of_a_row_with_a_value_that_is_not_finite_are_not_finite(value: float) -> None:
    weight, _ = random_weight(FORMS[0], 9, 96, 0)
    x = torch.randn((3, 96), generator=torch.Generator().manual_seed(0))
    x[1, 70] = value
    found = weights.product(x, weight)
    assert not found[1].isfinite().any()
    assert found[::2].isfinite().all()
