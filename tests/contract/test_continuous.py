"""Continuous batching: whenever a request comes, and whatever becomes of the others, it says what it says alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from planner.families import inputs_of
from plans.check import check as check_plan
from plans.check_inputs import static_tree
from plans.schema import KvAxis, KvDType, Plan, Run, ScheduledTree, Tree
from runtime.decode.work import Mode
from runtime.processes.inbox import Cancel, Inbox, Submit
from runtime.processes.rank import Rank
from runtime.request import Completion, Piece, Request
from runtime.sampling import Sampling
from tests.contract.agreeing import KV_HEADS, LAYERS
from tests.contract.checkpoints import CHUNK, CONTEXT, Checkpoints, compiled, write_checkpoints
from tests.contract.ranks import with_engines
from tests.plan_factory import TREE, Group, even, group, make_plan

pytestmark = pytest.mark.usefixtures("one_core")

EOS = 57
SHARED = tuple(range(40, 40 + CHUNK + 5))
PROMPTS = (
    *((7,), (44, 3, 9), SHARED[:CHUNK], SHARED, (*SHARED[:9], 8, 1), (*SHARED, 5), (*SHARED, 5, 23, 57, 9)),
    *((*SHARED[: CHUNK + 1], 90, 2), tuple(range(90, 90 - 2 * CHUNK - 3, -1)), (9, *SHARED)),
)
"""Prompts of several lengths, many of which begin alike."""
PAUSED = 6
"""Steps in which a drafter pauses."""
SAMPLING = Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=0)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request, when it comes, and when it is cancelled; in turns of the rank."""

    turn: int
    request: Request
    cancelled: int | None


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Deliveries of a job."""

    pieces: list[Piece]
    completion: Completion


def scheduled(*ranges: tuple[int, Tree | None]) -> tuple[ScheduledTree, ...]:
    return tuple(ScheduledTree(sequences=sequences, tree=tree) for sequences, tree in ranges)


def dynamic(total_token: int, depth: int, top_k: int) -> Tree:
    return Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None)


STATIC = static_tree(((0,), (1,), (0, 0), (0, 1), (0, 0, 0)))
SCHEDULES = {
    "large to plain": scheduled((1, dynamic(24, 4, 4)), (2, TREE), (3, None)),
    "plain between": scheduled((1, dynamic(2, 0, 1)), (2, None), (3, STATIC), (4, dynamic(12, 1, 5))),
    "plain first": scheduled((1, None), (2, dynamic(10, 5, 3)), (4, dynamic(3, 1, 1))),
}
"""Trees by number of running sequences: larger and smaller than the plan's, and plain steps before and behind."""


