"""Drawn tokens: the processed distribution against transformers, and trees against plain sampling and exact numbers.

The rule is checked on a model that is a table: the distribution of the next token for each of the last tokens. The
distribution of its first three tokens is enumerated, with every acceptance of a tree in it.
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
from runtime.model.draw import Draw, draw, exponential, processed
from runtime.sampling import Sampling, check_sampling, sampling_of

pytestmark = pytest.mark.usefixtures("one_core")

ALONE = Group(name="test", ranks=(0,), rank=0, staged=False, handle=None)
PARAMETERS = [(0.7, None, None), (1.3, 5, None), (1.0, None, 0.8), (0.9, 20, 0.6), (2.0, 1000, 0.999), (1.0, 1, 0.5)]


def sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int = 7) -> Sampling:
    sampling = sampling_of(temperature, top_k, top_p, seed)
    assert sampling is not None
    return sampling


def warped(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities as transformers processes logits."""
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

    def live(rank: int) -> None:
        handle = object() if members > 1 else None
        out[rank] = act(
            Meeting(name="test", ranks=tuple(range(members)), rank=rank, staged=False, handle=handle)  # type: ignore[arg-type]
        )

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(members)]
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
    parts = together(len(shares), lambda group: processed(mine[group.rank].clone(), group, sampling(*parameters)))
    weights = torch.cat(parts, 1)
    expected = warped(logits, *parameters)
    assert torch.equal(weights > 0, expected > 0)
    torch.testing.assert_close(weights / weights.sum(1, keepdim=True), expected)
    chance = Draw(sampling=sampling(*parameters), position=11, depths=torch.arange(9) % 4, num_depths=4)
    alone = draw(logits.clone(), 0, ALONE, chance)
    for drawn in together(len(shares), lambda g: draw(mine[g.rank].clone(), firsts[g.rank], g, chance)):
        assert torch.equal(drawn, alone), "a divided head draws the same tokens"


def test_the_noise_is_exponential_and_a_function_of_seed_place_and_token() -> None:
    noise = exponential(3, 100, 4, 0, 50_000, torch.device("cpu")).double()
    assert noise.min() > 0
    for moment, expected in ((1, 1.0), (2, 2.0), (3, 6.0)):
        assert noise.pow(moment).mean().item() == pytest.approx(expected, rel=0.05)
    below = (noise < math.log(2)).double()
    assert below.mean().item() == pytest.approx(0.5, abs=0.005)
    neighbours = torch.corrcoef(torch.stack([below[0], below[1], below[0].roll(1)]))
    assert (neighbours - torch.eye(3)).abs().max() < 0.02
    later = exponential(3, 102, 1, 40_000, 10_000, torch.device("cpu")).double()
    assert torch.equal(later[0], noise[2, 40_000:])
    assert not torch.equal(exponential(4, 102, 1, 40_000, 10_000, torch.device("cpu")), later)


