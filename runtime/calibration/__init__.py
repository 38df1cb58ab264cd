"""Times of this machine's CPU in the runtime's own kernels, for an inventory.

    rates     products of few rows over weights that no cache holds, by one process
    machine   as many processes as an inventory has devices, some and all at once, and their messages through shared
              memory

Samples go out as they are; the planner takes what the best tenth reaches, and spreads (``planner.hardware.measured``),
and asks for them by a command, since it imports nothing of the runtime. Called by ``runtime.commands.calibrate``. Not
here: times of a plan (``runtime.commands.step_times``), and GPUs, on which nothing of this was tried.
"""
