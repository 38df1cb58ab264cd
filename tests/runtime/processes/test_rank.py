"""Requests that a plan cannot serve, the end of outputs, and a constant footprint."""

import dataclasses
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from plans.buffers import device_terms
from plans.schema import Plan
from runtime.errors import RequestError
from runtime.processes.rank import Rank
from runtime.request import Request, check_request
from runtime.text import Output
from tests.runtime.small import CONTEXT, compiled_plan, write_tokenizer

pytestmark = pytest.mark.usefixtures("one_core")

REQUEST = Request(prompt_ids=(1, 2, 3), max_new_tokens=5, draft=True, ignore_eos=False, stop=())


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    return compiled_plan(tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ()}, "prompt: empty, expected at least one token"),
        ({"prompt_ids": (1, 50)}, "prompt_ids[1]: found 50, expected 0 to 49"),
        ({"prompt_ids": (-1,)}, "prompt_ids[0]: found -1, expected 0 to 49"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0, expected at least 1"),
        (
            {"max_new_tokens": CONTEXT - 2},
            f"prompt of 3 tokens + max_new_tokens {CONTEXT - 2} = {CONTEXT + 1}, the plan has a context of {CONTEXT}: "
            f"ask for at most {CONTEXT - 3} new tokens, or build a plan with a longer context",
        ),
        (
            {"prompt_ids": (1,) * CONTEXT, "max_new_tokens": 1},
            f"prompt of {CONTEXT} tokens + max_new_tokens 1 = {CONTEXT + 1}, the plan has a context of {CONTEXT}: "
            f"shorten the prompt to at most {CONTEXT - 1} tokens, or build a plan with a longer context",
        ),
        ({"stop": ("ab", "a" * 4097)}, "stop[1]: found a text of 4097 characters, expected at most 4096"),
        ({"stop": ("a",) * 65}, "stop: found more than 64 texts, expected at most as many"),
    ],
)
def test_refused_before_prefill(change: dict[str, object], message: str, plan_dir: tuple[Path, Plan]) -> None:
    with pytest.raises(RequestError) as refusal:
        check_request(plan_dir[1], dataclasses.replace(REQUEST, **change))
    assert str(refusal.value) == message


def test_the_whole_context_may_be_used_and_requests_are_independent(plan_dir: tuple[Path, Plan]) -> None:
    with Rank.open(plan_dir[1], plan_dir[0]) as engine:
        full = dataclasses.replace(REQUEST, max_new_tokens=CONTEXT - 3)
        first = engine.generate(full)
        assert len(first.tokens) == CONTEXT - 3
        allocated = engine.memory.measured()
        assert engine.generate(dataclasses.replace(full, draft=False)).tokens == first.tokens
        assert engine.generate(full).tokens == first.tokens
        assert engine.memory.measured() == allocated
        planned = device_terms(plan_dir[1], "a")
        assert all(allocated[term] <= planned[term] for term in planned)
        assert allocated["kv"] == planned["kv"]
        assert allocated["draft_kv"] == planned["draft_kv"]


def output(tmp_path: Path, **change: object) -> Output:
    write_tokenizer(tmp_path)
    request = dataclasses.replace(REQUEST, max_new_tokens=20, **change)
    return Output(request, (9,), Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


def test_output_ends_with_eos_inside_a_block_unless_ignored(tmp_path: Path) -> None:
    out = output(tmp_path)
    assert out.take([1, 2]) == [1, 2]
    assert out.take([3, 9, 4]) == [3, 9]
    assert out.finished
    ignoring = output(tmp_path, ignore_eos=True)
    assert ignoring.take([3, 9, 4]) == [3, 9, 4]
    assert not ignoring.finished


def test_text_is_cut_before_a_stop_string_and_never_shown_beyond_it(tmp_path: Path) -> None:
    out = output(tmp_path, stop=("cd", "dxy"))
    out.take([0, 1, 2])
    assert out.piece() == "ab", "the c may begin a stop string"
    out.take([4])
    assert out.piece() == "ce"
    assert out.take([2, 3, 5]) == [2, 3], "output ends with the token that completes the stop string"
    assert out.piece() == ""
    assert (out.text, out.finished) == ("abce", True)


def test_a_character_of_several_tokens_is_shown_when_complete(tmp_path: Path) -> None:
    out = output(tmp_path)
    out.take([0, 48])
    assert out.piece() == "a"
    out.take([49, 1])
    assert out.piece() == "éb"
    cut = output(tmp_path, stop=("q",))
    cut.take([0] * 19 + [48])
    assert (cut.finished, cut.text) == (True, "a" * 19 + "\ufffd")
