"""Gain of choosing the draft tree over EAGLE's default, and its cost: ``bench_planner.py trees``.

All with the shipped EAGLE-3 profile (published means). CPU times are of this process: the choice with its proof, beside
one solve of the default tree and one of the chosen one.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured import measured_table

from instances import SPEED, Config, Hosts, base_config, one
from planner.build import plan
from planner.costs.acceptance import expected_ppm
from planner.enough_hosts import settle_on_enough
from planner.families import inputs_of, load_base, load_draft
from planner.formulations import Formulations
from planner.hardware.inventory import parse_inventory
from planner.report.speculation import tree_words
from planner.request import DEFAULT_TREE, Wanted, resolve
from planner.solver.minimise import Settings
from planner.speculation.compare import Question
from planner.speculation.compare import chosen as choice_of
from planner.speculation.profiles import shipped_profile
from plans.acceptance import PPM
from plans.schema import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Grown:
    """A model with its EAGLE-3 head on a machine."""

    name: str
    title: str
    model: Config
    head: Config
    inventory: Hosts
    batch: int = 1
    context: int | None = None


def _published(name: str, model: str, link: str, *devices: str, batch: int = 1) -> Grown:
    """Return an instance with a model and a head of ``measured.yaml``."""
    listed = measured_table()
    kind = model if model != "llama-3-70b" else "llama-3.3-70b"
    head = {"model_type": "llama", "num_hidden_layers": 1} | listed.heads[f"eagle3-{kind}"]
    title = f"{model}, {' + '.join(devices)}, batch {batch}"
    return Grown(name=name, title=title, model=base_config(listed.models[model]), head=base_config(head),
                 inventory=one(link, *devices), batch=batch, context=2048)  # fmt: skip


TREES = (
    *(
        Grown(name=speed.name, title=speed.title, model=speed.model, head=speed.draft, inventory=speed.inventory)
        for speed in SPEED
    ),
    *(_published(f"8b-h100-b{b}", "llama-3.1-8b", "nvlink", "h100-80g", batch=b) for b in (1, 8, 32)),
    _published("8b-4090", "llama-3.1-8b", "pcie", "rtx-4090"),
    _published("qwen3-8b-3060x2", "qwen3-8b", "pcie", "2 x rtx-3060-12g"),
    _published("30b-a3b-h100", "qwen3-30b-a3b", "nvlink", "h100-80g"),
    _published("30b-a3b-h100x2", "qwen3-30b-a3b", "nvlink", "2 x h100-80g"),
    _published("qwen3-32b-h100", "qwen3-32b", "nvlink", "h100-80g"),
    _published("70b-h100x8", "llama-3-70b", "nvlink", "8 x h100-80g"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Expected tokens per second of the three, and CPU times in s; ``choice_s`` with the plan of the chosen tree."""

    grown: Grown
    tree: Tree | None
    default_per_s: float
    chosen_per_s: float
    plain_per_s: float
    choice_s: float
    default_solve_s: float
    chosen_solve_s: float
    trees: int
    solved: int


def chosen(grown: Grown) -> Compared:
    """Choose the tree of an instance, and solve the default one and the chosen one by themselves."""
    with tempfile.TemporaryDirectory(prefix="trees-") as name:
        directory = Path(name)
        for file, config in (("base.json", grown.model), ("head.json", grown.head)):
            (directory / file).write_text(json.dumps(config))
        base = load_base(directory / "base.json")
        draft = load_draft(directory / "head.json", base)
    options = resolve(Wanted(batch=grown.batch, context=grown.context), "bfloat16", base, draft)
    inventory = parse_inventory(grown.inventory, grown.name).at("bfloat16")
    profile = shipped_profile(draft.draft)
    question = Question(
        base=base,
        draft=draft,
        options=options,
        inventory=inventory,
        profile=profile,
        schedule=False,
        keep_draft=False,
    )

    def solve_s(tree: Tree | None) -> tuple[float, int]:
        start = time.process_time()
        formulation = question.formulations(Formulations())(tree)
        built = plan(formulation, inputs_of(base, draft if tree else None), Settings())
        return time.process_time() - start, built.plan.proof.least_ns

    default_s, default_ns = solve_s(DEFAULT_TREE)
    start = time.process_time()
    choice = choice_of(question, Settings(), Formulations())
    assert choice is not None
    best = choice.best
    settle_on_enough(question.formulations(Formulations())(best.tree), best.formulation, best.step)
    choice_s = time.process_time() - start

    def per_s(acceptance_ppm: int, step_ns: int) -> float:
        return grown.batch * acceptance_ppm / PPM * 1e9 / step_ns

    return Compared(
        grown=grown,
        tree=choice.best.tree,
        default_per_s=per_s(expected_ppm(profile, DEFAULT_TREE), default_ns),
        chosen_per_s=per_s(choice.best.acceptance_ppm, choice.best.least_ns),
        plain_per_s=per_s(PPM, choice.plain.least_ns),
        choice_s=choice_s,
        default_solve_s=default_s,
        chosen_solve_s=solve_s(best.tree)[0],
        trees=choice.trees,
        solved=choice.solved,
    )


TREE_TITLES = ("instance", "60/7/10 tokens/s", "chosen", "chosen tokens/s", "plain tokens/s", "trees", "solved",
               "choice CPU s", "one solve CPU s")  # fmt: skip


def tree_line(row: Compared) -> tuple[str, ...]:
    speeds = f"{row.default_per_s:.1f}", f"{row.chosen_per_s:.1f}", f"{row.plain_per_s:.1f}"
    words = "no draft" if row.tree is None else tree_words(row.tree).replace("total_token=", "")
    words = words.replace(",depth=", "/").replace(",top_k=", "/")
    times = f"{row.choice_s:.2f}", f"{row.default_solve_s:.2f}, {row.chosen_solve_s:.2f}"
    return (row.grown.title, speeds[0], words, *speeds[1:], str(row.trees), str(row.solved), *times)


def tree_data(row: Compared) -> dict[str, Any]:
    return {
        "name": row.grown.name,
        "tree": None if row.tree is None else tree_words(row.tree),
        "default_tokens_per_s": round(row.default_per_s, 3),
        "chosen_tokens_per_s": round(row.chosen_per_s, 3),
        "plain_tokens_per_s": round(row.plain_per_s, 3),
        "choice_s": round(row.choice_s, 3),
        "default_solve_s": round(row.default_solve_s, 3),
        "chosen_solve_s": round(row.chosen_solve_s, 3),
        "trees": row.trees,
        "solved": row.solved,
    }