def test_one_seed_of_many_has_the_frequencies_of_the_distribution() -> None:
    """20 000 places of one seed, and 4000 seeds of one place."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5, 1.5]])
    expected = logits.softmax(1)[0]
    places = draw(
        logits.repeat(20_000, 1), 0, ALONE,
        Draw(sampling=sampling(1.0, None, None), position=0, depths=torch.arange(20_000), num_depths=20_000),
    )  # fmt: skip
    race = torch.cat([exponential(seed, 5, 1, 0, 6, torch.device("cpu")) for seed in range(4_000)])
    for drawn in (places, (expected / race).argmax(1)):
        counts = torch.bincount(drawn, minlength=6)
        assert chi_square(counts.tolist(), (expected * len(drawn)).tolist()) < limit(5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((math.nan, None, None), "temperature: found nan, expected 0 (greedy) or at least 1e-06"),
        ((1e-9, None, None), "temperature: found 1e-09, expected 0 (greedy) or at least 1e-06"),
        ((1.0, -1, None), "top_k: found -1, expected 1 to 2^63 - 1"),
        ((1.0, None, 1.5), "top_p: found 1.5, expected more than 0 and at most 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(
    parameters: tuple[float, int | None, float | None], message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        check_sampling(sampling(*parameters))
    assert str(refusal.value) == message


# ---- trees ----

DRAWS = 24_000
VOCABULARY = 4
TABLE = torch.tensor([[1.2, 0.3, -0.4, 0.0], [0.1, 0.9, 0.6, -1.0], [-0.3, 0.2, 1.1, 0.8], [0.5, -0.7, 0.4, 1.3]])
"""Logits of the next token, by the last one."""
PARENTS = torch.tensor([0, 0, 0, 1, 1, 2, 3])
"""Two children of the root, of which the first has two and the second one, and one level more."""
LEVELS = 3
FIRST = 2
"""The last token of the prompt."""


BEHIND = torch.tensor([0, 1, 3, 0, 2, 1, 3])
"""The drafted tokens, less the root: a function of it, as drafts are; siblings differ."""
SPACING = 8
"""Places of one sampling."""
Parameters = tuple[float, int | None, float | None]


def exact(parameters: Parameters) -> dict[tuple[int, ...], float]:
    """The probability of each first three tokens."""
    rows = warped(TABLE, *parameters)
    return {
        (a, b, c): float(rows[FIRST, a] * rows[a, b] * rows[b, c])
        for a, b, c in itertools.product(range(VOCABULARY), repeat=3)
    }


def drawn(parameters: Parameters, seed: int, nodes: Tensor, places: Tensor) -> Tensor:
    """A token behind each of ``nodes`` [n, N] at ``places`` [n, N], sampling i having places of its own: [n, N]."""
    apart = SPACING * torch.arange(nodes.shape[0]).unsqueeze(1) + places
    chance = Draw(
        sampling=sampling(*parameters, seed=seed),
        position=0,
        depths=apart.flatten(),
        num_depths=SPACING * nodes.shape[0],
    )
    return draw(TABLE[nodes.flatten()], 0, ALONE, chance).view(nodes.shape)


def plain(parameters: Parameters, seed: int, count: int) -> Tensor:
    """The first three tokens of ``count`` samplings [count, 3]."""
    tokens = torch.full((count, 1), FIRST)
    for place in range(3):
        tokens = torch.cat([tokens, drawn(parameters, seed, tokens[:, -1:], torch.full((count, 1), place))], 1)
    return tokens[:, 1:]


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, int], Verdict]


def with_trees(parameters: Parameters, seed: int, sampled: Tensor, rule: Rule) -> tuple[Tensor, int]:
    """Return tokens as an engine decodes them with trees, and the number of accepted drafted ones.

    ``sampled``: the tokens of ``plain``.
    """
    count = sampled.shape[0]
    parents, levels = PARENTS.expand(count, -1), LEVELS + 1
    mask = ancestors(parents, LEVELS)
    depths = mask[0].sum(1) - 1
    tokens = torch.zeros((count, 3 + levels + 1), dtype=torch.int64)
    tokens[:, :1] = sampled[:, :1]
    lengths, accepted = torch.ones((count, 1), dtype=torch.int64), 0

    while (lengths < 3).any():
        nodes = (tokens.gather(1, lengths - 1) + BEHIND) % VOCABULARY  # [count, N]
        chosen = drawn(parameters, seed, nodes, lengths + depths)
        verdict = rule(nodes, parents, mask, chosen, levels)
        more, following = verdict.accepted.unsqueeze(1), verdict.tokens
        unfinished = lengths < 3
        accepted += int((more * unfinished).sum())
        places = lengths + torch.arange(levels)
        tokens = torch.where(unfinished, tokens.scatter(1, places.clamp(max=tokens.shape[1] - 1), following), tokens)
        lengths = torch.where(unfinished, lengths + more + 1, lengths)
    return tokens[:, :3], accepted


def chi_square(counts: list[int], expected: list[float]) -> float:
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True) if mean > 0)


def limit(degrees: int) -> float:
    """Return the value that chi-square exceeds once in a million, by Wilson and Hilferty's approximation."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


def distance(outcomes: Tensor, parameters: Parameters) -> tuple[float, int]:
    """Chi-square against the exact distribution, and its degrees of freedom; impossible outcomes must not occur."""
    seen = Counter(map(tuple, outcomes.tolist()))
    table = {outcome: p for outcome, p in exact(parameters).items() if p > 0}
    assert seen.keys() <= table.keys()
    total = seen.total()
    return chi_square([seen[o] for o in table], [p * total for p in table.values()]), len(table) - 1


def first_child_for_all(tokens: Tensor, parents: Tensor, mask: Tensor, chosen: Tensor, kept: int) -> Verdict:
    """A mutation: the first child of the root is accepted when any of the root's children was drawn."""
    drawn = chosen[:, :1]
    first = torch.where((drawn == tokens[:, 1:3]).any(1, keepdim=True), tokens[:, 1:2], drawn)
    return walk(tokens, parents, mask, torch.cat([first, chosen[:, 1:]], 1), kept)


def reused_draw(tokens: Tensor, parents: Tensor, mask: Tensor, chosen: Tensor, kept: int) -> Verdict:
    """A mutation: behind the first child the draw of the root is taken again."""
    return walk(tokens, parents, mask, torch.cat([chosen[:, :1], chosen[:, :1], chosen[:, 2:]], 1), kept)


@pytest.mark.parametrize("parameters", [(1.0, None, None), (0.8, 3, 0.9)])
def test_three_tokens_with_trees_are_distributed_as_plain_sampling_and_as_they_must_be(parameters: Parameters) -> None:
    sampled = plain(parameters, 1, DRAWS)
    drafted, accepted = with_trees(parameters, 1, sampled, walk)
    assert accepted > DRAWS / 2, "trees must be accepted for this to say something"
    assert torch.equal(drafted, sampled), "one seed is one text"
    for outcomes in (drafted, plain(parameters, 2, DRAWS)):
        statistic, degrees = distance(outcomes, parameters)
        assert statistic < limit(degrees), (statistic, degrees)
    for rule in (first_child_for_all, reused_draw):
        wrong, degrees = distance(with_trees(parameters, 1, sampled, rule)[0], parameters)
        assert wrong > 2 * limit(degrees), "the check sees an acceptance with a wrong probability"
