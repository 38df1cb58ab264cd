"""Torch's operations, which a GPU runs, give the tokens of the CPU kernels: the same plan, run by both on a CPU."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from planner.families import load_base
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import DType, KvDType, Mlp, Options, Plan
from runtime.comm.groups import Comm
from runtime.decode.sequences import common_length
from runtime.decode.step import Mode, Stepper
from runtime.image.buffers import Memory
from runtime.image.slots import Image
from runtime.model import base, ops
from runtime.processes.machine import torch_device
from runtime.sampling import Sampling
from tests.contract.checkpoints import inputs
from tests.contract.ranks import on_all_ranks
from tests.plan_factory import Group, group, make_plan
from tests.planner.instances import DEMO, demo
from tests.planner.tiny_checkpoints import saved

pytestmark = pytest.mark.usefixtures("one_core")

PROMPTS = ((5, 17, 30, 2, 6), tuple(range(28, 8, -1)))
COUNT = 24
SAMPLING = Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=3)

Texts = dict[tuple[bool, bool], list[list[int]]]
"""Tokens of each prompt, by drafted and sampled."""


def texts(plan: Plan, directory: Path, prompts: tuple[tuple[int, ...], ...] = PROMPTS) -> Texts:
    """Decode the prompts together in every way that the plan allows."""

    def serve(image: Image, comm: Comm) -> Texts:
        device, results = torch_device(plan.devices[comm.rank]), Texts()
        memory = Memory(plan, plan.devices[comm.rank].id, device)
        with torch.inference_mode():
            stepper = Stepper(plan, image, memory, comm, device)
        for draft, sampled in product({False, plan.draft is not None}, (False, True)):
            samplings = [SAMPLING if sampled else None] * len(prompts)
            mode = Mode(draft=draft, accept=None)
            tokens: list[list[int]] = [[] for _ in prompts]
            for step in stepper.steps(prompts, samplings, mode, reuse=False):
                for number, taken in enumerate(step):
                    tokens[number] += taken.tokens if taken is not None else []
                if min(map(len, tokens)) >= COUNT:
                    break
            results[draft, sampled] = [text[:COUNT] for text in tokens]
        return results

    first, *others = on_all_ranks(plan, directory, serve)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kv_dtype", [None, "float8_e4m3fn"])
@pytest.mark.parametrize("devices", [("a",), ("a", "b")])
def test_the_embedded_model_and_its_drafter(
    devices: tuple[str, ...], dtype: DType, kv_dtype: KvDType | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, draft = demo("eagle3")
    assert draft is not None
    plan = make_plan(
        loaded.model, [group(loaded.model, devices, loaded.model.num_layers)], draft=draft.draft,
        inputs=inputs(loaded, draft), context=96, prefill_chunk=16, dtype=dtype, kv_dtype=kv_dtype, batch=2,
    )  # fmt: skip
    (tmp_path / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(tmp_path, DEMO / "base", DEMO / "eagle3")
    tokenizer = Tokenizer.from_file(str(DEMO / "base" / "tokenizer.json"))
    prompts = tuple(tuple(tokenizer.encode(text).ids) for text in ("def f(", "import os\n\nclass Reader:\n    def"))
    kernels = texts(plan, tmp_path, prompts)
    monkeypatch.setattr(ops, "has_kernels", lambda x: False)
    torchs = texts(plan, tmp_path, prompts)
    if dtype == "float32":
        assert all(torchs[True, sampled] == torchs[False, sampled] for sampled in (False, True))
        assert torchs == kernels
        return
    # Kernels add up in float32 what torch rounds, and on processors without AVX-512 torch rounds a row otherwise beside
    # other rows than alone: texts part where two tokens are nearly as probable.
    for other in (kernels[True, False], torchs[False, False]):
        assert min(common_length(*pair) for pair in zip(torchs[True, False], other, strict=True)) >= COUNT // 2


@pytest.mark.parametrize("devices", [("a",), ("a", "b")])
@pytest.mark.parametrize(
    ("family", "sizes"), [("mixtral", {"intermediate_size": 32}), ("qwen3_moe", {"moe_intermediate_size": 16})]
)
def test_experts_grouped_and_all_at_once(
    family: str, sizes: dict[str, int], devices: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_base(saved(tmp_path / "base", family, **sizes))
    kinds = [replace(loaded.model, layers=(layers,)) for layers in loaded.model.layers]
    runs = tuple(group(kind, devices, kind.num_layers).runs[0] for kind in kinds)
    plan = make_plan(
        loaded.model, [Group(devices=devices, runs=runs)], inputs=inputs(loaded, None), context=64, prefill_chunk=16,
        batch=2,
    )  # fmt: skip
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(tmp_path / "plan", tmp_path / "base", None)
    kernels = texts(plan, tmp_path / "plan")
    monkeypatch.setattr(ops, "has_kernels", lambda x: False)
    assert texts(plan, tmp_path / "plan") == kernels, "grouped"

    def rows(options: Options, hidden: int, mlp: Mlp, device: object) -> int | None:
        return 3 if mlp.kind == "moe" else None

    monkeypatch.setattr(base, "ungrouped_rows", rows)
    assert texts(plan, tmp_path / "plan") == kernels, "all experts on three rows at a time"
