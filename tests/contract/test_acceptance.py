"""Tokens per step that a profile of the embedded model leads one to expect, against what other trees then accept."""

import dataclasses
import sysconfig
from pathlib import Path

import pytest

import planner
from planner.costs.acceptance import expected_ppm
from planner.demo_model import BASE, DEFAULT_HEAD
from plans.acceptance import Drafted, Profile
from plans.schema import Tree
from runtime.commands.profile import profile_of
from runtime.engine import Engine

INVENTORY = """\
hosts:
  - name: a
    devices:
      - {id: cpu0, type: cpu, memory: 4 GiB, bandwidth: 20 GB/s}
"""
TEXTS = ("argparse", "ast", "bisect", "calendar", "configparser", "csv", "difflib", "fractions", "ftplib", "heapq")
NEW_TOKENS = 64


def dynamic(total_token: int, depth: int, top_k: int) -> Tree:
    return Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None)


def decoded(directory: Path, tree: Tree) -> tuple[float, Profile]:
    """Return the acceptance length over all texts, and the profile of the drafts."""
    inventory = directory / "inventory.yaml"
    inventory.write_text(INVENTORY)
    result = planner.plan(BASE, inventory=inventory, draft=DEFAULT_HEAD, tree=tree, context=256)
    plan = result.write(directory / "plan")
    planner.compile(plan, model=BASE, draft=DEFAULT_HEAD)
    library, lengths, drafts = Path(sysconfig.get_paths()["stdlib"]), list[int](), list[Drafted]()
    with Engine.open(plan) as engine:
        for name in TEXTS:
            prompt = engine.tokenizer.encode((library / f"{name}.py").read_text()[2000:2300])[:64]
            request = engine.request(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)
            lengths += engine.serve(dataclasses.replace(request, recorded=True)).finished().accept_lengths
            drafts += engine.completions[0].drafts
    profile = profile_of(result.plan, drafts, prompts=len(TEXTS), tokens=NEW_TOKENS * len(TEXTS))
    return 1 + sum(lengths) / len(lengths), profile


def test_expected_tokens_are_within_a_tenth_of_those_accepted(
    tmp_path_factory: pytest.TempPathFactory, one_core: None
) -> None:
    wide = dynamic(40, 6, 6)
    measured, profile = decoded(tmp_path_factory.mktemp("wide"), wide)
    assert expected_ppm(profile, wide) / 1e6 == pytest.approx(measured, rel=0.1)
    for tree in (dynamic(5, 3, 1), dynamic(12, 4, 3)):
        measured, _ = decoded(tmp_path_factory.mktemp("narrow"), tree)
        assert expected_ppm(profile, tree) / 1e6 == pytest.approx(measured, rel=0.1)
