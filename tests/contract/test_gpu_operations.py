"""The operations of a GPU give the tokens of the CPU kernels: one plan, run by both on a CPU.

Triton's interpreter runs the kernels of ``triton_kernels`` (tests/conftest.py), slowly: there are few tokens.
"""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import KvAxis, KvDType, Plan, Run, Tree
from runtime.comm.groups import Comm
from runtime.decode.step import Stepper
from runtime.decode.work import Mode
from runtime.image.buffers import Memory
from runtime.image.slots import Image
from runtime.model import ops
from runtime.model.triton_kernels import launch
from runtime.processes.machine import torch_device
from runtime.sampling import Sampling
from tests.contract.agreeing import KV_HEADS
from tests.contract.checkpoints import CONTEXT, Checkpoints, compiled, write_checkpoints
from tests.contract.ranks import on_all_ranks
from tests.plan_factory import Group, even, group, make_plan
from tests.planner.tiny_checkpoints import saved

pytestmark = pytest.mark.usefixtures("one_core", "one_launch_at_a_time")

PROMPTS = ((5, 17, 30, 2, 6), (28, 27))
CHUNK = 4
TREE = Tree(kind="dynamic", total_token=6, depth=1, top_k=3, paths=None)
SAMPLING = Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=3)


@pytest.fixture
def one_launch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ranks, which are threads, launch kernels in turn: the interpreter is not theirs alone."""
    lock, start = threading.Lock(), launch.start

    def locked(*operands: Any, **sizes: Any) -> None:
        with lock:
            start(*operands, **sizes)

    monkeypatch.setattr(launch, "start", locked)


def texts(plan: Plan, directory: Path, *, draft: bool, sampling: Sampling | None, count: int) -> list[list[int]]:
    """Return the tokens of the prompts, which are decoded together."""

    def serve(image: Image, comm: Comm) -> list[list[int]]:
        device = torch_device(plan.devices[comm.rank])
        memory = Memory(plan, plan.devices[comm.rank].id, device)
        with torch.inference_mode():
            stepper = Stepper(plan, image, memory, comm, device)
        tokens: list[list[int]] = [[] for _ in PROMPTS]
        for step in stepper.steps(PROMPTS, [sampling] * len(PROMPTS), Mode(draft=draft, accept=None), reuse=False):
            for number, taken in enumerate(step):
                tokens[number] += taken.tokens if taken is not None else []
            if min(map(len, tokens)) >= count:
                break
        return [text[:count] for text in tokens]

    first, *others = on_all_ranks(plan, directory, serve)
    assert all(other == first for other in others)
    return first


def assert_same(
    plan: Plan, directory: Path, monkeypatch: pytest.MonkeyPatch, *, draft: bool, sampling: Sampling | None = None,
    count: int = 4,
) -> None:  # fmt: skip
    """Assert that the operations of both devices give the same tokens."""
    kernels = texts(plan, directory, draft=draft, sampling=sampling, count=count)
    monkeypatch.setattr(ops, "is_cpu", lambda x: False)
    assert texts(plan, directory, draft=draft, sampling=sampling, count=count) == kernels
    assert min(len(set(text)) for text in kernels) > 1, "texts that say nothing would prove nothing"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("small"), layers=2, kinds=("eagle",))


def test_an_eagle3_head_and_draws(checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, own = checkpoints.base.model, checkpoints.drafts["eagle3"]
    plan = make_plan(
        model, [group(model, ["a"], model.num_layers)], draft=own.draft, inputs=inputs_of(checkpoints.base, own),
        context=CONTEXT, prefill_chunk=CHUNK, batch=2, tree=TREE,
    )  # fmt: skip
    directory = compiled(tmp_path / "plan", plan, checkpoints, "eagle3")
    assert_same(plan, directory, monkeypatch, draft=True, sampling=SAMPLING, count=3)


@pytest.mark.parametrize(("draft", "kv_dtype"), [(True, "float8_e4m3fn"), (False, "float8_e4m3fn"), (True, "int8")])
def test_a_cache_of_8_bits(
    draft: bool, kv_dtype: KvDType, small: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, own = small.base.model, small.drafts["eagle"]
    plan = make_plan(
        model, [group(model, ["a"], model.num_layers)], draft=own.draft, inputs=inputs_of(small.base, own),
        context=CONTEXT, prefill_chunk=CHUNK, kv_dtype=kv_dtype, batch=2, tree=TREE,
    )  # fmt: skip
    directory = compiled(tmp_path / "plan", plan, small, "eagle")
    assert_same(plan, directory, monkeypatch, draft=draft, count=5 if draft else 3)


@pytest.mark.parametrize("axis", ["context", "head_dim", "batch"])
def test_devices_that_divide_kv_heads(
    axis: KvAxis, small: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, own = small.base.model, small.drafts["eagle"]
    units = model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit
    run = Run(num_layers=model.num_layers, kv_heads=(KV_HEADS,) * 2, mlp_units=even(units, 2))
    plan = make_plan(
        model, [Group(devices=("a", "b"), runs=(run,), axis=axis, subgroups=(2,))], draft=own.draft,
        inputs=inputs_of(small.base, own), context=CONTEXT, prefill_chunk=CHUNK, batch=2, tree=TREE,
    )  # fmt: skip
    directory = compiled(tmp_path / "plan", plan, small, "eagle")
    assert_same(plan, directory, monkeypatch, draft=True)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("mixtral", {"intermediate_size": 32}), ("gemma3_text", {}), ("gpt_oss", {}), ("olmo2", {}), ("granite", {})],
)
def test_families(family: str, sizes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts; norms of q and k, norms of outputs with offsets from 1, windows; sinks, and gates with bounds; norms of
    all heads together; a factor of outputs.
    """
    loaded = load_base(saved(tmp_path / "base", family, **sizes))
    kinds = [replace(loaded.model, layers=(layers,)) for layers in loaded.model.layers]
    runs = tuple(group(kind, ("a",), kind.num_layers).runs[0] for kind in kinds)
    plan = make_plan(
        loaded.model, [Group(devices=("a",), runs=runs)], inputs=inputs_of(loaded, None), context=64,
        prefill_chunk=CHUNK, batch=2,
    )  # fmt: skip
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(tmp_path / "plan", tmp_path / "base", None)
    assert_same(plan, tmp_path / "plan", monkeypatch, draft=False, sampling=SAMPLING, count=3)
