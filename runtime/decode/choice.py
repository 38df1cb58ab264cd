"""The base's choice of the token after a row: the argmax of its logits, or one draw from the target distribution p.

p is the softmax of the logits after temperature, top-k and top-p (``runtime.sampling``). The random numbers are a
function of the seed, of the position of the chosen token and of its id, so that drafting does not change the text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.model.base import Forward
from runtime.model.draw import Draw
from runtime.sampling import Sampling


def choose(
    forward: Forward, rows: Tensor, sampling: Sampling | None, *, position: int, depths: Tensor, num_depths: int
) -> Tensor:
    """Return the base's choice after each of ``rows`` [W, H], normed hidden states of one sequence: [W].

    ``sampling``: None is greedy. ``position``, ``depths`` [W] and ``num_depths`` as in ``Draw``.
    """
    if sampling is None:
        return forward.lm_head.best(rows)
    draw = Draw(sampling=sampling, position=position, depths=depths, num_depths=num_depths)
    return forward.lm_head.draw(rows, draw)


def choose_in_trees(
    forward: Forward, mask: Tensor, samplings: Sequence[Sampling | None], positions: Sequence[int], num_depths: int
) -> Tensor:
    """Return the base's choice after each node of the trees: [B, N].

    ``mask`` [B, N, N]: each node's ancestors and itself. ``samplings``: by sequence; those beyond are padding, as are
    their results. ``positions``: by sequence, of the token after its root. ``num_depths``: most nodes of a path, A.
    """
    batch, nodes, _ = mask.shape
    if not any(samplings):
        return forward.lm_head.best(forward.normed).view(batch, nodes)
    rows, depths = forward.normed.unflatten(0, (batch, nodes)), mask.sum(2) - 1
    padded = [*samplings, *[None] * (batch - len(samplings))]
    return torch.stack([
        choose(forward, rows[b], sampling, position=position, depths=depths[b], num_depths=num_depths)
        for b, (sampling, position) in enumerate(zip(padded, positions, strict=True))
    ])  # fmt: skip
