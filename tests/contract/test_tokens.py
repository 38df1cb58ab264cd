"""Checkpoint -> plan -> images -> tokens: on every placement the tokens of transformers, and the trees of EAGLE."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from planner.compile import compile_plan
from planner.families import BaseInput, DraftInput, load_base, load_draft
from plans import codec
from plans.schema import Inputs, Plan, Run
from plans.schema import Tree as PlanTree
from runtime.engine import Rank
from runtime.launch import Event, run
from runtime.request import Completion, Request
from tests.contract.agreeing import LAYERS, write_agreeing_base, write_agreeing_head
from tests.contract.reference_eagle import ReferenceHead, Tree, decode
from tests.plan_factory import Group, group, make_plan, split_draft

pytestmark = pytest.mark.usefixtures("one_core")

CONTEXT = 80
CHUNK = 16
PROMPTS = ((7,), (5, 17, 33, 2, 60), tuple(range(3, 3 + CHUNK)), tuple(range(90, 90 - 2 * CHUNK - 5, -1)))
"""Shorter than a chunk, of one chunk, and longer."""
TREE = Tree(total_token=16, depth=3, top_k=4)
KINDS = ("eagle3", "eagle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """A base and a head of each kind, as files, as the planner reads them, and as transformers does."""

    base_dir: Path
    heads: dict[str, Path]
    base: BaseInput
    drafts: dict[str, DraftInput]
    model: LlamaForCausalLM

    def greedy(self, prompt: tuple[int, ...], count: int) -> list[int]:
        """What transformers generates."""
        out = self.model.generate(torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    directory = tmp_path_factory.mktemp("checkpoints")
    base_dir = write_agreeing_base(directory / "base", noise=0.04)
    heads = {kind: write_agreeing_head(directory / kind, base_dir, kind=kind, noise=0.03) for kind in KINDS}
    base = load_base(base_dir)
    drafts = {kind: load_draft(head, base) for kind, head in heads.items()}
    model = LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    return Checkpoints(base_dir=base_dir, heads=heads, base=base, drafts=drafts, model=model.requires_grad_(False))


def inputs(base: BaseInput, draft: DraftInput | None) -> Inputs:
    return Inputs(
        base_config_sha256=base.config_sha256,
        base_tensors_sha256=base.tensors_sha256,
        draft_config_sha256=draft.config_sha256 if draft else None,
        draft_tensors_sha256=draft.tensors_sha256 if draft else None,
    )


def compiled(directory: Path, plan: Plan, checkpoints: Checkpoints, kind: str | None) -> Path:
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, checkpoints.base_dir, checkpoints.heads[kind] if kind else None)
    return directory


def whole_plan(checkpoints: Checkpoints, kind: str | None, tree: Tree = TREE) -> Plan:
    """Everything on one device."""
    draft = checkpoints.drafts[kind] if kind else None
    return make_plan(
        checkpoints.base.model,
        [group(checkpoints.base.model, ["a"], LAYERS)],
        draft=draft.draft if draft else None,
        inputs=inputs(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        tree=PlanTree(kind="dynamic", total_token=tree.total_token, depth=tree.depth, top_k=tree.top_k, paths=None),
    )


def ask(prompt: tuple[int, ...], count: int, *, draft: bool = True, ignore_eos: bool = True) -> Request:
    return Request(prompt_ids=prompt, max_new_tokens=count, draft=draft, ignore_eos=ignore_eos, stop=())


TREES = (
    Tree(total_token=12, depth=3, top_k=4),
    Tree(total_token=60, depth=7, top_k=10),
    Tree(total_token=4, depth=1, top_k=3),
    Tree(total_token=7, depth=5, top_k=1),
    Tree(total_token=2, depth=2, top_k=2),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.total_token}-{tree.depth}-{tree.top_k}")
def test_trees_and_accepted_lengths_are_those_of_eagle(
    kind: str, tree: Tree, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    directory = compiled(tmp_path / "plan", whole_plan(checkpoints, kind, tree), checkpoints, kind)
    prompt = PROMPTS[1]
    greedy = checkpoints.greedy(prompt, 48)
    head = ReferenceHead(checkpoints.heads[kind], checkpoints.model)
    with torch.inference_mode():
        trees, lengths = decode(checkpoints.model, head, list(prompt), greedy, tree)
    with Rank.open(directory) as engine:
        steps = engine.steps(ask(prompt, 1))
        _, message = next(steps)
        for expected, length in zip(trees, lengths, strict=True):
            paths = [()]
            for node in range(1, tree.total_token):
                paths.append((*paths[message.parents[node]], message.tokens[node]))
            assert paths[1:] == expected
            _, message = next(steps)
            assert message.accepted == length
    assert max(lengths) >= min(tree.depth + 1, tree.total_token - 1, 2), "the heads should agree more often"


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_one_device_gives_the_tokens_of_transformers(
    kind: str | None, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    directory = compiled(tmp_path / "plan", whole_plan(checkpoints, kind), checkpoints, kind)
    with Rank.open(directory) as engine:
        for prompt in PROMPTS:
            count = CONTEXT - len(prompt)
            greedy = checkpoints.greedy(prompt, count)
            for draft in (True, False):
                done = engine.generate(ask(prompt, count, draft=draft))
                assert list(done.tokens) == greedy
                assert bool(done.accept_lengths) == (draft and kind is not None)


def test_output_ends_at_eos_and_at_the_count_inside_an_accepted_block(checkpoints: Checkpoints, tmp_path: Path) -> None:
    plan = whole_plan(checkpoints, "eagle3")
    prompt = PROMPTS[1]
    greedy = checkpoints.greedy(prompt, 60)
    directory = compiled(tmp_path / "plan", plan, checkpoints, "eagle3")
    with Rank.open(directory) as engine:
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


def _run(layers: int, kv_heads: tuple[int, ...], mlp_units: tuple[int, ...]) -> Run:
    return Run(num_layers=layers, kv_heads=kv_heads, mlp_units=mlp_units)


def placed(name: str, checkpoints: Checkpoints) -> tuple[Plan, str | None]:
    """The plan of a placement, and the kind of its head."""
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
    table = {
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
        "plain, tables elsewhere": (uneven, None, None, {"embed": ["c", "e"], "head": ["a", "e"]}),
    }
    groups, kind, placement, rows = table[name]
    draft = checkpoints.drafts[kind] if kind else None
    plan = make_plan(
        model,
        groups,
        draft=draft.draft if draft else None,
        placement=placement,
        inputs=inputs(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        tree=PlanTree(kind="dynamic", total_token=TREE.total_token, depth=TREE.depth, top_k=TREE.top_k, paths=None),
        **rows,
    )
    return plan, kind


@pytest.mark.parametrize(
    "name",
    [
        "two stages",
        "tensor parallel, equal",
        "tensor parallel, unequal, head of the base",
        "two unequal stages, draft split",
        "draft alone on a device",
        "two unequal stages, eagle, draft whole",
        "plain",
        "tables on each other's stage",
        "tables on devices without layers, draft with the head",
        "tables on devices without layers, draft with the embedding",
        "tables on one of the stage, the leader and the other",
        "tables on one of the stage, the other and the leader",
        "tables on more than the stages",
        "tables on the stage in another order",
        "all tables on all devices",
        "plain, tables elsewhere",
    ],
)
def test_every_placement_gives_the_tokens_of_transformers(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    plan, kind = placed(name, checkpoints)
    directory = compiled(tmp_path / "plan", plan, checkpoints, kind)
    requests = [
        ask(prompt, min(40, CONTEXT - len(prompt)), draft=draft) for prompt in PROMPTS for draft in (True, False)
    ]
    requests.append(ask(PROMPTS[0], CONTEXT - 1))
    events: list[Event] = []
    run(plan, directory, requests, events.append, method="forkserver")
    completions = [event for event in events if isinstance(event, Completion)]
    for request, done in zip(requests, completions, strict=True):
        assert list(done.tokens) == checkpoints.greedy(request.prompt_ids, request.max_new_tokens)
    if kind is not None:
        assert max(max(done.accept_lengths, default=0) for done in completions) >= 2
    for line, made in zip(plan.memory, completions[-1].measured_bytes, strict=True):
        assert all(count <= getattr(line, f"{term}_bytes") for term, count in made.items()), line.device
