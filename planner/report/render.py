"""Renders a plan: tables for a terminal, Markdown for a review, one HTML page, and plain data for programs.

Pure functions from plans to strings and data.
"""

import dataclasses
import io
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import jinja2
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from planner.report.markdown import Words, templates
from planner.report.speculation import speculation_data
from planner.report.view import TERM_TITLES, DeviceLine, Part, View, device_line, join_shares, view
from plans import diff as plan_diff
from plans.codec import digest
from plans.format import format_bytes, format_ns
from plans.schema import Plan, Speculation, Stage, VocabSplit
from plans.usable import unusable_devices

_COLORS = {
    "weights": "blue",
    "draft_weights": "magenta",
    "kv": "green",
    "draft_kv": "yellow",
    "buffers": "cyan",
    "comm": "red",
    "reserve": "bright_black",
    "free": "default",
}
_COLOR_MARKS = dict.fromkeys(_COLORS, "\N{FULL BLOCK}") | {"reserve": "\N{LIGHT SHADE}", "free": "\N{MIDDLE DOT}"}
_PLAIN_MARKS = dict(zip(_COLORS, "WDKkBcr\N{MIDDLE DOT}", strict=True))

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("planner.report", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["shares"] = join_shares
TEMPLATES.filters["bytes"] = format_bytes
TEMPLATES.filters["ns"] = format_ns
MARKDOWN_TEMPLATES = templates("templates")
MARKDOWN_TEMPLATES.filters["shares"] = lambda shares: Words(join_shares(shares))


def summary(plan: Plan, speculation: Speculation | None = None) -> dict[str, Any]:
    """Return the data of ``build --json``: sizes in bytes, times in ns, and what drafting is expected to gain."""
    return {
        "stages": [_stage_data(stage) for stage in plan.stages],
        "embed": _split_data(plan.embed),
        "head": _split_data(plan.head),
        "devices": [
            {
                "id": line.id,
                "type": line.type,
                "capacity_bytes": line.memory_bytes,
                **{f"{term}_bytes": nbytes for term, nbytes in line.terms.items()},
            }
            for line in (device_line(plan, entry) for entry in plan.memory)
        ],
        "unusable": unusable_devices(plan.inventory),
        "objective_ns": plan.proof.objective_ns,
        "least_ns": plan.proof.least_ns,
        "bound_ns": plan.proof.bound_ns,
        "status": plan.proof.status,
        **speculation_data(plan, speculation),
        "digest": digest(plan),
    }


def _stage_data(stage: Stage) -> dict[str, Any]:
    """Return a stage as data: shares summed over its layers, in the order of its devices, and per run in ``runs``."""
    members = range(len(stage.devices))
    return {
        "devices": list(stage.devices),
        "first_layer": stage.first_layer,
        "layers": stage.num_layers,
        "kv_axis": stage.kv_axis,
        "kv_subgroups": list(stage.kv_subgroups),
        "attention_shares": [sum(run.num_layers * run.kv_heads[i] for run in stage.runs) for i in members],
        "mlp_shares": [sum(run.num_layers * run.mlp_units[i] for run in stage.runs) for i in members],
        "runs": [
            {"layers": run.num_layers, "kv_heads": list(run.kv_heads), "mlp_units": list(run.mlp_units)}
            for run in stage.runs
        ],
    }


def _split_data(split: VocabSplit) -> dict[str, Any]:
    return {"devices": list(split.devices), "rows": list(split.rows)}


def diff_data(a: Plan, b: Plan) -> dict[str, Any]:
    """Return the data of ``diff --json``: layers that move, bytes of weights new to each device, every difference."""
    return {
        "equal": a == b,
        "moves": [dataclasses.asdict(move) for move in plan_diff.moves(a, b)],
        "moved_bytes": plan_diff.moved_bytes(a, b),
        "differences": [dataclasses.asdict(difference) for difference in plan_diff.diff(a, b)],
    }


def markdown(plan: Plan, speculation: Speculation | None = None) -> str:
    """Return a plan as Markdown."""
    shown = view(plan, speculation)
    return MARKDOWN_TEMPLATES.get_template("plan.md.jinja").render(view=shown, titles=TERM_TITLES)


def diff_markdown(a: Plan, b: Plan) -> str:
    """Return two plans compared, as Markdown: step time and bytes that move, layers that move, every difference."""
    return MARKDOWN_TEMPLATES.get_template("diff.md.jinja").render(
        headline=plan_diff.headline(a, b),
        moves=plan_diff.move_lines(a, b),
        moved=plan_diff.moved_bytes(a, b),
        differences=plan_diff.diff(a, b),
    )


def html(plan: Plan, speculation: Speculation | None = None) -> str:
    """Return a plan as one self-contained HTML page."""
    shown = view(plan, speculation)
    largest = max((line.memory_bytes for line in shown.devices), default=1)
    total = max(1, sum(phase.duration_ns for phase in shown.phases))
    return TEMPLATES.get_template("plan.html.jinja").render(
        view=shown, titles=TERM_TITLES, largest_bytes=largest, total_ns=total
    )


def text(plan: Plan, width: int, color: bool, speculation: Speculation | None = None) -> str:
    """Return a plan as tables for a terminal of ``width`` columns, with escape codes only if ``color``.

    Nothing is cut off: a table whose narrowest form is wider than ``width`` has longer lines.
    """
    shown, stream = view(plan, speculation), io.StringIO()
    marks = _COLOR_MARKS if color else _PLAIN_MARKS
    tables = [_parts_table(shown, width), *_memory_tables(shown, width)]
    _console(stream, width, color).print(_header(shown), "", sep="\n")
    for table in tables:
        _console(stream, max(width, _width(table)), color).print(table, "", sep="\n")
    _console(stream, width, color).print(_bars(shown, width, marks), _verdict(shown), sep="\n")
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def _console(stream: io.StringIO, width: int, color: bool) -> Console:
    return Console(
        file=stream,
        width=width,
        color_system="standard" if color else None,
        force_terminal=color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},  # the terminal is the caller's, not this function's
    )


