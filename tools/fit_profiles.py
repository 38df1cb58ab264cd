"""Derive the shipped acceptance profiles from published means, and print how near they come to these.

    python tools/fit_profiles.py            writes planner/speculation/profiles/*.yaml

Published are mean acceptance lengths of a few trees alone, so a profile has as few numbers as explain them: two
contexts, in each one rate of the first child for all levels, and a share of what is left for each further child: rank r
is chosen with a * [r = 0] or (1 - a) * b * (1 - b)^(r - 1). The least largest relative error decides.

EAGLE-3: rows of ``tools/measured.yaml`` of Llama-3.1-8B on MT-bench with SGLang, three chains (SpecForge's SpecBundle)
and two trees (SGLang's documentation). EAGLE-1 and -2 share their heads; one tree is published by the same source with
the same base, so their misses are those of EAGLE-3 times one factor.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from measured import measured_table

from planner.costs.acceptance import expected_ppm
from planner.speculation.profiles import SHIPPED
from plans.acceptance import PPM, Context, Level, Profile, dump_profile
from plans.schema import Tree

EAGLE3_ROWS = ("8b-h200-eagle3-chain-3", "8b-h200-eagle3-chain-5", "8b-h200-eagle3-chain-7", "8b-h100-eagle3-5",
               "8b-h100-eagle3-8")  # fmt: skip
EAGLE_ROWS = ("8b-h100-eagle2-8",)
LEVELS, RANKS = 8, 10
Numbers = tuple[int, float, float, float]
"""Percent of the tokens in the easy context, rates of the first child in both, share of what is left."""


def profile(numbers: Numbers, drafter: str, source: str = "") -> Profile:
    """Return the profile of these numbers."""
    easy, high, low, share = numbers
    contexts = ((100 - easy, low), (easy, high))
    return Profile(
        profile="1.0",
        drafter="eagle3" if drafter == "eagle3" else "eagle",
        origin="published",
        source=source,
        contexts=tuple(
            Context(steps=0, tokens=tokens, levels=(_level(rate, share),) * LEVELS) for tokens, rate in contexts
        ),
    )


def _level(rate: float, share: float) -> Level:
    later = [(1 - rate) * share * (1 - share) ** (rank - 1) for rank in range(1, RANKS)]
    return Level(nodes=PPM, chosen=tuple(int(PPM * probability) for probability in (rate, *later)))


def published(rows: Sequence[str]) -> list[tuple[Tree, float]]:
    """Return trees with their published acceptance lengths."""
    listed = {row.name: row for row in measured_table().rows}
    return [(Tree(kind="dynamic", paths=None, **(listed[name].tree or {})), listed[name].acceptance) for name in rows]


def errors(fitted: Profile, means: Sequence[tuple[Tree, float]]) -> list[float]:
    """Return the relative error of each expected acceptance length."""
    return [expected_ppm(fitted, tree) / PPM / mean - 1 for tree, mean in means]


def candidates() -> Iterator[Numbers]:
    for easy, high, low, share in product(range(30, 81, 10), range(70, 97, 2), range(40, 76, 2), (15, 20, 25, 30, 35)):
        if low < high:
            yield easy, high / 100, low / 100, share / 100


def main() -> None:
    means = published(EAGLE3_ROWS)
    best = min(candidates(), key=lambda numbers: max(map(abs, errors(profile(numbers, "eagle3"), means))))
    easy, high, low, share = best
    others = published(EAGLE_ROWS)
    scaled = [(easy, 1 - (1 - high) * n / 100, 1 - (1 - low) * n / 100, share) for n in range(100, 301)]
    eagle = min(scaled, key=lambda numbers: max(map(abs, errors(profile(numbers, "eagle"), others))))
    sources = {
        "eagle3": "published means: Llama-3.1-8B on MT-bench with SGLang, chains of 3, 5, 7 (2.93, 3.55, 3.91; "
        "SpecForge, SpecBundle) and trees of 64 nodes, 5 and 8 levels (4.68, 5.39; SGLang's documentation)",
        "eagle": "published mean: EAGLE-2 of Llama-3.1-8B on MT-bench with SGLang, a tree of 64 nodes, 8 levels (3.76; "
        "SGLang's documentation), with contexts and ranks as of EAGLE-3",
    }
    for drafter, numbers, targets in (("eagle3", best, means), ("eagle", eagle, others)):
        fitted = profile(numbers, drafter, sources[drafter])
        (SHIPPED / f"{drafter}.yaml").write_text(dump_profile(fitted))
        print(drafter, numbers, [f"{error:+.1%}" for error in errors(fitted, targets)])


if __name__ == "__main__":
    main()
