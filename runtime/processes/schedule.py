"""Continuous batching on one rank: which job enters which place when, and what each step adds to each output.

    waiting ── admit ──► prefilling ──► decoding ──► ended
       │                     │             │           ▲
       └─────────────────────┴── cancel ───┴───────────┘

Jobs enter in the order in which they came, as places become free. In a turn one of the prompts that are being read
gets one chunk, each in turn, and then all others a step: so a job waits for at most one chunk and one step of others
at a time. A job that decodes in another mode than those before it (without the drafter) waits until they have ended,
and so do those behind it.

Every rank runs this on the same commands, and comes to the same end of each output by itself.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from runtime.decode.messages import Notice
from runtime.decode.pool import Pool
from runtime.decode.step import Stepper
from runtime.decode.work import Mode, Taken
from runtime.processes.inbox import Delivery, Inbox, Packet, Submit
from runtime.request import Piece, Request
from runtime.text import Output


class Served:
    """A job on its way: its output, and when it came how far."""

    def __init__(self, job: int, request: Request, output: Output) -> None:
        self.job, self.request, self.output = job, request, output
        self.place: int | None = None
        """None before its first chunk."""
        self.accept_lengths: list[int] = []
        self.pools: list[tuple[int, Pool]] = []
        """Candidates of each draft, with the number of tokens up to its root; where drafts are recorded."""
        self.reused = 0
        """Positions of the prompt that were in the caches."""
        self.begun = self.first = self.ended = 0.0
        """Times of its first chunk, its first token, and its last; of ``time.perf_counter``."""

    def take(self, taken: Taken, *, cancelled: bool) -> Piece:
        """Add a step to the output and return what it adds; ``cancelled``: and end it."""
        accepted = taken.message.accepted if taken.drafted and not taken.joined else None
        if accepted is not None:
            self.accept_lengths.append(accepted)
        kept = self.output.take(taken.tokens)
        if taken.pool is not None and not self.output.finished:
            self.pools.append((len(self.output.tokens), taken.pool))
        if cancelled:
            self.output.cancel()
        self.ended = time.perf_counter()
        if taken.joined:
            self.first = self.ended
        return Piece(self.output.piece(), tuple(kept), accepted=accepted, at_s=time.monotonic())


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Result of a turn: additions to outputs, and their ends."""

    pieces: tuple[Delivery, ...]
    joined: tuple[Served, ...]
    """Jobs whose first token came with it."""
    ended: tuple[Served, ...]
    """Jobs whose outputs ended with it."""


class Schedule:
    """Jobs of one rank, and the places in which they are decoded."""

    def __init__(
        self,
        stepper: Stepper,
        places: int,
        inbox: Inbox,
        *,
        stopped: Callable[[], bool],
        opened: Callable[[Submit], Served],
        agreed: Callable[[Request], Request],
    ) -> None:
        """``stopped``: called on every step; True ends all outputs.

        ``opened``: called for each job that comes. ``agreed``: called as it enters, with the request that its rank was
        sent; returns the one that all ranks serve.
        """
        self._stepper, self._places, self._inbox = stepper, places, inbox
        self._stopped, self._opened, self._agreed = stopped, opened, agreed
        self._waiting: deque[Served] = deque()
        self._prefilling: deque[Served] = deque()
        """Jobs whose prompts are being read; the next chunk is the first one's."""
        self._serving: dict[int, Served] = {}
        """Jobs that have a place, by place."""
        self._mode = Mode(draft=False, accept=None)
        self._cancelled: set[int] = set()
        """Jobs that end with the current step."""

    @property
    def busy(self) -> bool:
        """True while there is a job."""
        return bool(self._waiting or self._prefilling or self._serving)

    def turn(self) -> Turn | None:
        """Run the next chunk and a step; where there is no job, wait for a packet. None: no more will come."""
        taken: dict[int, Taken] = {}
        notice = Notice(stop=False, packets=1)
        if self.busy:
            self._admit()
            self._prefill()
            taken, notice = self._stepper.step(self._notice)
        for _ in range(notice.packets):
            packet = self._inbox.take()
            if packet is None:
                return None
            self._take(packet)
        if notice.stop:
            self._cancelled.update(served.job for served in self._jobs())
        if self._goes_on(taken):
            self._stepper.go_ahead(self._notice)
        pieces = tuple((self._serving[place].job, self._add(place, step)) for place, step in taken.items())
        joined = tuple(self._serving[place] for place, step in taken.items() if step.joined)
        return Turn(pieces=pieces, joined=joined, ended=tuple(self._remove_ended()))

    def _goes_on(self, taken: dict[int, Taken]) -> bool:
        """Return True where the next step is known before this one's texts are: nobody enters or leaves for certain.

        A sequence may end by what it says; the step that was launched gives it nothing then.
        """
        enters = self._prefilling or (self._waiting and len(self._serving) < self._places)
        if enters or self._cancelled or not taken:
            return False
        return all(self._serving[place].output.left > len(step.tokens) for place, step in taken.items())

    def end(self) -> None:
        """End all jobs where they are."""
        for place in self._serving:
            self._stepper.end(place)

    def _notice(self) -> Notice:
        return Notice(stop=self._stopped(), packets=self._inbox.ready)

    def _jobs(self) -> list[Served]:
        entering = [served for served in self._prefilling if served.place is None]
        return [*self._serving.values(), *entering, *self._waiting]

    def _take(self, packet: Packet) -> None:
        for command in packet:
            if isinstance(command, Submit):
                self._waiting.append(self._opened(command))
            else:
                self._cancelled.add(command.job)

    def _admit(self) -> None:
        """Let jobs enter, as many as there are places for and decode in one mode."""
        while self._waiting and len(self._jobs()) - len(self._waiting) < self._places:
            request = self._waiting[0].request
            mode = Mode(draft=request.draft and self._stepper.drafts, accept=request.accept, recorded=request.recorded)
            if not self._serving and not self._prefilling:
                self._mode = mode
                self._stepper.enter(mode)
            elif mode != self._mode:
                return
            served = self._waiting.popleft()
            served.request = self._agreed(request)
            self._prefilling.append(served)

    def _prefill(self) -> None:
        """Run a chunk of the next prompt."""
        if not self._prefilling:
            return
        served = self._prefilling.popleft()
        if served.place is None:
            served.begun, request = time.perf_counter(), served.request
            free = [place for place in range(self._places) if place not in self._serving]
            served.place, served.reused = self._stepper.begin(
                request.prompt_ids, request.sampling, free, reuse=request.reuse
            )
            self._serving[served.place] = served
        if not self._stepper.prefill(served.place):
            self._prefilling.append(served)

    def _add(self, place: int, taken: Taken) -> Piece:
        served = self._serving[place]
        return served.take(taken, cancelled=served.job in self._cancelled)

    def _remove_ended(self) -> list[Served]:
        """Remove and return the jobs whose outputs have ended or are cancelled; their places are free."""
        for served in self._jobs():
            if served.job in self._cancelled:
                served.output.cancel()
        self._cancelled.clear()
        ended = [served for served in self._jobs() if served.output.finished]
        for served in ended:
            if served.place is not None:
                self._stepper.end(served.place)
                del self._serving[served.place]
        for jobs in (self._waiting, self._prefilling):
            for served in ended:
                if served in jobs:
                    jobs.remove(served)
        return ended
