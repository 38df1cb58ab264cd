"""Requests and their outputs, and the checks of whether a plan can serve a request.

    prompt, options ─► make_request ─► Request ─► Engine.serve ─► Rank.serve ─► Piece, Piece, ..., Completion

A Request is checked where it is made, once; who serves one relies on that.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from numbers import Real
from operator import index
from typing import Any, Literal, Self, SupportsIndex, TypedDict

from plans.acceptance import Drafted
from plans.schema import Plan
from plans.step import accept_rows
from runtime.errors import RequestError
from runtime.sampling import Sampling, check_sampling, sampling_of

Finish = Literal["length", "eos", "stop", "cancelled"]

TokenIds = Iterable[SupportsIndex] | Iterable[Iterable[SupportsIndex]]
"""Token ids of shape [n] or [1, n]."""
MOST_BITS = 128
"""Most bits of a number whose range is checked; all limits are below."""
MOST_SHOWN = 60
"""Most characters of a refused value in a message."""
MOST_REASON = 160
"""Most characters of another library's reason in a message."""
MOST_STOPS = 64
"""Most stop strings of a request: each is looked for in every character of the output."""
MOST_STOP_CHARACTERS = 4096
"""Most characters of a stop string, of which the beginning of an output takes a table."""
DEFAULT_NEW_TOKENS = 200
"""New tokens of a request that names no number, where the context has room for them."""


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``Engine.stream``, ``generate`` and ``generate_batch``: how a prompt is continued."""

    max_new_tokens: int | None
    """None, the default: 200, or as many as fit into the context."""
    max_length: int | None
    """Tokens of prompt and output together, as in transformers; given instead of ``max_new_tokens``, not beside it."""
    temperature: float | None
    """0 or None, the default, is greedy; above 0 tokens are drawn from what ``top_k``, then ``top_p`` leave."""
    top_k: int | None
    """Draw from this many most probable tokens; 0 or None, the default: from all."""
    top_p: float | None
    """Then from the fewest tokens that together have this probability; None, the default: from all. Greedy decoding
    also takes 0, which callers of EAGLE write."""
    seed: int | None
    """Seed of sampling: the same seed gives the same text; None, the default: a random one, which the result has."""
    stop: str | Iterable[str] | None
    """The output ends before the first of these strings, at most 64 of at most 4096 characters; None or nothing, the
    default: there are none."""
    draft: bool
    """False: plain decoding, also on a plan with a drafter."""
    ignore_eos: bool
    """True: go on after an end-of-sequence token."""
    reuse: bool
    """True: keep the KV cache rows of the longest prefix that an earlier request and this prompt have in common."""


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
    """Keep the KV cache rows of the longest prefix that an earlier request and this one have in common. The logits are
    then those of a prompt that came in other chunks: equal but for rounding."""
    accept: int | None = None
    """Every step commits this many drafted nodes, right or wrong: to measure the time of a step, not to get a text."""
    timed: bool = False
    """Measure each part of a step, on every rank."""
    recorded: bool = False
    """Compare every draft with the text that follows it, to count an acceptance profile."""


class Piece(str):
    """Text that became certain with one step, and the tokens of that step, whose text may come with a later one."""

    tokens: tuple[int, ...]
    accepted: int | None
    """Drafted tokens that the step accepted; None in plain decoding, and of the first token, which prefill gives."""
    at_s: float
    """Time at which the rank had the tokens, of the clock ``time.monotonic``."""

    def __new__(
        cls, text: str = "", tokens: tuple[int, ...] = (), *, accepted: int | None = None, at_s: float = 0.0
    ) -> Self:
        piece = super().__new__(cls, text)
        piece.tokens, piece.accepted, piece.at_s = tokens, accepted, at_s
        return piece


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTimings:
    """Times of the steps of one request on one rank, in ns; see ``runtime.comm.progress.Timings``."""

    steps: tuple[int, ...]
    parts: dict[str, tuple[tuple[int, int], ...]]
    """By part of a step, of every step: begin and end, by the clock of the rank's machine, without the wait for other
    parts."""
    groups: dict[str, int]
    """By group of ranks: time of all steps inside its collectives, waiting included."""


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
    drafts: tuple[Drafted, ...] = ()
    """Drafts compared with the text, on the drafter's leader, where the request is ``recorded``."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first, which prefill gives, per second of decoding; 0 where there is no other."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 else 0.0

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per step, accepted + 1; 1 in plain decoding."""
        lengths = self.accept_lengths
        return sum(lengths) / len(lengths) + 1 if lengths else 1.0


def first_acceptance(lengths: Sequence[int]) -> float | None:
    """Return the part of the steps that accepted a token of the first drafted level; None of no drafted steps."""
    return sum(length > 0 for length in lengths) / len(lengths) if lengths else None


def check_options(options: Iterable[str]) -> None:
    """Raise TypeError for a keyword that is none of `GenerateOptions`."""
    known = GenerateOptions.__annotations__
    for name in options:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            raise TypeError(
                f"unexpected keyword argument {name!r}, "
                + (f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(known)}")
            )


def make_request(plan: Plan, prompt_ids: TokenIds, options: GenerateOptions) -> Request:
    """Return the request for a prompt; raise RequestError where the plan cannot serve it, TypeError as any call."""
    check_options(options)
    ids = token_ids(prompt_ids)
    request = Request(
        prompt_ids=ids,
        max_new_tokens=_new_tokens(plan, len(ids), options),
        draft=_flag("draft", options.get("draft", True)),
        ignore_eos=_flag("ignore_eos", options.get("ignore_eos", False)),
        stop=_texts("stop", options.get("stop")),
        sampling=sampling_of(
            _number("temperature", options.get("temperature")) or 0.0,
            _whole("top_k", options.get("top_k")),
            _number("top_p", options.get("top_p")),
            _whole("seed", options.get("seed")),
        ),
        reuse=_flag("reuse", options.get("reuse", False)),
    )
    check_request(plan, request)
    return request


def _new_tokens(plan: Plan, prompt_tokens: int, options: GenerateOptions) -> int:
    new_tokens = _whole("max_new_tokens", options.get("max_new_tokens"))
    length = _whole("max_length", options.get("max_length"))
    if length is None:
        fitting = max(1, min(DEFAULT_NEW_TOKENS, plan.options.context - prompt_tokens))
        return fitting if new_tokens is None else new_tokens
    if new_tokens is not None:
        raise RequestError("max_length and max_new_tokens: give one of them; max_length counts the prompt, too")
    if length <= prompt_tokens:
        raise RequestError(f"max_length: found {length}, expected more than the {prompt_tokens} tokens of the prompt")
    return length - prompt_tokens


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
            f"{len(prompt) + request.max_new_tokens}, the plan has a context of {context}: {_fitting(plan, prompt)}, "
            "or build a plan with a longer context"
        )
    check_stops("stop", request.stop)
    if request.sampling is not None:
        check_sampling(request.sampling)
    if request.accept is not None:
        _check_accept(plan, request.accept)
    if request.recorded:
        _check_recorded(plan, request)


def _fitting(plan: Plan, prompt: Sequence[int]) -> str:
    """Return what to do about a prompt that does not fit into the context together with its output."""
    left = plan.options.context - len(prompt)
    if left > 0:
        return f"ask for at most {left} new tokens"
    return f"shorten the prompt to at most {plan.options.context - 1} tokens"


def check_stops(name: str, stops: Sequence[str]) -> None:
    """Raise RequestError for stop strings that are empty, too long, or too many; ``name``: what the message names."""
    if len(stops) > MOST_STOPS:
        raise RequestError(f"{name}: found more than {MOST_STOPS} texts, expected at most as many")
    for position, text in enumerate(stops):
        if not text:
            raise RequestError(f"{name}: found an empty text")
        if len(text) > MOST_STOP_CHARACTERS:
            raise RequestError(
                f"{name}[{position}]: found a text of {len(text)} characters, expected at most {MOST_STOP_CHARACTERS}"
            )


def _check_accept(plan: Plan, accept: int) -> None:
    if plan.options.tree is None:
        raise RequestError("accept: the plan has no draft")
    most = accept_rows(plan.options) - 1
    if not 0 <= accept <= most:
        raise RequestError(f"accept: found {accept}, expected 0 to {most}, the most that a step of the plan accepts")


def _check_recorded(plan: Plan, request: Request) -> None:
    tree, draft = plan.options.tree, plan.draft
    if draft is None or tree is None or not request.draft:
        raise RequestError("recorded: nothing is drafted")
    if tree.kind != "dynamic" or draft.mask_token_id is not None:
        kind = "static" if tree.kind == "static" else "drafted in one pass (P-EAGLE)"
        raise RequestError(f"recorded: the plan's tree is {kind}, expected a dynamic one")
    if request.sampling is not None or request.accept is not None:
        raise RequestError("recorded: expected greedy decoding, in which steps accept what agrees")


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
        request.recorded,
    )
    return int.from_bytes(hashlib.blake2b(repr(fields).encode(), digest_size=8).digest()) >> 1


def token_ids(ids: TokenIds) -> tuple[int, ...]:
    """Return token ids as Python integers: of a sequence, an iterator, or an array or tensor of any library.

    Shape: [n], or [1, n] as tokenizers give it, or what they return as a whole, with its ``input_ids``. Raises
    RequestError, also for a boolean or a float with a whole value.
    """
    listed = as_python("prompt", getattr(ids, "input_ids", ids))
    if not isinstance(listed, Iterable) or isinstance(listed, str | bytes | bytearray | Mapping | Set):
        raise RequestError(f"prompt: found {type(ids).__name__}, expected text or a sequence of token ids")
    rows = [as_python(f"prompt_ids[{position}]", token) for position, token in enumerate(listed)]
    if rows and all(isinstance(row, list | tuple) for row in rows):
        if len(rows) > 1:
            raise RequestError(
                f"prompt_ids: found {len(rows)} rows, expected one: generate_batch takes several prompts"
            )
        rows = [as_python(f"prompt_ids[{position}]", token) for position, token in enumerate(rows[0])]
    return tuple(_integer(f"prompt_ids[{position}]", token) for position, token in enumerate(rows))


def as_python(name: str, value: Any) -> Any:
    """Return an array, tensor or scalar of a library as Python's lists and numbers; anything else as it is.

    Raise RequestError for one that has no values to read: a tensor of torch's device ``meta``, a sparse one.
    """
    if not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except Exception as error:  # each library has its own errors
        reason = " ".join(str(error).split())[:MOST_REASON]
        raise RequestError(f"{name}: found a {type(value).__name__} whose values cannot be read: {reason}") from error


def _integer(name: str, value: Any) -> int:
    """Return a value that needs no rounding as an integer; raise RequestError for any other."""
    if not isinstance(value, bool) and hasattr(value, "__index__") and index(value).bit_length() <= MOST_BITS:
        return index(value)
    raise RequestError(f"{name}: found {_shown(value)}, expected a whole number")


def _whole(name: str, value: Any) -> int | None:
    """Return a whole number, or None; raise RequestError for anything else."""
    return None if value is None else _integer(name, as_python(name, value))


def _number(name: str, value: Any) -> float | None:
    """Return a number, or None; raise RequestError for anything else. Its range is checked with the request."""
    value = as_python(name, value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(f"{name}: found {_shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise RequestError(f"{name}: found a number beyond the range of a float") from error


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name}: found {_shown(value)}, expected True or False")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Return one text or several as a tuple, None as an empty one; raise RequestError for anything else."""
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    if not isinstance(value, Iterable):
        raise RequestError(f"{name}: found {_shown(value)}, expected a text or several")
    texts = tuple(islice(value, MOST_STOPS + 1))  # an iterator may have no end
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f"{name}[{position}]: found {_shown(text)}, expected a text")
    return texts


def _shown(value: Any) -> str:
    """Return a value as a message has it, on one line of bounded length."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, str | int | float | complex | None) else ""
    return text if text and text.isprintable() and len(text) <= MOST_SHOWN else f"a {type(value).__name__}"
