"""Slot tables: order, alignment, bytes, and shares that tile the original tensors."""

import dataclasses
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.families import Source
from planner.images import layout
from planner.images.layout import Slot
from plans import slot_bytes, slots
from plans.artifact import ALIGNMENT_BYTES, PAGE_BYTES, align
from plans.diff import moved_bytes
from plans.kv import KvShare, kv_shares, whole_heads
from plans.ranges import share_range
from plans.schema import Draft, DraftPlacement, DType, KvAxis, LayerClass, Model, Plan, Run, VocabSplit
from plans.slot_records import SlotSpec
from tests.plan_factory import Group, group, make_draft, make_model, make_plan, shared_draft, split_draft


def slots_of(plan: Plan, device: str) -> tuple[Slot, ...]:
    """Return the slots of a device without a checkpoint: tensors are named by their roles."""
    drafter = slots.draft_slots(plan, device)
    listed = (*slots.base_slots(plan, device).listed, *(() if drafter is None else drafter.listed))
    roles = [piece.tensor(expert) for slot in listed for piece in slot.pieces for expert in experts(slot)]
    named = {role: Source(name=role, shape=()) for role in roles}
    zeros = {slot.name: bytes(slot.nbytes) for slot in listed if not slot.pieces}
    return layout.placed(listed, {"base": named, "draft": named}, zeros)


def experts(slot: SlotSpec) -> Sequence[int | None]:
    return (None,) if slot.experts is None else range(slot.experts)


def layer_bytes(model: Model, dtype: DType, layer_class: LayerClass, share: KvShare, units: int, leader: bool) -> int:
    attention = slot_bytes.attention_bytes(model, dtype, layer_class, share, leader)
    return attention + slot_bytes.mlp_bytes(model, dtype, layer_class, units, leader)


def named(listed: tuple[Slot, ...]) -> list[str]:
    return [slot.name for slot in listed if not slot.name.startswith("_pad.")]


def test_the_order_of_an_image() -> None:
    model = make_model(num_layers=8, attention_bias=True, mlp_bias=True)
    draft = make_draft(model)
    plan = make_plan(model, [group(model, ["a", "b"], 8)], draft=draft, placement=split_draft(model, draft, ("a",)))
    layer = "attention_norm.weight qkv.weight qkv.bias o.weight o.bias mlp_norm.weight gate_up.weight gate_up.bias "
    layer += "down.weight down.bias"
    expected = ["rope.inv_freq", "embed.weight"]
    expected += [f"layers.{i}.{name}" for i in range(8) for name in layer.split()]
    expected += ["norm.weight", "head.weight", "draft.rope.inv_freq", "draft.embed.weight", "draft.fc.weight"]
    inside = "input_norm hidden_norm qkv o mlp_norm gate_up down"
    expected += [f"draft.layers.0.{name}.weight" for name in inside.split()]
    expected += ["draft.norm.weight", "draft.head.weight", "draft.d2t"]
    assert named(slots_of(plan, "a")) == expected
    of_member = [
        name for name in expected if not name.startswith("draft.") and not name.endswith(("o.bias", "down.bias"))
    ]
    assert named(slots_of(plan, "b")) == of_member


def test_the_order_of_an_eagle_head_with_the_tables_of_the_base() -> None:
    model = make_model()
    draft = make_draft(model, kind="eagle", num_layers=2)
    place = split_draft(model, draft, ("a",))
    plan = make_plan(model, [group(model, ["a"], 4)], draft=draft, placement=place)
    inside = ["qkv", "o", "mlp_norm", "gate_up", "down"]
    expected = ["draft.rope.inv_freq", "draft.fc.weight", "draft.fc.bias"]
    expected += [f"draft.layers.0.{name}.weight" for name in inside]
    expected += [f"draft.layers.1.{name}.weight" for name in ["attention_norm", *inside]]
    assert [name for name in named(slots_of(plan, "a")) if name.startswith("draft.")] == expected


def test_tables_that_an_eagle_head_shares_come_from_the_base() -> None:
    model = make_model()
    draft = make_draft(model, kind="eagle")
    plan = make_plan(model, [group(model, ["a"], 4)], draft=draft, placement=split_draft(model, draft, ("b",)))
    sources = {slot.name: slot.parts[0].source for slot in slots_of(plan, "b") if slot.parts}
    assert sources["draft.embed.weight"] == sources["draft.head.weight"] == "base"
    assert sources["draft.fc.weight"] == "draft"


