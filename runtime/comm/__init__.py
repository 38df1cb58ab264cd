"""Communication: the groups of ranks that a plan names, their collectives, and what a rank reports of its progress.

`groups` makes the process groups of torch.distributed and performs all-reduce, all-gather and broadcast; `progress` is
the status that a rank shares with its parent, and the timer of the parts of a step. ``model`` and ``decode`` call the
collectives, ``processes`` connects the ranks and reads their progress. What the messages contain is in
``decode.messages``; the sizes of their buffers in ``plans.step``.
"""
