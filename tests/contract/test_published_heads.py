"""Heads in their published forms draft the trees of an independent reference, on one device and on several."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from planner.families import inputs_of, load_draft
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import KvAxis, Plan
from runtime.comm.groups import Comm
from runtime.decode.step import Stepper
from runtime.decode.work import Mode
from runtime.image.buffers import Memory
from runtime.image.slots import Image
from runtime.processes.machine import torch_device
from tests.contract.agreeing import DRAFT_KV_HEADS, LAYERS
from tests.contract.checkpoints import CONTEXT, Checkpoints
from tests.contract.published_heads import FORMS, write_published
from tests.contract.ranks import decoded, on_all_ranks
from tests.contract.reference_eagle import Tree, decode
from tests.contract.reference_heads import ReferenceForm
from tests.contract.test_memory import assert_memory_is_planned
from tests.contract.test_tokens import PROMPTS, planned
from tests.plan_factory import even, group, make_plan, shared_draft, split_draft

pytestmark = pytest.mark.usefixtures("one_core")

CHAIN = Tree(total_token=6, depth=4, top_k=1)
TREES = (Tree(total_token=12, depth=3, top_k=4), CHAIN)
COUNT = 32
DIVIDED: tuple[tuple[str, KvAxis | None], ...] = (
    ("speculators of today", "batch"),
    ("qwen3 layers of speculators", None),
    ("qwen3 layers of speculators", "context"),
    ("ModelOpt without tables", "head_dim"),
    ("YaRN of ModelOpt", "head_dim"),
    ("P-EAGLE of AWS", None),
    ("P-EAGLE of AWS", "context"),
    ("P-EAGLE of AWS", "head_dim"),
    ("P-EAGLE of speculators", "batch"),
)
"""Forms on two devices, and how they divide the cache; None: by KV heads."""


def made(
    directory: Path, checkpoints: Checkpoints, name: str, tree: Tree, devices: Sequence[str], axis: KvAxis | None = None
) -> tuple[Plan, Path, ReferenceForm]:
    """Write a head, and compile a plan with the base on the first device and the drafter on ``devices``."""
    head = directory / "head"
    meaning = write_published(head, checkpoints.base_dir, FORMS[name])
    base, draft = checkpoints.base, load_draft(head, checkpoints.base)
    placement = split_draft(base.model, draft.draft, tuple(devices))
    if axis is not None:
        placement = shared_draft(base.model, draft.draft, tuple(devices), axis, (len(devices),), (DRAFT_KV_HEADS,))
        placement = replace(placement, mlp_units=even(sum(placement.mlp_units), len(devices)))
    plan = make_plan(
        base.model,
        [group(base.model, ["a"], 3), group(base.model, ["b"], LAYERS - 3)],
        draft=draft.draft,
        placement=placement,
        inputs=inputs_of(base, draft),
        batch=2,
        context=CONTEXT,
        prefill_chunk=16,
        tree=planned(tree),
    )
    target = directory / "plan"
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(target, checkpoints.base_dir, head)
    return plan, target, ReferenceForm(head, checkpoints.model, meaning)


def compare(plan: Plan, directory: Path, checkpoints: Checkpoints, reference: ReferenceForm, tree: Tree) -> list[int]:
    """Compare tokens, trees and accepted lengths of two prompts decoded together; return the lengths."""
    prompts, lengths = PROMPTS[1:3], []
    counts = [COUNT] * len(prompts)
    greedy = [checkpoints.greedy(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
    at_once = "mask_token_id" in reference.form
    for rank in decoded(plan, directory, prompts, counts, draft=True):
        assert rank.tokens == greedy
        for number, prompt in enumerate(prompts):
            with torch.inference_mode():
                trees, accepted = decode(
                    checkpoints.model, reference, list(prompt), greedy[number], tree,
                    (lambda pairs: reference.draft_at_once(pairs, tree.depth + 1)) if at_once else None,
                )  # fmt: skip
            assert rank.accepted[number][: len(accepted)] == accepted
            for (tokens, parents), expected in zip(rank.trees[number], trees, strict=False):
                assert paths(tokens, parents) == expected
            lengths += accepted
    return lengths


def paths(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    """Return the path to every drafted node."""
    known: list[tuple[int, ...]] = [()]
    for node in range(1, len(tokens)):
        known.append((*known[parents[node]], tokens[node]))
    return known[1:]


@pytest.mark.parametrize("name", FORMS)
def test_a_head_drafts_what_its_reference_does(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    lengths = []
    for number, tree in enumerate((CHAIN,) if "P-EAGLE" in name else TREES):
        (tmp_path / str(number)).mkdir()
        plan, directory, reference = made(tmp_path / str(number), checkpoints, name, tree, ("b",))
        lengths += compare(plan, directory, checkpoints, reference, tree)
    assert max(lengths) >= (1 if "P-EAGLE" in name else 2), "the head should agree more often"


@pytest.mark.parametrize(("name", "axis"), DIVIDED, ids=str)
def test_a_head_on_several_devices_drafts_the_same(
    name: str, axis: KvAxis | None, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    tree = CHAIN if "P-EAGLE" in name else TREES[0]
    plan, directory, reference = made(tmp_path, checkpoints, name, tree, ("b", "c"), axis)
    compare(plan, directory, checkpoints, reference, tree)


@pytest.mark.parametrize("name", ["speculators of today", "EAGLE-3.1 of SpecForge", "P-EAGLE of AWS"])
def test_a_head_takes_the_memory_of_its_plan(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    tree = CHAIN if "P-EAGLE" in name else Tree(total_token=30, depth=5, top_k=6)
    plan, directory, _ = made(tmp_path, checkpoints, name, tree, ("b", "c"))
    assert_memory_is_planned(plan, directory, 2)


@torch.inference_mode()
def test_a_sequence_joins_others_that_are_drafted_at_once(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The first masks of a sequence are run in the pass that extends the others."""
    plan, directory, reference = made(tmp_path, checkpoints, "P-EAGLE of AWS", CHAIN, ("b", "c"))
    first, second = PROMPTS[1:3]
    trees = {}
    for prompt in (first, second):
        greedy = checkpoints.greedy(prompt, COUNT)
        drafted = decode(checkpoints.model, reference, list(prompt), greedy, CHAIN,
                         lambda pairs: reference.draft_at_once(pairs, CHAIN.depth + 1))  # fmt: skip
        trees[prompt] = drafted[0]

    def joined(image: Image, comm: Comm) -> list[list[tuple[int, ...]]]:
        device = torch_device(plan.devices[comm.rank])
        stepper = Stepper(plan, image, Memory(plan, plan.devices[comm.rank].id, device), comm, device)
        stepper.enter(Mode(draft=True, accept=None))
        steps = []
        for prompt, free in ((first, [0, 1]), (second, [1])):
            place, _ = stepper.begin(prompt, None, free, reuse=False)
            while not stepper.prefill(place):
                pass
            for _ in range(4):
                taken = stepper.step()[0][place].message
                steps.append(paths(taken.tokens, taken.parents))
        return steps

    for steps in on_all_ranks(plan, directory, joined):
        assert steps == [*trees[first][:4], *trees[second][:4]]


