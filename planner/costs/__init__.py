"""Costs: bytes and predicted ns of a share of a model on a device."""
