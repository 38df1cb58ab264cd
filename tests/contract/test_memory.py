"""Memory of a run against its plan: every term of every device, for plans that differ in as much as possible.

Weights, caches and messages must equal the plan to the byte. For step buffers a plan has an upper bound of the
temporaries that a step holds at once; here the live tensors are added up after every operation.
"""

import collections
import math
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import DType, KvAxis, KvDType, Plan, Run, ScheduledTree, Tree
from plans.slots import device_slots
from plans.step import tree_rows
from runtime.comm.groups import Comm
from runtime.image.slots import Image
from runtime.model.kernels.arguments import MANY_ROWS
from runtime.processes.rank import Rank
from runtime.request import Request
from runtime.sampling import Sampling
from tests.contract import ranks
from tests.contract.agreeing import KV_HEADS, LAYERS
from tests.contract.checkpoints import CHUNK, Checkpoints, compiled, write_checkpoints
from tests.plan_factory import Group, even, group, make_plan, split_draft, whole_group
from tests.planner.quantized.checkpoints import MIXED, mixed, quantized
from tests.planner.tiny_checkpoints import saved

pytestmark = pytest.mark.usefixtures("one_core")

CONTEXT = 200
MOST_SLACK = 256 << 20
EXACT = ("weights", "draft_weights", "kv", "draft_kv")
SAMPLING = Sampling(temperature=0.9, top_k=30, top_p=0.95, seed=3)


class Alive(TorchDispatchMode):
    """Counter of the live bytes of tensors made while it is active; ``most`` is the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._owners: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = _tensors([args, list((kwargs or {}).values())])
        from_arguments = {tensor.untyped_storage().data_ptr() for tensor in arguments}
        out = func(*args, **(kwargs or {}))
        if any(name == ranks.__file__ for name in _callers()):
            return out  # messages between threads belong to the tests, not to the product
        for tensor in _tensors([out]):
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            if address in self._owners:
                self._owners[address] += 1
            elif address in from_arguments or not size:
                continue
            else:
                self._owners[address] = 1
                self._now += size
            weakref.finalize(tensor, self._released, address, size)
        self.most = max(self.most, self._now)
        return out

    def _released(self, address: int, size: int) -> None:
        self._owners[address] -= 1
        if not self._owners[address]:
            del self._owners[address]
            self._now -= size


def _callers() -> list[str]:
    """Return the source files of the four frames above the caller."""
    frame, files = sys._getframe(2), []
    for _ in range(4):
        if frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
    return files


def _tensors(values: Any) -> list[torch.Tensor]:
    tensors = []
    for value in values:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += _tensors(value)
    return tensors


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a plan."""

    kind: str | None = "eagle3"
    devices: tuple[str, ...] = ("a",)
    axis: KvAxis = "heads"
    stages: int = 1
    dtype: DType = "float32"
    kv_dtype: KvDType | None = None
    batch: int = 1
    tree: tuple[int, int, int] = (16, 3, 4)
    chunk: int = CHUNK
    context: int = CONTEXT
    tables: tuple[str, ...] = ()
    draft: tuple[str, ...] = ()
    schedule: tuple[tuple[int, tuple[int, int, int] | None], ...] = ()


CASES = (
    Case(),
    Case(kind=None, chunk=64),
    Case(kind="eagle", dtype="bfloat16", tree=(60, 7, 10)),
    Case(dtype="float16", batch=3, tree=(60, 7, 10)),
    Case(devices=("a", "b"), kv_dtype="float8_e4m3fn"),
    Case(devices=("a", "b"), axis="context", dtype="bfloat16", batch=2),
    Case(devices=("a", "b"), axis="head_dim", kind="eagle", kv_dtype="bfloat16"),
    Case(devices=("a", "b"), axis="batch", batch=4, chunk=8),
    Case(dtype="bfloat16", kv_dtype="int8", batch=2, tree=(60, 7, 10)),
    Case(devices=("a", "b"), axis="context", kv_dtype="int8", batch=2),
    Case(devices=("a", "b"), axis="context", kv_dtype="float8_e4m3fn", batch=2),
    Case(devices=("a", "b"), axis="head_dim", dtype="bfloat16", kv_dtype="int8", chunk=64),
    Case(devices=("a", "b", "c"), stages=3, tables=("d",), draft=("e",), tree=(2, 0, 1)),
    Case(devices=("a", "b"), stages=2, kind="eagle", tables=("c", "a"), draft=("b", "c"), chunk=64, dtype="bfloat16"),
    Case(devices=("a", "b", "c", "d"), draft=("a", "b", "c", "d"), batch=2, tree=(30, 5, 6)),
    Case(batch=4, tree=(2, 0, 1), schedule=((1, (60, 7, 10)), (2, (16, 3, 4)), (4, (2, 0, 1)))),
    Case(kind="eagle", batch=3, devices=("a", "b"), dtype="bfloat16", schedule=((1, (30, 5, 6)), (3, None))),
)


