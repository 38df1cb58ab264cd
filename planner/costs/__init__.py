"""Bytes and predicted time of a share of a model on a device: arithmetic on the records of a plan, nothing else.

    roofline    time of work on a device, of a message and of a collective
    fixed_work  time of the kernels of a block, and of the host in an EAGLE step
    topology    the links between devices, and the slowest of a group
    memory      affine bounds of bytes, and the memory terms of a device
    shares      work and bytes of every kind of share
    stall       the stall time-out of a run
    acceptance  expected tokens of a step, from an acceptance profile

Called by ``planner.problem`` to price candidates, by ``planner.emit`` for memory lines, and by ``planner.build`` for
the time-out. Sizes are defined in ``plans`` (slots, buffers, messages); the choice is made in ``planner.solver``.
"""
