"""Bounds: lower bounds of the step time of every group and choice."""
