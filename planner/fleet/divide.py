"""The search for a division: templates are solved as far as the best division of what is known of them asks for.

Every template, a part of the machine with a batch, has a speed of each of its sequences: E / S, expected tokens of a
step over its time. It is known from above long before it is solved, as the most of

1. E(t) / L(t) over the draft trees t that may be chosen, with the bound L of :mod:`planner.fleet.bound`;
2. what is known of the same part with fewer sequences: no step is shorter with more of them. (Of a part with more
   devices it is not so: some messages are priced by the slowest link of all devices, in use or not.)

The master problem is solved with these numbers; templates of its answer that are not solved yet are, and it is solved
again. When all of its answer are, no other division is better: it was compared with no less than the others can have.

A template whose plan is not proven within the solver's limit keeps its bound. Where the answer would have it, that
answer bounds all divisions, and the search goes on without such templates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from planner.errors import InfeasibleError, NotProvenError
from planner.fleet.parts import Part
from planner.solver import division
from planner.solver.division import Answer, Choice, HostClass, Load
from planner.solver.minimise import Settings

ROUNDING = 1.0001
"""Bounds by solved templates are raised by the rounding of times."""

MICRO = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A part of the machine with a batch."""

    part: int
    """Number of the part."""
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unproven:
    """A template whose plan was not proven within the solver's limit."""

    speed: int
    """Proven bound of its speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """The best division and its bound."""

    answer: Answer
    templates: tuple[Template, ...]
    """That the numbers of the answer are of."""
    bound: int
    """Speed that no division exceeds."""


@dataclass(kw_only=True)
class Search:
    """What is known of all templates, and the master problem over them."""

    classes: Sequence[HostClass]
    parts: Sequence[Part]
    least_speed: int
    """Of every sequence, in millionths of a token per second."""
    solve: Callable[[Template], int | Unproven | None]
    """Speed of a template by its best plan; None where it does not fit."""
    speeds: dict[Template, int]
    """Upper bounds; of those in ``solved`` their speed."""
    solved: set[Template] = field(default_factory=set)
    unproven: set[Template] = field(default_factory=set)

    def best(self, load: Load, settings: Settings) -> Division | None:
        """Return the best division of proven templates; None where there is none."""
        ties, bound = False, None
        while True:
            templates = self._listed()
            answer = division.divide(self.classes, [self._choice(t) for t in templates], load, settings, ties=ties)
            if answer is None:
                return None
            used = [t for t, replicas in zip(templates, answer.replicas, strict=True) if replicas]
            if self.unproven.intersection(used):
                bound = answer.speed if bound is None else bound
                for template in self.unproven:
                    self.speeds.pop(template, None)
                continue
            unsolved = [template for template in used if template not in self.solved]
            if not unsolved and ties:
                return Division(answer=answer, templates=tuple(templates), bound=max(answer.speed, bound or 0))
            ties = not unsolved
            for template in unsolved:
                if template in self.speeds:  # another one may have told that it does not fit
                    self._settle(template)

    def most_sequences(self, replicas: int | None, settings: Settings) -> int:
        """Return a number of sequences that no division exceeds, by what is known."""
        return division.most_sequences(self.classes, [self._choice(t) for t in self._listed()], replicas, settings)

    def _listed(self) -> list[Template]:
        """Return the templates that are fast enough, in a definite order."""
        fast = (template for template, speed in self.speeds.items() if speed >= max(1, self.least_speed))
        return sorted(fast, key=lambda template: (template.part, template.batch))

    def _choice(self, template: Template) -> Choice:
        part = self.parts[template.part]
        return Choice(
            form=template.part,
            places=template.batch,
            speed=self.speeds[template],
            devices=len(part.devices),
            hosts=part.hosts,
        )

    def _settle(self, template: Template) -> None:
        """Solve a template, and take over what that says of others."""
        found = self.solve(template)
        if found is None:
            for other in [other for other in self.speeds if self._is_harder(other, template)]:
                del self.speeds[other]
            return
        if isinstance(found, Unproven):
            self.unproven.add(template)
            speed = min(found.speed, self.speeds[template])
        else:
            self.solved.add(template)
            speed = found
        self.speeds[template] = speed
        for other, known in self.speeds.items():
            if other not in self.solved and self._is_harder(other, template):
                self.speeds[other] = min(known, int(speed * ROUNDING) + 1)

    def _is_harder(self, other: Template, template: Template) -> bool:
        """Tell whether a template has the part of one, and no fewer sequences."""
        return other.part == template.part and other.batch >= template.batch


def require(found: Division | None, search: Search, load: Load, settings: Settings, gap_ppm: int) -> Division:
    """Return the division that was found; raise InfeasibleError, with the reason, or NotProvenError beyond the gap."""
    if found is not None:
        missing = found.bound - found.answer.speed
        if missing * MICRO > gap_ppm * found.bound:
            raise NotProvenError(
                f"tokens/s: {len(search.unproven)} templates were not proven within the deterministic limit of "
                f"{settings.limit:g}: found {found.answer.speed / MICRO:.1f}, bound {found.bound / MICRO:.1f}, gap "
                f"{missing / found.bound:.2%}; accept one with --gap, or give a higher --solver-limit"
            )
        return found
    if not search.speeds and search.unproven:
        raise NotProvenError(f"no template was proven within the deterministic limit of {settings.limit:g}")
    if not search.speeds:
        raise InfeasibleError("no replica fits on any of the parts of the machine", {})
    asked = "any number of replicas"
    if load.replicas is not None:
        asked = "exactly one replica" if load.replicas == 1 else f"exactly {load.replicas} replicas"
    fast = f" with {search.least_speed / MICRO:g} tokens/s each" if search.least_speed else ""
    most = search.most_sequences(load.replicas, settings)
    if most and load.clients is not None:
        raise InfeasibleError(
            f"--clients: found {load.clients}, at most {most} sequences run at once{fast}, with {asked}: give fewer, "
            "a lower --min-tokens-per-s, less context, or more devices",
            {},
        )
    if most:
        raise InfeasibleError(f"no division has {asked}", {})
    raise InfeasibleError(f"no division has {asked}{fast}: give a lower --min-tokens-per-s, or other --replicas", {})
