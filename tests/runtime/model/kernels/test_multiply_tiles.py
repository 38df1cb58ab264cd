"""Products by AMX: any shape, on any number of threads, against float64 and row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.model import ops
from runtime.model.kernels.processor import multiplies_tiles

pytestmark = pytest.mark.skipif(not multiplies_tiles(torch.bfloat16), reason="the processor or the system has no AMX")


@settings(max_examples=100, deadline=None)
@given(
    inputs=st.one_of(st.integers(1, 200), st.sampled_from([256, 576, 2048])),
    outputs=st.integers(1, 140),
    rows=st.integers(1, 70),
    threads=st.integers(1, 3),
    added=st.sampled_from([None, "bias", "rows"]),
    data=st.data(),
)
def test_a_row_has_its_bits_in_every_shape(
    inputs: int, outputs: int, rows: int, threads: int, added: str | None, data: st.DataObject
) -> None:
    """Some rows of x, and some outputs, alone; rows and weights lie apart, between values that are not numbers."""
    generator = torch.Generator().manual_seed(inputs * outputs)
    x, weight = (torch.full((n, inputs + 3), float("nan")).bfloat16() for n in (rows, outputs))
    x[:, :inputs] = torch.randn(rows, inputs, generator=generator)
    weight[:, :inputs] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    x, weight = x[:, :inputs], weight[:, :inputs]
    more = None
    if added:
        more = torch.randn(rows if added == "rows" else 1, outputs, generator=generator).bfloat16()
    first = data.draw(st.integers(0, rows - 1))
    count, start = data.draw(st.integers(1, rows - first)), data.draw(st.integers(0, outputs - 1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    together = ops.product(x, weight.t(), more)
    torch.set_num_threads(1)
    own = more[first : first + count] if more is not None and added == "rows" else more
    rows_alone = ops.product(x[first : first + count], weight.t(), own)
    outputs_alone = ops.product(x, weight[start:].t(), None if more is None else more[:, start:])
    torch.set_num_threads(before)
    exact = x.double() @ weight.double().T + (0 if more is None else more.double())
    assert ((together.double() - exact).abs() <= 2**-8 * 1.02 * exact.abs() + 2e-5).all()
    assert torch.equal(rows_alone, together[first : first + count])
    assert torch.equal(outputs_alone, together[:, start:])


@settings(max_examples=50, deadline=None)
@given(
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 70),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    threads=st.integers(1, 3),
    indexed=st.booleans(),
)
def test_a_grouped_product_has_the_bits_of_products(
    inputs: int, outputs: int, counts: list[int], threads: int, indexed: bool
) -> None:
    """Of groups with any number of rows."""
    generator = torch.Generator().manual_seed(inputs * outputs)
    x = torch.randn(50, inputs, generator=generator).bfloat16()
    weights = torch.randn(len(counts), outputs, inputs, generator=generator).bfloat16()
    index, ends = torch.randint(0, 50, (sum(counts),), generator=generator), torch.tensor(counts).cumsum(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    together = ops.grouped(x, index, weights, ends) if indexed else ops.grouped(x[index], None, weights, ends)
    torch.set_num_threads(before)
    for group, part in enumerate(together.split(counts)):
        rows = index.split(counts)[group]
        if len(rows):
            assert torch.equal(part, ops.product(x[rows], weights[group].t()))


def test_rows_of_several_parts_have_the_bits_that_they_have_alone() -> None:
    """Long rows, which are multiplied with the weight in parts, of which the last has fewer."""
    x, weight, added = seeded(148, 4096), seeded(70, 4096), seeded(148, 70)
    alone = torch.cat([ops.product(x[row : row + 1], weight.t(), added[row : row + 1]) for row in range(148)])
    for rows in (64, 65, 129, 148):
        assert torch.equal(ops.product(x[:rows], weight.t(), added[:rows]), alone[:rows])


def seeded(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)).to(torch.bfloat16)
