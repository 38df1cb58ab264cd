"""Divide machines into replicas: how long it takes, and what is proven.

    python tools/bench_fleets.py [--only NAME]

The time is that of dividing alone, without starting Python: of the processor, and by the clock.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from instances import (
    AWQ_12B,
    FOUR_3090,
    LLAMA_3_70B,
    LLAMA_3_405B,
    THOUSAND,
    UNLIKE,
    YI_6B,
    Config,
    Hosts,
    base_config,
    eagle3_config,
)
from planner.api.fleets import Asked, divided
from planner.errors import NotProvenError
from planner.families import load_base, load_draft
from planner.hardware.inventory import parse_inventory
from planner.request import Request, Wanted
from planner.solver.minimise import Settings
from planner.speculation.profiles import shipped_profile
from plans.fleet import MICRO


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A machine that is divided."""

    name: str
    title: str
    model: Config
    inventory: Hosts
    asked: Asked
    context: int | None = None
    draft: bool = False


def _cards(clients: int, replicas: int | None) -> Instance:
    number = "" if replicas is None else f"-{replicas}"
    title = f"12B in 4 bits, 4 x RTX 3090, {clients} sequence{'s' if clients > 1 else ''}"
    title += "" if replicas is None else f", {replicas} replica{'s' if replicas > 1 else ''}"
    asked = Asked(clients=clients, replicas=replicas)
    name = f"3090x4-{clients}{number}"
    return Instance(name=name, title=title, model=AWQ_12B, inventory=FOUR_3090, asked=asked, context=4096)


def _clients(name: str, title: str, model: Config, *, draft: bool = False) -> Instance:
    asked = Asked(clients=1000, min_tokens_per_s=15)
    title = f"{title}, 1000 sequences of 15 tokens/s"
    return Instance(name=name, title=title, model=model, inventory=THOUSAND, asked=asked, draft=draft)


_70B, _405B = "Llama-3.3-70B, 1000 GPUs", "Llama-3.1-405B, 1000 GPUs"
INSTANCES = (
    *(_cards(clients, replicas) for clients, replicas in ((1, None), (8, None), (32, None), (64, None), (64, 1))),
    Instance(name="unlike8", title="Yi-6B, 8 unlike GPUs", model=YI_6B, inventory=UNLIKE, asked=Asked()),
    Instance(name="70b", title=_70B, model=LLAMA_3_70B, inventory=THOUSAND, asked=Asked()),
    Instance(
        name="70b-draft", title=f"{_70B}, EAGLE-3", model=LLAMA_3_70B, inventory=THOUSAND, asked=Asked(), draft=True
    ),
    _clients("70b-clients", _70B, LLAMA_3_70B),
    _clients("70b-draft-clients", f"{_70B}, EAGLE-3", LLAMA_3_70B, draft=True),
    Instance(name="405b", title=_405B, model=LLAMA_3_405B, inventory=THOUSAND, asked=Asked()),
    Instance(
        name="405b-draft", title=f"{_405B}, EAGLE-3", model=LLAMA_3_405B, inventory=THOUSAND, asked=Asked(), draft=True
    ),
    _clients("405b-clients", _405B, LLAMA_3_405B),
)


def line_of(instance: Instance) -> tuple[str, ...]:
    """Return the line of an instance."""
    with tempfile.TemporaryDirectory() as name:
        base_file, draft_file = Path(name) / "base.json", Path(name) / "draft.json"
        config = base_config(instance.model)
        base_file.write_text(json.dumps(config))
        draft_file.write_text(json.dumps(eagle3_config(config)))
        base = load_base(base_file)
        draft = load_draft(draft_file, base) if instance.draft else None
    request = Request(
        base=base,
        draft=draft,
        inventory=parse_inventory(instance.inventory, instance.name),
        wanted=Wanted(context=instance.context, simplify_ppm=0, objective="tokens" if draft else "step"),
        profile=shipped_profile(draft.draft) if draft else None,
    )
    start, cpu = time.perf_counter(), time.process_time()
    try:
        fleet = divided(request, instance.asked, Settings()).fleet
    except NotProvenError as error:
        times = f"{time.process_time() - cpu:.1f} s", f"{time.perf_counter() - start:.1f} s"
        return (instance.title, f"refused: {error}", "", "", "", "", *times)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    proof, used = fleet.proof, sum(len(replica.devices) for replica in fleet.replicas)
    return (
        instance.title,
        f"{len(fleet.replicas)} on {used}",
        f"{proof.microtokens_per_s / MICRO:.1f}",
        f"{proof.bound_microtokens_per_s / proof.microtokens_per_s - 1:+.2%}",
        f"{proof.any_microtokens_per_s / proof.microtokens_per_s - 1:+.0%}",
        f"{proof.solved} of {proof.parts * len(fleet.request.batches)}",
        f"{cpu_s:.1f} s",
        f"{seconds:.1f} s",
    )


TITLES = ("instance", "replicas on GPUs", "tokens/s", "bound", "any division", "templates solved", "processor", "clock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[instance.name for instance in INSTANCES])
    arguments = parser.parse_args()
    print(f"| {' | '.join(TITLES)} |\n|{' --- |' * len(TITLES)}")
    for instance in INSTANCES:
        if arguments.only is None or instance.name in arguments.only:
            print(f"| {' | '.join(line_of(instance))} |", flush=True)


if __name__ == "__main__":
    main()
