"""Products with quantized weights and of experts, by Triton's interpreter, against those with their exact values."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plans.schema import Activation
from runtime.model.triton_kernels import products, rowwise
from runtime.model.weights import Coded
from tests.runtime.model.test_coded import FORMS, gathered, random_weight, reordered
from tests.runtime.model.triton_kernels.interpreted import near, seeded

EXAMPLES = settings(max_examples=12, deadline=None)


@EXAMPLES
@given(
    form=st.sampled_from(FORMS), dtype=st.sampled_from([torch.float32, torch.float16]),
    rows=st.sampled_from([1, 2, 17, 64, 70]), blocks=st.sampled_from([1, 3, 17]), rest=st.integers(0, 31),
    outputs=st.integers(1, 70), added=st.sampled_from([None, 1, "rows"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_product_is_the_exact_one_rounded_once(
    form: object, dtype: torch.dtype, rows: int, blocks: int, rest: int, outputs: int, added: object, seed: int
) -> None:
    """Of 1 to 64 rows, whose columns may be divided, and of more; also where a row has no whole number of tiles."""
    whole = form.group is not None or form.code in ("int4", "float4_e2m1")  # type: ignore[attr-defined]
    inputs = 64 * blocks + (0 if whole else rest)
    own, values = random_weight(form, outputs, inputs, seed)  # type: ignore[arg-type]
    x = seeded(rows, inputs, dtype=dtype, seed=seed) / inputs**0.5
    scale = values.abs().amax()
    more = None if added is None else seeded(rows if added == "rows" else 1, outputs, dtype=dtype, seed=seed)
    expected = x.double() @ values.double().t() + (0.0 if more is None else more.double())
    if float(expected.abs().max()) > torch.finfo(dtype).max:
        return
    out = products.product(x, own, more)
    assert own.counters is not None
    assert not own.counters.any(), "as the next launch wants them"
    assert torch.equal(products.product(x, own, more), out)
    assert out.dtype == dtype
    assert bool(
        ((out.double() - expected).abs() <= 0.51 * torch.finfo(dtype).eps * expected.abs() + 4e-6 * scale).all()
    )


@EXAMPLES
@given(
    form=st.sampled_from(FORMS), dtype=st.sampled_from([torch.float32, torch.float16]),
    rows=st.sampled_from([1, 3, 70]), blocks=st.sampled_from([1, 3, 17]), missing=st.sampled_from([0, 5]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_columns_in_another_order_have_the_bits_of_x_in_that_order(
    form: object, dtype: torch.dtype, rows: int, blocks: int, missing: int, seed: int
) -> None:
    weight, _ = random_weight(form, 40, 64 * blocks, seed)  # type: ignore[arg-type]
    own = reordered(weight, seed, missing)
    assert own.order is not None
    x = seeded(rows, own.inputs, dtype=dtype, seed=seed) / 1000
    assert torch.equal(products.product(x, own), products.product(gathered(x, own.order), weight))


@EXAMPLES
@given(
    form=st.sampled_from(FORMS), dtype=st.sampled_from([torch.float32, torch.float16]),
    rows=st.sampled_from([1, 3, 70]), blocks=st.sampled_from([1, 17]), channels=st.integers(1, 70),
    biased=st.booleans(), activation=st.sampled_from(["silu", "gelu_pytorch_tanh"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_product_of_gates_and_ups_has_the_bits_of_their_activation(
    form: object, dtype: torch.dtype, rows: int, blocks: int, channels: int, biased: bool, activation: Activation,
    seed: int,
) -> None:  # fmt: skip
    """Also where its columns are divided: of a kernel of its own, behind the product as it is rounded."""
    own, _ = random_weight(form, 2 * channels, 64 * blocks, seed)  # type: ignore[arg-type]
    x = seeded(rows, 64 * blocks, dtype=dtype, seed=seed) / 1000
    bias = seeded(1, 2 * channels, dtype=dtype, seed=seed) if biased else None
    out = products.product(x, own, bias, products.Gate(activation=activation))
    expected = rowwise.gated(products.product(x, own, bias), activation)
    assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))
    assert own.counters is not None
    assert not own.counters.any()


@EXAMPLES
@given(
    dtype=st.sampled_from([torch.float32, torch.float16]), counts=st.lists(st.sampled_from([0, 2, 20]), min_size=2),
    channels=st.integers(1, 70), clamped=st.booleans(), biased=st.booleans(),
)  # fmt: skip
def test_experts_apply_the_activation_of_their_gates(
    dtype: torch.dtype, counts: list[int], channels: int, *, clamped: bool, biased: bool
) -> None:
    rows, experts = sum(counts), len(counts)
    weight = seeded(experts, 2 * channels, 64, dtype=dtype)
    x, order = seeded(rows, 64, dtype=dtype), torch.arange(rows)
    bias = seeded(experts, 2 * channels, dtype=dtype) if biased else None
    gate = products.Gate(clamp=(2.0, 1.7) if clamped else None)
    ends = torch.tensor(counts).cumsum(0)
    out = products.grouped(x, weight, order, ends, picked=1, bias=bias, gate=gate)
    both = products.grouped(x, weight, order, ends, picked=1, bias=bias)
    if not clamped:
        assert torch.equal(out, rowwise.gated(both))
        return
    gates, ups = both.double().chunk(2, 1)
    gates, ups = gates.clamp(max=2.0), ups.clamp(-2.0, 2.0)
    assert near(out, (ups + 1) * gates * torch.sigmoid(1.7 * gates), roundings=4)


def test_the_columns_of_few_outputs_are_divided_by_their_number_alone() -> None:
    assert [products._splits(outputs, 4096, 128) for outputs in (64, 4096, 8192, 28672)] == [4, 4, 2, 1]
    assert products._splits(4096, 14336, 128) == 4
    assert products._splits(64, 64, 32) == 1


@EXAMPLES
@given(
    form=st.sampled_from([None, *FORMS]), dtype=st.sampled_from([torch.float32, torch.float16]),
    counts=st.lists(st.sampled_from([0, 0, 2, 4, 20]), min_size=2, max_size=4), outputs=st.integers(1, 70),
    picked=st.sampled_from([None, 1, 2]), biased=st.booleans(), ordered=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_each_pick_is_multiplied_with_the_weight_of_its_expert(
    form: object, dtype: torch.dtype, counts: list[int], outputs: int, picked: int | None, biased: bool, ordered: bool,
    seed: int,
) -> None:  # fmt: skip
    """An expert may have no row, also the first and the last one; its weight is not read: it is not a number."""
    inputs, rows = 96 if form is None else 128, sum(counts)
    experts = [random_weight(form, outputs, inputs, seed) for seed in range(len(counts))] if form else []  # type: ignore[arg-type]
    values = torch.stack([own[1] for own in experts]) if experts else seeded(len(counts), outputs, inputs, dtype=dtype)
    if experts:
        owns = [reordered(own[0], number) if ordered else own[0] for number, own in enumerate(experts)]
        orders = [own.order for own in owns if own.order is not None]
        if orders:
            values = torch.stack([own[1][:, order.argsort()] for own, order in zip(experts, orders, strict=True)])
        zeros = [own.zeros for own in owns if own.zeros is not None]
        weight: Coded | torch.Tensor = Coded(
            form=form, codes=torch.stack([own.codes for own in owns]),  # type: ignore[arg-type]
            scales=torch.stack([own.scales for own in owns]), zeros=torch.stack(zeros) if zeros else None,
            inputs=inputs, order=torch.stack(orders) if orders else None,
        )  # fmt: skip
    else:
        weight = values.clone()
        weight[torch.tensor(counts) == 0] = float("nan")
    x = seeded(rows // (picked or 1), inputs, dtype=dtype) / 1000
    bias = seeded(len(counts), outputs, dtype=dtype) if biased else None
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    chosen = x if picked is None else x[order // picked]
    out = products.grouped(x, weight, order, torch.tensor(counts).cumsum(0), picked=picked, bias=bias)
    out = out[order] if picked is None else out
    groups = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    expected = (values[groups].double() @ chosen.double().unsqueeze(2)).squeeze(2)
    expected += 0.0 if bias is None else bias[groups].double()
    scale = float(values.abs().amax()) if rows else 0.0
    if float(expected.abs().max() if rows else 0.0) < torch.finfo(dtype).max:
        assert bool(
            ((out.double() - expected).abs() <= 0.51 * torch.finfo(dtype).eps * expected.abs() + 4e-6 * scale).all()
        )
