"""Loss of an EAGLE-3 head on a batch of cached sequences, with the steps in which the head is fed its own output.

Pair i of a sequence (feature i, token i + 1) predicts token i + 2; self-fed step j starts at a pair i and takes its own
output with token i + 1 + j, to predict token i + 2 + j. The target is the base's distribution there.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_heads import Eagle3Head
from head_training.base import Base

LOSS_ROWS = 128
"""Predictions whose logits are compared with their targets at once."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences padded to one length: B rows of L pairs, and L + 1 states, which give the targets."""

    tokens: Tensor
    """int64 [B, L + 2]; token i + 1 belongs to pair i."""
    choices: Tensor
    """int64 [B, L + 1]; the base's most probable token after position i."""
    features: Tensor
    """[B, L, 3 T]: inputs of three layers of the base."""
    final: Tensor
    """[B, L + 1, H]: final states of the base; that of position i gives the distribution of token i + 1."""
    pairs: Tensor
    """int64 [B]: real pairs of each row."""
    starts: Tensor
    """int64 [B]: first pair whose prediction counts: the one that predicts the answer's second token."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Predictions of one step of the head for its rows: sums over those that count."""

    loss: Tensor
    rows: int
    right: int
    """Rows whose most probable token is the base's choice."""
    rows_right_before: int
    """Rows that all earlier steps predicted right: the ones that a chain reaches."""
    right_in_chain: int


