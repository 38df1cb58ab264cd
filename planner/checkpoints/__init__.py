"""Checkpoints: safetensors headers and configs of models and EAGLE heads, as given."""
