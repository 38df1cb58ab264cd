"""Say what would help where a model does not fit: the changes of a request with which a placement exists.

Each change is a request of its own that is built like any other, so what a refusal lists is what ``build`` answers.

    explain   the refusal of a request with its changes: the way in
    changes   the kinds of change (one option, or more devices of one type), and how far each must go
    estimates the size of a model that would fit: bytes alone
    probe     questions to the solver about one kind of change, under one budget

Called by ``planner.api`` and by the command ``build`` after :class:`planner.errors.InfeasibleError`. Not here: how many
bytes are short (:mod:`planner.infeasible`), and the words of a change on a terminal (``planner.commands.refusals``).
"""