def planned(case: Case, checkpoints: Checkpoints) -> Plan:
    model, draft = checkpoints.base.model, checkpoints.drafts[case.kind] if case.kind else None
    units = model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit
    members = len(case.devices)
    if case.stages > 1:
        layers = even(LAYERS, members)
        groups = [group(model, [name], count) for name, count in zip(case.devices, layers, strict=True)]
    elif case.axis == "heads":
        groups = [group(model, case.devices, LAYERS)]
    else:
        run = Run(num_layers=LAYERS, kv_heads=(KV_HEADS,) * members, mlp_units=even(units, members))
        groups = [Group(devices=case.devices, runs=(run,), axis=case.axis, subgroups=(members,))]
    total_token, depth, top_k = case.tree
    return make_plan(
        model,
        groups,
        draft=draft.draft if draft else None,
        placement=split_draft(model, draft.draft, case.draft) if draft and case.draft else None,
        inputs=inputs_of(checkpoints.base, draft),
        context=case.context,
        prefill_chunk=case.chunk,
        dtype=case.dtype,
        kv_dtype=case.kv_dtype,
        batch=case.batch,
        embed=case.tables,
        head=case.tables,
        tree=Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None),
        schedule=tuple(
            ScheduledTree(sequences=sequences, tree=tree and dynamic(*tree)) for sequences, tree in case.schedule
        )
        or None,
    )


