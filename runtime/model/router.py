"""The router of experts: it picks e of E experts for each row, and weighs them.

    x [W, H] ── product ── softmax or sigmoid: scores [W, E] ── + correction ── the best groups ── the e best [W, e]
                              └────────────────────── weights: the scores of those ── / sum ── * scale ◄──┘

Every device has the whole router, so that all of them pick the same experts. Letters as in ``layers``. Temporaries are
bounded by `scratch.router` in plans/layer_buffers.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.model import ops
from runtime.model.layers import Linear

LEAST_SUM = 1e-12
"""Least sum by which softmax weights are divided that a correction picked (ERNIE 4.5's ``moe_norm_min``)."""
ADDED_TO_SUM = 1e-20
"""Number that is added to a sum of sigmoids, so that nothing is divided by 0 (DeepSeek-V3, GLM-4.5)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """The choice of experts for each row."""

    product: Linear
    """Weight [H, E], in the dtype of activations or in float32."""
    picked: int
    """e, experts of each row."""
    normed: bool
    """True: the weights of a row's experts are divided by their sum."""
    sigmoid: bool = False
    """Scores are sigmoids; false: a softmax."""
    correction: Tensor | None = None
    """[E] float32: added to the scores by which experts are picked, but not to their weights."""
    groups: int = 1
    picked_groups: int = 1
    """Groups of consecutive experts, and those that experts are picked from."""
    scale: float = 1.0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights, in float32, and numbers of the experts of each row [W, e], of ``x`` [W, H]."""
        logits = self.product(x.to(self.product.values.dtype))
        if not ops.is_cpu(x):
            return self._on_gpu(logits)
        logits = logits.float()
        scores = sigmoid(logits) if self.sigmoid else logits.softmax(1)
        if self.correction is None and self.groups == 1:
            weights, experts = scores.topk(self.picked, 1)
        else:
            experts = self._choices(scores).topk(self.picked, 1).indices
            weights = scores.gather(1, experts)
        if self.normed:
            weights = weights / self._divisor(weights.sum(1, keepdim=True))
        return (weights if self.scale == 1.0 else weights * self.scale), experts

    def _on_gpu(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        routed: tuple[Tensor, Tensor] = ops.on_gpu("experts").route(
            logits, self.picked, sigmoid=self.sigmoid, correction=self.correction, groups=self.groups,
            picked_groups=self.picked_groups, normed=self.normed, scale=self.scale,
            least=0.0 if self.sigmoid or self.correction is None else LEAST_SUM,
            added=ADDED_TO_SUM if self.sigmoid else 0.0,
        )  # fmt: skip
        return routed

    def _choices(self, scores: Tensor) -> Tensor:
        """Return what experts are picked by [W, E]: corrected scores, and -inf outside the best groups."""
        choices = scores if self.correction is None else scores + self.correction
        if self.groups == 1:
            return choices
        by_group = choices.unflatten(1, (self.groups, -1))  # [W, groups, E / groups]
        best = by_group.topk(2, 2).values.sum(2).topk(self.picked_groups, 1).indices
        hidden = torch.ones(by_group.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, best, False)
        return torch.where(hidden.unsqueeze(2), float("-inf"), by_group).flatten(1)

    def _divisor(self, total: Tensor) -> Tensor:
        """Return what weights are divided by [W, 1], of their sum, which is 0 where others than the best are picked."""
        if self.sigmoid:
            return total + ADDED_TO_SUM
        return total if self.correction is None else total.clamp(min=LEAST_SUM)


def sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid of each value in float32, with bits that do not depend on where in ``x`` it is.

    It is a weight of the softmax of x and 0: torch's sigmoid has other code for the last values of a tensor.
    """
    return torch.stack([x, torch.zeros_like(x)], -1).softmax(-1)[..., 0]
