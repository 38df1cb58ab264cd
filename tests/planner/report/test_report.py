"""Reports of a plan: the same numbers in every format, exact in JSON, independent of the terminal."""

import dataclasses
import html.parser
import json
from pathlib import Path

import pytest
from jinja2 import StrictUndefined

from planner.commands.build import summary_line
from planner.report import render
from planner.report.proof import simplicity_line
from planner.report.view import join_shares, view
from plans import codec
from plans.check import check
from plans.codec import digest
from plans.format import format_bytes, format_ns
from plans.schema import Rotary
from tests.sample_plans import edited, nvlink_plan, one_device_plan, spread_plan, two_stage_plan


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 B"),
        (52_428, "52428 B"),
        (52_429, "0.1 MiB"),
        (12 << 20, "12.0 MiB"),
        ((1 << 30) - 1, "1024.0 MiB"),
        (3 << 29, "1.5 GiB"),
    ],
)
def test_bytes_for_people(nbytes: int, shown: str) -> None:
    assert format_bytes(nbytes) == shown


def test_times_for_people() -> None:
    assert [format_ns(value) for value in (0, 12_040, 999_900, 1_000_000, 19_830_000)] == [
        *("0.0 us", "12.0 us", "999.9 us", "1.0 ms", "19.8 ms"),
    ]


def test_many_equal_shares_are_folded() -> None:
    assert [join_shares(shares) for shares in ((), (4,), (3, 1), (2, 2), (2, 2, 2), (2, 2, 1))] == [
        *("", "4", "3 + 1", "2 + 2", "3 x 2", "2 + 2 + 1"),
    ]


def test_summary_has_exactly_the_documented_fields() -> None:
    plan = two_stage_plan()
    data = render.summary(plan)
    times = ["objective_ns", "least_ns", "bound_ns"]
    drafting = ["expected_tokens_per_s", "plain_tokens_per_s", "expected_acceptance", "break_even_acceptance"]
    drafting += ["tree", "schedule"]
    assert list(data) == ["stages", "embed", "head", "devices", "unusable", *times, "status", *drafting, "digest"]
    assert data["stages"][0] == {
        "devices": ["cpu0", "cpu1"],
        "first_layer": 0,
        "layers": 5,
        "kv_axis": "heads",
        "kv_subgroups": [1, 1],
        "attention_shares": [3 * 3 + 2 * 2, 3 * 1 + 2 * 2],
        "mlp_shares": [3 * 32 + 2 * 33, 3 * 16 + 2 * 15],
        "runs": [
            {"layers": 3, "kv_heads": [3, 1], "mlp_units": [32, 16]},
            {"layers": 2, "kv_heads": [2, 2], "mlp_units": [33, 15]},
        ],
    }
    assert data["embed"] == {"devices": ["cpu0", "cpu1"], "rows": [1000, 24]}
    assert data["head"] == {"devices": ["cpu2"], "rows": [1024]}
    assert (data["objective_ns"], data["bound_ns"], data["status"]) == (19_830_000, 19_830_000, "OPTIMAL")
    assert data["digest"] == digest(plan)
    assert json.loads(json.dumps(data)) == data


def test_the_terms_of_a_device_add_up_to_its_capacity() -> None:
    for plan in (two_stage_plan(), one_device_plan(), nvlink_plan(), spread_plan()):
        for device in render.summary(plan)["devices"]:
            terms = [value for name, value in device.items() if name.endswith("_bytes") and name != "capacity_bytes"]
            assert len(terms) == 8
            assert sum(terms) == device["capacity_bytes"]


def test_the_phases_add_up_to_the_step() -> None:
    plan = edited(two_stage_plan(), "proof.objective_ns", 20_000_000)
    phases = view(plan).phases
    assert [phase.name for phase in phases] == ["embed", "stage 0", "stage 1", "lm_head", "draft", "messages"]
    assert sum(phase.duration_ns for phase in phases) == 20_000_000


COMMITTED = Path(__file__).parents[3] / "plans" / "llama70b-6gpu"
"""A plan in which six devices have shares in each of eight parts."""