def dynamic(total_token: int, depth: int, top_k: int) -> Tree:
    return Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_takes_the_memory_of_its_plan(case: Case, checkpoints: Checkpoints, tmp_path: Path) -> None:
    plan = planned(case, checkpoints)
    assert_memory_is_planned(plan, compiled(tmp_path / "plan", plan, checkpoints, case.kind), case.batch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_chunk_of_many_rows_takes_the_memory_of_its_plan(
    dtype: DType, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """As many as are packed for products with panels."""
    case = Case(kind=None, dtype=dtype, chunk=MANY_ROWS + 1, context=MANY_ROWS + 32)
    plan = planned(case, checkpoints)
    directory = compiled(tmp_path / "plan", plan, checkpoints, case.kind)
    assert_memory_is_planned(plan, directory, case.batch, MANY_ROWS + 1)


GROWING = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0, "original_max_position_embeddings": 16}
GROWING |= {"llama_4_scaling_beta": 0.6}
BOTH: tuple[DType, ...] = ("float32", "bfloat16")
KINDS: list[tuple[str, dict[str, Any], DType, tuple[str, ...]]] = [
    *(("mixtral", {"intermediate_size": 64}, dtype, devices) for dtype in BOTH for devices in (("a",), ("a", "b"))),
    *(
        ("qwen3_moe", {"moe_intermediate_size": 24}, dtype, devices)
        for dtype in BOTH
        for devices in (("a",), ("a", "b"))
    ),
    ("qwen2_moe", {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 96}, "bfloat16", ("a", "b")),
    ("olmo2", {"num_key_value_heads": 4}, "bfloat16", ("a", "b")),
    ("gpt_oss", {"intermediate_size": 96}, "bfloat16", ("a", "b")),
    ("glm4_moe", {"use_qk_norm": True, "moe_intermediate_size": 24}, "bfloat16", ("a", "b")),
    ("ministral3", {"rope_parameters": GROWING}, "bfloat16", ("a", "b")),
    ("glm4", {"eos_token_id": 2}, "float32", ("a",)),
    ("gemma2", {}, "float32", ("a", "b")),
]
"""Kinds of models besides those of ``CASES``: experts, norms of outputs and of all heads together, packed tensors."""


@pytest.mark.parametrize(("family", "sizes", "dtype", "devices"), KINDS)
def test_other_kinds_of_models_take_the_memory_of_their_plan(
    tmp_path: Path, family: str, sizes: dict[str, Any], dtype: DType, devices: tuple[str, ...]
) -> None:
    base = load_base(saved(tmp_path / "base", family, hidden_size=64, num_attention_heads=4, head_dim=16, **sizes))
    runs = tuple(
        group(replace(base.model, layers=(kind,)), devices, kind.num_layers).runs[0] for kind in base.model.layers
    )
    plan = make_plan(
        base.model,
        [Group(devices=devices, runs=runs)],
        inputs=inputs_of(base, None),
        context=200,
        prefill_chunk=64,
        dtype=dtype,
    )
    target = tmp_path / "plan"
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(target, tmp_path / "base", None)
    assert_memory_is_planned(plan, target, 1)


@pytest.mark.parametrize(
    ("method", "family", "dtype"),
    [
        ("awq", "llama", "bfloat16"), ("w8", "llama", "float32"), ("fp8", "mixtral", "bfloat16"),
        ("sorted-gptq", "qwen2", "float32"), ("v and down in 8 bits", "llama", "bfloat16"),
        ("k, v and gate plain", "llama", "float32"),
    ],
)  # fmt: skip
def test_weights_in_codes_take_the_memory_of_their_plan(tmp_path: Path, method: str, family: str, dtype: DType) -> None:
    """As they are stored: a fraction of the bytes of the same model in bfloat16."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 32}
    whole = saved(tmp_path / "base", family, **sizes)
    coded, _ = mixed(whole, tmp_path, method) if method in MIXED else quantized(whole, tmp_path, method)
    plans = []
    for checkpoint in (coded, whole):
        base = load_base(checkpoint)
        groups = [whole_group(base.model, ("a", "b"))]
        plans.append(make_plan(base.model, groups, inputs=inputs_of(base, None), context=200, dtype=dtype))
    plan, plain = plans
    ratio = plan.memory[0].weights_bytes / plain.memory[0].weights_bytes
    assert ratio < (0.4 if method == "awq" else 0.65)
    target = tmp_path / "plan"
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(target, coded, None)
    assert_memory_is_planned(plan, target, 1)


@pytest.mark.parametrize(
    "case",
    [
        Case(kind="eagle"),
        Case(kind="eagle", devices=("a", "b"), stages=2, tables=("c", "a"), draft=("b", "c"), dtype="bfloat16"),
    ],
    ids=str,
)
def test_an_lm_head_in_codes_takes_the_memory_of_its_plan(case: Case, tmp_path: Path) -> None:
    checkpoints = write_checkpoints(tmp_path, kinds=("eagle",), weights="int8")
    plan = planned(case, checkpoints)
    plan = replace(plan, options=replace(plan.options, weights="int8"))
    assert_memory_is_planned(plan, compiled(tmp_path / "plan", plan, checkpoints, case.kind), case.batch)


@pytest.mark.parametrize("head", ["a", "b"])
def test_tied_tables_in_codes_take_the_memory_of_their_plan(tmp_path: Path, head: str) -> None:
    """On one device they are one table of half the bytes."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 96, "tie_word_embeddings": True}
    base = load_base(saved(tmp_path / "base", **sizes), "int8")
    plan = make_plan(base.model, [whole_group(base.model, ("a",))], inputs=inputs_of(base, None), head=[head])
    plan = replace(plan, options=replace(plan.options, weights="int8"))
    names = [slot.name for slot in device_slots(plan, "a") if slot.name.startswith(("embed.", "head."))]
    assert names == ["embed.weight", "embed.scales"]
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan/plan.yaml").write_text(codec.dumps(plan))
    compile_plan(tmp_path / "plan", tmp_path / "base", None)
    assert_memory_is_planned(plan, tmp_path / "plan", 1)


@pytest.mark.parametrize(
    ("devices", "axis", "dtype"),
    [(("a",), "heads", "bfloat16"), (("a", "b"), "context", "float32"), (("a", "b"), "batch", "bfloat16")],
)
def test_windows_take_the_memory_of_their_plan(
    tmp_path: Path, devices: tuple[str, ...], axis: KvAxis, dtype: DType
) -> None:
    types = ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]
    windows = {"use_sliding_window": True, "sliding_window": 9, "layer_types": types}
    base = load_base(saved(tmp_path / "base", "qwen2", hidden_size=64, num_attention_heads=4, **windows))
    plan = make_plan(
        base.model,
        [whole_group(base.model, devices, axis)],
        inputs=inputs_of(base, None),
        context=400,
        prefill_chunk=16,
        batch=2 if axis == "batch" else 1,
        dtype=dtype,
    )
    attention, sequences = base.model.layers[0].attention, 1 if axis == "batch" else plan.options.batch
    heads = attention.num_kv_heads
    rows = {window: math.ceil(n / (2 if axis == "context" else 1)) for window, n in ((9, 9 - 1 + 16), (None, 400))}
    row_bytes = sequences * 2 * heads * attention.head_dim * (2 if dtype == "bfloat16" else 4)
    granules = {window: -(-(tree_rows(plan.options) + count) // 64) * 64 for window, count in rows.items()}
    assert plan.memory[0].kv_bytes == (4 * granules[9] + 3 * granules[None]) * row_bytes
    target = tmp_path / "plan"
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(target, tmp_path / "base", None)
    assert_memory_is_planned(plan, target, plan.options.batch)


def assert_memory_is_planned(plan: Plan, directory: Path, batch: int, prompt_tokens: int = 20) -> None:
    prompt = tuple(3 + number % 20 for number in range(prompt_tokens))

    def serve(image: Image, comm: Comm) -> tuple[dict[str, int], int]:
        rank, alive = Rank(plan, directory, image, comm), Alive()
        for draft, sampling in ((plan.draft is not None, SAMPLING), (False, None)):
            request = Request(
                prompt_ids=prompt, max_new_tokens=4, draft=draft, ignore_eos=True, stop=(), sampling=sampling
            )
            events = rank.serve_batch((request,) * batch)
            with alive:
                collections.deque(events, maxlen=0)
        return rank.measured_bytes()[comm.rank], alive.most

    for number, (measured, most) in enumerate(ranks.on_all_ranks(plan, directory, serve)):
        line, name = plan.memory[number], plan.devices[number].id
        counted = {term: getattr(line, f"{term}_bytes") for term in measured}
        for term in EXACT:
            assert measured[term] == counted[term], (name, term)
        assert all(measured[term] <= counted[term] for term in measured), name
        steps = sum(counted[term] - measured[term] for term in ("buffers", "comm"))
        assert 0 < most <= steps, (name, most, steps)
        assert steps - most <= max(line.planned_bytes // 100, MOST_SLACK), name
