"""Feasible: packings, and lower bounds of the bytes that are missing where nothing fits."""