def test_text_keeps_to_the_width_and_to_plain_characters() -> None:
    for plan in (two_stage_plan(), one_device_plan(), nvlink_plan(), spread_plan(), codec.load(COMMITTED)):
        for width in (80, 100, 120, 200):
            shown = render.text(plan, width, color=False)
            assert "\x1b" not in shown
            assert max(len(line) for line in shown.splitlines()) <= width
            assert "\N{HORIZONTAL ELLIPSIS}" not in shown


@pytest.mark.parametrize("width", [20, 60, 80, 100, 200])
def test_text_of_any_width_has_every_figure(width: int) -> None:
    plan = codec.load(COMMITTED)
    shown = render.text(plan, width, color=False)
    assert digest(plan) in "".join(shown.split())
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    figures = shown.split()
    for part in view(plan).parts:
        if part.predicted_ns is not None:
            assert format_ns(part.predicted_ns).split()[0] in figures
        assert {*part.devices, *map(str, (*part.rows, *part.mlp))} <= set(figures)
    for line in view(plan).devices:
        assert {format_bytes(nbytes).split()[0] for nbytes in line.terms.values()} <= set(figures)


def test_text_of_many_devices_takes_several_tables() -> None:
    plan = nvlink_plan()
    shown = render.text(plan, 40, color=False)
    assert shown.count("capacity") == 2


def test_text_shows_placement_memory_and_proof() -> None:
    lines = [" ".join(line.split()) for line in render.text(two_stage_plan(), 120, color=False).splitlines()]
    assert "stage 0 0-2 cpu0 + cpu1 3 + 1 512 + 256 shm 14.2 ms" in lines
    assert "3-4 cpu0 + cpu1 2 + 2 528 + 240" in lines
    assert "draft cpu2 4 768 512 local 3.1 ms" in lines
    assert "weights 9.0 MiB 3.0 MiB 7.0 MiB" in lines
    assert "capacity 24.0 MiB 12.0 MiB 32.0 MiB" in lines
    assert "not used: cpu3" in lines
    assert any(line.startswith("OPTIMAL: one step takes 19.8 ms, and no other candidate placement") for line in lines)


def test_text_shows_shared_kv_heads_and_transports() -> None:
    lines = [" ".join(line.split()) for line in render.text(spread_plan(), 160, color=False).splitlines()]
    assert "embed cpu0 128256 local 90.0 us" in lines
    assert any(line.startswith("stage 0 0-59 gpu0 + gpu1 + gpu2 4 + 4 over 2 by context 10240") for line in lines)
    assert any(line.startswith("draft gpu2 + gpu3 8 over 2 by batch") for line in lines)
    first, *others = spread_plan().stages
    plan = dataclasses.replace(spread_plan(), stages=(dataclasses.replace(first, kv_axis="heads"), *others))
    assert "4 + 4 over 2 by query heads" in " ".join(render.text(plan, 160, color=False).split())
    assert lines.count("hop nccl") == 1  # of the lm_head; a stage on one device has it next to the time
    assert "stage 1 60-79 gpu3 8 28672 hop nccl 9.0 ms" in lines
    assert "hop gloo" in lines
    assert "host box0 box0 box0 box1 box1" in lines
    assert any("KV dtype float8_e4m3fn" in line for line in lines)


def test_roles_name_tables_that_are_elsewhere() -> None:
    roles = {line.id: line.role for line in view(spread_plan()).devices}
    assert roles == {
        "cpu0": "embed",
        "gpu0": "stage 0",
        "gpu1": "stage 0",
        "gpu2": "stage 0, lm_head, draft",
        "gpu3": "stage 1, lm_head, draft",
    }
    assert {line.role for line in view(one_device_plan()).devices} == {"stage 0"}


def test_layers_of_different_classes_have_separate_lines() -> None:
    plan = two_stage_plan()
    first = plan.model.layers[0]
    experts = dataclasses.replace(first.mlp, kind="moe", num_experts=8, experts_per_token=2)
    layers = (dataclasses.replace(first, num_layers=5), dataclasses.replace(first, num_layers=3, mlp=experts))
    shown = view(dataclasses.replace(plan, model=dataclasses.replace(plan.model, layers=layers))).model
    heads = "8 heads of 32 over 4 KV heads"
    assert shown.endswith(f"5 layers of {heads}, MLP 768; 3 layers of {heads}, 8 experts, 2 for a token, of MLP 768")


