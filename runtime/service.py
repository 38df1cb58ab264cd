"""A plan that serves prompts: the Python interface, which the commands use too.

    with Engine.open("plans/x") as engine:
        for piece in engine.stream("def f(", max_new_tokens=100, temperature=0.7):
            print(piece, end="", flush=True)
        result = engine.generate([1, 2, 3], max_new_tokens=20)

The same engine serves one prompt after the other without loading anything again. A plan of one device runs in the
caller's process and sets its number of torch threads; one of several in a process per device, started here.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from tokenizers import Tokenizer

from plans import codec
from plans.check import require
from plans.schema import Plan
from runtime.comm import Rendezvous
from runtime.errors import MachineError, RequestError
from runtime.images import check_images
from runtime.launch import Family, StartMethod, open_rank
from runtime.progress import Progress
from runtime.request import Completion, Finish, Piece, Request, check_batch, check_request
from runtime.sampling import sampling_of
from runtime.text import load_tokenizer

DEFAULT_NEW_TOKENS = 200


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
        self._current: Stream | None = None

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        rank: int | None = None,
        method: StartMethod = "forkserver",
        verify: bool = True,
    ) -> Self:
        """Load the plan in a directory on its devices.

        ``rank``: of this process, where torchrun has started one for each device and all of them run this; None: the
        ranks are started here, on one host, by ``method``. ``verify``: compare the images with their digests; their
        sizes and slot tables are compared anyway. Raises PlanError, RequestError, MachineError, ImageError or
        PeerError.
        """
        directory = Path(directory)
        plan = load_plan(directory)
        if rank is not None or len(plan.devices) == 1:
            alone = _One(directory, rank, verify)
            return cls(plan, directory, alone, alone.started.load_s)
        hosts = sorted({device.host for device in plan.devices})
        if len(hosts) > 1 and any(device.kind != "cpu" for device in plan.devices):
            raise MachineError(f"{directory}: the plan has hosts {', '.join(hosts)}: start it with torchrun")
        check_images(plan, directory, verify=False)
        family = Family(plan, directory, method, verify=verify)
        return cls(plan, directory, family, family.started.load_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the ranks; the engine serves no more."""
        self._ranks.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the plan; raise RequestError where there is none."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.directory)
        return self._tokenizer

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        draft: bool = True,
        ignore_eos: bool = False,
        reuse: bool = False,
    ) -> "Stream":
        """Continue a prompt, text or token ids, piece by piece as tokens are accepted.

        ``max_new_tokens``: by default 200, or what fits. ``temperature`` 0 is greedy; above it tokens are drawn from
        the distribution that ``top_k``, then ``top_p`` leave (None: all tokens), by ``seed`` (None: one that is drawn).
        ``stop``: the output ends before the first of these. ``reuse``: keep what the last request and this prompt have
        in common. Raises RequestError before anything is computed, PeerError when a rank fails.
        """
        ids = tuple(self.tokenizer.encode(prompt).ids) if isinstance(prompt, str) else tuple(prompt)
        request = make_request(
            self.plan,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            draft=draft,
            ignore_eos=ignore_eos,
            reuse=reuse,
        )
        return self.serve(request)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        draft: bool = True,
        ignore_eos: bool = False,
        reuse: bool = False,
    ) -> Generation:
        """All of what ``stream``, with these arguments, would give."""
        return self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            draft=draft,
            ignore_eos=ignore_eos,
            reuse=reuse,
        ).finished()

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        draft: bool = True,
        ignore_eos: bool = False,
    ) -> list[Generation]:
        """What ``generate`` gives for each of several prompts, of which the plan's batch is decoded together."""
        every = [tuple(self.tokenizer.encode(text).ids) if isinstance(text, str) else tuple(text) for text in prompts]
        return self.serve_batch(
            [
                make_request(
                    self.plan,
                    ids,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    seed=seed,
                    stop=stop,
                    draft=draft,
                    ignore_eos=ignore_eos,
                    reuse=False,
                )
                for ids in every
            ]
        )

    def serve(self, request: Request) -> "Stream":
        """The output of a request as it comes. Raises RequestError, also where another one is not finished."""
        self._check((request,))
        self._current = Stream(self, _alone(self._ranks.serve((request,))))
        return self._current

    def serve_batch(self, requests: Sequence[Request]) -> list[Generation]:
        """The outputs of requests, as many together as the plan's batch, each as it would be alone."""
        made: list[Generation] = []
        for start in range(0, len(requests), self.plan.options.batch):
            together = tuple(requests[start : start + self.plan.options.batch])
            self._check(together)
            for event in self._ranks.serve(together):
                made += [self.told(each) for each in event if isinstance(each, Completion)]
        return made

    def _check(self, requests: tuple[Request, ...]) -> None:
        check_batch(self.plan, requests)
        if any(request.stop for request in requests):
            _ = self.tokenizer
        if self._current is not None and not self._current.ended:
            raise RequestError("the engine is serving another request: read it to its end, or close its stream")

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
        assert self.result is not None, "a stream ends with its result"
        return self.result

    def close(self) -> None:
        """End the output with the step that is being done."""
        self.ended = True
        close = getattr(self._events, "close", None)
        if close is not None:
            close()


class _One:
    """The rank of this process."""

    def __init__(self, directory: Path, rank: int | None, verify: bool) -> None:
        self._stopped = False
        self.timings: list[Completion] = []
        rendezvous = None if rank is None else Rendezvous(file=None)
        self._rank, self.started = open_rank(directory, rank or 0, rendezvous, Progress(), verify=verify)

    def serve(self, requests: tuple[Request, ...]) -> Events:
        self._stopped = False
        for event in self._rank.serve_batch(requests, lambda: self._stopped):
            self.timings = [each for each in event[:1] if isinstance(each, Completion)]
            yield event

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._rank.close()


def load_plan(directory: Path) -> Plan:
    """A plan that agrees with itself; raise PlanError."""
    plan = codec.load(directory)
    require(plan, str(directory / "plan.yaml"))
    return plan


def make_request(
    plan: Plan,
    prompt_ids: tuple[int, ...],
    *,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: Sequence[str],
    draft: bool,
    ignore_eos: bool,
    reuse: bool,
) -> Request:
    """A request of what people give to ``Engine.stream``; raise RequestError where the plan cannot serve it."""
    fitting = max(1, min(DEFAULT_NEW_TOKENS, plan.options.context - len(prompt_ids)))
    request = Request(
        prompt_ids=prompt_ids,
        max_new_tokens=fitting if max_new_tokens is None else max_new_tokens,
        draft=draft,
        ignore_eos=ignore_eos,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        sampling=sampling_of(temperature, top_k, top_p, seed),
        reuse=reuse,
    )
    check_request(plan, request)
    return request
