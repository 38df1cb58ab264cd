"""Checkpoint -> plan -> images -> tokens on one device: tokens of transformers, trees of the EAGLE reference."""

import dataclasses
from pathlib import Path

import pytest
import torch

from planner.families import inputs_of
from planner.request import STATIC_PATHS
from plans import codec
from plans.check_inputs import static_tree
from plans.schema import Plan
from plans.schema import Tree as PlanTree
from runtime.processes.rank import Rank
from runtime.request import Request
from tests.contract.agreeing import LAYERS
from tests.contract.checkpoints import CHUNK, CONTEXT, KINDS, Checkpoints, compiled
from tests.contract.reference_eagle import ReferenceHead, Tree, decode
from tests.plan_factory import group, make_plan

pytestmark = pytest.mark.usefixtures("one_core")

PROMPTS = ((7,), (5, 17, 33, 2, 60), tuple(range(3, 3 + CHUNK)), tuple(range(90, 90 - 2 * CHUNK - 5, -1)))
"""Two prompts shorter than a prefill chunk, one of exactly one chunk, one of several."""
TREE = Tree(total_token=16, depth=3, top_k=4)


def whole_plan(checkpoints: Checkpoints, kind: str | None, tree: Tree = TREE) -> Plan:
    """Return a plan with everything on one device."""
    draft = checkpoints.drafts[kind] if kind else None
    return make_plan(
        checkpoints.base.model,
        [group(checkpoints.base.model, ["a"], LAYERS)],
        draft=draft.draft if draft else None,
        inputs=inputs_of(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        tree=planned(tree),
    )


def planned(tree: Tree) -> PlanTree:
    """Convert a tree of the reference to a tree of a plan."""
    if tree.paths:
        return static_tree(tree.paths)
    return PlanTree(kind="dynamic", total_token=tree.total_token, depth=tree.depth, top_k=tree.top_k, paths=None)


def ask(prompt: tuple[int, ...], count: int, *, draft: bool = True, ignore_eos: bool = True) -> Request:
    return Request(prompt_ids=prompt, max_new_tokens=count, draft=draft, ignore_eos=ignore_eos, stop=())


DYNAMIC = (
    Tree(total_token=12, depth=3, top_k=4),
    Tree(total_token=60, depth=7, top_k=10),
    Tree(total_token=4, depth=1, top_k=3),
    Tree(total_token=7, depth=5, top_k=1),
    Tree(total_token=2, depth=2, top_k=2),
)
STATIC = (
    Tree(paths=STATIC_PATHS),
    Tree(paths=((0,), (1,), (4,), (1, 0), (1, 2), (4, 0), (1, 2, 0))),
    Tree(paths=((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0))),
    Tree(paths=((0,), (1,))),
)
LEAST_STEPS = 200


@pytest.mark.parametrize(("kind", "trees"), [("eagle", STATIC), ("eagle", DYNAMIC), ("eagle3", DYNAMIC)])
def test_trees_and_accepted_lengths_are_those_of_eagle(
    kind: str, trees: tuple[Tree, ...], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    drafter, steps, deepest = ReferenceHead(checkpoints.heads[kind], checkpoints.model), 0, set()
    for number, tree in enumerate(trees):
        directory = compiled(tmp_path / str(number), whole_plan(checkpoints, kind, tree), checkpoints, kind)
        with Rank.open(codec.load(directory), directory) as engine:
            for prompt in PROMPTS[: 1 if tree.total_token > 50 else 2]:
                lengths = compare(engine, checkpoints, drafter, prompt, tree)
                steps += len(lengths)
                deepest.add(max(lengths) == tree.most_accepted)
    assert steps >= LEAST_STEPS
    assert True in deepest, "the drafters should agree more often"


def compare(
    engine: Rank, checkpoints: Checkpoints, drafter: ReferenceHead, prompt: tuple[int, ...], tree: Tree
) -> list[int]:
    """Compare drafted nodes and accepted lengths step by step; return the lengths."""
    greedy = checkpoints.greedy(prompt, CONTEXT - len(prompt))
    with torch.inference_mode():
        trees, lengths = decode(checkpoints.model, drafter, list(prompt), greedy, tree)
    steps = engine.steps(ask(prompt, 1))
    message = next(steps).message
    for expected, length in zip(trees, lengths, strict=True):
        paths: list[tuple[int, ...]] = [()]
        for node in range(1, len(message.tokens)):
            paths.append((*paths[message.parents[node]], message.tokens[node]))
        assert paths[1:] == expected
        message = next(steps).message
        assert message.accepted == length
    return lengths


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_one_device_gives_the_tokens_of_transformers(
    kind: str | None, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    directory = compiled(tmp_path / "plan", whole_plan(checkpoints, kind), checkpoints, kind)
    with Rank.open(codec.load(directory), directory) as engine:
        for prompt in PROMPTS:
            count = CONTEXT - len(prompt)
            greedy = checkpoints.greedy(prompt, count)
            for draft in (True, False):
                done = engine.generate(ask(prompt, count, draft=draft))
                assert list(done.tokens) == greedy
                assert bool(done.accept_lengths) == (draft and kind is not None)


def test_output_ends_at_eos_and_at_the_token_limit_inside_an_accepted_block(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    plan = whole_plan(checkpoints, "eagle3")
    prompt = PROMPTS[1]
    greedy = checkpoints.greedy(prompt, 60)
    directory = compiled(tmp_path / "plan", plan, checkpoints, "eagle3")
    with Rank.open(codec.load(directory), directory) as engine:
        lengths = engine.generate(ask(prompt, 60)).accept_lengths
        for count in range(1, 24):
            assert list(engine.generate(ask(prompt, count)).tokens) == greedy[:count]
    step = next(number for number, length in enumerate(lengths) if length >= 2)
    first = 1 + sum(length + 1 for length in lengths[:step])
    eos = greedy[first + 1]
    with_eos = dataclasses.replace(plan, model=dataclasses.replace(plan.model, eos_token_ids=(95, eos)))
    engine.plan = with_eos
    done = engine.generate(ask(prompt, 60, ignore_eos=False))
    assert list(done.tokens) == greedy[: greedy.index(eos) + 1]
    assert list(engine.generate(ask(prompt, 60)).tokens) == greedy
