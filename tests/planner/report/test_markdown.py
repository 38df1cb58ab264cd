"""Markdown of plans whose every name is hostile: nothing of them is markup, for a parser of GitHub's dialect."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest

from planner.report import render
from planner.report.markdown import Words, code, templates
from plans.schema import Plan
from tests.sample_plans import spread_plan, two_stage_plan

HOSTILE = (
    "[x](http://evil.example/a)",
    "![x](http://evil.example/a.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "@octocat @org/team",
    "owner/repository#1 GH-1 #1",
    "https://evil.example www.evil.example a@evil.example",
    "a | b || c",
    "a \\| b \\\\| c",
    "` **APPROVED** `",
    "``` ``",
    "**APPROVED** __x__ ~~y~~ $z$ :tada:",
    "&lt;b&gt; &#64;octocat",
    "# heading",
    "- [x] done",
    "--- | ---",
    "a\\",
    "\u202eABC\u2066",
)
SPAN = re.compile(r"`[^`|\n]*`")
HARMLESS = re.compile(r"[\w \n|:.,;+()%*#/=-]*")
"""Lines of a page without its code spans: own words, tables, headings and bold text."""


def hostile(plan: Plan, text: str) -> Plan:
    """Return the plan with every text that a stranger can choose replaced; a number at the end keeps names apart."""
    names = {device.id: f"{text}{number}" for number, device in enumerate(plan.inventory.devices)}
    names |= {host.name: f"{text}h{number}" for number, host in enumerate(plan.inventory.hosts)}

    def renamed(value: Any, field: str) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            return type(value)(**{field.name: renamed(getattr(value, field.name), field.name) for field in fields})
        if isinstance(value, tuple):
            return tuple(renamed(item, field) for item in value)
        if isinstance(value, str):
            return names.get(value, text if field in ("type", "reported_name", "link_class", "family") else value)
        return value

    changed = renamed(plan, "")
    assert isinstance(changed, Plan)
    return changed


def pages(text: str) -> Iterator[str]:
    for plan in (two_stage_plan(), spread_plan()):
        yield render.markdown(hostile(plan, text))
        yield render.diff_markdown(plan, hostile(plan, text))
        yield render.diff_markdown(hostile(plan, text), hostile(plan, f"{text}x"))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_plan_is_markup(text: str) -> None:
    for page in pages(text):
        assert page.isprintable() or set(filter(lambda letter: not letter.isprintable(), page)) == {"\n"}
        outside = SPAN.sub("", page)
        assert HARMLESS.fullmatch(outside), outside
        assert "APPROVED" not in outside
        assert page.count("`") % 2 == 0
        for table in (block for block in page.split("\n\n") if block.startswith("|")):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_code_span_is_read_back() -> None:
    for text in HOSTILE:
        span = code(text)
        assert SPAN.fullmatch(span)
        assert span[1:-1].encode("ascii").decode("unicode_escape") == text
    assert code("gpu0") == "`gpu0`"
    assert code("") == ""
    assert code("a|b`c\\d\x1b\u202e") == r"`a\x7cb\x60c\\d\x1b\u202e`"


def test_a_template_writes_strings_as_code_unless_they_are_own_words() -> None:
    environment = templates("templates")
    page = environment.from_string("{{ a }} {{ a | words }} {{ 5 }} {{ a ~ 'b' }} {{ 1024 | bytes }}").render(a="x|")
    assert page == r"`x\x7c` x| 5 `x\x7cb` 1024 B"
    assert isinstance(environment.filters["words"]("x"), Words)
