"""Kernels that a GPU starts in a step, as many as tests/runtime/decode/test_gpu_steps.py counts on meta tensors.

Each is one operation of torch or one launch of a Triton kernel; collectives are not among them. The planner prices
them (``planner.costs.fixed_work``).
"""

from plans.schema import LayerClass, Mlp, Plan
from plans.step import fed_rows, layer_class

LAYER = 10
"""A dense layer: norm, q k v, rotary with the write to the cache, attention, merge of its splits, o; norm, gate and up,
activation, down."""
EXPERTS = 4
"""More in a layer with experts: choice, sort and sum of the rows of each expert."""
CHOICE = 1
"""More of a router with sigmoids or a correction."""
EMBED = 3
"""Before the layers: ancestors, their bits, look-up."""
CAPTURED = 1
"""Copy of a hidden state that the drafter is sent."""
LM_HEAD = 26
"""Behind the layers: carried state, norm, logits, best token, walk, features of the path; step message; commit."""
DIVIDED_TABLES = 8
"""More where the vocabulary's rows are divided: a mask of looked-up rows, the best of all devices."""
PASS = 10
"""A pass of the drafter besides its layers: look-up, input, fc or norms, logits, the best, growth, parents' outputs."""
DRAFT = 14
"""Once in a step that drafts: roots, positions and masks of the levels, choice of the nodes, commit."""


def layer(mlp: Mlp) -> int:
    """Return the kernels of a layer."""
    if mlp.kind != "moe":
        return LAYER
    router = mlp.router
    return LAYER + EXPERTS + CHOICE * (router is not None and (router.scores == "sigmoid" or router.correction))


def step(plan: Plan, *, drafted: bool) -> int:
    """Return the kernels of a step of the largest tree, where one device has all of a plan; without parallel drafts."""
    model, draft, tree = plan.model, plan.draft, plan.options.tree
    classes: list[LayerClass] = [layer_class(model, number) for number in range(model.num_layers)]
    captured = len(draft.aux_layers) if draft is not None and draft.kind == "eagle3" else 0
    base = sum(layer(own.mlp) for own in classes) + EMBED + LM_HEAD + captured * CAPTURED
    if not drafted or draft is None or tree is None:
        return base
    passes = 1 + sum(rows > 0 for rows in fed_rows(tree))
    return base + passes * (PASS + draft.num_layers * LAYER) + DRAFT
