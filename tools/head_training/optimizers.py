"""Muon for hidden matrices and AdamW for the rest, on one schedule."""

import math

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.775, 2.0315)
"""Muon's a, b, c: an iteration maps X to (a + b G + c G^2) X, where G = X X^T."""
ITERATIONS = 5
GRAM_RATIO = 1.25
"""Ratio of a matrix's sides from which iterating on its Gram matrix takes fewer operations."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """Approach the nearest semi-orthogonal matrices by Newton-Schulz iteration (Muon's quintic), in their dtype."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.dtype == torch.float32 and x.shape[-1] >= GRAM_RATIO * x.shape[-2]:
        x = gram_factor(x @ x.mT) @ x
    else:
        for _ in range(ITERATIONS):
            x = quintic(x @ x.mT) @ x
    result: Tensor = x.mT if tall else x
    return result


def gram_factor(gram: Tensor) -> Tensor:
    """Return the product of all iterations' polynomials from the Gram matrix of the beginning.

    X' = P X has the Gram matrix P G P: the long side enters the first product and the last alone. The coefficients
    magnify small eigenvalues, and with them the rounding of G: float32 carries that, bfloat16 does not.
    """
    factor = quintic(gram)
    polynomial = factor
    for _ in range(ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = quintic(gram)
        factor = polynomial @ factor
    return factor


def quintic(gram: Tensor) -> Tensor:
    """Return a + b G + c G^2."""
    a, b, c = QUINTIC
    result = b * gram + c * gram @ gram
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices, batched by shape; torch.optim.Muon takes one matrix at a time.

    ``dtype``: in which it is orthogonalised; bfloat16 is faster and precise enough for large matrices.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    assert p.grad is not None
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    buffer = self.state[p]["momentum"]
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                orthogonal = orthogonalise(torch.stack(updates).to(self.dtype)).to(torch.float32)
                for p, update in zip(params, orthogonal, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


class Schedule:
    """Optimizers of a head; after a warm-up their rates fall to zero along half a cosine."""

    ADAM_LR = 0.001
    MUON_LR = 0.02

    def __init__(self, head: nn.Module, warm_up_steps: int, rate: float, dtype: torch.dtype) -> None:
        """``rate``: factor on the peak rates. ``dtype``: in which matrices are orthogonalised."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, p in head.named_parameters():
            (matrices if p.ndim == 2 and "lm_head" not in name else others).append(p)
        self.warm_up_steps = warm_up_steps
        self.params = matrices + others
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=self.MUON_LR, weight_decay=0.02, dtype=dtype),
            torch.optim.AdamW(others, lr=self.ADAM_LR, betas=(0.9, 0.95), weight_decay=0.01),
        ]
        self.peaks = [rate * self.MUON_LR, rate * self.ADAM_LR]

    def step(self, number: int, done: float) -> None:
        """Apply the gradients of step ``number``, clipped to norm 1, and clear them.

        ``done``: share of the training before it.
        """
        share = min((number + 1) / self.warm_up_steps, 1.0) * 0.5 * (1 + math.cos(math.pi * done))
        nn.utils.clip_grad_norm_(self.params, 1.0)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
