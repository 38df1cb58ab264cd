"""A fleet in words: lines, tables, Markdown, an HTML page, and plain data for programs."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from planner.report.markdown import templates
from planner.report.render import TEMPLATES
from planner.report.speculation import tree_words
from plans.codec import encode
from plans.fleet import MICRO, Fleet, FleetTemplate
from plans.fleet_diff import LoadedFleet, fleet_differences, fleet_headline, replica_lines
from plans.format import format_ns
from plans.schema import Plan

MARKDOWN = templates("templates")
MOST_LISTED = 16
"""Most devices that a line lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateLine:
    """A template with its replicas."""

    name: str
    placement: str
    """Stages and devices of its plan."""
    draft: str
    batch: int
    step: str
    replicas: int
    sequences: int
    """On all its replicas."""
    each: str
    """Tokens per second of a sequence; of replicas with more and with fewer running ones the least and the most."""
    total: float
    """Of all its sequences."""


def headline(fleet: Fleet) -> str:
    """Return replicas, devices and expected tokens per second in one line."""
    used = sum(len(replica.devices) for replica in fleet.replicas)
    sequences = sum(replica.sequences for replica in fleet.replicas)
    return (
        f"{_counted(len(fleet.replicas), 'replica')} on {used} of {_counted(len(fleet.inventory.devices), 'device')}, "
        f"{_counted(sequences, 'running sequence')}, {fleet.proof.microtokens_per_s / MICRO:.1f} tokens/s expected"
    )


def request_lines(fleet: Fleet) -> list[str]:
    """Return what was asked for, in words."""
    request = fleet.request
    lines = ["any number of replicas" if request.replicas is None else f"exactly {request.replicas} replicas"]
    load = "a sequence in every place" if request.clients is None else f"{request.clients} running sequences"
    least = request.min_microtokens_per_s / MICRO
    lines.append(f"{load}{f', each with at least {least:g} tokens/s' if least else ''}")
    batches = ", ".join(map(str, request.batches))
    lines.append(f"{batches} places for sequences in a replica, of {request.options.context} positions each")
    return lines


def proof_lines(fleet: Fleet) -> list[str]:
    """Return what is proven, among which divisions, and what is not excluded."""
    proof = fleet.proof
    most = "" if proof.most_hosts == 2 else f" to {proof.most_hosts}"
    several = f", or on 2{most} whole hosts" if proof.most_hosts > 1 else ""
    beyond = (proof.any_microtokens_per_s - proof.microtokens_per_s) / max(1, proof.microtokens_per_s)
    status, least = "OPTIMAL", ""
    if proof.bound_microtokens_per_s > proof.microtokens_per_s:
        status, least = "FEASIBLE", f" than {proof.bound_microtokens_per_s / MICRO:.1f}"
    return [
        f"{status}: no division has more tokens/s{least} in which each replica is on devices of one host{several}, by "
        f"predicted times; {_counted(proof.parts, 'kind')} of parts considered, "
        f"{_counted(proof.solved, 'template')} solved",
        f"no division at all has more than {proof.any_microtokens_per_s / MICRO:.1f} tokens/s ({beyond:+.1%}), by "
        "bandwidth, arithmetic and fixed work alone",
    ]


def template_lines(loaded: LoadedFleet) -> list[TemplateLine]:
    """Return the templates in order."""
    return [_template_line(loaded.fleet, template, loaded.plans[template.name]) for template in loaded.fleet.templates]


def _template_line(fleet: Fleet, template: FleetTemplate, plan: Plan) -> TemplateLine:
    own = [replica for replica in fleet.replicas if replica.template == template.name]
    sequences, speeds = sum(replica.sequences for replica in own), [fleet.speed(replica) for replica in own]
    tree = plan.options.tree
    return TemplateLine(
        name=template.name,
        placement=f"{_counted(len(plan.stages), 'stage')} on {_counted(len(plan.memory), 'device')}",
        draft="plain" if tree is None else f"{tree_words(tree)}, {template.acceptance_ppm / MICRO:.2f} tokens per step",
        batch=template.batch,
        step=format_ns(plan.proof.objective_ns),
        replicas=len(own),
        sequences=sequences,
        each=" to ".join(f"{speed / MICRO:.1f}" for speed in sorted({min(speeds), max(speeds)})),
        total=sum(fleet.speed(replica) * replica.sequences for replica in own) / MICRO,
    )


