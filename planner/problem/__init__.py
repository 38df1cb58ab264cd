"""Problem: turns a model, its drafter, options and an inventory into the integers that the solver is given.

This is the only package that knows both vocabularies: models, KV heads and devices on one side, groups, splits, blocks
and axes (:mod:`planner.solver.problem`) on the other. ``formulate`` puts the problem together: ``machine`` and
``canonical_order`` number devices by figures and links, whatever their names; ``device_sets`` and ``kv_splits``
enumerate the candidates over which optimality is proven, ``stage_groups``, ``vocab_blocks`` and
``draft_block`` price them with the messages of ``links``; ``equal_hosts`` leaves hosts out, and ``wider`` prices what
groups over more hosts cost at least; ``quantum`` chooses the unit of time, ``magnitude`` refuses what cannot be counted
in 64 bits. ``device_map`` and ``pinned`` read a device map, ``previous_plan`` prices the weights of an earlier plan.

Bytes and times of a share are computed in :mod:`planner.costs`; no search is here. :mod:`planner.build`
formulates a request, :mod:`planner.emit` reads an answer back into a plan with the same formulation.
"""
