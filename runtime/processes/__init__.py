"""Processes: start, watch and end the rank processes of a plan."""