@pytest.mark.parametrize(
    ("embed_rows", "head_rows", "expected"),
    [
        ((50, 0), (50, 0), {"a": {"embed.weight": (0, 50)}, "b": {}}),
        ((50, 0), (20, 30), {"a": {"embed.weight": (0, 50)}, "b": {"head.weight": (20, 50)}}),
        ((20, 30), (0, 50), {"a": {"embed.weight": (0, 20)}, "b": {"embed.weight": (0, 50)}}),
        ((20, 30), (20, 30), {"a": {"embed.weight": (0, 20)}, "b": {"embed.weight": (20, 50)}}),
        ((50, 0), (0, 50), {"a": {"embed.weight": (0, 50)}, "b": {"head.weight": (0, 50)}}),
    ],
)
def test_rows_of_a_tied_table_are_in_one_slot(
    embed_rows: tuple[int, ...], head_rows: tuple[int, ...], expected: dict[str, dict[str, tuple[int, int]]]
) -> None:
    untied = make_model(hidden_size=64)  # a row is of whole alignments
    groups = [group(untied, ["a", "b"], 4)]
    plan = make_plan(dataclasses.replace(untied, tied_head=True), groups, embed_rows=embed_rows, head_rows=head_rows)
    for device, tables in expected.items():
        rows = {slot.name: slot.parts[0].rows for slot in slots_of(plan, device) if slot.parts}
        assert {name: rows[name] for name in ("embed.weight", "head.weight") if name in rows} == {
            name: (span,) for name, span in tables.items()
        }
    separate = make_plan(untied, groups, embed_rows=embed_rows, head_rows=head_rows)
    saved = sum(
        slot_bytes.weights_bytes(separate, device)[0] - slot_bytes.weights_bytes(plan, device)[0] for device in "ab"
    )
    kept = sum(stop - start for tables in expected.values() for start, stop in tables.values())
    assert saved == (100 - kept) * 4 * untied.hidden_size


def test_a_drafter_uses_rows_that_the_base_has_on_its_device() -> None:
    model = make_model()
    draft = make_draft(model, kind="eagle")
    place = split_draft(model, draft, ("a", "c"))
    plan = make_plan(model, [group(model, ["a", "b"], 4)], draft=draft, placement=place, embed_rows=(50, 0))
    assert "draft.embed.weight" not in named(slots_of(plan, "a"))
    assert "draft.embed.weight" in named(slots_of(plan, "c"))


def test_a_share_of_zero_has_no_slot() -> None:
    model = make_model(mlp_bias=True)
    run = Run(num_layers=4, kv_heads=(1, 1), mlp_units=(0, 8))
    plan = make_plan(model, [Group(devices=("a", "b"), runs=(run,))], embed_rows=(50, 0), head_rows=(0, 50))
    a, b = named(slots_of(plan, "a")), named(slots_of(plan, "b"))
    assert "layers.0.gate_up.weight" not in a
    assert "layers.0.down.weight" not in a
    assert "layers.0.down.bias" in a, "the leader adds the bias even if it has no MLP units"
    assert "head.weight" not in a
    assert "embed.weight" not in b


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    kv_heads = draw(st.integers(1, 4))
    model = make_model(
        num_layers=draw(st.integers(7, 9)),
        hidden_size=draw(st.sampled_from([8, 24, 40])),
        num_heads=kv_heads * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 6, 8])),
        intermediate_size=draw(st.sampled_from([12, 28])),
        unit=draw(st.sampled_from([1, 4])),
        vocab_size=draw(st.integers(31, 60)),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )
    total = model.num_layers
    cut = draw(st.integers(1, total - 1))
    names = ["d0", "d1", "d2", "d3"]
    sizes = [draw(st.integers(1, min(2, kv_heads))) for _ in range(2)]
    groups = [
        draw(stage(model, tuple(names[: sizes[0]]), cut)),
        draw(stage(model, tuple(names[sizes[0] : sum(sizes)]), total - cut)),
    ]
    heads = [make_draft(model), make_draft(model, kind="eagle", num_layers=2), make_draft(model, num_kv_heads=kv_heads)]
    draft = draw(st.sampled_from([None, *heads]))
    place = None
    if draft is not None:
        place = draw(draft_place(model, draft, names))
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    embed = draw(st.sampled_from([groups[0].devices, ("e0",), ("e0", names[0])]))
    head = draw(st.sampled_from([groups[1].devices, ("e0",), (names[0], "e1")]))
    return make_plan(
        model,
        groups,
        draft=draft,
        placement=place,
        dtype=dtype,
        embed=embed,
        head=head,
        embed_rows=draw(shares(model.vocab_size, len(embed), 1)),
        head_rows=draw(shares(model.vocab_size, len(head), 0)),
    )


