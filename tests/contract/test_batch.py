"""Batches: each sequence is decoded exactly as alone, whatever the other sequences are and wherever they end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.families import inputs_of
from plans import codec
from plans.schema import Plan, Run
from runtime.cli import commands
from runtime.engine import Engine
from runtime.processes.rank import Rank
from runtime.request import Completion, Request
from runtime.sampling import Sampling
from tests.contract.agreeing import LAYERS
from tests.contract.checkpoints import CHUNK, CONTEXT, Checkpoints, compiled
from tests.plan_factory import Group, even, group, make_plan

pytestmark = pytest.mark.usefixtures("one_core")

PROMPTS = ((7,), tuple(range(90, 90 - 2 * CHUNK - 5, -1)), (5, 17, 33, 2, 60), (44, 3), (9, 9, 9))


def batched(checkpoints: Checkpoints, kind: str, devices: tuple[str, ...] = ("a",)) -> Plan:
    """Return a plan with a batch of 3; two devices divide its sequences."""
    model, draft = checkpoints.base.model, checkpoints.drafts[kind]
    heads = model.layers[0].attention.num_kv_heads
    units = even(model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit, 2)
    run = Run(num_layers=LAYERS, kv_heads=(heads, heads), mlp_units=units)
    divided = Group(devices=devices, runs=(run,), axis="batch", subgroups=(2,))
    return make_plan(
        model,
        [group(model, devices, LAYERS) if len(devices) == 1 else divided],
        draft=draft.draft,
        inputs=inputs_of(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        batch=3,
    )


@pytest.mark.parametrize("draft", [True, False])
def test_each_sequence_of_a_batch_is_decoded_as_alone(draft: bool, checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = compiled(tmp_path / "plan", batched(checkpoints, "eagle3"), checkpoints, "eagle3")
    sampling = Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=5)
    requests = [
        Request(prompt_ids=prompt, max_new_tokens=count, draft=draft, ignore_eos=True, stop=(), sampling=drawn)
        for prompt, count, drawn in zip(
            PROMPTS, (30, 9, 1, 40, 17), (None, sampling, None, None, sampling), strict=True
        )
    ]
    with Engine.open(directory) as engine:
        alone = [engine.serve(request).finished() for request in requests]
        together = engine.serve_batch(requests)
        again = engine.serve(requests[0]).finished()
    for request, one, other in zip(requests, alone, together, strict=True):
        assert (one.tokens, one.accept_lengths, one.finish) == (other.tokens, other.accept_lengths, other.finish)
        if request.sampling is None:
            assert list(one.tokens) == checkpoints.greedy(request.prompt_ids, request.max_new_tokens)
    assert again.tokens == alone[0].tokens, "a batch has no effect on later requests"


def test_an_end_of_sequence_ends_one_and_not_the_others(checkpoints: Checkpoints, tmp_path: Path) -> None:
    expected = [tuple(checkpoints.greedy(prompt, 24)) for prompt in PROMPTS[:3]]
    eos = next(token for token in expected[0][3:] if token not in expected[2])
    plan = batched(checkpoints, "eagle")
    directory = compiled(tmp_path / "plan", plan, checkpoints, "eagle")
    one = Request(prompt_ids=(1,), max_new_tokens=24, draft=True, ignore_eos=False, stop=())
    with Rank.open(codec.load(directory), directory) as rank:
        rank.plan = replace(plan, model=replace(plan.model, eos_token_ids=(eos,)))
        turns = rank.serve_batch(tuple(replace(one, prompt_ids=prompt) for prompt in PROMPTS[:3]))
        outputs = {job: output for turn in turns for job, output in turn if isinstance(output, Completion)}
    completions = [outputs[job] for job in range(3)]
    for tokens, generation in zip(expected, completions, strict=True):
        end = tokens.index(eos) + 1 if eos in tokens else 24
        assert generation.tokens == tokens[:end]
    assert [generation.finish for generation in completions].count("length") >= 1
    assert completions[0].finish == "eos"


def test_processes(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = compiled(tmp_path / "plan", batched(checkpoints, "eagle", ("a", "b")), checkpoints, "eagle")
    with Engine.open(directory) as engine:
        generations = engine.generate_batch(PROMPTS[:2], max_new_tokens=12, ignore_eos=True)
    assert [list(generation.tokens) for generation in generations] == [
        checkpoints.greedy(prompt, 12) for prompt in PROMPTS[:2]
    ]


def test_the_command_line(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = compiled(tmp_path / "plan", batched(checkpoints, "eagle"), checkpoints, "eagle")
    prompts = [part for prompt in PROMPTS[:2] for part in ("--prompt-ids", ",".join(map(str, prompt)))]
    command = ["run", str(directory), *prompts, "--max-new-tokens", "12", "--ignore-eos"]
    as_json = CliRunner().invoke(commands, [*command, "--json"], catch_exceptions=False)
    generations = json.loads(as_json.stdout)["generations"]
    expected = [checkpoints.greedy(prompt, 12) for prompt in PROMPTS[:2]]
    assert [generation["tokens"] for generation in generations] == expected
    as_text = CliRunner().invoke(commands, command, catch_exceptions=False)
    assert as_text.stdout.splitlines() == [" ".join(map(str, tokens)) for tokens in expected]


def test_requests_that_cannot_share_a_step_are_served_in_turns(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = compiled(tmp_path / "plan", batched(checkpoints, "eagle"), checkpoints, "eagle")
    one = Request(prompt_ids=(1,), max_new_tokens=2, draft=True, ignore_eos=True, stop=())
    with Engine.open(directory) as engine:
        mixed = engine.serve_batch([replace(one, draft=number % 2 == 0, max_new_tokens=9) for number in range(5)])
        assert [bool(generation.accept_lengths) for generation in mixed] == [True, False, True, False, True]
        assert {generation.tokens for generation in mixed} == {tuple(checkpoints.greedy((1,), 9))}
        assert engine.serve_batch([]) == []
        assert len(engine.serve_batch([one] * 4)) == 4, "more requests than the batch are served in turns"
