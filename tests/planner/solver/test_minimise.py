"""One run of CP-SAT: the result of each mode, and Ctrl-C."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ortools.sat.python import cp_model

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.minimise import (
    FIND,
    PROVE,
    SAME,
    Infeasible,
    Mode,
    Settings,
    Spent,
    best_within,
    minimise,
    within_gap,
)
from planner.solver.search import Progress
from tests.planner.instances import ROOT, saved


class Partition:
    """Number partitioning with 45-bit numbers; with 60 numbers an optimality proof takes practically forever."""

    def __init__(self, numbers: int) -> None:
        self.model = cp_model.CpModel()
        self.values: list[int] = []
        rng = random.Random(7)
        weights = [rng.randrange(1 << 45) for _ in range(numbers)]
        self.left = [self.model.new_bool_var("") for _ in weights]
        self.difference = self.model.new_int_var(0, sum(weights), "")
        signed = sum(weight * (2 * left - 1) for weight, left in zip(weights, self.left, strict=True))
        self.model.add(self.difference >= signed)
        self.model.add(self.difference >= -signed)


def test_a_proven_value_is_the_minimum() -> None:
    partition = Partition(8)
    optimum = minimise(partition, partition.difference, Settings(), what="difference")
    assert optimum.value == optimum.bound == partition.values[partition.difference.index]
    partition.model.add(partition.difference < optimum.value)
    with pytest.raises(Infeasible):
        minimise(partition, partition.difference, Settings(), what="difference")


@pytest.mark.parametrize("mode", [SAME, best_within(1.0), Mode(from_below=True)])
def test_the_proven_value_does_not_depend_on_the_mode(mode: Mode) -> None:
    partition = Partition(8)
    expected = minimise(partition, partition.difference, Settings(), what="difference")
    assert minimise(partition, partition.difference, Settings(), what="difference", mode=mode).value == expected.value


def test_the_best_within_a_budget_is_always_the_same() -> None:
    solutions = []
    for settings in (Settings(), Settings(workers=2, seed=5)):
        partition = Partition(60)
        optimum = minimise(partition, partition.difference, settings, what="difference", mode=best_within(0.05))
        assert optimum.bound < optimum.value
        solutions.append(partition.values)
    assert solutions[0] == solutions[1]


def test_any_solution_may_be_far_from_the_least() -> None:
    partition = Partition(60)
    optimum = minimise(partition, partition.difference, Settings(), what="difference", mode=FIND)
    assert optimum.bound <= optimum.value


def test_beyond_the_limit_the_best_value_is_reported_but_not_used() -> None:
    partition = Partition(60)
    with pytest.raises(NotProvenError, match="difference: not proven") as refused:
        minimise(partition, partition.difference, Settings(limit=0.05), what="difference")
    assert refused.value.objective_ns is not None
    assert partition.values == []


def test_a_gap_of_zero_means_to_prove() -> None:
    assert within_gap(0) == PROVE
    assert within_gap(5).fixed


# ---- Ctrl-C ----


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_a_search(workers: int) -> None:
    partition = Partition(60)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        minimise(partition, partition.difference, Settings(workers=workers), what="difference")
    for thread in [t for t in threading.enumerate() if t.name == "cp-sat"]:
        thread.join(30)
        assert not thread.is_alive()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    optimum = minimise(partition, partition.difference, Settings(), what="difference", mode=FIND)
    assert optimum.value > 0


LLAMA_405B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
HEAD = LLAMA_405B | {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 32000}

PROGRAM = """
import os, signal, sys, threading
import planner.commands.build
from planner.cli import main
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT)).start()
main(sys.argv[2:])
"""
"""Source of a program that sends itself SIGINT some seconds after its imports, as Ctrl-C does."""


def _machine(*types: str) -> dict[str, Any]:
    """Return an inventory with one host per type, each with eight devices of it."""
    hosts = [
        {
            "name": f"box{number}",
            "links": {"class": "pcie"},
            "devices": [{"id": f"{number}-{i}", "type": name} for i in range(8)],
        }
        for number, name in enumerate(types)
    ]
    return {"hosts": hosts, "network": {"class": "infiniband"}}


@pytest.mark.parametrize("seconds", [0.1, 0.6, 1.2, 1.7])
@pytest.mark.parametrize(
    ("types", "options"),
    [
        (
            (
                "h100-80g",
                "a100-80g",
                "l40s",
                "a6000",
                "rtx-4090",
                "a100-40g",
                "l4",
                "rtx-3090",
                "a10",
                "l4",
                "rtx-3090",
                "rtx-4090",
            ),
            ("--strategy", "balanced", "--solver-limit", "600"),
        ),
        (("l4", "l4", "a6000"), ("--context", "131072")),
    ],
    ids=["search", "explain"],
)
def test_ctrl_c_ends_build_and_writes_nothing(
    types: tuple[str, ...], options: tuple[str, ...], seconds: float, tmp_path: Path
) -> None:
    for name, config in (("base", LLAMA_405B), ("head", HEAD)):
        saved(tmp_path / name, config)
    (tmp_path / "inventory.yaml").write_text(json.dumps(_machine(*types)))
    files = {"--gpus": "inventory.yaml", "--model": "base", "--draft": "head", "--out": "plan"}
    arguments = ["build", "--plan-only", "--json", *options]
    for option, name in files.items():
        arguments += [option, str(tmp_path / name)]
    program = [sys.executable, "-c", PROGRAM, str(seconds), *arguments]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr.endswith("interrupted\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "head", "inventory.yaml"]


def test_work_is_counted_also_where_nothing_is_found_or_proven() -> None:
    spent = Spent()
    partition = Partition(60)
    with pytest.raises(NotProvenError):
        minimise(partition, partition.difference, Settings(limit=0.1), what="difference", spent=spent)
    assert spent.searches >= 0.1
    assert spent.models == pytest.approx(limits.VARIABLE_WORK * 61)
    partition.model.add(partition.difference < 0)
    with pytest.raises(Infeasible):
        minimise(partition, partition.difference, Settings(), what="difference", spent=spent)
    assert spent.models == pytest.approx(2 * limits.VARIABLE_WORK * 61)
    assert spent.work == spent.searches + spent.models


def test_the_limit_is_on_all_searches_of_an_answer_together() -> None:
    progress = Progress(settings=Settings(limit=0.5), optima=[])
    while progress.spent.work < 0.4:
        model: Any = Partition(12)
        progress.minimise(model, model.difference, what="difference")
    assert len(progress.optima) > 1
    too_much: Any = Partition(60)
    with pytest.raises(NotProvenError, match="not proven optimal within the limit"):
        progress.minimise(too_much, too_much.difference, what="difference")
    assert progress.spent.work < 0.6


def test_a_model_too_large_for_the_limit_ends_the_search_after_it() -> None:
    progress = Progress(settings=Settings(limit=0.0011), optima=[])
    model: Any = Partition(10)
    progress.minimise(model, model.difference, what="difference", settings=Settings())
    with pytest.raises(NotProvenError):
        progress.minimise(model, model.difference, what="difference")
