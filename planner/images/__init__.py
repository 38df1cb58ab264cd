"""Images: lays out, writes, publishes and explains the per-device safetensors images."""
