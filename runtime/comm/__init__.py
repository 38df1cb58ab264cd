"""Communication: the groups of ranks that a plan names, their collectives, and what a rank reports of its progress.

`groups` performs all-reduce, all-gather and broadcast; `shared_memory` (with the arguments of its compiled part in
`exchange`) and `torch_groups` are the transports, and `meeting` connects the ranks; `progress` is the status that a
rank shares with its parent, and the timer of the parts of a step. ``model`` and ``decode`` call the collectives,
``processes`` connects the ranks and reads their progress. What the messages contain is in
``decode.messages``; the sizes of their buffers in ``plans.step``.
"""
