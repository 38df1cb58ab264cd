"""Imports of the fork server: what the ranks that it forks need, without the parts of torch that none of them does."""

from plans.deferred import unused_deferred

with unused_deferred():
    import runtime.processes.rank_process  # noqa: F401
