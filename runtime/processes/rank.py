"""One rank of a run: requests go in, steps are made until the output ends.

Every rank learns the tokens from the step message and so comes to the same end by itself. Requests that are served
together share forwards and messages and nothing else; those that have ended wait for the others.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from tokenizers import Tokenizer

from plans import codec
from plans.artifact import align
from plans.schema import Plan
from runtime.comm.groups import Comm, Rendezvous, connect, disconnect
from runtime.comm.progress import Progress, Timings
from runtime.decode.messages import Message
from runtime.decode.step import Decoding, Stepper
from runtime.errors import PeerError, RequestError
from runtime.image.buffers import DTYPES, Memory
from runtime.image.slots import Image, open_image
from runtime.image.verify import check_images
from runtime.model import ops
from runtime.processes.machine import check_machine, threads_per_rank, torch_device
from runtime.request import Completion, Piece, RankTimings, Request, check_batch, fingerprint
from runtime.text import TOKENIZER_FILE, Output, load_tokenizer

MEMORY_TERMS = ("weights", "draft_weights", "kv", "draft_kv", "buffers", "comm")
"""Terms of ``plans.schema.DeviceMemory``, without ``_bytes``."""


class Rank:
    """One rank's share of a plan, ready to serve requests one after the other."""

    @torch.inference_mode()
    def __init__(self, plan: Plan, directory: Path, image: Image, comm: Comm) -> None:
        self.plan, self._directory, self._comm, self._image = plan, directory, comm, image
        self._progress = comm.progress
        device = plan.devices[comm.rank]
        self._device = torch_device(device)
        self.memory = Memory(plan, device.id, self._device)
        self._stepper = Stepper(plan, image, self.memory, comm, self._device)
        self._loaded: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        rank: int = 0,
        rendezvous: Rendezvous | None = None,
        progress: Progress | None = None,
        verify: bool = True,
    ) -> Self:
        """One rank of the plan in a directory; a single-device plan needs no rendezvous.

        ``verify``: compare the image with its digest; its size and slot table are compared anyway.
        Raises PlanError, RequestError, MachineError, ImageError or PeerError.
        """
        directory, progress = Path(directory), progress or Progress()
        plan = codec.load(directory)
        if len(plan.devices) > 1 and rendezvous is None:
            raise RequestError(f"{directory}: the plan has {len(plan.devices)} devices: use `python -m runtime run`")
        device = plan.devices[rank]
        check_machine(plan, device)
        torch.set_num_threads(threads_per_rank(plan, device))
        place = torch_device(device)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        progress.begin("reading its image")
        if place.type == "cpu":
            ops.prepare(DTYPES[plan.options.dtype])
        record = check_images(plan, directory, verify=False, devices=[device.id])
        image = open_image(plan, directory, device.id, place, record, verify=verify)
        progress.begin("meeting the other ranks")
        comm = connect(plan, rank, rendezvous, progress)
        progress.begin("waiting")
        return cls(plan, directory, image, comm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the group of ranks."""
        disconnect()

    # ---- requests ----

    def generate(self, request: Request) -> Completion:
        """Serve one request; every rank of the plan must be given the same one. Raises RequestError, PeerError."""
        completion = None
        for event in self.serve(request):
            if isinstance(event, Completion):
                completion = event
        assert completion is not None, "serving ends with a completion"
        return completion

    def serve(self, request: Request, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece | Completion]:
        """What each step adds to the output of a request, then all of it.

        ``stopped``: asked on every step whether anybody still reads; the output ends there when nobody does. Every rank
        must be given the same request. Raises RequestError, PeerError.
        """
        with closing(self.serve_batch((request,), stopped)) as events:
            for (event,) in events:
                yield event

    def serve_batch(
        self, requests: tuple[Request, ...], stopped: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Piece, ...] | tuple[Completion, ...], None, None]:
        """The same of several requests that are served together, each as it would be alone; the pieces of those that
        have ended are empty.
        """
        check_batch(self.plan, requests)
        requests = tuple(self._agreed(request) for request in requests)
        eos, first = self.plan.model.eos_token_ids, requests[0]
        every = [_Served(request, Output(request, eos, self._tokenizer(request))) for request in requests]
        timings = self._progress.timings = Timings(self._device) if first.timed else None
        started = prefilled = time.perf_counter()
        for step, made in enumerate(self._together(requests, stopped)):
            if step == 0:
                prefilled = time.perf_counter()
                if timings is not None:
                    timings.clear()
            pieces = []
            for number, (served, (tokens, message)) in enumerate(zip(every, made, strict=True)):
                running = not served.output.finished
                pieces.append(served.take(tokens, message, drafted=step > 0 and self.drafts(first)))
                if running and served.output.finished:
                    self._stepper.end(number)
            yield tuple(pieces)
            if all(served.output.finished for served in every):
                break
        self._progress.timings = None
        self._progress.begin("waiting")
        measured = self.measured_bytes()
        spent = None if timings is None else RankTimings(parts=dict(timings.parts), groups=dict(timings.groups))
        yield tuple(
            served.completion(
                reused=reused,
                prefill_s=prefilled - started,
                prefilled=prefilled,
                measured=measured,
                timings=spent,
            )
            for served, reused in zip(every, self._stepper.reused, strict=False)
        )

    def drafts(self, request: Request) -> bool:
        """Whether a request is decoded with the plan's draft."""
        return request.draft and self._stepper.drafts

    def steps(
        self, request: Request, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[list[int], Message]]:
        """The tokens of each step, without end, and the message they came with; the first is prefill's one token."""
        with closing(self._together((request,), stopped)) as steps:
            for (step,) in steps:
                yield step

    def _together(
        self, requests: tuple[Request, ...], stopped: Callable[[], bool]
    ) -> Generator[list[tuple[list[int], Message]], None, None]:
        """The same of each of several requests."""
        how = Decoding(
            draft=requests[0].draft,
            samplings=tuple(request.sampling for request in requests),
            accept=requests[0].accept,
            reuse=requests[0].reuse,
            stopped=stopped,
        )
        yield from self._stepper.steps([request.prompt_ids for request in requests], how)

    @torch.inference_mode()
    def measured_bytes(self) -> tuple[dict[str, int], ...]:
        """Bytes made on each device of the plan, term by term; every rank must ask."""
        drafted = sum(align(slot.nbytes) for name, slot in self._image.slots.items() if name.startswith("draft."))
        made = self.memory.measured()
        mine = [self._image.nbytes - drafted, drafted, made["kv"], made["draft_kv"], made["buffers"], made["comm"]]
        every = self._comm.world.all_gather(torch.tensor(mine, device=self._device))
        return tuple(dict(zip(MEMORY_TERMS, row, strict=True)) for row in every.tolist())

    def _agreed(self, request: Request) -> Request:
        """The request with rank 0's seed; raise PeerError where another rank was given another one."""
        seed = 0 if request.sampling is None else request.sampling.seed
        mine = torch.tensor([fingerprint(request), seed], device=self._device)
        every: list[list[int]] = self._comm.world.all_gather(mine).tolist()
        for rank, (found, _) in enumerate(every):
            if found != every[0][0]:
                names = [device.id for device in self.plan.devices]
                raise PeerError(
                    f"device {names[rank]} (rank {rank}) was given another request than {names[0]} (rank 0): "
                    "give all ranks the same prompt and options"
                )
        if request.sampling is None:
            return request
        return replace(request, sampling=replace(request.sampling, seed=every[0][1]))

    # ---- what a rank has ----

    def _tokenizer(self, request: Request) -> Tokenizer | None:
        """Rank 0 makes text where it can; where text decides the end, every rank must."""
        if not request.stop and (self._comm.rank or not (self._directory / TOKENIZER_FILE).is_file()):
            return None
        if self._loaded is None:
            self._loaded = load_tokenizer(self._directory)
        return self._loaded


class _Served:
    """A request that is being served."""

    def __init__(self, request: Request, output: Output) -> None:
        self.request, self.output = request, output
        self._accepts: list[int] = []
        self._ended = 0.0

    def take(self, tokens: list[int], message: Message, *, drafted: bool) -> Piece:
        """What a step adds to the output; nothing once that has ended."""
        if self.output.finished:
            return Piece()
        if drafted:
            self._accepts.append(message.accepted)
        kept = self.output.take(tokens)
        if message.stopped:
            self.output.cancel()
        if self.output.finish is not None:
            self._ended = time.perf_counter()
        return Piece(self.output.piece(), tuple(kept))

    def completion(
        self,
        *,
        reused: int,
        prefill_s: float,
        prefilled: float,
        measured: tuple[dict[str, int], ...],
        timings: RankTimings | None,
    ) -> Completion:
        """All of the output, which has ended; ``prefilled``: when its first token was there."""
        sampling = self.request.sampling
        return Completion(
            prompt_ids=self.request.prompt_ids,
            tokens=tuple(self.output.tokens),
            text=self.output.text,
            finish=self.output.ended_by,
            accept_lengths=tuple(self._accepts),
            reused=reused,
            seed=None if sampling is None else sampling.seed,
            prefill_s=prefill_s,
            decode_s=self._ended - prefilled,
            measured_bytes=measured,
            timings=timings,
        )
