"""Acceptance profiles: how often the base chooses each child of a node that it accepted, counted along decoding.

A profile is a YAML file (``plans/FORMAT.md``, Acceptance profile). The runtime counts one (``runtime bench
--profile-out``), the planner expects from it how many tokens a step of a tree commits (``planner.costs.acceptance``).

Steps are divided into *contexts*, as texts have easy and hard passages: in an easy one the drafter is certain, and its
trees grow deep; in a hard one they grow wide. In a context the probability of a child depends on its level and its rank
alone. A context's weight is the part of the text that was decoded in it, in tokens: steps that commit less are more in
number over the same passage. Level d counts the nodes d levels below the root that agree with the base's text and were
fed to the drafter; rank r is the r-th most probable token of the drafter after such a node, both from 0.
"""

import errno
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from plans.check_inputs import MOST_TREE
from plans.codec import decode, encode, read_document
from plans.schema import PlanError
from plans.strict_yaml import dump_yaml, load_yaml

ACCEPTANCE = "acceptance.yaml"
"""File of a profile: beside a plan, and beside the config of an EAGLE head that has one of its own."""
PROFILE_MAJOR, PROFILE_MINOR = 1, 0
PPM = 1_000_000

MOST_CONTEXTS = 64
MOST_SOURCE = 1000
"""Most characters of a source."""
MOST_COUNT = 1 << 40
"""Largest count of a profile."""
CONTEXT_STEPS = 50
"""Least steps of a context: a rate of one half then has a standard error of 7 %."""
CONTEXTS = 4
"""Most contexts that steps are divided into where they are counted."""
NORMAL_95 = 1.959964
"""Quantile of the normal distribution for a two-sided interval of 95 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Children of the nodes of one level."""

    nodes: int
    """Nodes of the level that agree with the base and whose children are known."""
    chosen: tuple[int, ...]
    """By rank, of how many of these nodes the base chose that child; ranks that are not listed: of none."""
    low_ppm: tuple[int, ...] | None = None
    """By rank, lower end of the 95 % interval of the probability (Wilson); None where nothing was counted."""
    high_ppm: tuple[int, ...] | None = None
    """Upper end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Steps that are alike."""

    steps: int
    """Steps that were counted."""
    tokens: int
    """Tokens that these committed: the weight of the context."""
    levels: tuple[Level, ...]
    """Levels from the root down; nodes of deeper ones have no child that the base chooses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """An acceptance profile."""

    profile: str
    """Version of the format."""
    drafter: Literal["eagle", "eagle3"]
    """Kind of the drafter that it is of."""
    origin: Literal["counted", "published"]
    """``counted``: along decoding, so that counts have their intervals. ``published``: derived from figures that others
    published, scaled to a million nodes."""
    source: str
    """Text that was decoded, or publication that the figures are from."""
    contexts: tuple[Context, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drafted:
    """One draft compared with the text that the base then gave."""

    confidence: float
    """Accepted tokens that the drafter itself expects: the sum of its path probabilities over the nodes of the tree."""
    committed: int
    """Tokens that the step committed which verified its tree: accepted nodes and the base's next choice."""
    ranks: tuple[int, ...]
    """Rank of the base's choice among the children, from the root down, as long as it is one of them."""
    missed: bool
    """True: behind these there was a node whose children are known, and none of them is the base's choice."""


# ---- counting ----


