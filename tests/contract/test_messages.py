"""Every tensor that a step passes to its collectives has the bytes that the planner prices."""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from planner.families import inputs_of
from plans import step
from plans.buffers import OUTBOX, device_buffers
from plans.dtypes import DTYPE_BYTES
from plans.schema import KvAxis, Plan, Run, Tree
from runtime.image.buffers import Memory
from tests.contract import ranks
from tests.contract.checkpoints import CHUNK, Checkpoints, compiled
from tests.plan_factory import Group, even, group, make_plan, split_draft

pytestmark = pytest.mark.usefixtures("one_core")

TREES = {"wide": (40, 4, 5), "short": (3, 7, 2), "flat": (4, 0, 6)}


def planned(checkpoints: Checkpoints, kind: str, tree: tuple[int, int, int], batch: int) -> Plan:
    """Make a plan in which every part is on two devices, in another combination than every other part."""
    model, draft = checkpoints.base.model, checkpoints.drafts[kind]
    total_token, depth, top_k = tree
    return make_plan(
        model,
        [group(model, ["c", "d"], 5), group(model, ["e", "f"], 3)],
        draft=draft.draft,
        placement=split_draft(model, draft.draft, ("c", "g")),
        inputs=inputs_of(checkpoints.base, draft),
        embed=("a", "b"),
        head=("f", "h"),
        context=96,
        prefill_chunk=CHUNK + 1,
        batch=batch,
        tree=Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None),
    )


def sent_bytes(
    plan: Plan, directory: Path, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[str, str], set[int]]:
    """Decode, and return the bytes of the tensors that are passed to the collectives, by group and collective."""
    sent: dict[tuple[str, str], set[int]] = defaultdict(set)

    def recording(name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: ranks.ThreadCollectives, tensor: Tensor, *more: Any, **named: Any) -> Any:
            sent[self.name, name].add(tensor.nbytes)
            return collective(self, tensor, *more, **named)

        return call

    for name in ("broadcast", "all_reduce", "all_gather"):
        monkeypatch.setattr(ranks.ThreadCollectives, name, recording(name, getattr(ranks.ThreadCollectives, name)))
    ranks.decoded(plan, directory, prompts, [9] * len(prompts), draft=plan.draft is not None)
    return dict(sent)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize(("kind", "batch"), [("eagle3", 1), ("eagle", 2)])
def test_collectives_carry_the_priced_bytes(
    kind: str,
    batch: int,
    tree: tuple[int, int, int],
    checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = planned(checkpoints, kind, tree, batch)
    prompt = tuple(range(5, 5 + plan.options.prefill_chunk))  # a CPU runs no padding: the prompt is a whole chunk
    sent = sent_bytes(plan, compiled(tmp_path / "plan", plan, checkpoints, kind), [prompt] * batch, monkeypatch)
    model, draft, options = plan.model, plan.draft, plan.options
    assert draft is not None
    assert options.tree is not None
    width = DTYPE_BYTES[options.dtype]
    chunk = options.prefill_chunk * model.hidden_size * width
    hidden, planes = step.hidden_bytes(model, options), step.carry_planes(draft)
    hop = {step.hop_bytes(model, draft, options), planes * chunk}
    fed = {batch * rows for rows in step.fed_rows(options.tree)}
    first = step.tree_layout(None, options.tree)  # the first step drafts, and verifies nothing
    drafted = {options.prefill_chunk, *fed}
    # Rows that a sequence keeps: those of the most are priced, and a CPU drafts for no others.
    kept = {batch * rows for rows in range(1, step.accept_rows(options) + 1)}
    row_bytes, of_draft = draft.hidden_size * width, sent.pop(("draft", "all_reduce"))
    assert {rows * row_bytes for rows in drafted} <= of_draft <= {rows * row_bytes for rows in drafted | kept}
    assert sent == {
        ("embed", "all_reduce"): {hidden, chunk},
        ("stages[0]", "all_reduce"): {hidden, chunk},
        ("stages[1]", "all_reduce"): {hidden, chunk},
        ("stages[0].hop", "broadcast"): {hidden, chunk},
        ("stages[1].hop", "broadcast"): hop,
        ("head.hop", "broadcast"): hop,
        ("head", "all_gather"): {
            step.best_bytes(options),
            step.WORD_BYTES * step.BEST_WORDS,
        },  # the last row of a prompt
        ("draft.feature", "broadcast"): {
            step.step_features(model, draft, options).nbytes,
            step.prefill_features(model, draft, options).nbytes,
        },
        ("draft", "all_gather"): {step.candidate_bytes(options, rows) for rows in {batch, *fed}},
        ("world", "broadcast"): {step.message_bytes(options), batch * step.WORD_BYTES * first.words},
    }


@pytest.mark.parametrize("axis", ["context", "head_dim"])
def test_subgroups_carry_the_priced_bytes(
    axis: KvAxis, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoints.base.model
    layers = model.layers[0]
    run = Run(
        num_layers=model.num_layers,
        kv_heads=(layers.attention.num_kv_heads,) * 2,
        mlp_units=even(layers.mlp.intermediate_size // layers.mlp.unit, 2),
    )
    plan = make_plan(
        model,
        [Group(devices=("a", "b"), runs=(run,), axis=axis, subgroups=(2,))],
        inputs=inputs_of(checkpoints.base, None),
        context=2 * step.SCORE_COLUMNS,
        prefill_chunk=CHUNK + 1,
    )
    prompt = (5, 3, 8, 6) * 4 * plan.options.prefill_chunk
    sent = sent_bytes(plan, compiled(tmp_path / "plan", plan, checkpoints, None), [prompt], monkeypatch)
    attention, passes = layers.attention, (step.verify_rows(plan.options), plan.options.prefill_chunk)
    if axis == "context":
        shapes = {step.partial_shape(rows, attention.num_heads, attention.head_dim) for rows in passes}
        assert sent["stages[0].subgroup", "all_gather"] == {4 * math.prod(shape) for shape in shapes}
        return
    blocks = {4 * math.prod(step.scores_shape(rows, attention.num_heads, step.SCORE_COLUMNS)) for rows in passes}
    reduced = sent["stages[0].subgroup", "all_reduce"]  # whole blocks, and the rest of those cache rows that are in use
    assert blocks <= reduced
    assert max(reduced) == max(blocks)


def test_a_device_allocates_the_buffers_that_its_plan_lists(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(checkpoints, "eagle3", TREES["wide"], 1)
    taken: dict[str, set[str]] = defaultdict(set)
    buffer = Memory.buffer

    def recording(self: Memory, name: str) -> Tensor:
        taken[self.device_id].add(name)
        return buffer(self, name)

    monkeypatch.setattr(Memory, "buffer", recording)
    ranks.decoded(plan, compiled(tmp_path / "plan", plan, checkpoints, "eagle3"), [(5, 3, 8)], [9], draft=True)
    listed = {
        device.id: {buffer.name for buffer in device_buffers(plan, device.id) if not buffer.scratch} - {OUTBOX}
        for device in plan.devices
    }
    assert taken == listed
