"""Steps that keep as many rows run the same operations, and all are read alike; shapes differ by the window besides.

On a CPU. That a step of a GPU has no other shapes and one transfer to the host is shown on meta tensors:
tests/runtime/decode/test_gpu_steps.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from planner.families import inputs_of, load_draft
from plans import codec
from plans.schema import Plan, Tree
from runtime.processes.rank import Rank
from runtime.request import Piece, Request
from runtime.sampling import Sampling
from tests.contract.agreeing import DRAFT_VOCABULARY, HEAD_DIM, HEADS, HIDDEN, LAYERS, VOCABULARY
from tests.contract.checkpoints import CHUNK, Checkpoints, compiled
from tests.plan_factory import group, make_plan, write_draft

pytestmark = pytest.mark.usefixtures("one_core")

WINDOW = 64
"""Step by which the attention window grows in these short caches, in positions."""
TREE = Tree(kind="dynamic", total_token=12, depth=2, top_k=4, paths=None)
READS = ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique")
"""Operations that wait for data, or whose shapes depend on it."""
HOST = [*["tolist"] * 4, "__int__", *["numpy"] * 4, "__int__", "tolist"]
"""What the host of a CPU reads of a step: parents, for the ancestors; trees and choices, to walk; the most that a
sequence accepted, to draft for no other rows; candidates, to select nodes; that most, to keep no others; the message.
"""
TRANSFERS = ("tolist", "item", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__")
"""Methods of a tensor that copy data to the host."""


class Recorder(TorchDispatchMode):
    """Recorder of operations and the shapes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
        self.done.append((str(func), tuple(tuple(tensor.shape) for tensor in tensors)))
        return func(*args, **(kwargs or {}))


class Reader(TorchFunctionMode):
    """Recorder of transfers to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        moved = name == "to" and any(isinstance(argument, str | torch.device) for argument in args)
        if moved or (name in TRANSFERS and args and isinstance(args[0], torch.Tensor)):
            self.read.append(name)
        return func(*args, **(kwargs or {}))


def planned(checkpoints: Checkpoints, kind: str, context: int, draft: Any = None, batch: int = 1) -> Plan:
    drafter = draft or checkpoints.drafts[kind]
    return make_plan(
        checkpoints.base.model,
        [group(checkpoints.base.model, ["a"], LAYERS)],
        draft=drafter.draft,
        inputs=inputs_of(checkpoints.base, drafter),
        context=context,
        prefill_chunk=CHUNK,
        tree=TREE,
        batch=batch,
    )


DRAWN = Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=1)


@pytest.mark.parametrize(
    ("kind", "samplings"),
    [("eagle3", (None,)), ("eagle3", (DRAWN,)), ("eagle", (None,)), ("eagle", (None, DRAWN, None))],
    ids=["greedy", "drawn", "eagle", "together"],
)
def test_steps_that_keep_as_many_rows_run_the_same_operations(
    kind: str, samplings: tuple[Sampling | None, ...], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    plan = planned(checkpoints, kind, 256, batch=len(samplings))
    directory = compiled(tmp_path / "plan", plan, checkpoints, kind)
    requests = tuple(
        Request(
            prompt_ids=(5, 17, 33, 2, 60 + number), max_new_tokens=200, draft=True, ignore_eos=True, stop=(),
            sampling=sampling,
        )
        for number, sampling in enumerate(samplings)
    )  # fmt: skip
    seen: dict[int, set[tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]]] = {}
    lengths: list[tuple[int, int]] = []
    with Rank.open(codec.load(directory), directory) as rank:
        steps = rank.serve_batch(requests)
        for _ in range(1 + len(requests)):  # they come, and each of them joins with a step of its own
            next(steps)
        for _ in range(24):
            with Recorder() as recorder, Reader() as reader:
                pieces = next(steps)
            assert reader.read == HOST
            reads = [name for name, _ in recorder.done if any(read in name for read in READS)]
            assert reads == ["aten.item.default"] * HOST.count("__int__")
            assert len(recorder.done) > 100 * LAYERS // 8
            kept = max(len(piece.tokens) for _, piece in pieces if isinstance(piece, Piece))
            seen.setdefault(kept, set()).add(tuple(recorder.done))
            lengths.append((kept, len(recorder.done)))
        steps.close()
    assert len(seen) > 2, "the accepted lengths must differ, or the test proves nothing"
    least = {kept: min(length for own, length in lengths if own == kept) for kept in seen}
    assert sum(length > least[kept] for kept, length in lengths) <= 6, "a scratch that is divided is kept"
    for done in seen.values():
        names = {tuple(name for name, _ in operations) for operations in done}
        assert len(names) <= 3, "the same operations; those that divide the scratch for other rows, or make it larger"
        assert len(done) <= len(names) * 2 * (256 // WINDOW), "shapes differ only by the windows of the two caches"


def test_a_drafter_that_rarely_agrees_does_not_change_the_tokens(checkpoints: Checkpoints, tmp_path: Path) -> None:
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
    plan = planned(checkpoints, "random", 256, load_draft(tmp_path / "head", checkpoints.base))
    directory = compiled(tmp_path / "plan", plan, checkpoints, "random")
    with Rank.open(codec.load(directory), directory) as rank:
        done = rank.generate(Request(prompt_ids=prompt, max_new_tokens=120, draft=True, ignore_eos=True, stop=()))
    assert list(done.tokens) == checkpoints.greedy(prompt, 120)
    assert sum(done.accept_lengths) < len(done.accept_lengths) / 2, "a random drafter should rarely agree"