@st.composite
def draft_place(draw: st.DrawFn, model: Model, draft: Draft, names: list[str]) -> DraftPlacement:
    kv_heads = draft.attention.num_kv_heads
    queries, pairs = draft.attention.num_heads // kv_heads, draft.attention.head_dim // 2
    axes: list[KvAxis | None] = [None, "context", *(["head_dim"] if pairs % 2 == 0 else [])]
    axis = draw(st.sampled_from(axes + (["heads"] if queries % 2 == 0 else [])))
    if axis is None:
        return split_draft(model, draft, tuple(names[-draw(st.integers(1, min(2, kv_heads))) :]))
    subgroups = draw(st.sampled_from([(2,), (1, 2), (2, 2)][: 3 if kv_heads > 1 else 1]))
    dealt = draw(shares(kv_heads, len(subgroups), 1))
    return shared_draft(model, draft, tuple(names[-sum(subgroups) :]), axis, subgroups, dealt)


@st.composite
def shares(draw: st.DrawFn, total: int, members: int, least: int) -> tuple[int, ...]:
    taken: list[int] = []
    for member in range(members - 1):
        rest = least * (members - 1 - member)
        taken.append(draw(st.integers(least, total - sum(taken) - rest)))
    return (*taken, total - sum(taken))


@st.composite
def stage(draw: st.DrawFn, model: Model, devices: tuple[str, ...], num_layers: int) -> Group:
    layers = model.layers[0]
    units = layers.mlp.intermediate_size // layers.mlp.unit
    first = draw(st.integers(1, num_layers))
    runs = tuple(
        Run(
            num_layers=count,
            kv_heads=draw(shares(layers.attention.num_kv_heads, len(devices), 1)),
            mlp_units=draw(shares(units, len(devices), 0)),
        )
        for count in (first, num_layers - first)
        if count
    )
    return Group(devices=devices, runs=runs)


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_planned_bytes_are_image_bytes(plan: Plan) -> None:
    for line in plan.memory:
        listed = slots_of(plan, line.device)
        assert layout.data_bytes(listed) == line.weights_bytes + line.draft_weights_bytes
        offset = 0
        for slot in listed:
            assert slot.offset == offset, "no holes"
            assert slot.name.startswith("_pad.") or slot.offset % ALIGNMENT_BYTES == 0
            offset += slot.nbytes
        assert offset % ALIGNMENT_BYTES == 0


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_bytes_of_shares_add_up_to_the_device(plan: Plan) -> None:
    model, dtype, layer_class = plan.model, plan.options.dtype, plan.model.layers[0]
    for part in plan.stages:
        for member, device in enumerate(part.devices):
            total = slot_bytes.rope_bytes(model) + table_bytes(plan, device)
            for run in part.runs:
                share, units, leader = whole_heads(run.kv_heads[member]), run.mlp_units[member], member == 0
                total += run.num_layers * layer_bytes(model, dtype, layer_class, share, units, leader)
            assert slot_bytes.weights_bytes(plan, device)[0] == total
    for device in ("e0", "e1"):
        assert slot_bytes.weights_bytes(plan, device)[0] == table_bytes(plan, device)
    draft, place = plan.draft, plan.draft_placement
    if draft is not None and place is not None:
        for member, device in enumerate(place.devices):
            total = slot_bytes.draft_fixed_bytes(draft, dtype)
            share = kv_shares(place, place.kv_heads)[member]
            total += slot_bytes.draft_attention_bytes(draft, dtype, share, member == 0)
            total += slot_bytes.draft_mlp_bytes(draft, dtype, place.mlp_units[member], member == 0)
            if place.embed_rows and (
                draft.own_embedding or not is_within(place.embed_rows, member, plan.embed, device)
            ):
                total += slot_bytes.draft_embed_bytes(model, draft, dtype, place.embed_rows[member])
            if place.head_rows and (
                draft.kind == "eagle3" or not is_within(place.head_rows, member, plan.head, device)
            ):
                total += slot_bytes.draft_lm_head_bytes(model, draft, dtype, place.head_rows[member])
            assert slot_bytes.weights_bytes(plan, device)[1] == total


