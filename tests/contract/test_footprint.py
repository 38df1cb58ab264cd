"""The decode loop stands still: every step does the same operations on the same shapes, and holds the same bytes.

Only a step that looks at a longer window of the cache differs, in that length alone; there are a handful of these.
"""

import gc
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.families import load_draft
from plans.schema import Plan, Tree
from runtime.engine import Rank
from runtime.request import Request
from runtime.sampling import Sampling
from tests.contract.agreeing import DRAFT_VOCABULARY, HEAD_DIM, HEADS, HIDDEN, LAYERS, VOCABULARY
from tests.contract.checkpoints import CHUNK, Checkpoints, compiled, inputs
from tests.plan_factory import group, make_plan, write_draft

pytestmark = pytest.mark.usefixtures("one_core")

STEPS = 300
WINDOW = 64
"""Positions after which a forward looks at more rows of a cache as short as these."""
SLACK_BYTES = 256 << 10
"""What the allocator may do with pages of its own."""
TREE = Tree(kind="dynamic", total_token=12, depth=2, top_k=4, paths=None)
READS = ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique")
"""Operations that wait for data, or whose shapes depend on it."""


class Recorder(TorchDispatchMode):
    """What is done, and on which shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        self.done.append((str(func), tuple(tuple(tensor.shape) for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def planned(checkpoints: Checkpoints, kind: str, context: int, draft: Any = None) -> Plan:
    found = draft or checkpoints.drafts[kind]
    return make_plan(
        checkpoints.base.model,
        [group(checkpoints.base.model, ["a"], LAYERS)],
        draft=found.draft,
        inputs=inputs(checkpoints.base, found),
        context=context,
        prefill_chunk=CHUNK,
        tree=TREE,
    )


@pytest.mark.parametrize("kind", ["eagle3", "eagle"])
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=1)], ids=str)
def test_every_step_does_the_same(
    kind: str, sampling: Sampling | None, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    directory = compiled(tmp_path / "plan", planned(checkpoints, kind, 256), checkpoints, kind)
    request = Request(
        prompt_ids=(5, 17, 33, 2, 60), max_new_tokens=200, draft=True, ignore_eos=True, stop=(), sampling=sampling
    )
    seen, lengths = set(), set()
    with Rank.open(directory) as rank:
        steps = rank.steps(request)
        next(steps)
        for _ in range(40):
            with Recorder() as recorder:
                _, message = next(steps)
            assert not [name for name, _ in recorder.done if any(read in name for read in READS)]
            assert len(recorder.done) > 100 * LAYERS // 8
            seen.add(tuple(recorder.done))
            lengths.add(message.accepted)
    assert len(lengths) > 2, "accepted lengths should differ for this to mean anything"
    assert len({tuple(name for name, _ in done) for done in seen}) == 1, "the same operations"
    assert len(seen) <= 2 * (256 // WINDOW), "and the same shapes, but for the windows of both caches"


def test_the_footprint_is_constant_and_a_head_that_never_agrees_changes_nothing(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    write_draft(
        tmp_path / "head",
        hidden_size=HIDDEN,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=96,
        vocab_size=VOCABULARY,
        draft_vocab_size=DRAFT_VOCABULARY,
        seed=9,
    )
    checkpoints.heads["random"] = tmp_path / "head"
    prompt = (5, 17, 33, 2, 60)
    plan = planned(checkpoints, "random", 1200, load_draft(tmp_path / "head", checkpoints.base))
    directory = compiled(tmp_path / "plan", plan, checkpoints, "random")
    request = Request(prompt_ids=prompt, max_new_tokens=1190, draft=True, ignore_eos=True, stop=())
    process, tokens, accepted, held, made = psutil.Process(), [], [], [], []
    with Rank.open(directory) as rank:
        for number, (new, message) in enumerate(islice(rank.steps(request), STEPS + 1)):
            tokens += new
            accepted.append(message.accepted)
            if number in (3, STEPS):
                gc.collect()
                held.append(process.memory_info().rss)
                made.append(rank.memory.measured())
    assert made[0] == made[1]
    assert held[1] - held[0] <= SLACK_BYTES
    assert tokens == checkpoints.greedy(prompt, len(tokens))
    assert sum(accepted[1:]) < STEPS / 2, "a head of noise should seldom agree"
