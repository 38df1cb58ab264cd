"""Products of bfloat16 with weights in codes, of many rows and large groups: by tiles where the processor has them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plans.schema import WeightFormat
from runtime.model import ops, weights
from tests.runtime.model.kernels.touched import checked_run
from tests.runtime.model.test_coded import random_weight, reordered

FORMS = [("int4", "bfloat16"), ("int8", "float16"), ("float8_e4m3fn", "float32"), ("float4_e2m1", "float8_e8m0")]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(FORMS),
    of_group=st.sampled_from([1, 2, 3, 4, 8, 16, 20, 32]),
    zeros=st.booleans(),
    groups=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 3, 7, 9, 16, 17, 40, 129, 150]),
    outputs=st.integers(1, 50),
    in_order=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_have_the_same_bits_alone_for_any_group_and_are_those_with_the_values(
    kind: tuple[str, str], of_group: int, zeros: bool, groups: int, rows: int, outputs: int, in_order: bool, seed: int
) -> None:
    group = 32 if kind[0] == "float4_e2m1" else 32 * of_group
    form = WeightFormat(code=kind[0], group=group, zeros=zeros and kind[0].startswith("int"), scale=kind[1])
    weight, values = random_weight(form, outputs, group * groups, seed)
    if not in_order:
        weight = reordered(weight, seed)
        assert weight.order is not None
        values = torch.zeros_like(values).index_copy(1, weight.order.long(), values)
    x = torch.randn((rows, group * groups), generator=torch.Generator().manual_seed(seed)).bfloat16()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_run", checked_run)
        found = weights.product(x, weight)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(weights.product(x[row : row + 1], weight), found[row : row + 1])
    exact = x.double() @ values.double().t()
    most = x.double().abs() @ values.double().abs().t()
    assert ((found.double() - exact).abs() <= 2.0**-8 * exact.abs() + 2.0**-17 * most).all()


def test_every_code_of_float8_is_multiplied_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = torch.where((codes & 127) == 127, 0, codes).unsqueeze(1).repeat(1, 32)
    form = WeightFormat(code="float8_e4m3fn", group=None, zeros=False, scale="float32")
    ones = torch.ones(256, 1)
    weight = weights.Coded(form=form, codes=codes, scales=ones, zeros=None, inputs=32)
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 5] = 1
    assert torch.equal(weights.product(x, weight)[0].float(), codes[:, 5].view(torch.float8_e4m3fn).float())
