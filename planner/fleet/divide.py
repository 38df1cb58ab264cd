"""The search for a division: templates are solved as far as the best division of what is known of them asks for.

Every template, a part of the machine with a batch, has a speed of each of its sequences: E / S, expected tokens of a
step over its time. It is known from above long before it is solved, as the most of

1. E(t) / L(t) over the draft trees t that may be chosen, with the bound L of :mod:`planner.speculation.step_bound` for
   the fewest places that its steps compute: at a load of clients a replica has the least of the numbers of places that
   are enough;
2. what is known of the same part with fewer sequences: no step is shorter with more of them. (Of a part with more
   devices it is not so: where links of a host differ some messages are priced by the slowest, in use or not.)

The master problem is solved with these numbers; templates of its answer that are not solved yet are, which says how
fast a sequence is by the number of running ones, and it is solved again. When all of its answer are, no other division
of templates is better: it was compared with no less than the others can have. A template has one plan, the best with
all places taken, and fewer running sequences are priced on it: another placement may be faster for these.

A template whose plan is not proven within the solver's limit keeps its bound. Where the answer would have it, that
answer bounds all divisions, and the search goes on without such templates. What it then ends with is the best where
they are no faster than the speed at which a division that has them would be as good, which is asked of each: to exclude
all that is faster is often easier than to find the best. Once a template was not proven, that is asked of every other
one before it is solved, by the best division so far: where one is too hard its like are, and few of them matter. Before
it is asked of those that were not proven, the others beside them in the division that bounds all are solved.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from planner.costs.rounding import RAISED
from planner.errors import InfeasibleError, NotProvenError
from planner.fleet.parts import Part
from planner.integers import ceil_div
from planner.solver import division
from planner.solver.division import Answer, Choice, HostClass, Load
from planner.solver.minimise import Settings
from planner.solver.past_limit import past_limit
from plans.acceptance import PPM
from plans.fleet import MICRO


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A part of the machine with a batch."""

    part: int
    """Number of the part."""
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A template with any of some numbers of running sequences, of which each is as fast."""

    template: Template
    fewest: int
    most: int
    speed: int
    """Of each sequence, in millionths of a token per second; an upper bound where the template is not solved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unproven:
    """A template whose plan was not proven within the solver's limit."""

    speed: int
    """Proven bound of its speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """The best division and its bound."""

    answer: Answer
    running: tuple[Running, ...]
    """What the numbers of the answer are of."""
    bound: int
    """Speed that no division exceeds."""


@dataclass(kw_only=True)
class Search:
    """What is known of all templates, and the master problem over them."""

    classes: Sequence[HostClass]
    parts: Sequence[Part]
    least_speed: int
    """Of every sequence, in millionths of a token per second."""
    fewest: Mapping[int, int]
    """Least number of running sequences of a replica, by its places; all places where there are no clients."""
    solve: Callable[[Template], tuple[int, ...] | Unproven | None]
    """Speed by the best plan of a template, by running sequences from the fewest to all; None where it does not fit."""
    speeds: dict[Template, int]
    """Upper bounds; of those in ``solved`` the speed with all places taken."""
    is_slower: Callable[[Template, int], bool]
    """Tell whether no plan of a template is faster than a speed; False where that is not proven."""
    simplify_ppm: int = 0
    """A plan may be slower by so much than the fastest of its template, to be simpler."""
    solved: dict[Template, tuple[int, ...]] = field(default_factory=dict)
    """What ``solve`` found."""
    unproven: dict[Template, int] = field(default_factory=dict)
    """Templates that were not proven, with their upper bounds; no longer in ``speeds`` once an answer had one."""

    def best(self, load: Load, settings: Settings) -> Division | None:
        """Return the best division of proven templates, with a bound of all; None where there is none."""
        found = self._best_proven(load, settings)
        if found is None or found.bound == found.answer.speed:
            return found
        return replace(found, bound=self._bound(found.answer.speed, load, settings))

    def _bound(self, speed: int, load: Load, settings: Settings) -> int:
        """Return a speed that no division exceeds, where the best one of proven templates has ``speed``."""
        while beside := self._beside(speed, load, settings):
            for template in beside:
                if template in self.speeds:  # another one may have told that it does not fit
                    self._settle(template)
        for template, enough in sorted(
            self._as_good(speed, self.speeds, self.unproven, load, settings).items(), key=lambda own: _order(own[0])
        ):
            if enough < self.unproven[template] and self.is_slower(template, enough):
                self.unproven[template] = enough
        answer = self._divided(self.speeds | self.unproven, load, settings)
        return speed if answer is None else max(speed, answer.speed)

    def _beside(self, speed: int, load: Load, settings: Settings) -> list[Template]:
        """Return what is neither solved nor unproven in the best division by all bounds; none where it is no better.

        The lower their bounds are, the more is left for the templates beside them that were not proven.
        """
        known = self.speeds | self.unproven
        answer = self._divided(known, load, settings)
        if answer is None or answer.speed <= speed:
            return []
        return [t for t in self._used(known, answer) if t not in self.solved and t not in self.unproven]

    def _as_good(
        self,
        speed: int,
        proven: Mapping[Template, int],
        bounds: Mapping[Template, int],
        load: Load,
        settings: Settings,
    ) -> dict[Template, int]:
        """Return speeds no higher than the bounds, with which no division is faster than ``speed``.

        By Newton's method: the speed of the best division is convex and rises with each of them.
        """
        known = dict(bounds)
        while (answer := self._divided({**proven, **known}, load, settings)) and answer.speed > speed:
            of_running = zip(self._listed({**proven, **known}), answer.sequences, strict=True)
            used: Counter[Template] = Counter()
            for own, sequences in of_running:
                if own.template in known:
                    used[own.template] += sequences
            for template in +used:
                known[template] = max(0, known[template] - ceil_div(answer.speed - speed, used.total()))
        return known

    def _best_proven(self, load: Load, settings: Settings) -> Division | None:
        ties, bound = False, None
        while True:
            answer = self._divided(self.speeds, load, settings, ties=ties)
            if answer is None:
                return None
            used = self._used(self.speeds, answer)
            if self.unproven.keys() & set(used):
                bound = answer.speed if bound is None else bound
                for template in self.unproven:
                    self.unproven[template] = self.speeds.pop(template, self.unproven[template])
                continue
            unsolved = [template for template in used if template not in self.solved]
            if not unsolved and ties:
                running = tuple(self._listed(self.speeds))
                return Division(answer=answer, running=running, bound=max(answer.speed, bound or 0))
            ties = not unsolved
            enough = self._enough(load, settings) if unsolved and self.unproven else {}
            for template in unsolved:
                if template not in self.speeds:  # another one may have told that it does not fit
                    continue
                if template in enough and self.is_slower(template, own := max(0, enough[template] - 1)):
                    self.speeds[template] = own
                else:
                    self._settle(template)

    def _enough(self, load: Load, settings: Settings) -> dict[Template, int]:
        """Return speeds of all that is not solved with which no division is faster than the best of what is solved.

        With less, divisions that have them are slower, so that none of them is solved to break a tie. Empty where
        nothing solved makes a division.
        """
        solved = {template: speed for template, speed in self.speeds.items() if template in self.solved}
        best = self._divided(solved, load, settings)
        if best is None:
            return {}
        open_ = {template: speed for template, speed in self.speeds.items() if template not in self.solved}
        return self._as_good(best.speed, solved, open_, load, settings)

    def most_sequences(self, replicas: int | None, settings: Settings) -> int:
        """Return a number of sequences that no division exceeds, by what is known."""
        return division.most_sequences(self.classes, self._choices(self.speeds), replicas, settings)

    def most_replicas(self, settings: Settings) -> int:
        """Return a number of replicas that no division exceeds, by what is known."""
        return division.most_replicas(self.classes, self._choices(self.speeds), settings)

    def _divided(
        self, speeds: Mapping[Template, int], load: Load, settings: Settings, *, ties: bool = False
    ) -> Answer | None:
        """Return the best division by these speeds; None where there is none."""
        return division.divide(self.classes, self._choices(speeds), load, settings, ties=ties)

    def _listed(self, speeds: Mapping[Template, int]) -> list[Running]:
        """Return the templates that are fast enough, in a definite order."""
        running = (own for template in sorted(speeds, key=_order) for own in self._running(template, speeds[template]))
        return [own for own in running if own.speed >= max(1, self.least_speed)]

    def _running(self, template: Template, speed: int) -> Iterator[Running]:
        """Yield a template with the running sequences that it is for, all in one where it has no more than a bound."""
        fewest = self.fewest[template.batch]
        known = self.solved.get(template, (speed,) * (template.batch + 1 - fewest))
        for own, equal in groupby(enumerate(known, fewest), key=lambda entry: entry[1]):
            numbers = [number for number, _ in equal]
            yield Running(template=template, fewest=numbers[0], most=numbers[-1], speed=own)

    def _used(self, speeds: Mapping[Template, int], answer: Answer) -> list[Template]:
        """Return the templates of a division by these speeds, once for each of its numbers of running sequences."""
        running = self._listed(speeds)
        return [own.template for own, replicas in zip(running, answer.replicas, strict=True) if replicas]

    def _choices(self, speeds: Mapping[Template, int]) -> list[Choice]:
        """Return these templates as choices of the master problem."""
        return [
            Choice(
                form=own.template.part,
                fewest=own.fewest,
                places=own.most,
                speed=own.speed,
                devices=len(self.parts[own.template.part].devices),
                hosts=self.parts[own.template.part].hosts,
            )
            for own in self._listed(speeds)
        ]

    def _settle(self, template: Template) -> None:
        """Solve a template, and take over what that says of others."""
        found = self.solve(template)
        if found is None:
            for other in [other for other in self.speeds if self._is_harder(other, template)]:
                del self.speeds[other]
            return
        if isinstance(found, Unproven):
            speed = min(found.speed, self.speeds[template])
            self.unproven[template] = speed
        else:
            assert max(found) <= self.speeds[template], "a bound below the speed that it bounds"
            self.solved[template] = found
            speed = found[-1]
        self.speeds[template] = speed
        most = int(speed * RAISED * (1 + self.simplify_ppm / PPM)) + 1
        for other, known in self.speeds.items():
            if other not in self.solved and self._is_harder(other, template):
                self.speeds[other] = min(known, most)

    def _is_harder(self, other: Template, template: Template) -> bool:
        """Tell whether a template has the part of one, and no fewer sequences."""
        return other.part == template.part and other.batch >= template.batch


def _order(template: Template) -> tuple[int, int]:
    return template.part, template.batch


def require(found: Division | None, search: Search, load: Load, settings: Settings, gap_ppm: int) -> Division:
    """Return the division that was found; raise InfeasibleError, with the reason, or NotProvenError beyond the gap."""
    if found is not None:
        missing = found.bound - found.answer.speed
        if missing * PPM > gap_ppm * found.bound:
            gap = missing / found.bound
            raise NotProvenError(
                f"tokens/s: {len(search.unproven)} templates were not proven within the deterministic limit of "
                f"{settings.limit:g}: found {found.answer.speed / MICRO:.1f}, bound {found.bound / MICRO:.1f}, gap "
                f"{gap:.2%}; {past_limit(gap, gap_ppm)}"
            )
        return found
    if not search.speeds and search.unproven:
        raise NotProvenError(f"no template was proven within the deterministic limit of {settings.limit:g}")
    if not search.speeds:
        raise InfeasibleError("no replica fits on any of the parts of the machine", {})
    fast = f" with {search.least_speed / MICRO:g} tokens/s each" if search.least_speed else ""
    most_replicas = search.most_replicas(settings)
    if load.replicas is not None and 0 < most_replicas < load.replicas:
        raise InfeasibleError(
            f"--replicas: found {load.replicas}, at most {most_replicas} fit{fast}: give fewer, "
            f"{'a lower --min-tokens-per-s, ' if fast else ''}less context, or more devices",
            {},
        )
    asked = "any number of replicas"
    if load.replicas is not None:
        asked = "exactly one replica" if load.replicas == 1 else f"exactly {load.replicas} replicas"
    most = search.most_sequences(load.replicas, settings)
    if most and load.clients is not None:
        raise InfeasibleError(
            f"--clients: found {load.clients}, at most {most} sequences run at once{fast}, with {asked}: give fewer, "
            f"{'a lower --min-tokens-per-s, ' if fast else ''}less context, or more devices",
            {},
        )
    if most:
        raise InfeasibleError(f"no division has {asked}", {})
    raise InfeasibleError(f"no division has {asked}{fast}: give a lower --min-tokens-per-s, or other --replicas", {})
