"""Fixed times of blocks: kernel counts on GPUs, whole blocks on CPUs."""

import dataclasses

from planner.costs.fixed_work import (
    TREE_STEP_NS,
    embed_ns,
    layer_ns,
    lm_head_ns,
    pass_ns,
    tree_step_ns,
)
from plans.schema import Router
from tests.planner.instances import UNLIKE, formulation

FORMULATED = formulation(UNLIKE, "eagle3")
(LAYERS, *_) = FORMULATED.model.layers
DENSE = LAYERS.mlp
EXPERTS = dataclasses.replace(DENSE, kind="moe", num_experts=8, experts_per_token=2)
CPU = dataclasses.replace(FORMULATED.inventory.devices[0], kind="cpu", overhead_ns=50_000)
GPU = dataclasses.replace(CPU, kind="cuda", overhead_ns=15_000)
"""A GPU on which a kernel takes 1 us."""


def test_blocks_of_a_gpu_have_the_kernels_that_the_runtime_starts() -> None:
    assert layer_ns(GPU, DENSE) == 15_000
    assert layer_ns(GPU, EXPERTS) == 27_000
    assert layer_ns(GPU, dataclasses.replace(EXPERTS, bias=True, swiglu_limit=7.0)) == 36_000
    router = Router(scores="sigmoid", bias=False, float32=True, correction=True, groups=2, picked_groups=1, scale=1.0)
    assert layer_ns(GPU, dataclasses.replace(EXPERTS, router=router)) == 37_000
    assert (embed_ns(GPU), lm_head_ns(GPU)) == (20_000, 39_000)
    assert (pass_ns(GPU, 1), pass_ns(GPU, 3)) == (75_000, 105_000)
    assert layer_ns(dataclasses.replace(GPU, overhead_ns=1), EXPERTS) == 2, "rounded up"


def test_blocks_of_a_cpu_are_equal() -> None:
    assert {layer_ns(CPU, DENSE), layer_ns(CPU, EXPERTS), embed_ns(CPU), lm_head_ns(CPU)} == {50_000}
    assert (pass_ns(CPU, 1), pass_ns(CPU, 2)) == (200_000, 250_000)


def test_a_gpu_waits_for_the_host_once_per_tree() -> None:
    assert tree_step_ns(GPU) == tree_step_ns(dataclasses.replace(GPU, overhead_ns=0)) == TREE_STEP_NS
    assert tree_step_ns(CPU) == 0
