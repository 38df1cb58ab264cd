"""One rank of a run: commands go in, and what each step adds to each output comes out.

Every rank reads the tokens of a step from the step message, and so comes to the same end of an output by itself.
Requests that are served together share forwards and messages and nothing else (``schedule``).
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from tokenizers import Tokenizer

from plans.acceptance import Drafted
from plans.artifact import align
from plans.buffers import OUTBOX
from plans.graphs import POOL, captures
from plans.quantized import has_codes
from plans.schema import MEMORY_TERMS, Plan
from plans.share_slots import DRAFT_PREFIX
from plans.step import accept_rows
from runtime.comm.groups import Comm
from runtime.comm.meeting import Rendezvous, connect
from runtime.comm.progress import Progress, Timings
from runtime.decode.graphs import CudaCapture
from runtime.decode.pool import compared
from runtime.decode.step import Stepper
from runtime.decode.work import Mode, Taken
from runtime.errors import PeerError, RequestError
from runtime.image.buffers import Memory
from runtime.image.dtypes import DTYPES
from runtime.image.slots import Image, open_image
from runtime.image.verify import check_images
from runtime.model import ops
from runtime.processes.inbox import Delivery, Inbox, Submit
from runtime.processes.machine import device_errors, read_memory, threads_per_rank, torch_device
from runtime.processes.schedule import Schedule, Served
from runtime.request import Completion, RankTimings, Request, fingerprint
from runtime.sampling import Sampling
from runtime.text import TOKENIZER_FILE, Output, load_tokenizer

Deliveries = Generator[tuple[Delivery, ...], None, None]
"""Additions of each turn to the outputs: pieces, then completions."""

WARM_UP_STEPS = 4
"""Prefill, which pads every prompt to a chunk, and one step; then the first repetition, which is run, and the second,
which GPUs capture (``decode.graphs``)."""


def needs_warm_up(plan: Plan) -> bool:
    """Return True for a plan with a GPU; a CPU has its kernels compiled, for all shapes, before it is used."""
    return any(device.kind != "cpu" for device in plan.devices)


def never() -> bool:
    """Return False: nobody asks the output to stop."""
    return False


class Rank:
    """One rank's part of a plan, ready to serve requests one after the other."""

    @torch.inference_mode()
    def __init__(self, plan: Plan, directory: Path, image: Image, comm: Comm) -> None:
        self.plan, self._directory, self._comm, self._image = plan, directory, comm, image
        self._progress = comm.progress
        device = plan.devices[comm.rank]
        self._device = torch_device(device)
        self.memory = Memory(plan, device.id, self._device)
        if comm.outbox is not None and device.kind == "cpu":
            self.memory.adopt(OUTBOX, comm.outbox)
        captured = self._device.type == "cuda" and captures(plan)
        planned = self.memory.planned_bytes(POOL) if captured else None
        self._capture = None if planned is None else CudaCapture(self._device, device.id, planned)
        self._stepper = Stepper(plan, image, self.memory, comm, self._device, self._capture)
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        plan: Plan,
        directory: Path,
        *,
        rank: int = 0,
        rendezvous: Rendezvous | None = None,
        progress: Progress | None = None,
        verify: bool = True,
    ) -> Self:
        """Open one rank of a plan in this process; a plan of one device needs no rendezvous.

        ``verify``: compare the image with its digest; its size and slot table are compared anyway.
        Raises RequestError, MachineError, ImageError or PeerError.
        """
        progress = progress or Progress()
        if len(plan.devices) > 1 and rendezvous is None:
            raise RequestError(f"{directory}: the plan has {len(plan.devices)} devices: use `python -m runtime run`")
        device = plan.devices[rank]
        torch.set_num_threads(threads_per_rank(plan, device))
        target = torch_device(device)
        if target.type == "cuda":
            torch.cuda.set_device(target)
        progress.begin("reading its image")
        record = check_images(plan, directory, verify=False, devices=[device.id])
        image = open_image(plan, directory, device.id, target, record, verify=verify)
        if "shm" in plan.transports:
            ops.prepare_exchange(DTYPES[plan.options.dtype])
        progress.begin("meeting the other ranks")
        comm = connect(plan, rank, rendezvous, progress, ops.exchange)
        with progress.warming_up():
            if target.type == "cpu":
                ops.prepare(DTYPES[plan.options.dtype], codes=has_codes(plan.model), kv_dtype=plan.options.kv_dtype)
            opened = cls(plan, directory, image, comm)
            opened.memory.begin_measuring()
            if needs_warm_up(plan):
                opened.warm_up()
        progress.begin("waiting")
        return opened

    def warm_up(self) -> None:
        """Run a prefill and a step of each kind, with the shapes of all others: a collective, all ranks must call it.

        On a GPU the first use of an operation loads its library and its kernel, and plans a shape; afterwards a step
        has no pauses in which a rank seems to hang. Steps that repeat are captured here, as far as so many steps fit
        into the context.
        """
        options = self.plan.options
        most = min(WARM_UP_STEPS, 1 + (options.context - 1) // accept_rows(options))
        sampled = Sampling(temperature=1.0, top_k=2, top_p=0.5, seed=0)
        modes = [Mode(draft=draft, accept=None) for draft in ((True, False) if self._stepper.drafts else (False,))]
        for mode, sampling, running in product(modes, (None, sampled), self._stepper.counts):
            steps = self._stepper.steps([(0,)] * running, [sampling] * running, mode, reuse=False)
            with closing(steps):
                for _ in islice(steps, most):
                    pass
        self._stepper.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the group of ranks."""
        self._comm.resources.close()

    # ---- requests ----

    def generate(self, request: Request) -> Completion:
        """Serve one request; every rank of the plan must be sent the same one. Raises PeerError."""
        with closing(self.serve_batch((request,))) as turns:
            *_, last = turns
        ((_, completion),) = [delivery for delivery in last if isinstance(delivery[1], Completion)]
        assert isinstance(completion, Completion), "serving ends with completions"
        return completion

    def serve_batch(self, requests: tuple[Request, ...]) -> Deliveries:
        """Yield what each turn adds to the outputs of requests, numbered in their order, until all have ended."""
        inbox, left = Inbox(), len(requests)
        inbox.put(tuple(Submit(job=job, request=request) for job, request in enumerate(requests)))
        with closing(self.serve(inbox)) as turns:
            for turn in turns:
                left -= sum(isinstance(output, Completion) for _, output in turn)
                yield turn
                if not left:
                    return

    def serve(self, inbox: Inbox, stopped: Callable[[], bool] = never) -> Deliveries:
        """Yield what each turn adds to the outputs of the requests that come, each as if alone, until the inbox ends.

        The requests have been checked against the plan, and every rank must be sent the same packets. ``stopped`` is
        called on every step: True ends all outputs there, because nobody reads them any more. Raises PeerError, and
        MachineError for an error of the device.
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread
        with device_errors(self.plan.devices[self._comm.rank]):
            yield from self._serve(inbox, stopped)

    def _serve(self, inbox: Inbox, stopped: Callable[[], bool]) -> Deliveries:
        schedule = Schedule(
            self._stepper, self.plan.options.batch, inbox, stopped=stopped, opened=self._opened, agreed=self._agreed
        )
        try:
            while True:
                if not schedule.busy:
                    self._progress.begin("waiting")
                turn = schedule.turn()
                if turn is None:
                    return
                if self._progress.timings is not None and turn.joined:
                    self._progress.timings.clear()
                yield (*turn.pieces, *self._completions(turn.ended))
        finally:
            schedule.end()
            self._progress.timings = None

    def _opened(self, submit: Submit) -> Served:
        """Return a job that was sent; one that is timed starts the timer."""
        request = submit.request
        if request.timed:
            self._progress.timings = Timings(self._device)
        return Served(submit.job, request, Output(request, self.plan.model.eos_token_ids, self._text_decoder(request)))

    def _completions(self, ended: tuple[Served, ...]) -> Iterator[tuple[int, Completion]]:
        """Yield the completions of jobs that have ended."""
        if not ended:
            return
        measured, memory = self.measured_bytes(), read_memory(self._device)
        for served in ended:
            first = served.first or served.begun  # cancelled before its first token
            timings, spent = self._progress.timings, None
            if served.request.timed and timings is not None:
                spent = RankTimings(
                    steps=tuple(timings.steps),
                    parts={part: tuple(times) for part, times in timings.parts.items()},
                    groups=dict(timings.groups),
                )
                self._progress.timings = None
            yield (
                served.job,
                Completion(
                    prompt_ids=served.request.prompt_ids,
                    tokens=tuple(served.output.tokens),
                    text=served.output.text,
                    finish=served.output.ended_by,
                    accept_lengths=tuple(served.accept_lengths),
                    reused=served.reused,
                    seed=None if served.request.sampling is None else served.request.sampling.seed,
                    prefill_s=first - served.begun,
                    decode_s=max(0.0, served.ended - first),
                    measured_bytes=measured,
                    memory=memory,
                    timings=spent,
                    drafts=self._drafts(served),
                ),
            )

    def _drafts(self, served: Served) -> tuple[Drafted, ...]:
        """Return the drafts of a job, compared with the tokens that followed each."""
        tokens = served.output.tokens
        return tuple(compared(pool, tokens[position:]) for position, pool in served.pools)

    def steps(self, request: Request) -> Iterator[Taken]:
        """Yield the new tokens and the step message of each step of one request, without end."""
        mode = Mode(draft=request.draft and self._stepper.drafts, accept=request.accept)
        steps = self._stepper.steps([request.prompt_ids], [request.sampling], mode, reuse=request.reuse)
        with closing(steps):
            for (taken,) in steps:
                assert taken is not None, "nobody ends it"
                yield taken

    @torch.inference_mode()
    def measured_bytes(self) -> tuple[dict[str, int], ...]:
        """Return the bytes allocated on each device of the plan, by term; a collective: every rank must call it."""
        drafter = sum(align(slot.nbytes) for name, slot in self._image.slots.items() if name.startswith(DRAFT_PREFIX))
        terms = self.memory.measured(0 if self._capture is None else self._capture.pool_bytes())
        own = [self._image.nbytes - drafter, drafter, terms["kv"], terms["draft_kv"], terms["buffers"], terms["comm"]]
        every = self._comm.world.all_gather(torch.tensor(own, device=self._device))
        with self._progress.reading():
            rows = every.tolist()
        return tuple(dict(zip(MEMORY_TERMS, row, strict=True)) for row in rows)

    def _agreed(self, request: Request) -> Request:
        """Return the request with rank 0's seed; raise PeerError where another rank was sent another request."""
        seed = 0 if request.sampling is None else request.sampling.seed
        own = torch.tensor([fingerprint(request), seed], device=self._device)
        gathered = self._comm.world.all_gather(own)
        with self._progress.reading():
            every: list[list[int]] = gathered.tolist()
        for rank, (other, _) in enumerate(every):
            if other != every[0][0]:
                names = [device.id for device in self.plan.devices]
                raise PeerError(
                    f"device {names[rank]} (rank {rank}) was given another request than {names[0]} (rank 0): "
                    "give all ranks the same prompt and options"
                )
        if request.sampling is None:
            return request
        return replace(request, sampling=replace(request.sampling, seed=every[0][1]))

    def _text_decoder(self, request: Request) -> Tokenizer | None:
        """Return the tokenizer where this rank needs text: rank 0 for the output, every rank for stop strings."""
        if not request.stop and (self._comm.rank or not (self._directory / TOKENIZER_FILE).is_file()):
            return None
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._directory)
        return self._tokenizer
