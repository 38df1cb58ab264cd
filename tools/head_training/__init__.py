"""Training of EAGLE-3 heads: prompts, answers of the base with its features, training, acceptance, files of the head.

`tools/train_head.py` is the command. Shapes: B rows, T tokens, H hidden size of the base, D head dim, V vocabulary,
DV draft vocabulary. A pair is (feature at position i, token i + 1), as everywhere in EAGLE.
"""
