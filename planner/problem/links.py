"""Bytes and times of the messages that one step sends along the chain of blocks and stages."""

from planner.solver.problem import Receive

TREE_BLOCKS = 2
"""Growing and pruning the tree after a pass of the head takes about as long as so many blocks' fixed work."""


NOTHING = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)
