"""Requests and their outputs, and the checks of whether a plan can serve a request.

    prompt, options ─► make_request ─► Request ─► Engine.serve ─► Rank.serve_batch ─► Piece, Piece, ..., Completion

A Request is checked where it is made, once; who serves one relies on that. `check_together` adds what several requests
that are decoded together must have in common.
"""

import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, Self, SupportsIndex, TypedDict

from plans.schema import Plan
from plans.step import accept_rows
from runtime.errors import RequestError
from runtime.sampling import Sampling, check_sampling, sampling_of

Finish = Literal["length", "eos", "stop", "cancelled"]

DEFAULT_NEW_TOKENS = 200
"""New tokens of a request that names no number, where the context has room for them."""


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``Engine.stream``, ``generate`` and ``generate_batch``: how a prompt is continued."""

    max_new_tokens: int | None
    """None, the default: 200, or as many as fit into the context."""
    temperature: float
    """0, the default, is greedy; above it tokens are drawn from what ``top_k``, then ``top_p`` leave."""
    top_k: int | None
    """Draw from this many most probable tokens; 0 or None, the default: from all."""
    top_p: float | None
    """Then from the fewest tokens that together have this probability; None, the default: from all."""
    seed: int | None
    """Seed of sampling: the same seed gives the same text; None, the default: a random one, which the result has."""
    stop: Sequence[str]
    """The output ends before the first of these strings; the default is none."""
    draft: bool
    """False: plain decoding, also on a plan with a drafter."""
    ignore_eos: bool
    """True: go on after an end-of-sequence token."""
    reuse: bool
    """True: keep the KV cache rows of the longest prefix that the last request and this prompt have in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and how to continue it."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    draft: bool
    """False: plain decoding, also on a plan with a drafter."""
    ignore_eos: bool
    stop: tuple[str, ...]
    """The output ends before the first of these in its text."""
    sampling: Sampling | None = None
    """None: greedy."""
    reuse: bool = False
    """Keep the KV cache rows of the longest prefix that the request before and this one have in common. The logits are
    then those of a prompt that came in other chunks: equal but for rounding."""
    accept: int | None = None
    """Every step commits this many drafted nodes, right or wrong: to measure the time of a step, not to get a text."""
    timed: bool = False
    """Measure each part of a step, on every rank."""


class Piece(str):
    """Text that became certain with one step, and the tokens of that step, whose text may come with a later one."""

    tokens: tuple[int, ...]

    def __new__(cls, text: str = "", tokens: tuple[int, ...] = ()) -> Self:
        piece = super().__new__(cls, text)
        piece.tokens = tokens
        return piece


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTimings:
    """Time of all steps of one request on one rank, in ns; see ``runtime.comm.progress.Timings``."""

    parts: dict[str, int]
    """By part of a step, without the wait for other parts."""
    groups: dict[str, int]
    """By group of ranks: time inside its collectives, waiting included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryReading:
    """Memory of one device at one moment, in bytes, as the driver or the operating system reports it."""

    total_bytes: int
    free_bytes: int
    """Free memory of the whole device, so other processes count too."""
    process_bytes: int
    """Resident memory of the rank's process on the host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The output of one request on one rank, with its times."""

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish: Finish
    accept_lengths: tuple[int, ...]
    """Accepted drafted tokens of each step; empty in plain decoding."""
    reused: int
    """Tokens of the prompt whose KV cache rows were there already."""
    seed: int | None
    """Seed of sampling; None: greedy."""
    prefill_s: float
    decode_s: float
    """Seconds after the first token, which prefill gives."""
    measured_bytes: tuple[dict[str, int], ...]
    """Bytes allocated on each device, by term, in the order of the plan's devices."""
    memory: MemoryReading
    """Memory of this rank's device after the request."""
    timings: RankTimings | None
    """Timings of this rank; None where the request is not ``timed``."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first, which prefill gives, per second of decoding; 0 where there is no other."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 else 0.0

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per step, accepted + 1; 1 in plain decoding."""
        lengths = self.accept_lengths
        return sum(lengths) / len(lengths) + 1 if lengths else 1.0


Events = Generator[tuple[Piece, ...] | tuple[Completion, ...], None, None]
"""Output of requests that are served together: for each step a piece per request, then the completions."""


def make_request(plan: Plan, prompt_ids: Iterable[SupportsIndex], options: GenerateOptions) -> Request:
    """Return the request for a prompt; raise RequestError where the plan cannot serve it."""
    ids = _token_ids(prompt_ids)
    stop = options.get("stop", ())
    new_tokens, top_k, seed = options.get("max_new_tokens"), options.get("top_k"), options.get("seed")
    fitting = max(1, min(DEFAULT_NEW_TOKENS, plan.options.context - len(ids)))
    request = Request(
        prompt_ids=ids,
        max_new_tokens=fitting if new_tokens is None else _whole("max_new_tokens", new_tokens),
        draft=options.get("draft", True),
        ignore_eos=options.get("ignore_eos", False),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        sampling=sampling_of(
            options.get("temperature", 0.0),
            None if top_k is None else _whole("top_k", top_k),
            options.get("top_p"),
            None if seed is None else _whole("seed", seed),
        ),
        reuse=options.get("reuse", False),
    )
    check_request(plan, request)
    return request


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


def check_together(plan: Plan, requests: tuple[Request, ...]) -> None:
    """Raise RequestError where the plan cannot decode the requests together; each has been checked already."""
    if not 0 < len(requests) <= plan.options.batch:
        raise RequestError(
            f"prompts: found {len(requests)}, the plan has a batch of {plan.options.batch}: give at most so many, at "
            "least one, or build a plan with a larger batch"
        )
    if len({(request.draft, request.accept, request.reuse) for request in requests}) > 1:
        raise RequestError("prompts that are decoded together: expected draft, accept and reuse of all alike")


def _check_accept(plan: Plan, accept: int) -> None:
    if plan.options.tree is None:
        raise RequestError("accept: the plan has no draft")
    most = accept_rows(plan.options) - 1
    if not 0 <= accept <= most:
        raise RequestError(f"accept: found {accept}, expected 0 to {most}, the most that a step of the plan accepts")


def fingerprint(request: Request) -> int:
    """Return a 63-bit hash of all but the seed and ``timed``, by which ranks compare their requests."""
    sampling = request.sampling
    fields = (
        request.prompt_ids,
        request.max_new_tokens,
        request.draft,
        request.ignore_eos,
        request.stop,
        None if sampling is None else (sampling.temperature, sampling.top_k, sampling.top_p),
        request.reuse,
        request.accept,
    )
    return int.from_bytes(hashlib.blake2b(repr(fields).encode(), digest_size=8).digest()) >> 1


def _token_ids(ids: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return token ids as Python integers, whatever library's integers they are; raise RequestError."""
    if not isinstance(ids, Iterable):
        raise RequestError(f"prompt: found {type(ids).__name__}, expected text or token ids")
    return tuple(_whole(f"prompt_ids[{position}]", token) for position, token in enumerate(ids))


def _whole(name: str, value: SupportsIndex) -> int:
    """Return a value that needs no rounding as an integer; raise RequestError for any other."""
    try:
        return index(value)
    except TypeError as error:
        raise RequestError(f"{name}: found {value!r}, expected a whole number") from error
