"""Experts and their routers against transformers' modules, by both devices' kernels, whole and in shares."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Ernie4_5_MoeConfig, Glm4MoeConfig, GptOssConfig, MiniMaxM2Config
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter

from runtime.comm.groups import Group
from runtime.model import ops
from runtime.model.experts import Clamp, Experts
from runtime.model.layers import Linear
from runtime.model.router import Router
from runtime.model.triton_kernels import launch

ROWS, HIDDEN, CHANNELS, EXPERTS, PICKED = 9, 16, 24, 6, 3
ALONE = Group(name="test", ranks=(0,), rank=0, handle=None)
FOLLOWER = Group(name="test", ranks=(1, 0), rank=0, handle=None)
"""A group of which this device is not the leader, without a sum over it."""


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module with random parameters and buffers."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module.eval()


@pytest.fixture(params=[200, 8], ids=["CPU", "GPU"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the kernels of a device; return the rows to try, few for Triton's interpreter, which runs those of a GPU."""
    if request.param == 8:
        monkeypatch.setattr(ops, "is_cpu", lambda x: False)
    return int(request.param)


def own_experts(theirs: Any, channels: slice, group: Group = ALONE) -> Experts:
    """Return a share of the experts of gpt-oss."""
    gate_up, down = theirs.experts.gate_up_proj.detach(), theirs.experts.down_proj.detach()
    halves = [gate_up[:, :, 0::2][:, :, channels], gate_up[:, :, 1::2][:, :, channels]]
    bias = theirs.experts.gate_up_proj_bias.detach()
    none = channels.start == channels.stop
    return Experts(
        router=Router(
            product=Linear(weight=theirs.router.weight.detach().t(), bias=theirs.router.bias.detach()),
            picked=PICKED,
            normed=True,
        ),
        gate_up=None if none else torch.cat(halves, 2).transpose(1, 2).contiguous(),
        gate_up_bias=None if none else torch.cat([bias[:, 0::2][:, channels], bias[:, 1::2][:, channels]], 1),
        down=None if none else down[:, channels].transpose(1, 2).contiguous(),
        down_bias=theirs.experts.down_proj_bias.detach() if group is ALONE else None,
        clamp=Clamp(limit=0.9, alpha=1.3),
        group=group,
    )


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("first", [0, 8, CHANNELS])
def test_experts_with_biases_and_clamped_gates_are_those_of_gpt_oss(first: int) -> None:
    """The leader has the ``first`` channels and the biases of outputs; with none of the channels only these."""
    config = GptOssConfig(
        hidden_size=HIDDEN, intermediate_size=CHANNELS, num_local_experts=EXPERTS, num_experts_per_tok=PICKED,
        swiglu_limit=0.9, swiglu_alpha=1.3,
    )  # fmt: skip
    theirs = filled(GptOssMLP(config))
    x = torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = theirs(x[None])[0][0]
    total: Tensor = torch.zeros_like(x)
    for channels, group in ((slice(0, first), ALONE), (slice(first, CHANNELS), FOLLOWER)):
        if channels.start < channels.stop or group is ALONE:
            total += own_experts(theirs, channels, group)(x, None)
    torch.testing.assert_close(total, expected)


def own_router(theirs: Any, correction: Tensor | None, **settings: Any) -> Router:
    """Return the router with the weights of one of transformers."""
    product = Linear(weight=theirs.weight.detach().float().t(), bias=None)
    correction = None if correction is None else correction.detach().flatten()
    return Router(product=product, picked=PICKED, correction=correction, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("groups", "picked_groups"), [(1, 1), (3, 2), (2, 1)])
def test_experts_are_picked_as_in_glm(
    groups: int, picked_groups: int, normed: bool, dtype: torch.dtype, rows: int
) -> None:
    config = Glm4MoeConfig(
        hidden_size=HIDDEN, n_routed_experts=EXPERTS, num_experts_per_tok=PICKED, norm_topk_prob=normed,
        n_group=groups, topk_group=picked_groups, routed_scaling_factor=1.7,
    )  # fmt: skip
    theirs = filled(Glm4MoeTopkRouter(config))
    correction: Any = theirs.e_score_correction_bias
    ours = own_router(
        theirs, correction, normed=normed, sigmoid=True, groups=groups, picked_groups=picked_groups, scale=1.7
    )
    x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(7)).to(dtype)
    assert_same_choice(theirs(x)[1:], ours(x))
    assert not ops.is_cpu(x) or all(
        torch.equal(own, one) for own, one in zip(ours(x[5:6]), (part[5:6] for part in ours(x)), strict=True)
    )


def test_experts_are_picked_as_in_minimax_and_ernie(rows: int) -> None:
    x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(8))
    sizes: dict[str, Any] = {"hidden_size": HIDDEN}
    minimax = filled(
        MiniMaxM2TopKRouter(MiniMaxM2Config(num_local_experts=EXPERTS, num_experts_per_tok=PICKED, **sizes))
    )
    correction = torch.randn(EXPERTS, generator=torch.Generator().manual_seed(9))
    ours = own_router(minimax, correction, normed=True, sigmoid=True)
    assert_same_choice(minimax(x, correction)[1:], ours(x))
    ernie: Any = filled(Ernie4_5_MoeTopKRouter(Ernie4_5_MoeConfig(moe_num_experts=EXPERTS, moe_k=PICKED, **sizes)))
    ours = own_router(ernie, ernie.moe_statics.e_score_correction_bias, normed=True)
    assert_same_choice(ernie(x)[1:], ours(x))
    with torch.no_grad():  # weights of experts that their scores alone would never pick
        ernie.weight.mul_(100)
    ours = own_router(ernie, ernie.moe_statics.e_score_correction_bias, normed=True)
    assert_same_choice(ernie(x)[1:], ours(x))


def assert_same_choice(theirs: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> None:
    """Assert that weights and numbers of experts [W, e] are equal in some order of each row."""
    (weights, experts), (own_weights, own_experts) = theirs, ours
    order, own_order = experts.argsort(1), own_experts.argsort(1)
    assert torch.equal(experts.gather(1, order), own_experts.gather(1, own_order))
    torch.testing.assert_close(own_weights.gather(1, own_order), weights.gather(1, order).float())


def test_off_the_cpu_shapes_do_not_depend_on_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are no values: what read one, and so waited for a GPU, would fail."""

    monkeypatch.setattr(launch, "start", lambda *operands, **sizes: None)

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    block = Experts(
        router=Router(
            product=Linear(weight=meta(EXPERTS, HIDDEN, dtype=torch.float32).t(), bias=None),
            picked=PICKED,
            normed=True,
            sigmoid=True,
            correction=meta(EXPERTS, dtype=torch.float32),
            groups=3,
            picked_groups=2,
            scale=2.5,
        ),
        gate_up=meta(EXPERTS, 2 * CHANNELS, HIDDEN),
        gate_up_bias=meta(EXPERTS, 2 * CHANNELS),
        down=meta(EXPERTS, HIDDEN, CHANNELS),
        down_bias=meta(EXPERTS, HIDDEN),
        clamp=Clamp(limit=7.0, alpha=1.702),
        group=ALONE,
    )
    out = block(meta(ROWS, HIDDEN), meta(ROWS, HIDDEN))
    assert (out.shape, out.dtype) == ((ROWS, HIDDEN), torch.bfloat16)
