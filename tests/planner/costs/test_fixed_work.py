"""Fixed times of blocks: kernel counts on GPUs, whole blocks on CPUs."""

import dataclasses

import pytest

from planner.costs.fixed_work import BETWEEN_STEPS_NS, CAPTURED, ENGINE, ENGINE_TREE_STEP_NS, Kernels
from plans.schema import LayerClass, Mlp, Router
from tests.planner.instances import UNLIKE, formulation

FORMULATED = formulation(UNLIKE, "eagle3")
(LAYERS, *_) = FORMULATED.model.layers
DENSE = LAYERS.mlp
EXPERTS = dataclasses.replace(DENSE, kind="moe", num_experts=8, experts_per_token=2)
CPU = dataclasses.replace(FORMULATED.inventory.devices[0], kind="cpu", overhead_ns=50_000)
GPU = dataclasses.replace(CPU, kind="cuda", overhead_ns=15_000)
"""A GPU on which a kernel takes 1 us."""
SIGMOID = Router(scores="sigmoid", bias=False, float32=True, correction=True, groups=2, picked_groups=1, scale=1.0)


def of(mlp: Mlp) -> LayerClass:
    """Return a class of layers with an MLP."""
    return dataclasses.replace(LAYERS, mlp=mlp)


def test_blocks_of_an_engine_have_the_kernels_that_times_are_fitted_with() -> None:
    assert ENGINE.layer_ns(GPU, of(DENSE)) == GPU.overhead_ns
    assert ENGINE.layer_ns(GPU, of(EXPERTS)) == 27_000
    assert ENGINE.layer_ns(GPU, of(dataclasses.replace(EXPERTS, bias=True, swiglu_limit=7.0))) == 36_000
    assert ENGINE.layer_ns(GPU, of(dataclasses.replace(EXPERTS, router=SIGMOID))) == 37_000
    assert (ENGINE.embed_ns(GPU), ENGINE.lm_head_ns(GPU, walks=True)) == (20_000, 39_000)
    assert (ENGINE.pass_ns(GPU, 1), ENGINE.pass_ns(GPU, 3)) == (75_000, 105_000)
    assert ENGINE.layer_ns(dataclasses.replace(GPU, overhead_ns=1), of(EXPERTS)) == 2, "rounded up"


def test_blocks_of_the_runtime_have_the_kernels_that_are_counted() -> None:
    assert [CAPTURED.layer_ns(GPU, of(DENSE), merges=merges) for merges in (False, True)] == [9_000, 10_000]
    assert CAPTURED.layer_ns(GPU, of(EXPERTS)) == 12_000
    assert CAPTURED.layer_ns(GPU, of(dataclasses.replace(EXPERTS, router=SIGMOID))) == 13_000
    assert (CAPTURED.pass_ns(GPU, 1), CAPTURED.pass_ns(GPU, 3, merges=True)) == (13_000, 34_000)
    assert CAPTURED.pass_ns(GPU, 1, members=2) == 17_000
    assert CAPTURED.embed_ns(GPU, 2) > CAPTURED.embed_ns(GPU)


@pytest.mark.parametrize("kernels", [CAPTURED, ENGINE])
def test_blocks_of_a_cpu_are_equal(kernels: Kernels) -> None:
    blocks = {kernels.layer_ns(CPU, of(DENSE)), kernels.layer_ns(CPU, of(EXPERTS)), kernels.embed_ns(CPU, 2)}
    assert blocks | {kernels.lm_head_ns(CPU, walks=True)} == {50_000}
    assert (kernels.pass_ns(CPU, 1), kernels.pass_ns(CPU, 2)) == (200_000, 250_000)


def test_a_gpu_waits_for_the_host_once_a_step() -> None:
    """Of the runtime drafted or not; of an engine where it builds a tree."""
    idle = dataclasses.replace(GPU, overhead_ns=0)
    assert (CAPTURED.lm_head_ns(idle, walks=True), CAPTURED.draft_step_ns(idle)) == (BETWEEN_STEPS_NS, 0)
    assert (ENGINE.lm_head_ns(idle, walks=True), ENGINE.draft_step_ns(idle)) == (0, ENGINE_TREE_STEP_NS)
    assert (CAPTURED.draft_step_ns(CPU), ENGINE.draft_step_ns(CPU)) == (0, 0)
