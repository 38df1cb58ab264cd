"""Sampling: the processed distribution against transformers; trees against plain sampling and exact probabilities.

Acceptance is tested on a model that is a table: next-token logits for each last token. The exact distribution of its
first three tokens is enumerated.
"""

import dataclasses
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from runtime.comm.groups import Group
from runtime.decode.tree import ancestors
from runtime.decode.verify import Verdict, walk
from runtime.errors import RequestError
from runtime.model.draw import Draw, Target, draw, exponential, key_of, processed
from runtime.sampling import Sampling, check_sampling, sampling_of

pytestmark = pytest.mark.usefixtures("one_core")

ALONE = Group(name="test", ranks=(0,), rank=0, handle=None)
PARAMETERS = [(0.7, None, None), (1.3, 5, None), (1.0, None, 0.8), (0.9, 20, 0.6), (2.0, 1000, 0.999), (1.0, 1, 0.5)]


def sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int = 7) -> Sampling:
    sampling = sampling_of(temperature, top_k, top_p, seed)
    assert sampling is not None
    return sampling


def warped(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Return the probabilities after the logits processors of transformers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    scores: Tensor = warpers(torch.zeros((logits.shape[0], 1), dtype=torch.int64), logits)
    return scores.softmax(1)


def together(members: int, act: Callable[[Group], Tensor]) -> list[Tensor]:
    """Return what ``act`` returns on each member of a group, a thread each; their collectives meet in memory."""
    barrier, shared = threading.Barrier(members), [torch.empty(0)] * members

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Meeting(Group):
        def all_gather(self, tensor: Tensor) -> Tensor:
            shared[self.rank] = tensor
            barrier.wait(10)
            out = torch.stack(shared)
            barrier.wait(10)
            return out

        def all_reduce(self, tensor: Tensor) -> None:
            tensor.copy_(self.all_gather(tensor.clone()).sum(0))

    out = [torch.empty(0)] * members

    def run_member(rank: int) -> None:
        handle = object() if members > 1 else None
        out[rank] = act(
            Meeting(name="test", ranks=tuple(range(members)), rank=rank, handle=handle)  # type: ignore[arg-type]
        )

    threads = [threading.Thread(target=run_member, args=(rank,)) for rank in range(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return out


@pytest.mark.parametrize("shares", [(97,), (60, 37), (1, 0, 96)])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_the_processed_distribution_is_that_of_transformers(
    parameters: tuple[float, int | None, float | None], shares: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((9, 97), generator=generator) * 4
    firsts = [sum(shares[:rank]) for rank in range(len(shares))]
    mine = list(logits.split(list(shares), 1))
    target = Target.of(sampling(*parameters), 11, logits.device)
    parts = together(len(shares), lambda group: processed(mine[group.rank].clone(), group, target))
    weights = torch.cat(parts, 1)
    expected = warped(logits, *parameters)
    assert torch.equal(weights > 0, expected > 0)
    torch.testing.assert_close(weights / weights.sum(1, keepdim=True), expected)
    chance = Draw(target=target, depths=torch.arange(9) % 4, num_depths=4)
    alone = draw(logits.clone(), 0, ALONE, chance)
    for drawn in together(len(shares), lambda g: draw(mine[g.rank].clone(), firsts[g.rank], g, chance)):
        assert torch.equal(drawn, alone), "a divided lm_head draws the same tokens"


def noise_of(seed: int, position: int, positions: int, first: int, count: int) -> Tensor:
    return exponential(torch.tensor([key_of(seed) + position]), positions, first, count)


def test_the_noise_is_exponential_and_a_function_of_seed_position_and_token() -> None:
    noise = noise_of(3, 100, 4, 0, 50_000).double()
    assert noise.min() > 0
    for moment, expected in ((1, 1.0), (2, 2.0), (3, 6.0)):
        assert noise.pow(moment).mean().item() == pytest.approx(expected, rel=0.05)
    below = (noise < math.log(2)).double()
    assert below.mean().item() == pytest.approx(0.5, abs=0.005)
    neighbours = torch.corrcoef(torch.stack([below[0], below[1], below[0].roll(1)]))
    assert (neighbours - torch.eye(3)).abs().max() < 0.02
    later = noise_of(3, 102, 1, 40_000, 10_000).double()
    assert torch.equal(later[0], noise[2, 40_000:])
    assert not torch.equal(noise_of(4, 102, 1, 40_000, 10_000), later)


def test_draws_over_positions_and_over_seeds_have_the_distribution() -> None:
    """Draw at 20 000 positions with one seed, and with 4000 seeds at one position."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5, 1.5]])
    expected = logits.softmax(1)[0]
    target = Target.of(sampling(1.0, None, None), 0, logits.device)
    over_positions = draw(
        logits.repeat(20_000, 1), 0, ALONE,
        Draw(target=target, depths=torch.arange(20_000), num_depths=20_000),
    )  # fmt: skip
    race = torch.cat([noise_of(seed, 5, 1, 0, 6) for seed in range(4_000)])
    for drawn in (over_positions, (expected / race).argmax(1)):
        counts = torch.bincount(drawn, minlength=6)
        assert chi_square(counts.tolist(), (expected * len(drawn)).tolist()) < limit(5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((math.nan, None, None), "temperature: found nan, expected 0 (greedy) or at least 1e-06"),
        ((1e-9, None, None), "temperature: found 1e-09, expected 0 (greedy) or at least 1e-06"),
        ((1.0, -1, None), "top_k: found -1, expected 0 (no limit) to 2^63 - 1"),
        (
            (1.0, None, 1.5),
            "top_p: found 1.5, expected more than 0 and at most 1 (no limit); 0 only with temperature 0",
        ),
    ],
)
def test_invalid_parameters_are_refused(parameters: tuple[float, int | None, float | None], message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check_sampling(sampling(*parameters))
    assert str(refusal.value) == message


# ---- trees ----

DRAWS = 24_000
VOCABULARY = 4
TABLE = torch.tensor([[1.2, 0.3, -0.4, 0.0], [0.1, 0.9, 0.6, -1.0], [-0.3, 0.2, 1.1, 0.8], [0.5, -0.7, 0.4, 1.3]])
"""Logits of the next token, per last token."""
PARENTS = torch.tensor([0, 0, 0, 1, 1, 2, 3])
"""A tree: the root has two children, the first has two children, the second one; one node is a level deeper."""
LEVELS = 3
FIRST = 2
"""The last token of the prompt."""


DRAFTED_OFFSETS = torch.tensor([0, 1, 3, 0, 2, 1, 3])
"""Drafted tokens minus the root's token, modulo the vocabulary; siblings differ."""
SPACING = 8
"""Positions reserved for one sampling."""
Parameters = tuple[float, int | None, float | None]


def exact(parameters: Parameters) -> dict[tuple[int, ...], float]:
    """Return the probability of each triple of first tokens."""
    rows = warped(TABLE, *parameters)
    return {
        (a, b, c): float(rows[FIRST, a] * rows[a, b] * rows[b, c])
        for a, b, c in itertools.product(range(VOCABULARY), repeat=3)
    }


def drawn(parameters: Parameters, seed: int, nodes: Tensor, positions: Tensor) -> Tensor:
    """Draw the token after each of ``nodes`` [n, N] at ``positions`` [n, N]; row i has its own range of positions."""
    separate = SPACING * torch.arange(nodes.shape[0]).unsqueeze(1) + positions
    chance = Draw(
        target=Target.of(sampling(*parameters, seed=seed), 0, nodes.device),
        depths=separate.flatten(),
        num_depths=SPACING * nodes.shape[0],
    )
    return draw(TABLE[nodes.flatten()], 0, ALONE, chance).view(nodes.shape)


def plain(parameters: Parameters, seed: int, count: int) -> Tensor:
    """Draw the first three tokens of ``count`` samplings [count, 3] without trees."""
    tokens = torch.full((count, 1), FIRST)
    for position in range(3):
        tokens = torch.cat([tokens, drawn(parameters, seed, tokens[:, -1:], torch.full((count, 1), position))], 1)
    return tokens[:, 1:]


Rule = Callable[[Tensor, Tensor, Tensor, int], Verdict]


def with_trees(parameters: Parameters, seed: int, sampled: Tensor, rule: Rule) -> tuple[Tensor, int]:
    """Decode three tokens with trees, as an engine does; return them and the number of accepted drafted tokens.

    ``sampled``: tokens of ``plain``, of which the first is taken.
    """
    count = sampled.shape[0]
    parents, levels = PARENTS.expand(count, -1), LEVELS + 1
    mask = ancestors(parents, LEVELS)
    depths = mask[0].sum(1) - 1
    tokens = torch.zeros((count, 3 + levels + 1), dtype=torch.int64)
    tokens[:, :1] = sampled[:, :1]
    lengths, accepted = torch.ones((count, 1), dtype=torch.int64), 0

    while (lengths < 3).any():
        nodes = (tokens.gather(1, lengths - 1) + DRAFTED_OFFSETS) % VOCABULARY  # [count, N]
        chosen = drawn(parameters, seed, nodes, lengths + depths)
        verdict = rule(nodes, parents, chosen, levels)
        more, following = verdict.accepted.unsqueeze(1), verdict.tokens
        unfinished = lengths < 3
        accepted += int((more * unfinished).sum())
        positions = lengths + torch.arange(levels)
        tokens = torch.where(unfinished, tokens.scatter(1, positions.clamp(max=tokens.shape[1] - 1), following), tokens)
        lengths = torch.where(unfinished, lengths + more + 1, lengths)
    return tokens[:, :3], accepted


def chi_square(counts: list[int], expected: list[float]) -> float:
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True) if mean > 0)


def limit(degrees: int) -> float:
    """Return the value that chi-square exceeds once in a million, by Wilson and Hilferty's approximation."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


def distance(outcomes: Tensor, parameters: Parameters) -> tuple[float, int]:
    """Return chi-square against the exact distribution and its degrees of freedom; no outcome may be impossible."""
    seen = Counter(map(tuple, outcomes.tolist()))
    table = {outcome: p for outcome, p in exact(parameters).items() if p > 0}
    assert seen.keys() <= table.keys()
    total = seen.total()
    return chi_square([seen[o] for o in table], [p * total for p in table.values()]), len(table) - 1


def first_child_for_all(tokens: Tensor, parents: Tensor, chosen: Tensor, kept: int) -> Verdict:
    """Wrong rule: accept the root's first child if any of its children was drawn."""
    drawn = chosen[:, :1]
    first = torch.where((drawn == tokens[:, 1:3]).any(1, keepdim=True), tokens[:, 1:2], drawn)
    return walk(tokens, parents, torch.cat([first, chosen[:, 1:]], 1), kept)


def reused_draw(tokens: Tensor, parents: Tensor, chosen: Tensor, kept: int) -> Verdict:
    """Wrong rule: reuse the draw of the root after its first child."""
    return walk(tokens, parents, torch.cat([chosen[:, :1], chosen[:, :1], chosen[:, 2:]], 1), kept)


@pytest.mark.parametrize("parameters", [(1.0, None, None), (0.8, 3, 0.9)])
def test_tokens_with_trees_equal_plain_sampling_and_have_the_exact_distribution(parameters: Parameters) -> None:
    sampled = plain(parameters, 1, DRAWS)
    drafted, accepted = with_trees(parameters, 1, sampled, walk)
    assert accepted > DRAWS / 2, "many drafted tokens must be accepted, or the test proves nothing"
    assert torch.equal(drafted, sampled), "the same seed gives the same text"
    for outcomes in (drafted, plain(parameters, 2, DRAWS)):
        statistic, degrees = distance(outcomes, parameters)
        assert statistic < limit(degrees), (statistic, degrees)
    for rule in (first_child_for_all, reused_draw):
        wrong, degrees = distance(with_trees(parameters, 1, sampled, rule)[0], parameters)
        assert wrong > 2 * limit(degrees), "the test detects wrong acceptance rules"
