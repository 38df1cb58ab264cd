"""Kernels that a GPU starts in a step, as many as tests/runtime/decode/test_gpu_steps.py counts on meta tensors.

Each is one operation of torch or one launch of a Triton kernel; collectives are not among them. The planner prices
them (``planner.costs.fixed_work``).
"""

LAYER = 10
"""A dense layer: norm, q k v, rotary with the write to the cache, attention, merge of its splits, o; norm, gate and up,
activation, down."""
EXPERTS = 4
"""More in a layer with experts: choice, sort and sum of the rows of each expert."""
CHOICE = 1
"""More of a router with sigmoids or a correction."""
CONTEXT, BATCH = 1, 2
"""More in a layer whose KV cache devices divide by context: average of their results; by batch: the output among zeros
for other sequences."""
HEAD_DIM, SCORES = 8, 18
"""More in a layer whose heads devices divide by head_dim, where torch attends, and for each block of its cache's rows
(``plans.step.score_blocks``): scores, mask, softmax and values in float32."""
EMBED = 3
"""Before the layers: ancestors, their bits, look-up."""
LM_HEAD = 26
"""Behind the layers: carried state, norm, logits, best token, walk, features of the path; step message; commit."""
DIVIDED_TABLES = 3
"""More where the vocabulary's rows are divided: a mask of looked-up rows, the best of all devices."""
PASS = 10
"""A pass of the drafter besides its layers: look-up, input, fc or norms, logits, the best, growth, parents' outputs."""
DRAFT = 17
"""Once in a step that drafts: copies of three hidden states that an EAGLE-3 head is sent, roots, positions and masks of
the levels, choice of the nodes, commit."""
