"""A plan that serves prompts: the Python interface, which the commands use too.

    with Engine.open("plans/x") as engine:
        for piece in engine.stream("def f(", max_new_tokens=100, temperature=0.7):
            print(piece, end="", flush=True)
        result = engine.generate([1, 2, 3], max_new_tokens=20)

The same engine serves one prompt after the other without loading anything again. A plan of one device runs in the
caller's process and sets its number of torch threads; one of several in a process per device, started here.
"""

import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Protocol, Self, SupportsIndex, TypedDict, Unpack

from tokenizers import Tokenizer

from plans import codec
from plans.check import load
from plans.schema import Plan
from runtime.comm.progress import Progress
from runtime.errors import MachineError, RequestError
from runtime.image.verify import check_images
from runtime.processes.launch import Family, StartMethod, open_rank
from runtime.processes.torchrun import Torchrun
from runtime.request import Completion, Finish, Piece, Request, check_batch, check_request
from runtime.sampling import sampling_of
from runtime.text import encode, load_tokenizer

DEFAULT_NEW_TOKENS = 200

Prompt = str | Iterable[SupportsIndex]
"""Text, or token ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBytes:
    """Bytes of one device, term by term, as planned and as made."""

    device: str
    planned_bytes: dict[str, int]
    measured_bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """The output of one request: the fields of ``run --json``."""

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    """New ids, without the prompt; an end-of-sequence token is the last of them."""
    text: str
    finish: Finish
    accept_lengths: tuple[int, ...]
    """Accepted drafted tokens of each step; empty in plain decoding."""
    acceptance_length: float
    """Mean of accepted + 1."""
    reused: int
    """Tokens of the prompt whose rows were in the caches already."""
    seed: int | None
    """Of sampling, given or drawn; the same seed gives the same text again."""
    load_s: float
    """Of the engine."""
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    plan_digest: str
    devices: tuple[DeviceBytes, ...]


class Wanted(TypedDict, total=False):
    """How a prompt is to be continued: the keyword arguments of ``stream``, ``generate`` and ``generate_batch``."""

    max_new_tokens: int | None
    """None, the default: 200, or what fits."""
    temperature: float
    """0, the default, is greedy; above it tokens are drawn from what ``top_k``, then ``top_p`` leave."""
    top_k: int | None
    """The most probable tokens that are drawn from; 0 or None, the default: all."""
    top_p: float | None
    """Then the fewest of them that together have this probability; None, the default: all."""
    seed: int | None
    """The same seed gives the same text; None, the default: one that is drawn, and told in the result."""
    stop: Sequence[str]
    """The output ends before the first of these; by default there is none."""
    draft: bool
    """False: plain decoding, also on a plan with a draft."""
    ignore_eos: bool
    """True: go on after an end-of-sequence token."""
    reuse: bool
    """True: what the last request and this prompt have in common is kept in the caches."""


Events = Generator[tuple[Piece, ...] | tuple[Completion, ...], None, None]
"""Of requests that are served together: the pieces of each step, then the completions."""


class Serving(Protocol):
    """The ranks behind an engine."""

    timings: list[Completion]
    """Of the last request, one of each rank that is seen from here."""

    def serve(self, requests: tuple[Request, ...]) -> Events: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Engine:
    """A plan, loaded, on all its devices."""

    def __init__(self, plan: Plan, directory: Path, ranks: Serving, load_s: float) -> None:
        self.plan, self.directory, self.load_s = plan, directory, load_s
        self._ranks = ranks
        self._digest = codec.digest(plan)
        self._tokenizer: Tokenizer | None = None
        self._current: weakref.ref[Stream] | None = None
        """Not kept: a stream that nobody has any more has ended."""
        self._free, self._closed = threading.Lock(), False

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        torchrun: Torchrun | None = None,
        method: StartMethod = "forkserver",
        verify: bool = True,
    ) -> Self:
        """Load the plan in a directory on its devices.

        ``torchrun``: of this process, where it has started one for each device and all of them run this; None: all
        ranks are started here, on one host. They are started by ``method``. ``verify``: compare the images with their
        digests; their sizes and slot tables are compared anyway. Raises PlanError, RequestError, MachineError,
        ImageError or PeerError.
        """
        directory = Path(directory)
        plan = load(directory)
        if len(plan.devices) == 1:
            alone = _One(directory, verify)
            return cls(plan, directory, alone, alone.started.load_s)
        if torchrun is None:
            hosts = sorted({device.host for device in plan.devices})
            if len(hosts) > 1 and any(device.kind != "cpu" for device in plan.devices):
                raise MachineError(f"{directory}: the plan has hosts {', '.join(hosts)}: start it with torchrun")
            check_images(plan, directory, verify=False)
        family = Family(plan, directory, method, verify=verify, torchrun=torchrun)
        return cls(plan, directory, family, family.started.load_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the ranks; the engine serves no more."""
        if not self._closed:
            self._closed = True
            self._ranks.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the plan; raise RequestError where there is none."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.directory)
        return self._tokenizer

    def stream(self, prompt: Prompt, **wanted: Unpack[Wanted]) -> "Stream":
        """Continue a prompt, text or token ids, piece by piece as tokens are accepted.

        Raises RequestError before anything is computed, PeerError when a rank fails.
        """
        return self.serve(self.request(prompt, **wanted))

    def generate(self, prompt: Prompt, **wanted: Unpack[Wanted]) -> Generation:
        """All of what ``stream``, with these arguments, would give."""
        return self.stream(prompt, **wanted).finished()

    def generate_batch(self, prompts: Sequence[Prompt], **wanted: Unpack[Wanted]) -> list[Generation]:
        """What ``generate`` gives for each of several prompts, of which the plan's batch is decoded together."""
        return self.serve_batch([self.request(prompt, **wanted) for prompt in prompts])

    def request(self, prompt: Prompt, **wanted: Unpack[Wanted]) -> Request:
        """What ``stream``, with these arguments, serves. Raises RequestError."""
        ids = encode(self.tokenizer, prompt) if isinstance(prompt, str) else prompt
        return make_request(self.plan, ids, wanted)

    def serve(self, request: Request) -> "Stream":
        """The output of a request as it comes. Raises RequestError, also where another one is not finished."""
        self._check((request,))
        stream = Stream(self, _alone(self._serve((request,))))
        self._current = weakref.ref(stream)
        return stream

    def serve_batch(self, requests: Sequence[Request]) -> list[Generation]:
        """The outputs of requests, as many together as the plan's batch, each as it would be alone."""
        batch, made = self.plan.options.batch, list[Generation]()
        every = [tuple(requests[start : start + batch]) for start in range(0, len(requests), batch)]
        for together in every:
            self._check(together)
        for together in every:
            with closing(self._serve(together)) as events:
                for event in events:
                    made += [self.told(each) for each in event if isinstance(each, Completion)]
        return made

    def _check(self, requests: tuple[Request, ...]) -> None:
        check_batch(self.plan, requests)
        if any(request.stop for request in requests):
            _ = self.tokenizer
        current = None if self._current is None else self._current()
        if current is not None and not current.ended:
            raise RequestError("the engine is serving another request: read it to its end, or close its stream")

    def _serve(self, requests: tuple[Request, ...]) -> Events:
        """Requests that were checked; one at a time, also of several threads."""
        if not self._free.acquire(blocking=False):
            raise RequestError("the engine is serving another request, of another thread: one at a time")
        try:
            if self._closed:
                raise RequestError("the engine is closed: open another one")
            with closing(self._ranks.serve(requests)) as events:
                yield from events
        finally:
            self._free.release()

    def stop(self) -> None:
        """End what is being served with the step that is being done."""
        self._ranks.stop()

    def timings(self) -> list[Completion]:
        """Of the last request, as every rank that is seen from here tells it."""
        return self._ranks.timings

    def told(self, completion: Completion) -> Generation:
        """What the caller gets to know of a completion."""
        return Generation(
            prompt_ids=completion.prompt_ids,
            tokens=completion.tokens,
            text=completion.text,
            finish=completion.finish,
            accept_lengths=completion.accept_lengths,
            acceptance_length=completion.acceptance_length,
            reused=completion.reused,
            seed=completion.seed,
            load_s=self.load_s,
            prefill_s=completion.prefill_s,
            decode_s=completion.decode_s,
            tokens_per_s=completion.tokens_per_s,
            plan_digest=self._digest,
            devices=tuple(self._bytes(completion)),
        )

    def _bytes(self, completion: Completion) -> Iterator[DeviceBytes]:
        lines = {entry.device: entry for entry in self.plan.memory}
        for device, measured in zip(self.plan.devices, completion.measured_bytes, strict=True):
            planned = {term: getattr(lines[device.id], f"{term}_bytes") for term in measured}
            yield DeviceBytes(device=device.id, planned_bytes=planned, measured_bytes=measured)


