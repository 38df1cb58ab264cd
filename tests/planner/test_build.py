"""Building a plan and its directory from inputs, and planning again from that directory."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from planner import build, request
from planner.build import replan
from planner.demo_model import DEMO
from planner.errors import InfeasibleError, InputError, OutputError
from planner.families import BaseInput, DraftInput
from planner.formulations import Formulations
from planner.longest_context import longest_context
from planner.plan_directory import refuse_foreign, write
from planner.request import Request, Wanted, resolve, resolve_dtype
from planner.solver.minimise import Settings
from plans import codec, durable
from plans.schema import Tree
from tests.planner.instances import (
    EQUAL,
    UNLIKE,
    Head,
    cpu,
    demo,
    host,
    inventory_of,
    listed,
    options_of,
    plan_of,
    planned,
)

ONE = Settings(workers=1)


def built(data: Any, head: Head, context: int = 256) -> tuple[build.Built, BaseInput, DraftInput | None]:
    return planned(data, head, context), *demo(head)


@pytest.mark.parametrize(("data", "head"), [(EQUAL, "eagle3"), (UNLIKE, "eagle1"), (UNLIKE, None)])
def test_planning_again_from_a_plans_directory_gives_the_same_bytes(tmp_path: Path, data: Any, head: Head) -> None:
    result, base, draft = built(data, head)
    write(tmp_path / "p", result.plan, base, draft)
    frozen = codec.load(tmp_path / "p")
    again = replan(tmp_path / "p", frozen, Settings(workers=2, seed=3))
    assert codec.dumps(again).encode() == (tmp_path / "p" / "plan.yaml").read_bytes()


def test_ids_are_in_natural_order() -> None:
    data = {"hosts": [host("box", cpu("c10", 14), cpu("c2", 15))]}
    result, _, _ = built(data, None)
    assert [device.id for device in result.plan.inventory.devices] == ["c2", "c10"]


def test_a_plan_contains_no_path_date_or_host_name(tmp_path: Path) -> None:
    result, base, draft = built(EQUAL, "eagle3")
    write(tmp_path / "p", result.plan, base, draft)
    text = (tmp_path / "p" / "plan.yaml").read_text()
    assert str(tmp_path) not in text
    assert str(DEMO) not in text
    assert not re.search(r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}\b", text)
    assert os.uname().nodename not in text


def test_a_directory_has_the_files_for_planning_again_and_running(tmp_path: Path) -> None:
    result, base, draft = built(EQUAL, "eagle3")
    write(tmp_path / "deep" / "p", result.plan, base, draft)
    names = sorted(str(file.relative_to(tmp_path / "deep" / "p")) for file in (tmp_path / "deep").rglob("*.*"))
    assert names[1:] == sorted(names[1:])
    assert {"config.json", "draft/config.json", "plan.yaml"} <= set(names)
    plain, base, _ = built(EQUAL, None)
    write(tmp_path / "deep" / "p", plain.plan, base, None)
    assert not (tmp_path / "deep" / "p" / "draft").exists(), "the drafter config of the previous plan is removed"
    assert codec.load(tmp_path / "deep" / "p") == plain.plan


def test_writing_the_same_again_touches_nothing(tmp_path: Path) -> None:
    result, base, draft = built(EQUAL, "eagle3")
    write(tmp_path / "p", result.plan, base, draft)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "p").rglob("*")}
    write(tmp_path / "p", result.plan, base, draft)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "p").rglob("*")} == before


def test_a_directory_whose_write_was_interrupted_is_written_again(tmp_path: Path) -> None:
    result, base, draft = built(EQUAL, "eagle3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "put_in_place", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "p", result.plan, base, draft)
    assert not (tmp_path / "p" / "plan.yaml").exists()
    write(tmp_path / "p", result.plan, base, draft)
    assert codec.load(tmp_path / "p") == result.plan
    assert not list((tmp_path / "p").rglob("*.new"))


def test_other_files_in_the_way_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse_foreign(tmp_path / "empty")
    refuse_foreign(tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "dangling"):
        with pytest.raises(OutputError, match=re.escape(str(tmp_path / name))):
            refuse_foreign(tmp_path / name)
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "plan.yaml")
    with pytest.raises(OutputError, match=r"piped/plan\.yaml: found a pipe, expected a plan: give another --out"):
        refuse_foreign(tmp_path / "piped")
    result, base, draft = built(EQUAL, None)
    with pytest.raises(OutputError, match=r"file/p: cannot write the plan"):
        write(tmp_path / "file" / "p", result.plan, base, draft)
    assert (tmp_path / "file").read_text() == "x"


def test_defaults_are_written_out() -> None:
    base, draft = demo("eagle3")
    options = resolve(Wanted(), "bfloat16", base, draft)
    assert (options.context, options.prefill_chunk, options.tree) == (512, 64, request.DEFAULT_TREE)
    assert resolve(Wanted(), "bfloat16", base, None).tree is None
    assert resolve(Wanted(context=40), "bfloat16", base, draft).prefill_chunk == 40


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(context=513), "--context: found 513, the model has 512 positions"),
        (Wanted(context=64, prefill_chunk=65), "--prefill-chunk: found 65, expected at most the context of 64"),
        (
            Wanted(tree=Tree(kind="dynamic", total_token=60, depth=1, top_k=5, paths=None)),
            "--tree: total_token=60 wants 59 drafted nodes, depth=1 and top_k=5 draft 30 at most",
        ),
        (
            Wanted(batch=1024, tree=Tree(kind="dynamic", total_token=100, depth=7, top_k=10, paths=None)),
            "--tree: masks of 10240000 values for a batch of 1024, expected at most 4194304: give fewer nodes",
        ),
        (
            Wanted(tree=Tree(kind="dynamic", total_token=60, depth=7, top_k=1025, paths=None)),
            "--tree: top_k: found 1025, expected a whole number from 1 to 256",
        ),
        (
            Wanted(tree=Tree(kind="dynamic", total_token=60, depth=10**9, top_k=10, paths=None)),
            "--tree: depth: found 10000",
        ),
        (
            Wanted(tree=Tree(kind="dynamic", total_token=10**6, depth=7, top_k=8, paths=None)),
            "--tree: total_token: found 1000",
        ),
    ],
)
def test_options_beyond_the_model_are_refused(wanted: Wanted, message: str) -> None:
    base, draft = demo("eagle3")
    with pytest.raises(InputError, match=re.escape(message)):
        resolve(wanted, "bfloat16", base, draft)


@pytest.mark.parametrize(("wanted", "context"), [(None, 128), (129, 129), (512, 512), ("max", 512)])
def test_an_eagle_head_of_fewer_positions_limits_only_the_default_context(wanted: int | None, context: int) -> None:
    base, draft = demo("eagle3")
    assert draft is not None
    draft = dataclasses.replace(draft, max_positions=128)
    assert resolve(Wanted(context=wanted), "bfloat16", base, draft).context == context


@pytest.mark.parametrize(
    ("kinds", "dtype"), [(("cpu", "cpu"), "float32"), (("cpu", "l4"), "bfloat16"), (("l4", "l4"), "bfloat16")]
)
def test_the_default_dtype_is_float32_only_without_gpus(kinds: tuple[str, ...], dtype: str) -> None:
    base, _ = demo(None)
    base.checkpoint.config["dtype"] = "bfloat16"
    devices = [cpu(f"d{i}", 64) if kind == "cpu" else {"id": f"d{i}", "type": kind} for i, kind in enumerate(kinds)]
    inventory = listed({"hosts": [host("box", *devices, links={"class": "pcie"})]})
    assert resolve_dtype(Wanted(), base, inventory) == dtype
    assert resolve_dtype(Wanted(dtype="float16"), base, inventory) == "float16"


def test_a_head_that_drafts_at_once_drafts_a_chain() -> None:
    base, draft = demo("eagle3")
    assert draft is not None
    at_once = dataclasses.replace(draft, draft=dataclasses.replace(draft.draft, mask_token_id=5))
    assert resolve(Wanted(), "bfloat16", base, at_once).tree == request.PARALLEL_TREE
    chain = Tree(kind="dynamic", total_token=4, depth=2, top_k=1, paths=None)
    assert resolve(Wanted(tree=chain), "bfloat16", base, at_once).tree == chain
    with pytest.raises(InputError) as caught:
        resolve(Wanted(tree=request.DEFAULT_TREE), "bfloat16", base, at_once)
    assert str(caught.value) == (
        "--tree: found total_token=60,depth=7,top_k=10, the head (P-EAGLE) drafts a chain in one pass: "
        "give top_k=1 and a total_token of depth + 2, as in total_token=8,depth=6,top_k=1"
    )


def test_a_tree_without_a_draft_is_refused() -> None:
    base, _ = demo(None)
    with pytest.raises(InputError, match="--tree: there is no draft"):
        resolve(Wanted(tree=request.DEFAULT_TREE), "bfloat16", base, None)


def roomy() -> tuple[BaseInput, DraftInput]:
    """Return the embedded model and EAGLE head with 2048 positions."""
    base, draft = demo("eagle3")
    assert draft is not None
    return dataclasses.replace(base, max_positions=2048), dataclasses.replace(draft, max_positions=2048)


def longest_on(data: Any, **wanted: Any) -> int:
    """Return the context that ``max`` selects on an inventory."""
    base, draft = roomy()
    request = Request(base=base, draft=draft, inventory=listed(data), wanted=Wanted(context="max", **wanted))
    return longest_context(request, ONE, Formulations())


def test_the_longest_context_fits_and_the_next_does_not() -> None:
    base, draft = roomy()
    data = {"hosts": [host("box", cpu("c0", 14), cpu("c1", 14), cpu("c2", 14))]}
    longest = longest_on(data)
    assert 0 < longest < 2048
    assert longest % 256 == 0

    def plan(context: int) -> None:
        plan_of(base, draft, inventory_of(data), resolve(Wanted(context=context), "float32", base, draft))

    plan(longest)
    with pytest.raises(InfeasibleError):
        plan(longest + 256)


def test_the_longest_context_with_a_given_prefill_chunk() -> None:
    """Contexts shorter than the chunk are not tried; if no other fits, the request is infeasible."""
    with pytest.raises(InfeasibleError):
        longest_on({"hosts": [host("box", cpu("c0", 5), cpu("c1", 5))]}, prefill_chunk=600)
    assert 500 <= longest_on({"hosts": [host("box", cpu("c0", 36), cpu("c1", 30))]}, prefill_chunk=500) < 2048


def test_the_result_reports_the_longest_context() -> None:
    base, draft = demo("eagle3")
    data = {"hosts": [host("box", cpu("c0", 64))]}
    for context, longest in (("max", 512), (256, None)):
        wanted = Wanted(context=context)  # type: ignore[arg-type]
        request = Request(base=base, draft=draft, inventory=listed(data), wanted=wanted)
        assert build.build(request, ONE).longest_context == longest


SLOW_TOGETHER = {"devices": 2, "bandwidth": "1 GB/s", "flops": "1 FLOP/s", "overhead": "50 us"}


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"bandwidth": "1 B/s"}, "a step could take more than 11 days"),
        ({"flops": "1 FLOP/s"}, "the slowest device is c0"),
        ({"bandwidth": "90 GB/s", "together": [SLOW_TOGETHER]}, "the slowest device is c0"),
        ({"overhead": "1000000 s"}, r"overhead: found 1000000 s, expected a quantity from 0 to 100 s"),
        ({"memory": "2000 TiB"}, r"memory: found 2000 TiB, expected a quantity from 0 to 1024 TiB"),
    ],
)
def test_figures_that_would_overflow_are_refused(figures: dict[str, Any], message: str) -> None:
    base, draft = demo("eagle3")
    data = {"hosts": [host("box", cpu("c0", 64) | figures, cpu("c1", 64))]}
    with pytest.raises(InputError, match=message):
        plan_of(base, draft, inventory_of(data), options_of(base, draft, 256, "float32"))
    with pytest.raises(InputError, match=message):
        longest_on(data)


def test_a_batch_that_would_overflow_is_refused() -> None:
    base, draft = demo("eagle3")
    options = dataclasses.replace(options_of(base, draft, 256, "float32"), batch=10**12)
    with pytest.raises(InputError, match=r"take more than 1024 TiB|more than 11 days"):
        plan_of(base, draft, inventory_of(EQUAL), options)
