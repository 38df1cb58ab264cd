"""What is asked of a plan, what comes back, and what a plan cannot serve."""

import hashlib
from dataclasses import dataclass
from typing import Literal, Self

from plans.schema import Plan
from runtime.errors import RequestError
from runtime.sampling import Sampling, check_sampling

Finish = Literal["length", "eos", "stop", "cancelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and how to continue it."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    draft: bool
    """False: plain decoding, also on a plan with a draft."""
    ignore_eos: bool
    stop: tuple[str, ...]
    """The output ends before the first of these in its text."""
    sampling: Sampling | None = None
    """None: greedy."""
    reuse: bool = False
    """Rows of the caches that the request before left are kept as far as both have the same tokens. The numbers are
    those of a prompt that came in other chunks: equal but for rounding."""
    accept: int | None = None
    """Every step commits so many drafted nodes, right or wrong: the time of a step, not its text, is wanted."""
    timed: bool = False
    """Each part of a step is timed, on every rank."""


class Piece(str):
    """Text that became certain with one step, and the tokens of that step, whose text may come with a later one."""

    tokens: tuple[int, ...]

    def __new__(cls, text: str = "", tokens: tuple[int, ...] = ()) -> Self:
        piece = super().__new__(cls, text)
        piece.tokens = tokens
        return piece


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTimings:
    """Where the steps of one request went on one rank, in ns of all its steps."""

    parts: dict[str, int]
    """As ``runtime.progress.Timings`` has them."""
    groups: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The output of one request, with its times."""

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish: Finish
    accept_lengths: tuple[int, ...]
    """Accepted drafted tokens of each step; empty in plain decoding."""
    reused: int
    """Tokens of the prompt whose rows were in the caches already."""
    seed: int | None
    """Of sampling."""
    prefill_s: float
    decode_s: float
    """After the first token."""
    measured_bytes: tuple[dict[str, int], ...]
    """Made on each device of the plan, term by term."""
    timings: RankTimings | None
    """Of this rank, if they were asked for."""

    @property
    def tokens_per_s(self) -> float:
        """Of decoding: the tokens after the first, which prefill gives."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 else 0.0

    @property
    def acceptance_length(self) -> float:
        """Mean of accepted + 1; plain decoding commits one token per step."""
        lengths = self.accept_lengths
        return sum(lengths) / len(lengths) + 1 if lengths else 1.0


def check_request(plan: Plan, request: Request) -> None:
    """Raise RequestError where the plan cannot serve the request."""
    context, vocabulary, prompt = plan.options.context, plan.model.vocab_size, request.prompt_ids
    if not prompt:
        raise RequestError("prompt: empty, expected at least one token")
    for position, token in enumerate(prompt):
        if not 0 <= token < vocabulary:
            raise RequestError(f"prompt_ids[{position}]: found {token}, expected 0 to {vocabulary - 1}")
    if request.max_new_tokens < 1:
        raise RequestError(f"max_new_tokens: found {request.max_new_tokens}, expected at least 1")
    if len(prompt) + request.max_new_tokens > context:
        raise RequestError(
            f"prompt of {len(prompt)} tokens + max_new_tokens {request.max_new_tokens} = "
            f"{len(prompt) + request.max_new_tokens}, the plan has a context of {context}: ask for at most "
            f"{max(0, context - len(prompt))} new tokens, or build a plan with a longer context"
        )
    if any(not text for text in request.stop):
        raise RequestError("stop: found an empty text")
    if request.sampling is not None:
        check_sampling(request.sampling)
    if request.accept is not None:
        _check_accept(plan, request.accept)


def check_batch(plan: Plan, requests: tuple[Request, ...]) -> None:
    """Raise RequestError where the plan cannot serve the requests together."""
    if not 0 < len(requests) <= plan.options.batch:
        raise RequestError(
            f"prompts: found {len(requests)}, the plan has a batch of {plan.options.batch}: give at most so many, at "
            "least one, or build a plan with a larger batch"
        )
    for request in requests:
        check_request(plan, request)
        if (request.draft, request.accept, request.reuse) != (requests[0].draft, requests[0].accept, requests[0].reuse):
            raise RequestError("prompts that are decoded together: expected draft, accept and reuse of all alike")


def _check_accept(plan: Plan, accept: int) -> None:
    tree = plan.options.tree
    if tree is None:
        raise RequestError("accept: the plan has no draft")
    most = min(tree.depth + 1, tree.total_token - 1)
    if not 0 <= accept <= most:
        raise RequestError(f"accept: found {accept}, expected 0 to {most}, the most that a step of the plan accepts")


def fingerprint(request: Request) -> int:
    """63 bits that differ where requests do, but for the seed: ranks compare theirs."""
    sampling = request.sampling
    told = (
        request.prompt_ids,
        request.max_new_tokens,
        request.draft,
        request.ignore_eos,
        request.stop,
        None if sampling is None else (sampling.temperature, sampling.top_k, sampling.top_p),
        request.reuse,
        request.accept,
    )
    return int.from_bytes(hashlib.blake2b(repr(told).encode(), digest_size=8).digest()) >> 1
