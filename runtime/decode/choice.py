"""The base's choice of the token after a row: the argmax of its logits, or one draw from the target distribution p.

p is the softmax of the logits after temperature, top-k and top-p (``runtime.sampling``). The random numbers are a
function of the seed, of the position of the chosen token and of its id, so that drafting does not change the text.

What a step chooses by lies on the device (``Samplings``), and is written when a sequence begins to be decoded: so a
captured step reads it there. In a plan with a GPU all sequences of a step are drawn for if one of them samples, and
those that do not take the argmax: on a GPU that has the whole lm_head in one kernel. Where all devices are CPUs each
sequence is computed as it needs.
"""

import torch
from torch import Tensor

from runtime.decode.sequences import swap
from runtime.model.base import Forward
from runtime.model.draw import NO_TOP_K, NO_TOP_P, Draw, Target, key_of
from runtime.sampling import Sampling


class Samplings:
    """The sampling of each place, and the position of the token after its root, on the device."""

    def __init__(self, batch: int, device: torch.device, *, alike: bool) -> None:
        """``alike``: the operations of a step depend on nothing but whether any of its places samples."""
        self.alike = alike
        self._listed: list[Sampling | None] = [None] * batch
        self._greedy = torch.ones(batch, 1, dtype=torch.bool, device=device)
        self._temperatures = torch.ones(batch, dtype=torch.float32, device=device)
        self._top_k = torch.full((batch,), NO_TOP_K, dtype=torch.float64, device=device)
        self._top_p = torch.full((batch,), NO_TOP_P, dtype=torch.float64, device=device)
        self._keys = torch.zeros(batch, dtype=torch.int64, device=device)
        self._positions = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def _columns(self) -> tuple[Tensor, ...]:
        return self._greedy, self._temperatures, self._top_k, self._top_p, self._keys, self._positions

    def write(self, place: int, sampling: Sampling | None, position: int) -> None:
        """Note the sampling of a place, and the position of the token after its root."""
        self._listed[place] = sampling
        self._positions[place].fill_(position)
        self._greedy[place].fill_(sampling is None)
        if sampling is not None:
            self._temperatures[place].fill_(sampling.temperature)
            self._top_k[place].fill_(NO_TOP_K if sampling.top_k is None else sampling.top_k)
            self._top_p[place].fill_(NO_TOP_P if sampling.least_mass is None else sampling.least_mass)
            self._keys[place].fill_(key_of(sampling.seed))

    def forget(self, place: int) -> None:
        """Let a place be greedy: nothing is decoded there."""
        self.write(place, None, 0)

    def exchange(self, a: int, b: int) -> None:
        """Exchange two places."""
        swap(self._listed, a, b)
        for column in self._columns:
            kept = column[a].clone()
            column[a].copy_(column[b])
            column[b].copy_(kept)

    def any(self, places: slice) -> bool:
        """Return True where a sequence samples."""
        return any(self._listed[places])

    def advance(self, rows: Tensor, places: slice) -> None:
        """Add ``rows`` [S] to the positions."""
        self._positions[places].add_(rows)

    def target(self, place: int) -> Target | None:
        """Return the parameters of a place's draws; None where it is greedy."""
        sampling, own = self._listed[place], slice(place, place + 1)
        if sampling is None:
            return None
        return Target(
            temperature=self._temperatures[own],
            top_k=None if sampling.top_k is None else self._top_k[own],
            top_p=None if sampling.least_mass is None else self._top_p[own],
            key=self._keys[own],
            position=self._positions[own],
        )

    def targets(self, places: slice) -> Target:
        """Return the parameters of the draws of several places."""
        return Target(
            temperature=self._temperatures[places],
            top_k=self._top_k[places],
            top_p=self._top_p[places],
            key=self._keys[places],
            position=self._positions[places],
            greedy=self._greedy[places],
        )


def choose_first(forward: Forward, row: Tensor, sampling: Sampling | None, position: int) -> Tensor:
    """Return the base's choice after the last row of a prompt, ``row`` [1, H], at a position: [1]."""
    if sampling is None:
        return forward.lm_head.best(row)
    depths = torch.zeros(1, dtype=torch.int64, device=row.device)
    target = Target.of(sampling, position, row.device)
    return forward.lm_head.draw(row, Draw(target=target, depths=depths, num_depths=1))


def choose_in_trees(forward: Forward, mask: Tensor, samplings: Samplings, places: slice, num_depths: int) -> Tensor:
    """Return the base's choice after each node of the trees: [S, N].

    ``mask`` [S, N, N]: each node's ancestors and itself. ``places``: of the sequences. ``num_depths``: most nodes of a
    path, A.
    """
    batch, nodes, _ = mask.shape
    if not samplings.any(places):
        return forward.lm_head.best(forward.normed).view(batch, nodes)
    depths = mask.sum(2) - 1
    if samplings.alike:
        together = Draw(target=samplings.targets(places), depths=depths.flatten(), num_depths=num_depths)
        return forward.lm_head.draw(forward.normed, together).view(batch, nodes)
    rows, chosen = forward.normed.unflatten(0, (batch, nodes)), []
    for number in range(batch):
        target = samplings.target(places.start + number)
        if target is None:
            chosen.append(forward.lm_head.best(rows[number]))
        else:
            draw = Draw(target=target, depths=depths[number], num_depths=num_depths)
            chosen.append(forward.lm_head.draw(rows[number], draw))
    return torch.stack(chosen)
