"""Messages of a step have the bytes of the planner's prices and buffers, for any tree, batch, drafter and dtype."""

import dataclasses
from dataclasses import field

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from plans import step
from plans.buffers import device_buffers
from plans.schema import Options, Tree
from runtime.comm.groups import Group
from runtime.decode.messages import Channel, Notice, feature_message
from runtime.image.dtypes import DTYPES
from runtime.model.base import Carry
from runtime.model.blocks import LmHead
from tests.plan_factory import group, make_draft, make_model, make_plan

MODEL = make_model(num_layers=8, num_heads=4, num_kv_heads=2)
DRAFTS = {kind: make_draft(MODEL, kind=kind) for kind in ("eagle", "eagle3")}
PLANS = {kind: make_plan(MODEL, [group(MODEL, ["a"], 8)], draft=draft) for kind, draft in DRAFTS.items()}


@st.composite
def options_of(draw: st.DrawFn) -> Options:
    depth, top_k = draw(st.integers(0, 6)), draw(st.integers(1, 6))
    total = draw(st.integers(2, 1 + top_k + depth * top_k**2))
    return dataclasses.replace(
        PLANS["eagle3"].options,
        batch=draw(st.integers(1, 4)),
        prefill_chunk=draw(st.integers(1, 40)),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        tree=Tree(kind="dynamic", total_token=total, depth=depth, top_k=top_k, paths=None),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recorder(Group):
    """Member of a group of two whose other member sends the same tensors."""

    sent: list[int] = field(default_factory=list)

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        self.sent.append(tensor.nbytes)
        return torch.stack([tensor, tensor])


@given(options_of(), st.sampled_from(["eagle", "eagle3"]))
def test_message_views_have_the_priced_bytes_and_fit_their_buffers(options: Options, kind: str) -> None:
    draft = DRAFTS[kind]
    plan = dataclasses.replace(PLANS[kind], options=options, draft=draft)
    table = {
        buffer.name: torch.zeros(buffer.shape, dtype=DTYPES[buffer.dtype])
        for buffer in device_buffers(plan, "a")
        if buffer.name in ("message", "features", "carry")
    }
    layout = step.step_layout(options)
    channel = Channel(table["message"], source=0, drafted=True)
    channel.lay_out(layout, options.batch)
    assert channel.wire.nbytes == step.message_bytes(options) == table["message"].nbytes
    shapes = [view.shape for view in (channel.accepted, channel.path, channel.tokens, channel.parents)]
    kept, nodes, batch = step.accept_rows(options), step.tree_rows(options), options.batch
    assert shapes == [(batch,), (batch, kept), (batch, nodes), (batch, nodes)]
    carry = Carry(table["carry"]).view(step.verify_rows(options))
    assert carry.nbytes == step.hop_bytes(MODEL, draft, options)
    assert carry[0].nbytes == step.hidden_bytes(MODEL, options)
    layouts = step.step_features(MODEL, draft, options), step.prefill_features(MODEL, draft, options)
    messages = [feature_message(layout, table["features"], DTYPES[options.dtype]) for layout in layouts]
    assert [message.wire.nbytes for message in messages] == [layout.nbytes for layout in layouts]
    assert max(message.wire.nbytes for message in messages) == table["features"].nbytes
    for message, layout in zip(messages, layouts, strict=True):
        assert message.features.shape == (layout.sequences * layout.rows, step.feature_width(MODEL, draft))
        assert message.features.data_ptr() % 64 == table["features"].data_ptr() % 64, "features are aligned"
        assert message.path.shape == (layout.sequences, kept)


@given(options_of(), st.integers(1, 30))
def test_gathers_have_the_priced_bytes(options: Options, rows: int) -> None:
    recorder = Recorder(name="head", ranks=(0, 1), rank=0, handle=object())  # type: ignore[arg-type]
    for weight in (torch.ones(8, rows), None):
        recorder.sent.clear()
        head = LmHead(weight=weight, first=0, rows=rows if weight is not None else 0, group=recorder)
        head.best(torch.ones(step.verify_rows(options), 8))
        assert options.tree is not None
        head.top(torch.ones(7, 8), options.tree.top_k)
        assert recorder.sent == [step.best_bytes(options), step.candidate_bytes(options, 7)]


def test_a_step_message_is_read_as_it_was_written() -> None:
    layout = step.StepLayout(kept=2, nodes=3)
    channel = Channel(torch.zeros(20, dtype=torch.int64), source=0, drafted=True)
    channel.lay_out(layout, 2)
    path, tokens, parents = torch.arange(4).view(2, 2), torch.arange(10, 16).view(2, 3), torch.zeros(2, 3).long()
    for stop, packets in ((False, 0), (True, 0), (False, 1), (True, 70)):
        notice = Notice(stop=stop, packets=packets)
        channel.write(slice(0, 2), torch.tensor([1, 0]), path, tokens, parents)
        channel.notify(notice)
        channel.seal()
        (first, second), agreed = channel.read()
        assert (first.accepted, first.path, first.tokens) == (1, [0, 1], [10, 11, 12])
        assert (second.accepted, second.path, second.parents) == (0, [2, 3], [0, 0, 0])
        assert agreed == notice
        committed = channel.committed(slice(0, 2), torch.tensor([False, True]))
        assert committed.tolist() == [1, -1], "what is committed is without the notice"