def test_an_eagle1_head_in_vllms_wrapper_has_the_bytes_of_the_authors(tmp_path: Path, checkpoints: Checkpoints) -> None:
    """The head of the authors' layout drafts the trees of the reference (test_tokens)."""
    own, wrapped = checkpoints.heads["eagle"], tmp_path / "wrapped"
    wrapped.mkdir()
    config, tensors = json.loads((own / "config.json").read_text()), load_file(own / "model.safetensors")
    nested = {"model_type": "eagle", "architectures": ["EAGLEModel"], "model": config | {"eagle_fc_bias": True}}
    (wrapped / "config.json").write_text(json.dumps(nested))
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, wrapped / "model.safetensors")
    images = []
    for number, head in enumerate((own, wrapped)):
        draft = load_draft(head, checkpoints.base)
        assert draft.draft.layout == (None, "vllm")[number]
        plan = make_plan(
            checkpoints.base.model,
            [group(checkpoints.base.model, ["a"], LAYERS)],
            draft=draft.draft,
            inputs=inputs_of(checkpoints.base, draft),
        )
        directory = tmp_path / f"plan{number}"
        directory.mkdir()
        (directory / "plan.yaml").write_text(codec.dumps(plan))
        compile_plan(directory, checkpoints.base_dir, head)
        images.append((directory / "a.safetensors").read_bytes())
    assert images[0] == images[1]
