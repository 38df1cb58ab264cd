"""Draws, by Triton's interpreter, against a sort in float64 and the random numbers of a CPU."""

import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.model.draw import exponential, key_of
from runtime.model.triton_kernels import sampling
from tests.runtime.model.triton_kernels.interpreted import seeded

EXAMPLES = settings(max_examples=10, deadline=None)
NONE_K, NONE_P = 2.0**63, 2.0


def noise(seed: int, position: int, count: int) -> Tensor:
    """Return the random numbers of a position on a CPU."""
    return exponential(torch.tensor([key_of(seed) + position]), 1, 0, count)[0]


def kept(logits: Tensor, temperature: float, top_k: float, top_p: float) -> Tensor:
    """Return the weights of one row in float64, 0 for what the limits leave out; those equal at a limit stay."""
    weights = ((logits.double() - logits.double().max()) / temperature).exp()
    if top_k < len(weights):
        weights = torch.where(weights >= weights.sort(descending=True).values[int(top_k) - 1], weights, 0.0)
    if top_p < 1:
        ordered = weights.sort(descending=True).values
        reached = int((ordered.cumsum(0) < top_p * weights.sum()).sum())
        weights = torch.where(weights >= ordered[reached], weights, 0.0)
    return weights


@EXAMPLES
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), width=st.sampled_from([1, 50, 4300]),
    parameters=st.lists(
        st.tuples(st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([1.0, 3.0, 40.0, NONE_K]),
                  st.sampled_from([0.2, 0.9, 0.999, NONE_P]), st.booleans()), min_size=2, max_size=2,
    ),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_draws_are_those_of_the_limited_distribution(
    dtype: torch.dtype, width: int, parameters: list[tuple[float, float, float, bool]], seed: int
) -> None:
    """Of two sequences with two rows each; sixteen bits have equal logits, also at a limit."""
    logits = (seeded(4, width, seed=seed) * 4).to(dtype)
    depths, positions = torch.tensor([0, 3, 1, 0]), torch.tensor([7, 1 << 40])
    seeds = (seed, (1 << 62) + seed)
    keys = torch.tensor([key_of(number) for number in seeds])
    temperatures, top_ks, top_ps, greedy = (torch.tensor(column) for column in zip(*parameters, strict=True))
    tokens = sampling.draw(
        logits, depths, temperatures=temperatures.float(), top_ks=top_ks.double(), top_ps=top_ps.double(), keys=keys,
        positions=positions, greedy=greedy,
    )  # fmt: skip
    for row in range(4):
        temperature, top_k, top_p, is_greedy = parameters[row // 2]
        weights = kept(logits[row], temperature, top_k, top_p)
        race = weights / noise(seeds[row // 2], int(positions[row // 2] + depths[row]), width).double()
        # the first of what is within rounding of the highest
        best = logits[row].argmax() if is_greedy else race.argmax()
        token = int(tokens[row])
        assert token == best or (not is_greedy and race[token] > race.max() * (1 - 1e-5))


@triton.jit
def _noise_kernel(keys, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, sampling.exponential_of(sampling._mixed(tl.load(keys)), at.to(tl.int64)))


def test_without_limits_all_tokens_are_drawn_from() -> None:
    logits, one = seeded(2, 60), torch.ones(1)
    columns = {"keys": torch.tensor([key_of(3)]), "positions": torch.tensor([5]), "temperatures": one}
    drawn = sampling.draw(logits, torch.tensor([0, 1]), top_ks=None, top_ps=None, greedy=None, **columns)
    whole = sampling.draw(
        logits, torch.tensor([0, 1]), top_ks=one.double() * NONE_K, top_ps=one.double() * NONE_P, greedy=one < 0,
        **columns,
    )  # fmt: skip
    race = [logits[row].double().softmax(0) / noise(3, 5 + row, 60).double() for row in range(2)]
    assert drawn.tolist() == whole.tolist() == [int(own.argmax()) for own in race]


def test_random_numbers_are_those_of_a_cpu() -> None:
    out = torch.empty(1 << 14)
    _noise_kernel[(1,)](torch.tensor([key_of(5) + 9]), out, BLOCK=len(out))
    expected = noise(5, 9, len(out))
    assert float(expected.min()) < 1e-3
    assert bool(((out.double() - expected.double()).abs() <= 3e-7 * expected).all())