def is_within(rows: tuple[int, ...], member: int, table: VocabSplit, device: str) -> bool:
    """Return whether a device has these rows of a table of the base."""
    if device not in table.devices:
        return False
    start, stop = share_range(table.rows, table.devices.index(device))
    first, end = share_range(rows, member)
    return start <= first and end <= stop


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_moved_bytes_of_a_new_device_are_its_image_without_fillers(plan: Plan) -> None:
    """``moved_bytes`` computes bytes without the slot table."""
    others = dataclasses.replace(plan, inputs=dataclasses.replace(plan.inputs, base_tensors_sha256="9" * 64))
    wanted = {
        device.id: sum(slot.nbytes for slot in slots_of(plan, device.id) if not slot.name.startswith("_pad."))
        for device in plan.devices
    }
    assert moved_bytes(others, plan) == {device: nbytes for device, nbytes in wanted.items() if nbytes}
    assert moved_bytes(plan, plan) == {}


@pytest.mark.parametrize("axis", ["heads", "context", "head_dim", "batch"])
@pytest.mark.parametrize("parts", [2, 3])
def test_planned_and_moved_bytes_of_shared_kv_heads_are_those_of_the_slots(axis: KvAxis, parts: int) -> None:
    """One KV head on the first device, two on a subgroup of 2 or 3; dims and columns do not divide evenly."""
    queries_per_kv_head = 6 if axis == "heads" else 2
    heads = 3 * queries_per_kv_head
    model = make_model(num_layers=3, num_heads=heads, num_kv_heads=3, head_dim=12, attention_bias=True, mlp_bias=True)
    devices = ("a", "b", "c", "d")[: 1 + parts]
    run = Run(num_layers=3, kv_heads=(1, *(2,) * parts), mlp_units=(8, *(0,) * parts))
    shared = Group(devices=devices, runs=(run,), axis=axis, subgroups=(1, parts))
    plan = make_plan(model, [shared], batch=3)
    before = dataclasses.replace(plan, inputs=dataclasses.replace(plan.inputs, base_tensors_sha256="9" * 64))
    moved, total = moved_bytes(before, plan), 0
    for member, (device, share) in enumerate(zip(devices, kv_shares(plan.stages[0], run.kv_heads), strict=True)):
        listed = slots_of(plan, device)
        assert moved[device] == sum(slot.nbytes for slot in listed if not slot.name.startswith("_pad."))
        layers, leader = model.layers[0], member == 0
        expected = slot_bytes.rope_bytes(model) + table_bytes(plan, device)
        expected += 3 * layer_bytes(model, "float32", layers, share, run.mlp_units[member], leader)
        assert layout.data_bytes(listed) == expected == slot_bytes.weights_bytes(plan, device)[0]
        total += sum(slot.shape[1] for slot in listed if slot.name == "layers.0.o.weight")
    copies = parts if axis == "batch" else 1
    assert total == 12 * queries_per_kv_head * (1 + 2 * copies), "columns of o are divided, except if the axis is batch"


def test_moved_bytes_of_experts_and_of_two_layer_classes_are_those_of_the_slots() -> None:
    model = make_model(num_layers=5, num_heads=4, num_kv_heads=2)
    first = model.layers[0]
    experts = dataclasses.replace(first.mlp, kind="moe", num_experts=4, experts_per_token=2)
    normed = dataclasses.replace(first.attention, qk_norm=True)
    classes = (
        dataclasses.replace(first, num_layers=2, attention=normed),
        dataclasses.replace(first, num_layers=3, attention=normed, mlp=experts),
    )
    model = dataclasses.replace(model, layers=classes)
    runs = tuple(Run(num_layers=count, kv_heads=(1, 1), mlp_units=(3, 5)) for count in (2, 3))
    plan = make_plan(model, [Group(devices=("a", "b"), runs=runs)])
    before = dataclasses.replace(plan, inputs=dataclasses.replace(plan.inputs, base_tensors_sha256="9" * 64))
    for device, nbytes in moved_bytes(before, plan).items():
        listed = [slot for slot in slots_of(plan, device) if not slot.name.startswith("_pad.")]
        assert nbytes == sum(slot.nbytes for slot in listed)
        assert {slot.name for slot in listed} > {"layers.2.router.weight", "layers.4.q_norm.weight"}
        assert "layers.1.router.weight" not in {slot.name for slot in listed}