def _header(shown: View) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("model", shown.model)
    grid.add_row("draft", shown.draft)
    grid.add_row("options", ", ".join(f"{name} {value}" for name, value in shown.options))
    grid.add_row("digest", shown.digest)
    return grid


def _parts_table(shown: View, width: int) -> Table:
    """Return the placement, with as many shares per line as the width allows."""
    most = max(len(part.devices) for part in shown.parts)
    return _widest((_parts_of(shown, on_line) for on_line in range(1, most + 1)), width)


def _parts_of(shown: View, on_line: int) -> Table:
    table = _table("Placement")
    for name in ("part", "layers", "devices", "KV\nheads", "MLP\nchannels", "vocabulary\nrows", "transport"):
        table.add_column(name, no_wrap=True)
    table.add_column("predicted", justify="right", no_wrap=True)
    for part in shown.parts:
        shares = (" + ".join(part.devices), part.kv_heads, join_shares(part.mlp), join_shares(part.rows))
        table.add_row(
            part.name,
            part.layers,
            *(_folded(text, on_line) for text in shares),
            _transports(part),
            format_ns(part.predicted_ns) if part.predicted_ns is not None else "",
        )
    return table


def _transports(part: Part) -> str:
    """Return the transport of the group's all-reduces and that of its input; one device alone has no all-reduce."""
    if not part.hop:
        return part.transport
    return f"hop {part.hop}" if part.transport == "local" else f"{part.transport}\nhop {part.hop}"


def _folded(shares: str, on_line: int) -> str:
    """Fold ``3 + 2 + 1`` to ``on_line`` shares per line; at one per line, subgroups are described on lines below."""
    items = shares.split(" + ")
    if on_line == 1:
        items = [item.replace(" by ", "\nby ").replace("query ", "query\n") for item in items]
    return " +\n".join(" + ".join(items[i : i + on_line]) for i in range(0, len(items), on_line))


def _widest(tables: Iterable[Table], width: int) -> Table:
    """Return the last table that fits, of tables in increasing width; the first one where none fits."""
    growing = iter(tables)
    widest = next(growing)
    for table in takewhile(lambda table: _width(table) <= width, growing):
        widest = table
    return widest


def _width(table: Table) -> int:
    """Return the terminal columns that a table takes uncut."""
    return _console(io.StringIO(), 10_000, color=False).measure(table).maximum


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )


def _bars(shown: View, width: int, marks: dict[str, str]) -> RenderableType:
    """Return a memory bar per device, to one scale: that of the largest device is as long as the line allows."""
    largest = max(line.memory_bytes for line in shown.devices)
    names = max(len(line.id) for line in shown.devices)
    room = max(8, min(64, width - names - 14))
    bars = Text()
    for line in shown.devices:
        bars.append(f"{line.id:{names}}  ", style="bold")
        _append_bar(bars, line, max(1, round(room * line.memory_bytes / largest)), marks)
        bars.append(f"  {format_bytes(line.memory_bytes)}\n")
    for term, style in _COLORS.items():
        bars.append(marks[term], style=style)
        bars.append(f" {TERM_TITLES[term]} ")
    return bars


def _append_bar(bars: Text, line: DeviceLine, room: int, marks: dict[str, str]) -> None:
    """Append a device's memory as ``room`` cells; each term ends at the cell nearest to the end of its bytes."""
    end, cells = 0, 0
    for term, nbytes in line.terms.items():
        end += nbytes
        upto = round(room * end / line.memory_bytes)
        bars.append(marks[term] * (upto - cells), style=_COLORS[term])
        cells = max(cells, upto)


def _memory_tables(shown: View, width: int) -> list[Table]:
    """Return tables of memory terms (rows) by device (columns), as many as it takes to keep to the width."""
    tables: list[Table] = []
    left = shown.devices
    while left:
        title = "" if tables else "Memory"
        tables.append(_widest((_memory_of(shown, left[: n + 1], title) for n in range(len(left))), width))
        left = left[len(tables[-1].columns) - 1 :]
    return tables


def _memory_of(shown: View, lines: tuple[DeviceLine, ...], title: str) -> Table:
    table = _table(title)
    table.add_column("", no_wrap=True)
    for line in lines:
        table.add_column(line.id, justify="right", no_wrap=True, min_width=len("1000.0 MiB"))
    if shown.several_hosts:
        table.add_row("host", *(line.host for line in lines))
    for term, title in TERM_TITLES.items():
        table.add_row(title, *(format_bytes(line.terms[term]) for line in lines))
    table.add_row("capacity", *(format_bytes(line.memory_bytes) for line in lines), style="bold")
    return table


def _verdict(shown: View) -> RenderableType:
    verdict = Text("\n")
    verdict.append(shown.status, style="bold green" if shown.status == "OPTIMAL" else "bold yellow")
    verdict.append(f": {shown.verdict}; at least {format_bytes(shown.min_free_bytes)} free on every device")
    if shown.simplicity:
        verdict.append(f"\n{shown.simplicity}")
    for line in shown.speculation:
        verdict.append(f"\n{line}")
    if shown.acceptance:
        verdict.append(f"\nexpected acceptance: {shown.acceptance}", style="dim")
    if shown.unused:
        verdict.append(f"\nnot used: {', '.join(device.id for device in shown.unused)}")
    for line in shown.unusable:
        verdict.append(f"\nnot used: {line}")
    verdict.append(f"\n{shown.family}.", style="dim")
    return verdict