def test_frequencies_that_depend_on_the_context_are_said() -> None:
    plan = two_stage_plan()
    table = Rotary(layers=tuple(range(8)), channels=32, interleaved=False, scaled=True, by_context=True)
    shown = view(dataclasses.replace(plan, model=dataclasses.replace(plan.model, rotary=(table,)))).model
    assert shown.endswith(f"; rotary frequencies of a context of {plan.options.context} positions, from the first on")
    plain = dataclasses.replace(plan.model, rotary=(dataclasses.replace(table, by_context=False),))
    assert "frequencies" not in view(dataclasses.replace(plan, model=plain)).model


def test_requested_options_are_printed() -> None:
    options = dataclasses.replace(two_stage_plan().options, strategy="balanced", kv_axis="heads")
    shown = view(dataclasses.replace(two_stage_plan(), options=options))
    assert {("strategy", "balanced"), ("KV divided by", "heads")} < set(shown.options)
    assert shown.verdict == "one step takes 19.8 ms, and no other balanced placement takes less"


def test_color_is_used_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = render.text(two_stage_plan(), 100, color=False)
    colored = render.text(two_stage_plan(), 100, color=True)
    assert "\x1b[34m" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    assert render.text(two_stage_plan(), 100, color=True) == colored
    assert render.text(two_stage_plan(), 100, color=False) == plain


def test_an_accepted_gap_is_printed() -> None:
    plan = edited(edited(two_stage_plan(), "proof.status", "FEASIBLE"), "proof.bound_ns", 19_000_000)
    plan = edited(plan, "options.gap_ppm", 50_000)
    assert check(plan) == ()
    verdict = "one step takes 19.8 ms; no candidate placement takes less than 19.0 ms, 4.2% below"
    assert f"**FEASIBLE**: {verdict}." in render.markdown(plan)
    assert "- accepted gap: 5 %" in render.markdown(plan)


def test_what_is_given_up_for_a_simpler_plan_is_printed() -> None:
    plan = edited(edited(two_stage_plan(), "proof.least_ns", 19_750_000), "proof.bound_ns", 19_750_000)
    plan = edited(plan, "options.simplify_ppm", 5_000)
    assert check(plan) == ()
    verdict = (
        "one step takes 19.8 ms; the least of any candidate placement, proven, is 19.8 ms: 0.41% is given up for fewer "
        "devices or fewer runs of layers"
    )
    assert f"**OPTIMAL**: {verdict}." in render.markdown(plan)
    assert "- simplify: 0.5 %" in render.markdown(plan)


def test_what_is_proven_of_a_simple_plan_is_printed() -> None:
    plan = edited(two_stage_plan(), "options.simplify_ppm", 5_000)
    used, step_ns = len(plan.memory), plan.proof.objective_ns

    def line(devices_bound: int, runs_bound: int, step_bound_ns: int) -> str:
        bounds = {"devices_bound": devices_bound, "runs_bound": runs_bound, "step_bound_ns": step_bound_ns}
        bounded = edited(plan, "proof.simplicity", bounds)
        assert check(bounded) == ()
        words = simplicity_line(bounded)
        assert words in " ".join(render.text(bounded, 500, color=False).split())
        assert f"{words}." in render.markdown(bounded).splitlines()
        assert words in render.html(bounded)
        return words

    within = "within 0.5 % of the least step: fewest devices"
    assert line(used, 3, step_ns) == (
        f"simplest {within} ({used}), then fewest different runs of layers (3), then shortest step (19.8 ms)"
    )
    assert line(used, 2, step_ns) == (
        f"simplest found {within} ({used}), then fewest different runs of layers (3; proven: at least 2), then "
        "shortest step (19.8 ms)"
    )
    assert line(1, 2, 19_000_000) == (
        f"simplest found {within} ({used}; proven: at least 1), then fewest different runs of layers (3; proven: at "
        "least 2), then shortest step (19.8 ms; proven: at least 19.0 ms)"
    )
    for runs_bound, words in ((3, "simplest within 0.5 %"), (2, "simplest found within 0.5 %")):
        bounds = {"devices_bound": used, "runs_bound": runs_bound, "step_bound_ns": step_ns}
        assert summary_line(edited(plan, "proof.simplicity", bounds)).endswith(f", {words})")
    assert simplicity_line(plan) == ""


