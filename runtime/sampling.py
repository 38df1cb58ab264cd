"""Sampling parameters, and the distribution that they mean; ``runtime.model.draw`` computes it.

The distribution is that of transformers: logits divided by the temperature; then the ``top_k`` highest; then, of their
softmax, the fewest most probable tokens that together reach ``top_p``. Tokens that tie at a limit all stay.

A token is drawn by an exponential race (the Gumbel-max trick): token x with weight w[x], its probability times any
constant, arrives at time E[x] / w[x] with E exponentially distributed; the first to arrive is x with probability
w[x] / sum(w), exactly. So

- the lm_head may be divided over devices: each member races its own rows, and only the winners are gathered, two words
  per row. The limits of top_k and top_p are found by bisection on the bits of a weight, with sums over the group: of
  token counts for top_k, of weights for top_p, a few words per row. Logits are never gathered, and nothing is
  approximated.
- E is a function of the seed, the position of the drawn token in the sequence, and the token's id, nothing else. One
  seed gives one text, with and without the drafter and on any plan, as far as the logits are equal. Rows of one depth
  of a tree share their E, since only one of them is on the accepted path.
"""

import math
import secrets
from dataclasses import dataclass

from runtime.errors import RequestError

MOST_SEED = (1 << 63) - 1
LEAST_TEMPERATURE = 1e-6
"""Lower ones are greedy, as 0 is; logits divided by them would overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Parameters of sampling; greedy decoding has none."""

    temperature: float
    top_k: int | None
    """Draw from this many most probable tokens; None: from all."""
    top_p: float | None
    """Draw from the fewest tokens that together have this probability; None: from all."""
    seed: int

    @property
    def least_mass(self) -> float | None:
        """``top_p`` where it limits; None: all tokens stay."""
        return None if self.top_p == 1.0 else self.top_p


def sampling_of(temperature: float, top_k: int | None, top_p: float | None, seed: int | None) -> Sampling | None:
    """Return the sampling of parameters as a caller gives them; None where temperature 0 means greedy.

    top_k 0 or None and top_p 1 or None: no limit; so is a top_p of 0 where decoding is greedy, as callers of EAGLE
    write it. seed None: a random one. Raises RequestError for a value out of range, also where greedy decoding would
    not use it.
    """
    sampling = Sampling(
        temperature=temperature or 1.0,
        top_k=top_k or None,
        top_p=top_p if temperature else top_p or None,
        seed=secrets.randbelow(MOST_SEED) if seed is None else seed,
    )
    check_sampling(sampling)
    return sampling if temperature else None


def check_sampling(sampling: Sampling) -> None:
    """Raise RequestError for a parameter out of range."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= LEAST_TEMPERATURE):
        raise RequestError(
            f"temperature: found {sampling.temperature:g}, expected 0 (greedy) or at least {LEAST_TEMPERATURE:g}"
        )
    if sampling.top_k is not None and not 1 <= sampling.top_k <= MOST_SEED:
        raise RequestError(f"top_k: found {sampling.top_k}, expected 0 (no limit) to 2^63 - 1")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise RequestError(
            f"top_p: found {sampling.top_p:g}, expected more than 0 and at most 1 (no limit); 0 only with temperature 0"
        )
    if not 0 <= sampling.seed <= MOST_SEED:
        raise RequestError(f"seed: found {sampling.seed}, expected 0 to 2^63 - 1")