def text(loaded: LoadedFleet, width: int, colour: bool) -> str:
    """Return a fleet as tables for a terminal of ``width`` columns; nothing is cut off."""
    fleet, stream = loaded.fleet, io.StringIO()
    templates_table = _table("template", "placement", "draft", "places", "step", "replicas", "sequences", "tokens/s")
    for line in template_lines(loaded):
        figures = (line.batch, line.step, line.replicas, line.sequences, f"{line.each} each, {line.total:.1f}")
        templates_table.add_row(line.name, line.placement, line.draft, *map(str, figures))
    replicas_table = _table("replica", "template", "sequences", "devices")
    for number, replica in enumerate(fleet.replicas):
        replicas_table.add_row(str(number), replica.template, str(replica.sequences), listed(replica.devices))
    console = Console(
        file=stream, width=max(width, 60), color_system="standard" if colour else None, force_terminal=colour,
        highlight=False, markup=False, emoji=False, legacy_windows=False, _environ={},
    )  # fmt: skip
    console.print(headline(fleet), *request_lines(fleet), "", sep="\n", soft_wrap=True)
    for table in (templates_table, replicas_table):
        needed = Console(file=io.StringIO(), width=10_000, _environ={}).measure(table).maximum
        console.width = max(width, needed)
        console.print(table, "", sep="\n")
    console.print(*proof_lines(fleet), *unused_lines(fleet), sep="\n", soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def unused_lines(fleet: Fleet) -> list[str]:
    """Return the devices of no replica, all by name."""
    return [f"not used: {', '.join(fleet.unused)}"] if fleet.unused else []


def markdown(loaded: LoadedFleet) -> str:
    """Return a fleet as Markdown for a review."""
    return MARKDOWN.get_template("fleet.md.jinja").render(_content(loaded))


def html(loaded: LoadedFleet, title: str) -> str:
    """Return a fleet as one self-contained HTML page."""
    return TEMPLATES.get_template("fleet.html.jinja").render(_content(loaded) | {"title": title})


def _content(loaded: LoadedFleet) -> dict[str, Any]:
    fleet = loaded.fleet
    hosts = {device.id: device.host for device in fleet.inventory.devices}
    return {
        "fleet": fleet,
        "headline": headline(fleet),
        "request": request_lines(fleet),
        "proof": proof_lines(fleet),
        "templates": template_lines(loaded),
        "hosts_of": lambda replica: list(dict.fromkeys(hosts[device] for device in replica.devices)),
    }


def data(loaded: LoadedFleet) -> dict[str, Any]:
    """Return a fleet as data: what ``fleet.yaml`` has, with tokens/s as numbers."""
    fleet = loaded.fleet
    return {
        "tokens_per_s": fleet.proof.microtokens_per_s / MICRO,
        "bound_tokens_per_s": fleet.proof.bound_microtokens_per_s / MICRO,
        "any_division_tokens_per_s": fleet.proof.any_microtokens_per_s / MICRO,
        "templates": [
            encode(template) | {"tokens_per_s": template.microtokens_per_s / MICRO} for template in fleet.templates
        ],
        "replicas": [encode(replica) for replica in fleet.replicas],
        "unused": list(fleet.unused),
    }


def diff_data(a: LoadedFleet, b: LoadedFleet) -> dict[str, Any]:
    """Return two fleets compared, as data."""
    differences = fleet_differences(a, b)
    return {
        "equal": not differences,
        "replicas": list(replica_lines(a.fleet, b.fleet)),
        "differences": [{"kind": d.kind, "path": d.path, "before": d.before, "after": d.after} for d in differences],
    }


def diff_markdown(a: LoadedFleet, b: LoadedFleet) -> str:
    """Return two fleets compared, as Markdown."""
    return MARKDOWN.get_template("fleet_diff.md.jinja").render(
        headline=fleet_headline(a.fleet, b.fleet),
        replicas=replica_lines(a.fleet, b.fleet),
        differences=fleet_differences(a, b),
    )


def listed(devices: Iterable[str]) -> str:
    """Return names of devices; of many the first and the last."""
    names = list(devices)
    if len(names) <= MOST_LISTED:
        return " + ".join(names)
    return f"{' + '.join(names[:MOST_LISTED])} + ... + {names[-1]} ({len(names)})"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table