def _alone(events: Events) -> Iterator[Piece | Completion]:
    """Those of the only request."""
    with closing(events):
        for (event,) in events:
            yield event


class Stream(Iterator[Piece]):
    """The pieces of one output; to close it ends the output."""

    def __init__(self, engine: Engine, events: Iterator[Piece | Completion]) -> None:
        self._engine, self._events = engine, events
        self.result: Generation | None = None
        """When all pieces were read."""
        self.ended = False

    def __next__(self) -> Piece:
        try:
            event = next(self._events)
            if isinstance(event, Piece):
                return event
            self.result = self._engine.told(event)
            next(self._events, None)  # let what serves it finish too
        except BaseException:
            self.ended = True
            raise
        self.ended = True
        raise StopIteration

    def finished(self) -> Generation:
        """Read to the end."""
        for _ in self:
            pass
        if self.result is None:
            raise RequestError("the stream was closed before its end: it has no result")
        return self.result

    def close(self) -> None:
        """End the output with the step that is being done."""
        self.ended = True
        close = getattr(self._events, "close", None)
        if close is not None:
            close()


class _One:
    """The only rank of a plan, in this process."""

    def __init__(self, directory: Path, verify: bool) -> None:
        self._stopped = False
        self.timings: list[Completion] = []
        self._rank, self.started = open_rank(directory, 0, None, Progress(), verify=verify)

    def serve(self, requests: tuple[Request, ...]) -> Events:
        self._stopped = False
        with closing(self._rank.serve_batch(requests, lambda: self._stopped)) as events:
            for event in events:
                self.timings = [each for each in event[:1] if isinstance(each, Completion)]
                yield event

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._rank.close()
        del self._rank  # and with it the image, which may be replaced from now on


