"""Draws, by Triton's interpreter, against a sort in float64 and the random numbers of a CPU."""

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.comm.groups import Group
from runtime.model.draw import NO_TOP_K, NO_TOP_P, Draw, Target, _draw_on_gpu, draw, exponential, key_of
from runtime.model.triton_kernels import divided_draws, launch, sampling
from tests.runtime.model.triton_kernels.interpreted import seeded
from tests.runtime.test_sampling import ALONE, together

EXAMPLES = settings(max_examples=10, deadline=None)


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
        st.tuples(st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([1.0, 3.0, 40.0, NO_TOP_K]),
                  st.sampled_from([0.2, 0.9, 0.999, NO_TOP_P]), st.booleans()), min_size=2, max_size=2,
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
    tl.store(out + at, sampling.exponential_of(sampling.mixed(tl.load(keys)), at.to(tl.int64)))


def test_without_limits_all_tokens_are_drawn_from() -> None:
    logits, one = seeded(2, 60), torch.ones(1)
    columns = {"keys": torch.tensor([key_of(3)]), "positions": torch.tensor([5]), "temperatures": one}
    drawn = sampling.draw(logits, torch.tensor([0, 1]), top_ks=None, top_ps=None, greedy=None, **columns)
    whole = sampling.draw(
        logits, torch.tensor([0, 1]), top_ks=one.double() * NO_TOP_K, top_ps=one.double() * NO_TOP_P, greedy=one < 0,
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


@settings(max_examples=3, deadline=None)
@given(
    shares=st.sampled_from([(200, 100), (1, 0, 99)]),
    parameters=st.lists(
        st.tuples(st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([1.0, 40.0, NO_TOP_K]),
                  st.sampled_from([0.2, 0.9, NO_TOP_P]), st.booleans()), min_size=2, max_size=2,
    ),
    limited=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 99),
)  # fmt: skip
def test_devices_that_divide_the_logits_draw_what_a_cpu_draws(
    shares: tuple[int, ...], parameters: list[tuple[float, float, float, bool]], limited: tuple[bool, bool], seed: int
) -> None:
    """Also where one of the devices is a CPU: the messages are the same."""
    logits = seeded(4, sum(shares), seed=seed) * 4
    temperatures, top_ks, top_ps, greedy = (torch.tensor(column) for column in zip(*parameters, strict=True))
    target = Target(
        temperature=temperatures.float(), top_k=top_ks.double() if limited[0] else None,
        top_p=top_ps.double() if limited[1] else None, key=torch.tensor([key_of(seed), key_of(seed + 1)]),
        position=torch.tensor([7, 1 << 40]), greedy=greedy.unsqueeze(1),
    )  # fmt: skip
    chance = Draw(target=target, depths=torch.tensor([0, 3, 1, 0]), num_depths=4)
    alone = draw(logits.clone(), 0, ALONE, chance)
    for gpus in (range(len(shares)), range(1)):

        def drawn(group: Group, gpus: range = gpus) -> Tensor:
            own = logits.split(list(shares), 1)[group.rank].contiguous()
            first = sum(shares[: group.rank])
            return (_draw_on_gpu if group.rank in gpus else draw)(own.clone(), first, group, chance)

        with mock.patch.object(launch, "start", in_turn(launch.start)):
            assert all(torch.equal(tokens, alone) for tokens in together(len(shares), drawn))


def in_turn(start: Callable[..., None]) -> Callable[..., None]:
    """Return a launch for several threads, of which the interpreter runs one at a time."""
    lock = threading.Lock()

    def locked(*operands: Any, **sizes: Any) -> None:
        with lock:
            start(*operands, **sizes)

    return locked


def test_the_winner_of_a_group_is_the_highest_of_equal_ones_the_first_members() -> None:
    values = torch.tensor([[1.0, 5.0, float("-inf")], [3.0, 5.0, -7.0], [2.0, 1.0, float("-inf")]])
    tokens = torch.tensor([[10, 11, 12], [20, 21, 22], [30, 31, 32]])
    own = [divided_draws.words(value, token, 100) for value, token in zip(values, tokens, strict=True)]
    assert divided_draws.winner(torch.stack(own)).tolist() == [120, 111, 122]
