"""The choice of the draft tree against solving every tree of the grid, and the bounds by which trees are excluded."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.costs.acceptance import expected_ppm
from planner.costs.shares import DraftShares
from planner.enough_hosts import on_hosts, takes_longer_on_all
from planner.errors import NotProvenError
from planner.problem.formulate import Formulation
from planner.problem.placed import base_ns, plain_step_ns
from planner.solver.blocks import TAIL
from planner.solver.minimise import Settings
from planner.solver.solve import LeastStep
from planner.speculation.choose import choose
from planner.speculation.compare import least_step_of
from planner.speculation.draft_bound import least_draft_ns
from planner.speculation.grid import contains, drafted, no_less, trees_of, undominated
from planner.speculation.profiles import SHIPPED, shipped_profile
from plans import codec
from plans.acceptance import PPM, load_profile
from plans.schema import Tree
from tests.planner.instances import ROOT, cpu, demo, formulation, gpu, host
from tests.planner.machines import random_machine

EAGLE3 = load_profile(SHIPPED / "eagle3.yaml", inside=False)
MACHINES: dict[str, dict[str, Any]] = {
    "one CPU": {"hosts": [host("a", cpu("a0", 256))]},
    "two unlike GPUs": {"hosts": [host("a", gpu("g0", 40_000), gpu("g1", 40_000, bandwidth="50 GB/s"))]},
    "two slow GPUs on two hosts": {
        "hosts": [host(name, gpu(f"{name}0", 40_000, bandwidth="5 GB/s")) for name in "ab"],
        "network": {"class": "ethernet", "latency": "10 us"},
    },
}


def with_tree(formulated: Formulation) -> Callable[[Tree | None], Formulation]:
    def of(tree: Tree | None) -> Formulation:
        options = dataclasses.replace(formulated.options, tree=tree)
        return dataclasses.replace(formulated, options=options, draft=formulated.draft if tree else None)

    return of


least = least_step_of(Settings())


def solved(formulated: Formulation) -> LeastStep | None:
    return least(formulated)[1]


def longer(formulated: Formulation, step_ns: int) -> bool:
    return takes_longer_on_all(formulated, step_ns, Settings())


def asked(machine: dict[str, Any]) -> Formulation:
    return formulation(machine, "eagle3")


@pytest.mark.parametrize("machine", [*MACHINES, 0, 1, 3, 5])
def test_is_the_best_of_all_trees_solved(machine: str | int) -> None:
    """On machines above and on random ones; with windows and short chunks the base's work depends on kept nodes too."""
    rng = random.Random(machine)
    listed = MACHINES[machine] if isinstance(machine, str) else random_machine(rng, 2, 3, 40_000)
    formulated = asked(listed)
    if isinstance(machine, int):
        options = dataclasses.replace(formulated.options, prefill_chunk=rng.choice((2, 512)), batch=rng.choice((1, 4)))
        formulated = dataclasses.replace(formulated, options=options)
    assert formulated.draft is not None
    of, trees = with_tree(formulated), list(trees_of(formulated.draft, formulated.options.batch))
    trees = trees[::3] if isinstance(machine, str) else rng.sample(trees, 6)
    choice = choose(of, trees, EAGLE3, least, longer)
    assert choice is not None
    speeds = {}
    for tree in (None, *trees):
        every = solved(of(tree))
        if every is not None:
            speeds[tree] = (PPM if tree is None else expected_ppm(EAGLE3, tree)) / every.least_ns
    assert choice.best.acceptance_ppm / choice.best.least_ns == pytest.approx(max(speeds.values()), rel=1e-12)
    assert choice.solved < len(trees), "some trees are excluded by bounds"


def test_bounds_are_below_what_is_solved() -> None:
    """V + D with the drafter's bound over all sets, with its own, and with that of any whose drafter does no more."""
    rng = random.Random(3)
    for machine in MACHINES.values():
        formulated = asked(machine)
        assert formulated.draft is not None
        of, drafters = with_tree(formulated), {}
        for tree in rng.sample(list(trees_of(formulated.draft, 1)), 4):
            whole = of(tree)
            every = solved(whole)
            assert every is not None
            assert whole.draft is not None
            shares = DraftShares(model=whole.model, draft=whole.draft, options=whole.options)
            few = on_hosts(whole, 1)
            drafters[tree] = few.in_use.block_ns(TAIL)
            rows_ns = few.base_in_use.least_ns(1)
            assert rows_ns + drafters[tree] == pytest.approx(few.in_use.least_ns(1))
            assert 0 < least_draft_ns(shares, whole.usable) <= drafters[tree] * 1.0001
            for other, draft_ns in drafters.items():
                if no_less(drafted(tree), drafted(other)):
                    assert rows_ns + draft_ns <= every.least_ns * 1.0001