def table_bytes(plan: Plan, device: str) -> int:
    model, dtype, total = plan.model, plan.options.dtype, 0
    if device in plan.embed.devices:
        total += slot_bytes.embed_bytes(model, dtype, plan.embed.rows[plan.embed.devices.index(device)])
    if device in plan.head.devices:
        total += slot_bytes.norm_bytes(model, dtype)
        total += slot_bytes.lm_head_bytes(model, dtype, plan.head.rows[plan.head.devices.index(device)])
    return total


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_shares_tile_every_tensor_of_the_base_once(plan: Plan) -> None:
    cells: dict[str, list[tuple[int, int, int, int]]] = {}
    for device in plan.devices:
        for slot in slots_of(plan, device.id):
            if not slot.name.startswith("draft."):
                for part in slot.parts:
                    cols = part.cols or ((0, slot.shape[1] if len(slot.shape) == 2 else 1),)
                    cells.setdefault(part.tensor, []).extend((*r, *c) for r in part.rows for c in cols)
    model = plan.model
    attention, mlp, hidden = model.layers[0].attention, model.layers[0].mlp, model.hidden_size
    q, kv = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    sizes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    sizes |= {"gate": (mlp.intermediate_size, hidden), "up": (mlp.intermediate_size, hidden)}
    sizes |= {"down": (hidden, mlp.intermediate_size)}
    for layer in range(model.num_layers):
        for name, (rows, cols) in sizes.items():
            rectangles = cells[f"layers.{layer}.{name}.weight"]
            assert tiles(rectangles, rows, cols), (name, rectangles)
    for table in ("embed.weight", "head.weight"):
        assert tiles(cells[table], model.vocab_size, hidden)


def tiles(rectangles: list[tuple[int, int, int, int]], rows: int, cols: int) -> bool:
    seen = [0] * (rows * cols)
    for r0, r1, c0, c1 in rectangles:
        for r in range(r0, r1):
            for c in range(c0, c1):
                seen[r * cols + c] += 1
    return set(seen) == {1}


def test_header_is_padded_ordered_and_independent_of_the_proof() -> None:
    model = make_model()
    plan = make_plan(model, [group(model, ["a"], 4)])
    slots = slots_of(plan, "a")
    raw = layout.header(slots, "a")
    assert len(raw) % PAGE_BYTES == 0
    assert int.from_bytes(raw[:8], "little") == len(raw) - 8
    table = json.loads(raw[8:])
    assert table.pop("__metadata__") == {"abi": "1", "device": "a"}
    assert list(table) == [slot.name for slot in slots]
    assert raw[8:].rstrip(b" ").endswith(b"}")
    other = dataclasses.replace(plan, proof=dataclasses.replace(plan.proof, bound_ns=1))
    assert layout.header(slots_of(other, "a"), "a") == raw


def test_the_abi_depends_on_every_column_of_the_table() -> None:
    model = make_model()
    slots = slots_of(make_plan(model, [group(model, ["a"], 4)]), "a")
    first = slots[0]
    changed = [
        dataclasses.replace(first, name="x"),
        dataclasses.replace(first, dtype="F16"),
        dataclasses.replace(first, shape=(1, 4)),
        dataclasses.replace(first, offset=256),
    ]
    hashes = {layout.abi((slot, *slots[1:]), "float32") for slot in (first, *changed)}
    assert len(hashes) == 5


@pytest.mark.parametrize(("nbytes", "aligned"), [(0, 0), (1, 256), (256, 256), (257, 512)])
def test_align(nbytes: int, aligned: int) -> None:
    assert align(nbytes) == aligned