def planned(
    checkpoints: Checkpoints,
    kind: str | None,
    batch: int,
    devices: tuple[str, ...] = ("a",),
    axis: KvAxis = "heads",
    schedule: tuple[ScheduledTree, ...] | None = None,
    kv_dtype: KvDType | None = None,
    stages: bool = False,
) -> Plan:
    """Return a plan; ``stages``: each device has some layers."""
    model, draft = checkpoints.base.model, checkpoints.drafts[kind] if kind else None
    members = len(devices)
    run = Run(
        num_layers=LAYERS,
        kv_heads=(KV_HEADS,) * members,
        mlp_units=even(model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit, members),
    )
    whole = group(model, devices, LAYERS)
    groups = [whole if axis == "heads" else Group(devices=devices, runs=(run,), axis=axis, subgroups=(members,))]
    if stages:
        groups = [group(model, [name], count) for name, count in zip(devices, even(LAYERS, members), strict=True)]
    return make_plan(
        model,
        groups,
        draft=draft.draft if draft else None,
        inputs=inputs_of(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        batch=batch,
        schedule=schedule,
        kv_dtype=kv_dtype,
    )


def arriving(rng: random.Random, count: int, *, draft: bool) -> list[Arrival]:
    """Return requests of all kinds that come at random, some in crowds and some after a pause."""
    arrivals, turn = [], 0
    for number in range(count):
        turn += rng.choice((0, 0, 0, 1, 2, 5, 30))
        prompt, cancelled = rng.choice(PROMPTS), number % 5 == 2
        request = Request(
            prompt_ids=prompt,
            max_new_tokens=min(40 if cancelled else rng.choice((1, 2, 7, 20, 40)), CONTEXT - len(prompt)),
            draft=draft and rng.random() < 0.9,
            ignore_eos=cancelled or rng.random() < 0.5,
            stop=(),
            sampling=replace(SAMPLING, seed=rng.randrange(2)) if rng.random() < 0.4 else None,
            reuse=rng.random() < 0.8,
        )
        until = turn + rng.randrange(6) if cancelled else None
        arrivals.append(Arrival(turn=turn, request=request, cancelled=until))
    return arrivals


def served(rank: Rank, inboxes: Sequence[Inbox], arrivals: Sequence[Arrival]) -> dict[int, Heard]:
    """Serve the arrivals on a rank; the first rank puts the packets into the inboxes of all, at its own turns."""
    rank.plan = replace(rank.plan, model=replace(rank.plan.model, eos_token_ids=(EOS,)))
    heard: dict[int, Heard] = {}
    pieces: dict[int, list[Piece]] = {job: [] for job in range(len(arrivals))}
    inbox, turn, moments = inboxes[rank._comm.rank], 0, sorted(
        [(arrival.turn, 0, job) for job, arrival in enumerate(arrivals)]
        + [(arrival.cancelled, 1, job) for job, arrival in enumerate(arrivals) if arrival.cancelled is not None]
    )  # fmt: skip

    def send() -> None:
        """Send what is due; where nothing is being served, what comes next."""
        nonlocal turn
        if moments and len(heard) == sum(kind == 0 for _, kind, _ in sent):
            turn = max(turn, moments[0][0])
        while moments and moments[0][0] <= turn:
            moment = moments.pop(0)
            sent.append(moment)
            _, kind, job = moment
            command = Cancel(job=job) if kind else Submit(job=job, request=arrivals[job].request)
            for other in inboxes:
                other.put((command,))
        turn += 1

    sent: list[tuple[int, int, int]] = []
    leads = rank._comm.rank == 0
    if leads:
        send()
    turns = rank.serve(inbox)
    while len(heard) < len(arrivals):
        for job, output in next(turns):
            assert job not in heard, "nothing comes behind the completion"
            if isinstance(output, Piece):
                pieces[job].append(output)
            else:
                heard[job] = Heard(pieces=pieces[job], completion=output)
        if leads:
            send()
    turns.close()
    return heard


class Alone:
    """The output of requests that are served alone, on one device: greedy ones as transformers has them.

    Without ``checkpoints`` these too are those of the device.
    """

    def __init__(self, checkpoints: Checkpoints | None, rank: Rank) -> None:
        self._checkpoints, self._rank = checkpoints, rank
        self._known: dict[tuple[tuple[int, ...], Sampling | None], tuple[int, ...]] = {}

    def tokens(self, request: Request) -> tuple[int, ...]:
        prompt, most = request.prompt_ids, CONTEXT - len(request.prompt_ids)
        if request.sampling is None and self._checkpoints is not None:
            tokens = tuple(self._checkpoints.greedy(prompt, most))
        else:
            key = (prompt, request.sampling)
            if key not in self._known:
                whole = replace(request, max_new_tokens=most, ignore_eos=True, draft=False, reuse=False)
                self._known[key] = self._rank.generate(whole).tokens
            tokens = self._known[key]
        tokens = tokens[: request.max_new_tokens]
        return tokens if request.ignore_eos or EOS not in tokens else tokens[: tokens.index(EOS) + 1]


def check(heard: dict[int, Heard], arrivals: Sequence[Arrival], alone: Alone) -> None:
    for job, arrival in enumerate(arrivals):
        expected, one = alone.tokens(arrival.request), heard[job].completion
        assert tuple(token for piece in heard[job].pieces for token in piece.tokens) == one.tokens
        if one.finish == "cancelled":
            assert arrival.cancelled is not None
            assert one.tokens == expected[: len(one.tokens)]
            assert len(one.tokens) < len(expected)
        else:
            assert one.tokens == expected, (job, arrival)
        assert 0 <= one.reused < len(one.prompt_ids)
        assert arrival.request.reuse or one.reused == 0


CASES: list[tuple[str | None, int, tuple[str, ...], KvAxis, str | None]] = [
    ("eagle3", 1, ("a",), "heads", None),
    ("eagle3", 3, ("a",), "heads", None),
    ("eagle", 4, ("a",), "heads", "plain between"),
    (None, 3, ("a",), "heads", None),
    ("eagle3", 4, ("a", "b"), "heads", "large to plain"),
    ("eagle", 3, ("a", "b"), "context", None),
    ("eagle3", 4, ("a", "b"), "head_dim", "plain first"),
    ("eagle3", 4, ("a", "b"), "batch", None),
]


@pytest.fixture(scope="module")
def alone(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    plan = planned(checkpoints, None, 1)
    directory = compiled(tmp_path_factory.mktemp("alone") / "plan", plan, checkpoints, None)
    (rank,) = with_engines(plan, directory, lambda rank: rank)
    return Alone(checkpoints, rank)


@pytest.mark.parametrize(("kind", "batch", "devices", "axis", "trees"), CASES)
def test_random_arrivals_say_what_they_say_alone(
    kind: str | None,
    batch: int,
    devices: tuple[str, ...],
    axis: KvAxis,
    trees: str | None,
    checkpoints: Checkpoints,
    alone: Alone,
    tmp_path: Path,
) -> None:
    plan = planned(checkpoints, kind, batch, devices, axis, SCHEDULES[trees] if trees else None)
    assert not check_plan(plan)
    directory = compiled(tmp_path / "plan", plan, checkpoints, kind)
    arrivals = arriving(random.Random(f"{kind} {batch} {axis}"), 16, draft=kind is not None)
    inboxes = [Inbox() for _ in devices]
    first, *others = with_engines(plan, directory, lambda rank: served(rank, inboxes, arrivals))
    check(first, arrivals, alone)
    for other in others:
        assert {job: heard.completion.tokens for job, heard in other.items()} == {
            job: heard.completion.tokens for job, heard in first.items()
        }
    assert sum(heard.completion.reused for heard in first.values()) > 0, "prefixes should be reused"
    assert "cancelled" in {heard.completion.finish for heard in first.values()}


@pytest.mark.parametrize(
    ("kind", "devices", "stages", "kv_dtype"),
    [
        ("eagle3", ("a",), False, "int8"),
        ("eagle", ("a", "b"), True, "int8"),
        (None, ("a", "b"), False, "int8"),
        ("eagle", ("a", "b"), True, "float8_e4m3fn"),
    ],
)
def test_with_a_cache_in_codes_too(
    kind: str | None, devices: tuple[str, ...], stages: bool, kv_dtype: KvDType, noisy: Checkpoints, tmp_path: Path
) -> None:
    """Codes and scales go where a sequence goes: to another place, behind a prefix that is reused, on every stage."""
    one = planned(noisy, None, 1, kv_dtype=kv_dtype)
    (rank,) = with_engines(one, compiled(tmp_path / "alone", one, noisy, None), lambda rank: rank)
    plan = planned(noisy, kind, 4, devices, kv_dtype=kv_dtype, stages=stages)
    assert len(plan.stages) == (2 if stages else 1)
    arrivals = arriving(random.Random(f"{kind} {devices}"), 16, draft=kind is not None)
    inboxes = [Inbox() for _ in devices]
    directory = compiled(tmp_path / "plan", plan, noisy, kind)
    heard = with_engines(plan, directory, lambda rank: served(rank, inboxes, arrivals))[0]
    check(heard, arrivals, Alone(None, rank))
    assert sum(one.completion.reused for one in heard.values()) > 0, "prefixes should be reused"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Checkpoints whose tokens depend much on what caches hold."""
    return write_checkpoints(tmp_path_factory.mktemp("noisy"), noise=0.4)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_drafts_after_plain_steps_are_those_of_a_drafter_that_never_paused(
    kind: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Two sequences decode plainly, one of them ends, and the other drafts: from caches that plain steps kept up."""
    plan = planned(checkpoints, kind, 2, schedule=scheduled((1, TREE), (2, None)))
    directory = compiled(tmp_path / "plan", plan, checkpoints, kind)
    (rank,) = with_engines(plan, directory, lambda rank: rank)
    stepper, prompt = rank._stepper, PROMPTS[4]

    def trees(prompts: list[tuple[int, ...]], accept: int | None) -> dict[int, list[int]]:
        """Return the trees of the first prompt, by the number of its tokens; the others end after some steps."""
        drafted, count, free, own = dict[int, list[int]](), 0, [0, 1], 0
        stepper.enter(Mode(draft=True, accept=accept))
        for tokens in prompts:
            place, _ = stepper.begin(tokens, None, free, reuse=False)
            free.remove(place)
            while not stepper.prefill(place):
                pass
            own = place if tokens is prompt else own
        for number in range(16):
            taken, _ = stepper.step()
            count += len(taken[own].tokens)
            if len(taken[own].message.tokens) > 1:
                drafted[count] = taken[own].message.tokens
            if number == PAUSED and len(prompts) > 1:
                stepper.end(place)
        stepper.end(own)
        return drafted

    every = trees([prompt], 0)  # one token a step: a tree behind each
    paused_trees = trees([prompt, PROMPTS[1]], None)
    assert min(paused_trees) > PAUSED
    compared = set(every) & set(paused_trees)
    assert len(compared) > 1
    assert {count: every[count] for count in compared} == {count: paused_trees[count] for count in compared}
