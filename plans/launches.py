"""Kernels that a GPU starts in a step, as many as tests/runtime/decode/test_gpu_steps.py counts on meta tensors.

Each is one operation of torch or one launch of a Triton kernel; collectives are not among them. The planner prices
them (``planner.costs.fixed_work``).
"""

LAYER, MERGE = 9, 1
"""A dense layer: norm, q k v, rotary with the write to the cache, attention, o; norm, gate and up, activation, down.
And the merge of the splits of the cache, where attention does not do it by itself (``plans.step.merges_itself``)."""
ACTIVATION = 1
"""Of these in a dense layer whose gate and up are not in codes, which is torch's product: others apply it."""
SPLIT_QKV, SPLIT_GATE_UP = 3, 2
"""More in a layer whose q, k and v, or gate and up, have formats of their own: a product of each, and the copy of their
results into one; behind gate and up the activation is a kernel again."""
EXPERTS = 3
"""More in a layer with experts: choice, sort and sum of the rows of each expert; their product applies the
activation."""
CHOICE = 1
"""More of a router with sigmoids or a correction."""
CONTEXT, BATCH = 1, 2
"""More in a layer whose KV cache devices divide by context: average of their results; by batch: the output among zeros
for other sequences."""
HEAD_DIM, SCORES = 9, 18
"""More in a layer whose heads devices divide by head_dim, where torch attends, and for each block of its cache's rows
(``plans.step.score_blocks``): scores, mask, softmax and values in float32."""
EMBED = 3
"""Before the layers: ancestors, their bits, look-up."""
LM_HEAD = 11
"""Behind the layers: carried state, norm, logits, best token, walk; root, step message and notice; accepted nodes,
their rows, length of the sequence."""
DIVIDED_TABLES = 3
"""More where the vocabulary's rows are divided: a mask of looked-up rows, the best of all devices."""
PASS = 4
"""A pass of the drafter besides its layers, whose first norm is that of both inputs: norm or fc, logits, the best of
blocks of them, growth."""
DIVIDED_PASS = 4
"""More where the drafter's tables are divided: look-up, parents' outputs and their norms are kernels of their own, and
the best of all devices are gathered."""
DRAFT = 21
"""Once in a step that drafts: copies of three hidden states that an EAGLE-3 head is sent, features of the path, message
to the drafter, roots, positions and rows of the pairs, fc, their last outputs, positions of the levels, choice of the
nodes, length of the sequence."""
