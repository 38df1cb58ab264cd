"""Tokens drawn from the processed distribution, by tensor operations of fixed shape, over rows of a divided lm_head.

The distribution is that of transformers: logits over temperature; then the ``top_k`` highest; then, softmax of those,
the fewest most probable that together reach ``top_p``. Tokens that are equal at a limit all stay.

A draw is a race: token x with weight w[x] (its probability, times anything) arrives after E[x] / w[x], E exponential,
and the first is drawn with probability w[x] / sum(w), exactly. So

- the lm_head may be divided: each member has a race of its own rows, and what is gathered is the winners, two words of
  each. Limits are found by bisecting on the bits of a weight, with sums over the group: of numbers of tokens for top_k,
  of weights for top_p, some words a row. Whole logits never travel, and nothing is approximated.
- E is a function of the seed, the place of the drawn token in the sequence, and its id, nothing else. One seed gives
  one text, whether it is drafted or not, on any plan, as far as logits are the same; rows of one depth of a tree share
  their E, since only one of them is on the path.

Letters: W rows, v rows of the lm_head of this device, A places.
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
    """How tokens are drawn; greedy decoding has none."""

    temperature: float
    top_k: int | None
    """None: of all tokens."""
    top_p: float | None
    """None: of all of them."""
    seed: int


def sampling_of(temperature: float, top_k: int | None, top_p: float | None, seed: int | None) -> Sampling | None:
    """Parameters as people give them: temperature 0 is greedy; top_k 0 or None, top_p None or 1: of all tokens.

    Without a seed one is drawn. Raises RequestError for what makes no sense, also where it would not be used.
    """
    sampling = Sampling(
        temperature=temperature or 1.0,
        top_k=top_k or None,
        top_p=top_p,
        seed=secrets.randbelow(MOST_SEED) if seed is None else seed,
    )
    check_sampling(sampling)
    return sampling if temperature else None


def check_sampling(sampling: Sampling) -> None:
    """Raise RequestError for parameters that make no sense."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= LEAST_TEMPERATURE):
        raise RequestError(
            f"temperature: found {sampling.temperature:g}, expected 0 (greedy) or at least {LEAST_TEMPERATURE:g}"
        )
    if sampling.top_k is not None and not 1 <= sampling.top_k <= MOST_SEED:
        raise RequestError(f"top_k: found {sampling.top_k}, expected 1 to 2^63 - 1")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise RequestError(f"top_p: found {sampling.top_p:g}, expected more than 0 and at most 1")
    if not 0 <= sampling.seed <= MOST_SEED:
        raise RequestError(f"seed: found {sampling.seed}, expected 0 to 2^63 - 1")
