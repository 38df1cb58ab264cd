"""Decode: one EAGLE step, from draft to commit."""
