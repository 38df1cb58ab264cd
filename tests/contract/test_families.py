"""Families in the runtime: the tokens of transformers where its blocks suffice, a refusal by name where not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from planner.compile import compile_plan
from planner.families import load_base
from plans import codec
from plans.schema import Inputs, Plan
from runtime.engine import Engine
from runtime.errors import RequestError
from runtime.launch import Event, run
from runtime.text import Request
from tests.plan_factory import group, make_plan
from tests.planner.tiny_checkpoints import CLASSES, saved

pytestmark = pytest.mark.usefixtures("one_core")

PROMPT = (5, 17, 30, 2, 9, 11, 3)
COUNT = 20


def compiled(directory: Path, checkpoint: Path, devices: tuple[str, ...]) -> Plan:
    base = load_base(checkpoint)
    plan = make_plan(
        base.model,
        [group(base.model, devices, base.model.layers[0].num_layers)],
        inputs=Inputs(
            base_config_sha256=base.config_sha256,
            base_tensors_sha256=base.tensors_sha256,
            draft_config_sha256=None,
            draft_tensors_sha256=None,
        ),
        context=48,
    )
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, checkpoint, None)
    return plan


@pytest.mark.parametrize("devices", [("a",), ("a", "b")], ids=["whole", "split"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"head_dim": 6}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True, "rope_theta": 1000000.0}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "head_dim": 10}),
    ],
    ids=["mistral", "qwen2", "qwen2-tied", "qwen3", "qwen3-biased"],
)
def test_the_tokens_are_those_of_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any], devices: tuple[str, ...]
) -> None:
    torch.manual_seed(3)
    checkpoint = saved(tmp_path / "base", family, initializer_range=0.4, eos_token_id=None, **changes)
    plan = compiled(tmp_path / "plan", checkpoint, devices)
    model = CLASSES[family][1].from_pretrained(checkpoint, dtype=torch.float32).eval()
    out = model.generate(torch.tensor([PROMPT]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
    expected = tuple(out[0, len(PROMPT) :].tolist())
    assert len(set(expected)) > 4, "a model that says one thing would prove nothing"
    request = Request(prompt_ids=PROMPT, max_new_tokens=COUNT, draft=False, ignore_eos=True, stop=())
    events: list[Event] = []
    run(plan, tmp_path / "plan", [request], events.append, method="forkserver")
    (tokens,) = (event.tokens for event in events if hasattr(event, "accept_lengths"))
    assert tokens == expected


def test_experts_are_refused_by_name_before_an_image_is_read(tmp_path: Path) -> None:
    compiled(tmp_path / "plan", saved(tmp_path / "base", "mixtral"), ("a",))
    (tmp_path / "plan" / "a.safetensors").unlink()
    with pytest.raises(RequestError) as caught:
        Engine.open(tmp_path / "plan")
    assert str(caught.value) == (
        "plan: model.layers[0].mlp.kind: found moe, expected gated: this runtime has no blocks of experts"
    )
