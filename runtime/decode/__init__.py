"""Speculative decoding: one EAGLE step on one rank, from draft to commit, and the batch that is made of steps.

    step          the loop: draft, verify, accept, commit; begin reading here
    work          the options of a step, what it computes, and what it gives each place
    prefill       prompts through base and drafter, in chunks, up to the first trees
    graphs        steps that a GPU replays, captured when their shape comes again
    parts         the parts of a plan that a rank runs, and what it sends to the other ranks with
    sequences     the record of what each sequence has in the KV caches, and how much of it a new prompt can reuse
    messages      views of the step message and the feature message
    drafter       an EAGLE head on one device's share: from accepted features to the next tree
    head_layers   the layers of the kinds of EAGLE head
    tree_growth   the candidates that become nodes of a draft tree, dynamic (EAGLE-2, -3) or static (EAGLE-1)
    choice        the base's choice of the next token, greedy or sampled, and the samplings of all places
    tree          draft trees as tensors: ancestors, selection of nodes
    pool          drafts compared with the text, to count an acceptance profile
    verify        acceptance of tree nodes, lossless for greedy decoding and for sampling

Every rank runs the same steps and does what the plan gave it. The arithmetic of layers lives in ``runtime.model``,
collectives in ``runtime.comm``, tokens as text and the end of an output in ``runtime.text``. The one caller is
``runtime.processes.rank``.
"""