@pytest.mark.parametrize(
    ("strategy", "family"),
    [
        (
            "latency",
            "Proven over candidate placements: stages, tables and EAGLE head each on one group of devices of a host ",
        ),
        (
            "balanced",
            "Proven over placements of whole layers, each on one device, and of tables and EAGLE head likewise.",
        ),
        ("custom", "Proven over placements in which every module is on the device that the device map names."),
    ],
)
def test_the_family_of_placements_of_the_proof_is_printed(strategy: str, family: str) -> None:
    plan = edited(one_device_plan(), "options.strategy", strategy)
    assert family in render.markdown(plan)
    assert family in render.html(plan)
    assert family.strip() in " ".join(render.text(plan, 100, color=False).split())


def test_the_proof_says_what_it_takes_for_granted_of_links_that_differ() -> None:
    words = "small messages inside a host whose links differ take as long as over its slowest link, in use or not"
    assert words in " ".join(render.text(two_stage_plan(), 100, color=False).split())
    assert words not in render.markdown(spread_plan())


def test_markdown_tables_are_rectangular() -> None:
    for plan in (two_stage_plan(), one_device_plan(), nvlink_plan(), spread_plan()):
        tables = [block for block in render.markdown(plan).split("\n\n") if block.startswith("|")]
        assert len(tables) == 2
        for table in tables:
            assert len({line.count("|") for line in table.splitlines()}) == 1
    row = "| stage 0 | 0-2 | `cpu0 + cpu1` | 3 + 1 | 512 + 256 |  | shm | 14.2 ms |"
    assert row in render.markdown(two_stage_plan()).splitlines()


class _Tags(html.parser.HTMLParser):
    """Parser that asserts matching tags and collects references."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("plan", [two_stage_plan(), one_device_plan(), nvlink_plan(), spread_plan()])
def test_html_is_one_well_formed_page(plan: render.Plan) -> None:
    tags = _Tags()
    page = render.html(plan)
    tags.feed(page)
    assert (tags.open, tags.references) == ([], [])
    assert "http" not in page
    assert digest(plan) in page


def test_html_escapes_names() -> None:
    device = dataclasses.replace(two_stage_plan().inventory.devices[0], type="<script>|[red]")
    inventory = two_stage_plan().inventory
    inventory = dataclasses.replace(inventory, devices=(device, *inventory.devices[1:]))
    plan = dataclasses.replace(two_stage_plan(), inventory=inventory)
    assert "<script>" not in render.html(plan)
    assert "&lt;script&gt;|[red]" in render.html(plan)
    assert r"| `<script>\x7c[red]` |" in render.markdown(plan)


def test_templates_refuse_names_they_do_not_know() -> None:
    assert render.TEMPLATES.undefined is StrictUndefined


def test_differences_as_data_and_as_markdown() -> None:
    plan, other = two_stage_plan(), edited(two_stage_plan(), "stages[0].runs[1].kv_heads", [3, 1])
    data = render.diff_data(plan, other)
    assert data["differences"] == [
        {"kind": "shares", "path": "stages[0].runs[1].kv_heads", "before": [2, 2], "after": [3, 1]}
    ]
    assert (data["equal"], data["moves"][0]["first_layer"], list(data["moved_bytes"])) == (False, 3, ["cpu0"])
    assert json.dumps(data)
    page = render.diff_markdown(plan, other)
    assert "| `stages[0].runs[1].kv_heads` | shares | `[2, 2]` | `[3, 1]` |" in page
    assert "In all 0.4 MiB.\n\n- `cpu0`: 0.4 MiB" in page
    assert page.startswith("`step 19.8 ms, unchanged; moves 0.4 MiB of weights: cpu0 0.4 MiB`\n\n")
    assert "- `layers 3-4: cpu0 (2 KV heads, 528 MLP channels)" in page
    assert render.diff_markdown(plan, plan) == "The plans are equal.\n"
    assert render.diff_data(plan, plan) == {"equal": True, "moves": [], "moved_bytes": {}, "differences": []}