def counted(drafts: Sequence[Drafted], *, drafter: Literal["eagle", "eagle3"], top_k: int, source: str) -> Profile:
    """Return the profile of drafts; ``top_k``: children of a node. Raise PlanError where there is no draft.

    Contexts are equal parts of the drafts in the order of the drafter's confidence, of at least CONTEXT_STEPS each.
    """
    if not drafts:
        raise PlanError("acceptance profile: no draft was compared with a text: decode more new tokens")
    ordered = sorted(drafts, key=lambda draft: (draft.confidence, draft.ranks, draft.missed))
    parts = max(1, min(CONTEXTS, len(ordered) // CONTEXT_STEPS))
    bounds = [len(ordered) * part // parts for part in range(parts + 1)]
    contexts = (_context(ordered[low:high], top_k) for low, high in pairwise(bounds))
    return Profile(
        profile=f"{PROFILE_MAJOR}.{PROFILE_MINOR}",
        drafter=drafter,
        origin="counted",
        source=source,
        contexts=tuple(contexts),
    )


def _context(drafts: Sequence[Drafted], top_k: int) -> Context:
    levels: list[Level] = []
    while nodes := sum(len(draft.ranks) + draft.missed > len(levels) for draft in drafts):
        chosen = [0] * top_k
        for draft in drafts:
            if len(draft.ranks) > len(levels):
                chosen[draft.ranks[len(levels)]] += 1
        levels.append(with_intervals(nodes, chosen))
    tokens = sum(draft.committed for draft in drafts)
    return Context(steps=len(drafts), tokens=tokens, levels=tuple(levels))


def with_intervals(nodes: int, chosen: Iterable[int]) -> Level:
    """Return a level with the intervals of its counts."""
    counts = tuple(chosen)
    ends = [wilson_ppm(count, nodes) for count in counts]
    return Level(nodes=nodes, chosen=counts, low_ppm=tuple(low for low, _ in ends), high_ppm=tuple(h for _, h in ends))


def wilson_ppm(count: int, trials: int) -> tuple[int, int]:
    """Return the 95 % score interval of a probability (Wilson 1927), in parts per million, rounded outwards.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = count / n, n = trials, z = NORMAL_95.
    """
    rate, square = count / trials, NORMAL_95**2
    centre = rate + square / (2 * trials)
    spread = NORMAL_95 * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return max(0, math.floor(PPM * low)), min(PPM, math.ceil(PPM * high))


# ---- files ----


def dump_profile(profile: Profile) -> str:
    """Return the canonical text of a profile."""
    return dump_yaml(encode(profile))


def profile_digest(profile: Profile) -> str:
    """Return the SHA-256 of the canonical text, in hex."""
    return hashlib.sha256(dump_profile(profile).encode()).hexdigest()


def load_profile(file: Path, *, inside: bool) -> Profile:
    """Read a profile; raise PlanError with the path to the datum for anything else.

    ``inside``: it lies in the directory of a plan, a fleet or a drafter, out of which no link may lead.
    """
    try:
        raw = read_document(file, inside=inside)
    except OSError as error:
        reason = "is a directory" if error.errno == errno.EISDIR else error.strerror
        raise PlanError(f"{file}: cannot read: {reason}") from error
    return parse_profile(raw, str(file))


def parse_profile(text: str | bytes, where: str) -> Profile:
    """Parse the text of a profile; raise PlanError naming ``where`` and the path to the datum."""
    data = load_yaml(text, where)
    version = data.get("profile") if isinstance(data, dict) else None
    if isinstance(version, str) and version.partition(".")[0] != str(PROFILE_MAJOR):
        raise PlanError(f"{where}: profile: found version {version}, this program reads {PROFILE_MAJOR}.x")
    profile = decode(Profile, data, where)
    for path, problem in _problems(profile):
        raise PlanError(f"{where}: {path}: {problem}")
    return profile


def _problems(profile: Profile) -> Iterable[tuple[str, str]]:
    """Yield the path of each datum that contradicts the rest, and how."""
    if len(profile.source) > MOST_SOURCE:
        yield "source", f"found {len(profile.source)} characters, expected at most {MOST_SOURCE}"
    if not 1 <= len(profile.contexts) <= MOST_CONTEXTS:
        yield "contexts", f"found {len(profile.contexts)}, expected 1 to {MOST_CONTEXTS}"
    if not any(context.tokens for context in profile.contexts):
        yield "contexts", "found no tokens, expected some"
    for c, context in enumerate(profile.contexts):
        path = f"contexts[{c}]"
        for name in ("steps", "tokens"):
            if (count := getattr(context, name)) > MOST_COUNT:
                yield f"{path}.{name}", f"found {count}, expected at most {MOST_COUNT}"
        if len(context.levels) > MOST_TREE["depth"] + 1:
            yield f"{path}.levels", f"found {len(context.levels)}, expected at most {MOST_TREE['depth'] + 1}"
        for d, level in enumerate(context.levels):
            yield from _level_problems(f"{path}.levels[{d}]", level, counts=profile.origin == "counted")


def _level_problems(path: str, level: Level, *, counts: bool) -> Iterable[tuple[str, str]]:
    if not 1 <= level.nodes <= MOST_COUNT:
        yield f"{path}.nodes", f"found {level.nodes}, expected 1 to {MOST_COUNT}"
        return
    if len(level.chosen) > MOST_TREE["top_k"]:
        yield f"{path}.chosen", f"found {len(level.chosen)} ranks, expected at most {MOST_TREE['top_k']}"
    if sum(level.chosen) > level.nodes:
        yield f"{path}.chosen", f"found {sum(level.chosen)} in all, expected at most the {level.nodes} nodes"
        return
    expected = with_intervals(level.nodes, level.chosen) if counts else Level(nodes=level.nodes, chosen=level.chosen)
    for name in ("low_ppm", "high_ppm"):
        found, right = getattr(level, name), getattr(expected, name)
        if found != right:
            kind = "as these counts have" if counts else "as nothing was counted"
            yield f"{path}.{name}", f"found {_listed(found)}, expected {_listed(right)}, {kind}"


def _listed(numbers: tuple[int, ...] | None) -> str:
    return "nothing" if numbers is None else str(list(numbers))
