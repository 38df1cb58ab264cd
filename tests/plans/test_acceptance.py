"""Acceptance profiles as files: what is counted, intervals against scipy's figures, and refusals with their paths."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plans.acceptance import (
    Context,
    Drafted,
    Level,
    Profile,
    counted,
    dump_profile,
    load_profile,
    parse_profile,
    profile_digest,
    wilson_ppm,
    with_intervals,
)
from plans.schema import PlanError

DRAFTS = (
    Drafted(confidence=2.0, committed=3, ranks=(0, 0, 1), missed=False),
    Drafted(confidence=0.5, committed=2, ranks=(1,), missed=True),
    Drafted(confidence=0.1, committed=1, ranks=(), missed=True),
)


def test_counts_nodes_whose_children_are_known() -> None:
    profile = counted(DRAFTS, drafter="eagle3", top_k=2, source="three drafts")
    (context,) = profile.contexts
    assert (context.steps, context.tokens) == (3, 6)
    assert [(level.nodes, level.chosen) for level in context.levels] == [(3, (1, 1)), (2, (1, 0)), (1, (0, 1))]


def test_contexts_are_equal_parts_in_the_order_of_confidence() -> None:
    easy = [Drafted(confidence=9.0 + i / 100, committed=2, ranks=(0,), missed=False) for i in range(60)]
    hard = [Drafted(confidence=i / 100, committed=1, ranks=(), missed=True) for i in range(60)]
    profile = counted([*easy, *hard], drafter="eagle", top_k=1, source="two kinds")
    assert [(context.steps, context.tokens) for context in profile.contexts] == [(60, 60), (60, 120)]
    assert [context.levels[0].chosen for context in profile.contexts] == [(0,), (60,)]


def test_intervals_are_those_of_a_published_table() -> None:
    """81 of 263 by the score method: 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 17, 1998, table I)."""
    assert wilson_ppm(81, 263) == (pytest.approx(255_300, abs=60), pytest.approx(366_200, abs=60))


@given(st.integers(1, 5000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_intervals_have_the_rate_in_them(counts: tuple[int, int]) -> None:
    low, high = wilson_ppm(*counts)
    assert 0 <= low <= 1e6 * counts[0] / counts[1] <= high <= 1_000_000


def test_no_draft_is_refused() -> None:
    with pytest.raises(PlanError, match="no draft was compared with a text: decode more new tokens"):
        counted((), drafter="eagle3", top_k=1, source="")


levels = st.integers(1, 50).flatmap(
    lambda nodes: st.lists(st.integers(0, nodes), max_size=4).map(
        lambda raw: with_intervals(nodes, [min(count, nodes // max(1, len(raw))) for count in raw])
    )
)
contexts = st.builds(
    Context, steps=st.integers(1, 100), tokens=st.integers(1, 500), levels=st.lists(levels, max_size=3).map(tuple)
)
profiles = st.builds(
    Profile,
    profile=st.just("1.0"),
    drafter=st.sampled_from(["eagle", "eagle3"]),
    origin=st.just("counted"),
    source=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    contexts=st.lists(contexts, min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=25, deadline=None)
@given(profiles)
def test_text_reads_back_as_the_same_profile(profile: Profile) -> None:
    text = dump_profile(profile)
    assert parse_profile(text, "p") == profile
    assert dump_profile(parse_profile(text, "p")) == text


def test_reads_a_file_and_names_it(tmp_path: Path) -> None:
    profile = counted(DRAFTS, drafter="eagle3", top_k=2, source="x")
    file = tmp_path / "p.yaml"
    file.write_text(dump_profile(profile))
    assert load_profile(file, inside=False) == profile
    assert profile_digest(profile) == profile_digest(load_profile(file, inside=False))
    with pytest.raises(PlanError, match=r"none\.yaml: cannot read: No such file"):
        load_profile(tmp_path / "none.yaml", inside=False)


TEXT = dump_profile(
    Profile(
        profile="1.0",
        drafter="eagle3",
        origin="published",
        source="x",
        contexts=(Context(steps=1, tokens=2, levels=(Level(nodes=10, chosen=(8, 1)),)),),
    )
)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("profile: '1.0'", "profile: '2.0'", "p: profile: found version 2.0, this program reads 1.x"),
        ("[8, 1]", "[8, 3]", r"contexts\[0\].levels\[0\].chosen: found 11 in all, expected at most the 10 nodes"),
        ("nodes: 10", "nodes: 0", r"contexts\[0\].levels\[0\].nodes: found 0, expected 1 to"),
        ("tokens: 2", "tokens: 0", "contexts: found no tokens, expected some"),
        ("origin: published", "origin: counted", r"low_ppm: found nothing, expected \[4"),
        ("chosen: [8, 1]", "chosen: [8, 1]\n    low_ppm: [1, 1]", r"low_ppm: found \[1, 1\], expected nothing"),
        ("drafter: eagle3", "drafter: medusa", "drafter: found 'medusa', expected one of eagle, eagle3"),
        ("source: x", "sourse: x", "sourse: unknown field, did you mean source"),
    ],
)
def test_refuses_with_the_path(before: str, after: str, message: str) -> None:
    assert before in TEXT
    with pytest.raises(PlanError, match=message):
        parse_profile(TEXT.replace(before, after), "p")


def test_a_source_has_a_bounded_length() -> None:
    text = dump_profile(counted(DRAFTS, drafter="eagle3", top_k=2, source="x" * 1000))
    assert len(parse_profile(text, "p").source) == 1000
    with pytest.raises(PlanError, match="p: source: found 1001 characters, expected at most 1000"):
        parse_profile(text.replace("source: x", "source: xx"), "p")
