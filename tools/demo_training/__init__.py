"""Training of the embedded demo model: its corpus, its base and its two EAGLE heads. `tools/train_demo.py` runs it."""