class Unrolled:
    """Attention of EAGLE-3's training-time test.

    Row i of step j sees the step-0 rows up to i, which are committed pairs, and its ancestors, rows i of steps 1..j:

        step 0 rows   0 1 .. i | step 1: i | step 2: i | .. | step j: i

    Step 0 has all rows, later steps the rows [B, R].
    """

    def __init__(self, rows: Tensor, length: int) -> None:
        self.own: list[tuple[Tensor, Tensor]] = []
        self.committed: tuple[Tensor, Tensor] | None = None
        self.future = (torch.arange(length) > rows[..., None])[:, None]  # [B, 1, R, L]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q [B, heads, L, D], k and v [B, K, L, D], later with R for L; every call is the next step.

        In step 0 q may have fewer rows: the last ones.
        """
        heads, dtype = q.shape[1], v.dtype
        if self.committed is None:
            self.committed = (k, v)
            length = k.shape[2]
            visible = torch.ones(length, length, dtype=torch.bool).tril()[length - q.shape[2] :]
            return F.scaled_dot_product_attention(
                q.to(dtype), k.to(dtype), v, attn_mask=visible, enable_gqa=heads != k.shape[1]
            )
        self.own.append((k, v))
        k0, v0 = self.committed
        groups = heads // k0.shape[1]
        q = q.unflatten(1, (-1, groups)) * q.shape[-1] ** -0.5  # [B, K, G, R, D]
        length = k0.shape[2]
        scores = [(q @ k0[:, :, None].mT).float().masked_fill(self.future[:, None], float("-inf"))]
        scores += [(q * kj[:, :, None]).sum(-1, keepdim=True).float() for kj, _ in self.own]
        weights = torch.cat(scores, dim=-1).softmax(-1).to(dtype)
        result = weights[..., :length] @ v0[:, :, None]
        for j, (_, vj) in enumerate(self.own):
            result = result + weights[..., length + j, None] * vj[:, :, None]
        return result.flatten(1, 2)


class Targets:
    """The base's distribution over the draft vocabulary, and whether its first choice is in there."""

    def __init__(self, head: Eagle3Head, base: Base, batch: Batch, hard_share: float) -> None:
        self.rows = base.lm_head[head.token_ids()].to(batch.final.dtype)
        self.batch, self.hard_share = batch, hard_share
        self.t2d = head.t2d
        self.draft_ids = head.t2d.cumsum(0) - 1  # of the base's ids that are draft ids

    def compare(self, logits: Tensor, row: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compare logits [n, DV] with the targets at these positions.

        Return the sum of cross-entropies over those whose first choice is a draft id, which these are [n], and which
        logits have their largest there [n].
        """
        choices = self.batch.choices[row, position]
        covered, first = self.t2d[choices], self.draft_ids[choices].clamp(min=0)
        final = self.batch.final[row, position]
        loss, right = cross_entropy(logits, final, self.rows, covered, first, self.hard_share)
        return loss, covered, right


def cross_entropy(
    logits: Tensor, final: Tensor, rows: Tensor, covered: Tensor, first: Tensor, hard_share: float
) -> tuple[Tensor, Tensor]:
    """Return the sum of cross-entropies of covered logits [n, DV] with their targets, and where both agree [n].

    A target is h * [first] + (1 - h) * softmax(final @ rows^T), of final states [n, H] and rows [DV, H] of the lm_head.
    """
    result: tuple[Tensor, Tensor] = _CrossEntropy.apply(logits, final, rows, covered, first, hard_share)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropy(torch.autograd.Function):
    """Computes the gradient, softmax(logits) - target, with the loss: blocks of rows stay in the processor's cache."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, final: Tensor, rows: Tensor, covered: Tensor, first: Tensor, hard: float
    ) -> Any:
        """Return loss and agreement, see ``cross_entropy``."""
        gradient = torch.empty_like(logits)
        loss, right = torch.zeros(()), torch.empty_like(covered)
        for block in torch.arange(len(logits)).split(LOSS_ROWS):
            part = slice(int(block[0]), int(block[-1]) + 1)
            drafted, label = logits[part].float(), first[part, None]
            p, target = drafted.softmax(-1), (final[part] @ rows.T).float().softmax(-1)
            largest = p.amax(-1)
            total = drafted.amax(-1) - largest.log()  # log of the sum of exponentials
            mean = (1 - hard) * torch.linalg.vecdot(target, drafted) + hard * drafted.gather(1, label)[:, 0]
            loss += ((total - mean) * covered[part]).sum()
            right[part] = (p.gather(1, label)[:, 0] == largest) & covered[part]
            p.sub_(target, alpha=1 - hard).scatter_add_(1, label, torch.full(label.shape, -hard))
            gradient[part] = p.mul_(covered[part, None])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, loss: Tensor, _right: Tensor) -> Any:
        """Return the gradient by the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * loss, None, None, None, None, None


def run_steps(
    head: Eagle3Head, base: Base, batch: Batch, rows: Tensor, steps: int, hard_share: float
) -> list[StepResult]:
    """Return the results of ``steps`` steps: the first of all pairs, later ones of ``rows`` [B, R] alone.

    A row counts while the base's choices up to it are in the draft vocabulary: no draft gets beyond others.
    """
    length = batch.features.shape[1]
    count = len(rows)
    targets = Targets(head, base, batch, hard_share)
    attention = Unrolled(rows, length)
    embedding = base.embedding[batch.tokens].to(batch.features.dtype)
    feature = head.fc(batch.features)
    skipped = int(batch.starts.min())  # pairs of prompts, which only give keys and values
    fed = torch.arange(length).expand(count, -1)
    sequence = torch.arange(count)[:, None]
    results = []
    for j in range(steps):
        positions = (fed + j).clamp(max=length - 1)  # of the head: a pair's index; rows beyond the end do not count
        given = embedding[sequence, positions + 1]
        feature = head(given, feature, positions, attention.attend, skipped if j == 0 else 0)
        if j == 0:
            fed, positions = fed[:, skipped:], positions[:, skipped:]
            valid = (fed >= batch.starts[:, None]) & (fed < batch.pairs[:, None])  # [B, L - skipped]
            right_so_far = torch.ones_like(valid)
        row, column = valid.nonzero(as_tuple=True)
        logits = head.logits(feature[row, column], base.model)
        loss, covered, right = targets.compare(logits, row, positions[row, column] + 1)
        before = right_so_far[row, column]
        results.append(
            StepResult(
                loss=loss,
                rows=len(row),
                right=int(right.sum()),
                rows_right_before=int(before.sum()),
                right_in_chain=int((right & before).sum()),
            )
        )
        alive = valid.clone()
        alive[row, column] = covered
        right_so_far[row, column] = right & before
        if j == 0:
            feature, fed = feature[sequence, rows - skipped], rows
            alive, right_so_far = alive.gather(1, rows - skipped), right_so_far.gather(1, rows - skipped)
        valid = alive & (fed + j + 1 < batch.pairs[:, None])
    return results