def make_request(plan: Plan, prompt_ids: Iterable[SupportsIndex], wanted: Wanted) -> Request:
    """A request of what people give to ``Engine.stream``; raise RequestError where the plan cannot serve it."""
    ids = _prompt(prompt_ids)
    stop = wanted.get("stop", ())
    most, top_k, seed = wanted.get("max_new_tokens"), wanted.get("top_k"), wanted.get("seed")
    fitting = max(1, min(DEFAULT_NEW_TOKENS, plan.options.context - len(ids)))
    request = Request(
        prompt_ids=ids,
        max_new_tokens=fitting if most is None else _whole("max_new_tokens", most),
        draft=wanted.get("draft", True),
        ignore_eos=wanted.get("ignore_eos", False),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        sampling=sampling_of(
            wanted.get("temperature", 0.0),
            None if top_k is None else _whole("top_k", top_k),
            wanted.get("top_p"),
            None if seed is None else _whole("seed", seed),
        ),
        reuse=wanted.get("reuse", False),
    )
    check_request(plan, request)
    return request


def _prompt(ids: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Token ids as Python's numbers, whoever's they are."""
    if not isinstance(ids, Iterable):
        raise RequestError(f"prompt: found {type(ids).__name__}, expected text or token ids")
    return tuple(_whole(f"prompt_ids[{position}]", token) for position, token in enumerate(ids))


def _whole(name: str, value: SupportsIndex) -> int:
    """A number that needs no rounding."""
    try:
        return index(value)
    except TypeError as error:
        raise RequestError(f"{name}: found {value!r}, expected a whole number") from error