def test_a_drafter_does_no_more_for_more_nodes_that_are_not_kept() -> None:
    formulated = asked(MACHINES["two unlike GPUs"])
    trees = [Tree(kind="dynamic", total_token=nodes, depth=3, top_k=6, paths=None) for nodes in (5, 16, 60)]
    drafters = [with_tree(formulated)(tree).in_use.block_ns(TAIL) for tree in trees]
    assert len({drafted(tree) for tree in trees}) == len(set(drafters)) == 1


def test_steps_grow_with_every_number_of_the_tree() -> None:
    of, least = with_tree(asked(MACHINES["two unlike GPUs"])), {}
    for nodes, depth, top_k in ((2, 0, 1), (4, 2, 1), (8, 2, 3), (16, 4, 3), (16, 4, 6)):
        tree = Tree(kind="dynamic", total_token=nodes, depth=depth, top_k=top_k, paths=None)
        every = solved(of(tree))
        assert every is not None
        least[tree] = every.least_ns
    for larger, longer in least.items():
        for smaller, shorter in least.items():
            assert not contains(larger, smaller) or longer >= shorter


def test_no_tree_is_left_out_that_may_be_the_best() -> None:
    draft = asked(MACHINES["one CPU"]).draft
    assert draft is not None
    trees = list(trees_of(draft, 1))
    kept = undominated(trees, lambda tree: expected_ppm(EAGLE3, tree))
    assert len(kept) < len(trees)
    for tree in trees:
        expected = expected_ppm(EAGLE3, tree)
        assert any(contains(tree, other) and expected_ppm(EAGLE3, other) >= expected for other in kept)


def test_the_first_search_past_its_limit_ends_the_choice() -> None:
    formulated = asked(MACHINES["one CPU"])
    assert formulated.draft is not None
    asked_for = []

    def open_at(number: int) -> Callable[[Formulation], tuple[Formulation, LeastStep | None]]:
        def solve_some(part: Formulation) -> tuple[Formulation, LeastStep | None]:
            asked_for.append(part.options.tree)
            if len(asked_for) == number:
                raise NotProvenError("open", objective_ns=2, bound_ns=1)
            return least(part)

        return solve_some

    for number in (1, 2):
        asked_for.clear()
        with pytest.raises(NotProvenError, match="open"):
            choose(with_tree(formulated), trees_of(formulated.draft, 1), EAGLE3, open_at(number), longer)
        assert len(asked_for) == number


def test_a_question_past_its_limit_does_not_end_the_choice() -> None:
    formulated = asked(yaml.safe_load((ROOT / "inventory.yaml").read_text()))
    assert formulated.draft is not None
    of, trees, questions = with_tree(formulated), list(trees_of(formulated.draft, 1))[::2], []

    def undecided(part: Formulation, step_ns: int) -> bool:
        questions.append(part)
        raise NotProvenError("open")

    found, expected = choose(of, trees, EAGLE3, least, undecided), choose(of, trees, EAGLE3, least, longer)
    assert questions
    assert found is not None
    assert expected is not None
    assert (found.best.tree, found.best.least_ns) == (expected.best.tree, expected.best.least_ns)


def test_nothing_fits() -> None:
    formulated = asked({"hosts": [host("a", gpu("g0", 500))]})
    assert formulated.draft is not None
    assert choose(with_tree(formulated), trees_of(formulated.draft, 1), EAGLE3, least, longer) is None


@pytest.mark.parametrize("name", sorted(file.parent.name for file in (ROOT / "plans").glob("*/plan.yaml")))
def test_a_placement_is_priced_as_it_was_solved(name: str) -> None:
    plan = codec.load(Path(ROOT / "plans" / name))
    drafter_ns = plan.draft_placement.predicted_ns if plan.draft_placement else 0
    step_ns = base_ns(plan, plan.options, plan.draft) + drafter_ns
    assert step_ns == plan.proof.objective_ns
    assert plain_step_ns(plan) < plan.proof.objective_ns


def test_shipped_profiles_are_of_their_kinds() -> None:
    draft = demo("eagle3")[1]
    assert draft is not None
    assert shipped_profile(draft.draft) == EAGLE3
    assert load_profile(SHIPPED / "eagle.yaml", inside=False).drafter == "eagle"
