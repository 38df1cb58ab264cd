"""Experts and their routers against transformers' modules, in both ways of running them, whole and in shares."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

from runtime.comm.groups import Group
from runtime.model.experts import Clamp, Experts
from runtime.model.layers import Linear
from runtime.model.router import Router

ROWS, HIDDEN, CHANNELS, EXPERTS, PICKED = 9, 16, 24, 6, 3
ALONE = Group(name="test", ranks=(0,), rank=0, staged=False, handle=None)
FOLLOWER = Group(name="test", ranks=(1, 0), rank=0, staged=False, handle=None)
"""A group of which this device is not the leader, without a sum over it."""


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module with random parameters and buffers."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module.eval()


def own_experts(theirs: Any, ungrouped_rows: int | None, channels: slice, group: Group = ALONE) -> Experts:
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
        ungrouped_rows=ungrouped_rows,
        group=group,
    )


@pytest.mark.parametrize("ungrouped_rows", [None, 4, 100])
@pytest.mark.parametrize("first", [0, 8, CHANNELS])
def test_experts_with_biases_and_clamped_gates_are_those_of_gpt_oss(first: int, ungrouped_rows: int | None) -> None:
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
            total += own_experts(theirs, ungrouped_rows, channels, group)(x, None)
    torch.testing.assert_close(total, expected)
