"""Arithmetic of a model on one device's share: the base model, and the blocks that the drafter is made of too.

    base       the base model: embedding, a stage of layers, lm_head, with the hops between them
    blocks     embedding, layers and lm_head, each bound to slots of an image
    layers     attention, gated MLP, norm and rotary embedding
    experts    mixture of experts
    split_kv   attention where a subgroup of devices divides one KV cache
    kvcache    the static KV cache: rows of the tree, rows of the sequence
    draw       sampling of tokens from logits that are divided over a group
    ops        operations of a layer, by torch or by the CPU kernels
    weights    products with weights, plain or quantized
    kernels    the CPU kernels, compiled by Numba

Nothing here knows of draft trees beyond a mask, of requests, or of other processes than the members of a group, to
which ``runtime.comm`` sends. Weights are views of an image (``runtime.image``); buffers are those that
``plans.buffers`` counts. Callers: ``runtime.decode`` runs the base and builds the drafter from the same blocks;
``runtime.processes`` compiles the kernels.
"""
