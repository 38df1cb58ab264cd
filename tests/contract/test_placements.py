"""Checkpoint -> plan -> images -> tokens: on every placement the tokens of transformers.

Most ranks are threads here; a few placements run as real processes too.
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planner.families import inputs_of
from planner.request import STATIC_PATHS
from plans.check_inputs import static_tree
from plans.schema import Draft, DraftPlacement, KvAxis, Model, Plan, Run, Tree
from runtime import Engine
from tests.contract.agreeing import DRAFT_HEAD_DIM, DRAFT_HEADS, DRAFT_KV_HEADS, HEAD_DIM, HEADS, KV_HEADS, LAYERS
from tests.contract.checkpoints import CHUNK, CONTEXT, Checkpoints, compiled
from tests.contract.ranks import Decoded, decoded
from tests.plan_factory import Group, even, group, make_plan, shared_draft, split_draft

pytestmark = pytest.mark.usefixtures("one_core")

PROMPTS = ((7,), (5, 17, 33, 2, 60), tuple(range(3, 3 + CHUNK)), tuple(range(90, 90 - 2 * CHUNK - 5, -1)))
"""Two prompts shorter than a prefill chunk, one of exactly one chunk, one of several."""
TREE = Tree(kind="dynamic", total_token=16, depth=3, top_k=4, paths=None)
OTHER_TREES = (
    Tree(kind="dynamic", total_token=5, depth=4, top_k=1, paths=None),
    static_tree(STATIC_PATHS),
    static_tree(((0,), (1,), (4,), (1, 0), (1, 2), (4, 0), (1, 2, 0))),
    static_tree(((0,), (1,))),
)


def _run(layers: int, kv_heads: tuple[int, ...], mlp_units: tuple[int, ...]) -> Run:
    return Run(num_layers=layers, kv_heads=kv_heads, mlp_units=mlp_units)


def placed(name: str, checkpoints: Checkpoints) -> tuple[Plan, str | None]:
    """Return the plan of a placement, and the kind of its drafter."""
    model = checkpoints.base.model
    units = model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit
    assert units >= 4, units
    tp = (units - units // 4, units // 4)
    vocabulary = model.vocab_size
    uneven = (
        Group(devices=("d", "a"), runs=(_run(2, (3, 1), tp), _run(1, (1, 3), tp[::-1]))),
        Group(devices=("c", "b"), runs=(_run(5, (3, 1), (0, units)),)),
    )
    eagle, eagle3 = checkpoints.drafts["eagle"].draft, checkpoints.drafts["eagle3"].draft
    sharing = Run(num_layers=8, kv_heads=(KV_HEADS,) * 2, mlp_units=even(units, 2))

    def shared(axis: KvAxis) -> list[Group]:
        return [Group(devices=("b", "a"), runs=(sharing,), axis=axis, subgroups=(2,))]

    table: dict[str, Any] = {
        "two stages": ([group(model, ["b"], 3), group(model, ["a"], 5)], "eagle3", None, {}),
        "tensor parallel, equal": ([group(model, ["a", "b"], 8)], "eagle3", None, {}),
        "tensor parallel, unequal, head of the base": (
            [Group(devices=("b", "a"), runs=(_run(8, (3, 1), tp),))],
            "eagle",
            split_draft(model, eagle, ("b", "a")),
            {"embed_rows": (vocabulary, 0), "head_rows": (1, vocabulary - 1)},
        ),
        "two unequal stages, draft split": (
            uneven,
            "eagle3",
            split_draft(model, eagle3, ("d", "b")),
            {"embed_rows": (40, 56), "head_rows": (96, 0)},
        ),
        "draft alone on a device": ([group(model, ["a"], 8)], "eagle3", split_draft(model, eagle3, ("b",)), {}),
        "two unequal stages, eagle, draft whole": (uneven, "eagle", split_draft(model, eagle, ("c",)), {}),
        "plain": (uneven, None, None, {}),
        "tables on each other's stage": (
            [group(model, ["a"], 3), group(model, ["b"], 5)],
            "eagle3",
            split_draft(model, eagle3, ("b",)),
            {"embed": ["b"], "head": ["a"]},
        ),
        "tables on devices without layers, draft with the head": (
            [group(model, ["b", "a"], 8)],
            "eagle3",
            None,
            {"embed": ["c"], "head": ["d"]},
        ),
        "tables on devices without layers, draft with the embedding": (
            [group(model, ["a"], 8)],
            "eagle",
            split_draft(model, eagle, ("c", "b")),
            {"embed": ["c", "b"], "head": ["b"]},
        ),
        "tables on one of the stage, the leader and the other": (
            [group(model, ["a", "b"], 8)],
            "eagle3",
            split_draft(model, eagle3, ("a", "b")),
            {"embed": ["b"], "head": ["a"]},
        ),
        "tables on one of the stage, the other and the leader": (
            [group(model, ["a", "b"], 8)],
            "eagle",
            None,
            {"embed": ["a"], "head": ["b"]},
        ),
        "tables on more than the stages": (
            [group(model, ["b"], 3), group(model, ["a"], 5)],
            "eagle3",
            split_draft(model, eagle3, ("d",)),
            {"embed": ["c", "b"], "head": ["b", "c", "a"], "embed_rows": (1, vocabulary - 1)},
        ),
        "tables on the stage in another order": (
            [group(model, ["a", "b"], 8)],
            "eagle3",
            split_draft(model, eagle3, ("a", "c")),
            {"embed": ["b", "a"], "head": ["b", "a"]},
        ),
        "all tables on all devices": (
            uneven,
            "eagle",
            split_draft(model, eagle, ("b", "c", "d", "a")),
            {"embed": ["a", "b", "c", "d"], "head": ["b", "c", "d", "a"], "head_rows": (30, 0, 2, vocabulary - 32)},
        ),
        "divided by context": (
            shared("context"),
            "eagle3",
            shared_draft(model, eagle3, ("a", "c", "b"), "context", (1, 2), (1, 3)),
            {},
        ),
        "divided by head_dim": (
            shared("head_dim"),
            "eagle",
            shared_draft(model, eagle, ("b", "a"), "head_dim", (2,), (4,)),
            {"head": ["a"]},
        ),
        "divided by batch": (
            shared("batch"),
            "eagle3",
            shared_draft(model, eagle3, ("c", "b", "a"), "batch", (2, 1), (3, 1)),
            {"batch": 2},
        ),
        "repeated heads, draft on more devices than it has KV heads": (
            shared("heads"),
            "eagle3",
            shared_draft(model, eagle3, ("e", "a", "d", "b", "c", "f"), "heads", (2, 1, 1, 2), (1, 1, 1, 1)),
            {"embed": ["a"]},
        ),
        "plain, tables elsewhere": (uneven, None, None, {"embed": ["c", "e"], "head": ["a", "e"]}),
    }
    groups, kind, placement, rows = table[name]
    draft = checkpoints.drafts[kind] if kind else None
    plan = make_plan(
        model,
        groups,
        draft=draft.draft if draft else None,
        placement=placement,
        inputs=inputs_of(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        tree=TREE,
        **rows,
    )
    return plan, kind


@pytest.mark.parametrize(
    "name",
    [
        "two stages",
        "tensor parallel, equal",
        "tensor parallel, unequal, head of the base",
        "draft alone on a device",
        "two unequal stages, eagle, draft whole",
        "plain",
        "tables on each other's stage",
        "tables on devices without layers, draft with the head",
        "tables on devices without layers, draft with the embedding",
        "tables on one of the stage, the leader and the other",
        "tables on one of the stage, the other and the leader",
        "tables on the stage in another order",
        "all tables on all devices",
        "plain, tables elsewhere",
        "divided by context",
        "divided by head_dim",
        "divided by batch",
        "repeated heads, draft on more devices than it has KV heads",
    ],
)
def test_every_placement_gives_the_tokens_of_transformers(name: str, alone: "Alone", tmp_path: Path) -> None:
    plan, kind = placed(name, alone.checkpoints)
    check(plan, compiled(tmp_path / "plan", plan, alone.checkpoints, kind), kind, alone, PROMPTS[1::2], 24)


Together = tuple[tuple[int, ...], ...]


class Alone:
    """Results of drafters on one device, by prompts and tree."""

    def __init__(self, checkpoints: Checkpoints, directory: Path) -> None:
        self.checkpoints, self._directory = checkpoints, directory
        self._known: dict[tuple[object, ...], Decoded] = {}

    def decoded(self, plan: Plan, kind: str, together: Together, counts: list[int]) -> Decoded:
        """Return the result for prompts that are decoded together, with the batch and the tree of ``plan``."""
        model, tree, batch = plan.model, plan.options.tree, plan.options.batch
        key = (kind, tree, batch, together, tuple(counts))
        if key not in self._known:
            assert tree is not None
            one = make_plan(
                model,
                [group(model, ["a"], LAYERS)],
                draft=plan.draft,
                inputs=plan.inputs,
                context=CONTEXT,
                prefill_chunk=CHUNK,
                tree=tree,
                batch=batch,
            )
            directory = compiled(self._directory / str(len(self._known)), one, self.checkpoints, kind)
            self._known[key] = decoded(one, directory, together, counts, draft=True)[0]
        return self._known[key]


@pytest.fixture(scope="module")
def alone(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(checkpoints, tmp_path_factory.mktemp("alone"))


def check(plan: Plan, directory: Path, kind: str | None, alone: Alone, prompts: Together, most: int) -> None:
    """Assert that every rank decodes the tokens of transformers, in batches of the plan, with and without drafting.

    The trees of a divided drafter must be those that it drafts on one device.
    """
    batch = plan.options.batch
    for start in range(0, len(prompts), batch):
        together = prompts[start : start + batch]
        counts = [min(most + 3 * number, CONTEXT - len(prompt)) for number, prompt in enumerate(together)]
        expected = [alone.checkpoints.greedy(prompt, count) for prompt, count in zip(together, counts, strict=True)]
        for draft in (True, False):
            for rank, result in enumerate(decoded(plan, directory, together, counts, draft=draft)):
                assert result.tokens == expected, (rank, draft)
                if kind and draft:
                    assert result.trees == alone.decoded(plan, kind, together, counts).trees, rank
                line = plan.memory[rank]
                assert all(count <= getattr(line, f"{term}_bytes") for term, count in result.measured.items())


@pytest.mark.parametrize(
    "name", ["two unequal stages, draft split", "tables on more than the stages", "divided by context"]
)
def test_processes_give_the_tokens_of_transformers(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    plan, kind = placed(name, checkpoints)
    directory = compiled(tmp_path / "plan", plan, checkpoints, kind)
    with Engine.open(directory) as engine:
        done = [
            engine.generate(prompt, max_new_tokens=24, draft=draft, ignore_eos=True)
            for prompt in PROMPTS[1::2]
            for draft in (True, False)
        ]
    for generation in done:
        assert list(generation.tokens) == checkpoints.greedy(generation.prompt_ids, 24)
    assert max(max(generation.accept_lengths, default=0) for generation in done) >= 2
    for device in done[-1].devices:
        for term, measured in device.measured_bytes.items():
            assert measured <= device.planned_bytes[term], device.device


# ---- placements drawn at random ----

NAMES = ("a", "b", "c", "d", "e", "f")


@st.composite
def parts(draw: st.DrawFn, total: int, count: int, least: int) -> tuple[int, ...]:
    """Draw ``count`` shares of a total, none below ``least``."""
    rest = total - least * count
    cuts = sorted(draw(st.lists(st.integers(0, rest), min_size=count - 1, max_size=count - 1)))
    return tuple(least + stop - start for start, stop in zip([0, *cuts], [*cuts, rest], strict=True))


@st.composite
def divisions(
    draw: st.DrawFn, count: int, queries: int, kv_heads: int, pairs: int, batch: int
) -> tuple[KvAxis, tuple[int, ...]]:
    """Draw a division of KV heads over ``count`` devices: an axis, and sizes of subgroups."""
    axis: KvAxis = draw(st.sampled_from(["heads", "heads", "context", "head_dim", "batch"]))
    allowed = {
        "heads": [size for size in (1, 2, 4) if queries % size == 0],
        "context": [1, 2, 3, 4],
        "head_dim": [size for size in (1, 2, 4) if pairs % size == 0],
        "batch": list(range(1, batch + 1)),
    }[axis]
    several = [] if draw(st.booleans()) and axis == "heads" else [size for size in allowed if 1 < size <= count]
    sizes: list[int] = [draw(st.sampled_from(several))] if several else []
    while sum(sizes) < count:
        left = [size for size in allowed if size <= count - sum(sizes)]
        sizes.append(draw(st.sampled_from(left if len(sizes) < kv_heads - 1 else left[-1:])))
    if len(sizes) > kv_heads or max(sizes) == 1:
        return ("heads", (1,) * count) if count <= kv_heads else ("context", (count,))
    return axis, tuple(sizes)


@st.composite
def drafter_placements(
    draw: st.DrawFn, model: Model, draft: Draft, devices: tuple[str, ...], batch: int
) -> DraftPlacement:
    """Draw a placement of the drafter over these devices, with any division of its KV heads."""
    queries = DRAFT_HEADS // DRAFT_KV_HEADS
    axis, sizes = draw(divisions(len(devices), queries, DRAFT_KV_HEADS, DRAFT_HEAD_DIM // 2, batch))
    return shared_draft(model, draft, devices, axis, sizes, draw(parts(DRAFT_KV_HEADS, len(sizes), 1)))


@st.composite
def stages(draw: st.DrawFn, layers: int, units: int, devices: tuple[str, ...], batch: int) -> Group:
    """Draw a stage: an axis, subgroups, and one or two runs of layers."""
    axis, sizes = draw(divisions(len(devices), HEADS // KV_HEADS, KV_HEADS, HEAD_DIM // 2, batch))
    first = draw(st.integers(1, layers))
    runs = []
    for count in (first, layers - first):
        if count:
            kv_heads = draw(parts(KV_HEADS, len(sizes), 1))
            by_device = tuple(share for share, size in zip(kv_heads, sizes, strict=True) for _ in range(size))
            runs.append(Run(num_layers=count, kv_heads=by_device, mlp_units=draw(parts(units, len(devices), 0))))
    return Group(devices=devices, runs=tuple(runs), axis=axis, subgroups=sizes)


@st.composite
def plans(draw: st.DrawFn, checkpoints: Checkpoints) -> tuple[Plan, str | None]:
    """Draw a placement of the base and a drafter on up to six devices."""
    model = checkpoints.base.model
    units = model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit
    batch = draw(st.integers(1, 3))
    names = draw(st.permutations(NAMES))
    count = draw(st.sampled_from([1, 1, 2, 2, 3, 4]))
    sizes = tuple(min(size, 4) for size in draw(parts(draw(st.integers(count, 5)), count, 1)))
    layers = draw(parts(LAYERS, count, 1))
    starts = [sum(sizes[:number]) for number in range(count)]
    groups = [
        draw(stages(some, units, tuple(names[start : start + size]), batch))
        for some, start, size in zip(layers, starts, sizes, strict=True)
    ]

    def members(most: int) -> tuple[str, ...]:
        return tuple(draw(st.permutations(names[: sum(sizes) + 1]))[: draw(st.integers(1, most))])

    embed, head = (
        draw(st.sampled_from([groups[0].devices, members(3)])),
        draw(st.sampled_from([members(3), groups[-1].devices])),
    )
    kind = draw(st.sampled_from(["eagle3", "eagle", None]))
    draft = checkpoints.drafts[kind] if kind else None
    placement = None
    if draft is not None:
        on = draw(st.sampled_from([head, embed, members(6)]))
        placement = draw(drafter_placements(model, draft.draft, on, batch))
    plan = make_plan(
        model,
        groups,
        draft=draft.draft if draft else None,
        placement=placement,
        inputs=inputs_of(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        tree=draw(st.sampled_from([TREE, *OTHER_TREES])),
        batch=batch,
        embed=embed,
        head=head,
        embed_rows=draw(parts(model.vocab_size, len(embed), 0)),
        head_rows=draw(parts(model.vocab_size, len(head), 0)),
    )
    return plan, kind


@settings(
    max_examples=12,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_any_placement_gives_the_tokens_of_transformers(
    data: st.DataObject, alone: Alone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan, kind = data.draw(plans(alone.checkpoints))
    directory = compiled(tmp_path_factory.mktemp("any") / "plan", plan, alone.checkpoints, kind)
    check(plan, directory, kind, alone, PROMPTS[4 - plan.options.batch :], 12)
