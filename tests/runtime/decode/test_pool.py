"""Drafts compared with the text: by hand, and against the accepted lengths of the same steps."""

import dataclasses
import math
from pathlib import Path

import pytest

from runtime.commands.profile import profile_of
from runtime.decode.pool import Pool, compared
from runtime.engine import Engine
from runtime.errors import RequestError
from runtime.request import check_request, fingerprint
from tests.runtime.small import compiled_plan

pytestmark = pytest.mark.usefixtures("one_core")

#        root ─┬─ 7 ─┬─ 5      the children of 7 and of 8 are known, those of deeper nodes are not
#              └─ 8  └─ 6
POOL = Pool(
    tokens=[7, 8, 5, 6, 1, 2],
    scores=[math.log(p) for p in (0.6, 0.3, 0.4, 0.1, 0.2, 0.05)],
    parents=[-1, -1, 0, 0, 1, 1],
    nodes=4,
)


@pytest.mark.parametrize(
    ("following", "nodes", "ranks", "missed", "committed"),
    [
        ([7, 6, 3], 4, (0, 1), False, 2),  # 6 is no node of the three best, and its children are not known
        ([7, 6, 3], 7, (0, 1), False, 3),
        ([8, 9], 4, (1,), True, 2),
        ([9], 4, (), True, 1),
        ([7], 4, (0,), False, 2),  # the text ends
        ([], 4, (), False, 1),
    ],
)
def test_walks_along_the_text(
    following: list[int], nodes: int, ranks: tuple[int, ...], missed: bool, committed: int
) -> None:
    drafted = compared(dataclasses.replace(POOL, nodes=nodes), following)
    assert (drafted.ranks, drafted.missed, drafted.committed) == (ranks, missed, committed)


def test_confidence_is_the_probability_of_the_nodes_of_the_tree() -> None:
    assert compared(POOL, [7]).confidence == pytest.approx(0.6 + 0.4 + 0.3)


@pytest.mark.parametrize("devices", [("a",), ("a", "b")])
def test_recorded_drafts_are_those_of_the_steps(devices: tuple[str, ...], tmp_path: Path) -> None:
    directory, plan = compiled_plan(tmp_path, devices)
    with Engine.open(directory) as engine:
        request = engine.request([1, 2, 3], max_new_tokens=24, ignore_eos=True)
        plain = engine.serve(request).finished()
        recorded = engine.serve(dataclasses.replace(request, recorded=True)).finished()
        of_ranks = [completion.drafts for completion in engine.completions]
    assert recorded.tokens == plain.tokens
    assert recorded.accept_lengths == plain.accept_lengths
    (drafts,) = filter(None, of_ranks)
    # the last step may have accepted more than was wanted
    assert [d.committed for d in drafts[:-1]] == [length + 1 for length in plain.accept_lengths[:-1]]
    profile = profile_of(plan, list(drafts), prompts=1, tokens=len(plain.tokens))
    assert sum(context.levels[0].nodes for context in profile.contexts) <= len(drafts)


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    directory, plan = compiled_plan(tmp_path)
    with Engine.open(directory) as engine:
        request = dataclasses.replace(engine.request([1], max_new_tokens=4), recorded=True)
    assert fingerprint(request) != fingerprint(dataclasses.replace(request, recorded=False))
    with pytest.raises(RequestError, match="recorded: nothing is drafted"):
        check_request(plan, dataclasses.replace(request, draft=False))
    with pytest.raises(RequestError, match="recorded: expected greedy decoding"):
        check_request(plan, dataclasses.replace(request, accept=1))
