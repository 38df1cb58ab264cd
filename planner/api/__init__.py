"""The Python interface: plan a model on an inventory, compile, read, compare and check a plan.

``planner/__init__.py`` exports these functions and their results; the commands call the same functions, so that an
option has one default and one meaning. They read and write files and raise the errors of :mod:`planner.errors`; they
print nothing. What the arguments of a command line look like, and every word on a terminal, is in ``planner.commands``.

Each function is in a module of its own, so that only planning and checking import the solver.
"""
