"""Solver: finds and proves the placement of least step time with CP-SAT."""
