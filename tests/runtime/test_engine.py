"""The Python interface: requests one after the other, on one device and several, and reuse of the caches."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtime
from plans.schema import Plan
from runtime import Engine
from runtime.errors import RequestError
from runtime.generation import Generation
from tests.runtime.small import CONTEXT, compiled_plan, write_tokenizer

pytestmark = pytest.mark.usefixtures("one_core")

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    directory, plan = compiled_plan(tmp_path_factory.mktemp("service"))
    write_tokenizer(directory)
    return directory, plan


@pytest.fixture(scope="module")
def engine(plan_dir: tuple[Path, Plan], one_core: None) -> Iterator[Engine]:
    with Engine.open(plan_dir[0]) as opened:
        yield opened


def test_importing_the_package_imports_no_torch() -> None:
    code = "import runtime, sys; assert 'torch' not in sys.modules; from runtime import Engine; print(Engine.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Engine\n", "")


def test_the_package_lists_what_it_exports() -> None:
    assert set(runtime.__all__) == {"Engine", "Generation", "Piece"} == set(dir(runtime))
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = runtime.Motor


def test_one_engine_serves_streams_and_prompts_in_turn(plan_dir: tuple[Path, Plan]) -> None:
    with Engine.open(plan_dir[0]) as engine:
        first = engine.generate(PROMPT, max_new_tokens=12)
        stream = engine.stream(PROMPT, max_new_tokens=12)
        pieces = list(stream)
        assert "".join(pieces) == first.text
        assert [token for piece in pieces for token in piece.tokens] == list(first.tokens)
        assert stream.result is not None
        assert stream.result.tokens == first.tokens
        text = engine.generate("dbebf", max_new_tokens=12)
        assert (text.prompt_ids, text.tokens) == (tuple(PROMPT), first.tokens), "each letter of a text is one id"
        assert engine.generate(PROMPT, max_new_tokens=12, draft=False).tokens == first.tokens
        assert len(engine.generate(PROMPT).tokens) == CONTEXT - len(PROMPT), (
            "by default, as many tokens as the context has room for"
        )
        with pytest.raises(RequestError, match="the plan has a context of"):
            engine.stream([1] * CONTEXT)
        assert engine.generate(PROMPT, max_new_tokens=12).tokens == first.tokens


def test_a_generation_is_json_with_planned_and_measured_bytes(plan_dir: tuple[Path, Plan]) -> None:
    with Engine.open(plan_dir[0]) as engine:
        result = engine.generate(PROMPT, max_new_tokens=4, temperature=1.0)
        generation = json.loads(json.dumps(dataclasses.asdict(result)))
    assert generation.keys() == {field.name for field in dataclasses.fields(Generation)}
    assert 0 <= generation["seed"] < 1 << 63
    ((device),) = generation["devices"]
    assert device["planned_bytes"].keys() == device["measured_bytes"].keys()
    for term in ("weights", "draft_weights", "kv", "draft_kv"):
        assert device["measured_bytes"][term] == device["planned_bytes"][term] > 0


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.9}])
def test_a_seed_gives_the_same_text_with_the_draft_and_without(
    options: dict[str, float], plan_dir: tuple[Path, Plan]
) -> None:
    with Engine.open(plan_dir[0]) as engine:
        texts = set()
        for seed in range(3):
            drawn = engine.generate(PROMPT, max_new_tokens=20, temperature=0.9, seed=seed, **options)
            assert drawn.seed == seed
            for draft in (True, False):
                again = engine.generate(PROMPT, max_new_tokens=20, temperature=0.9, seed=seed, draft=draft, **options)
                assert again.tokens == drawn.tokens
            texts.add(drawn.tokens)
        assert len(texts) == 3
        greedy = engine.generate(PROMPT, max_new_tokens=30).tokens
        assert engine.generate(PROMPT, max_new_tokens=30, temperature=5.0, top_k=1, seed=3).tokens == greedy
        seeds = {engine.generate(PROMPT, max_new_tokens=1, temperature=1.0).seed for _ in range(3)}
        assert len(seeds) == 3, "without a seed, each request draws its own"


@pytest.mark.parametrize("draft", [True, False])
def test_a_conversation_reuses_the_cached_prefix(draft: bool, plan_dir: tuple[Path, Plan]) -> None:
    with Engine.open(plan_dir[0]) as engine:
        fresh = engine.generate(PROMPT, max_new_tokens=10, draft=draft, reuse=True)
        assert fresh.reused == 0
        turn = [*PROMPT, *fresh.tokens, 7, 8]
        kept = engine.generate(turn, max_new_tokens=10, draft=draft, reuse=True)
        assert len(turn) - 5 <= kept.reused < len(turn)
        assert kept.tokens == engine.generate(turn, max_new_tokens=10, draft=draft).tokens
        other = [*turn[:8], 9, *turn[9:]]
        changed = engine.generate(other, max_new_tokens=10, draft=draft, reuse=True)
        assert changed.reused == 7
        assert changed.tokens == engine.generate(other, max_new_tokens=10, draft=draft).tokens


def test_the_drafter_reuses_only_what_its_own_cache_has(plan_dir: tuple[Path, Plan]) -> None:
    with Engine.open(plan_dir[0]) as engine:
        plain = engine.generate(PROMPT, max_new_tokens=10, draft=False)
        turn = [*PROMPT, *plain.tokens]
        drafted = engine.generate(turn, max_new_tokens=10, reuse=True)
        assert drafted.reused == 0, "plain decoding fills only the caches of the base"
        assert drafted.accept_lengths == engine.generate(turn, max_new_tokens=10).accept_lengths


@pytest.mark.parametrize("devices", [("a",), ("a", "b")])
def test_a_closed_stream_ends_and_does_not_affect_the_next_request(devices: tuple[str, ...], tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path, devices, context=2000)
    with Engine.open(directory) as engine:
        expected = engine.generate(PROMPT, max_new_tokens=9, temperature=1.0, seed=5).tokens
        stream = engine.stream(PROMPT, max_new_tokens=1900)
        next(stream)
        with pytest.raises(RequestError, match="serving another request"):
            engine.stream(PROMPT)
        stream.close()
        assert engine.generate(PROMPT, max_new_tokens=9, temperature=1.0, seed=5).tokens == expected
        stream = engine.stream(PROMPT, max_new_tokens=1900)
        next(stream)
        engine.stop()
        result = stream.finished()
        assert (result.finish, len(result.tokens) < 1900) == ("cancelled", True)


def test_a_script_needs_no_main_guard_and_may_use_torch_before(tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path, ("a", "b"))
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "torch.ones(500, 500) @ torch.ones(500, 500)\n"
        "from runtime import Engine\n"
        f"with Engine.open({str(directory)!r}) as engine:\n"
        "    for prompt in ([1, 2, 3], [4, 5]):\n"
        "        for piece in engine.stream(prompt, max_new_tokens=5):\n"
        "            print(*piece.tokens, end=' ')\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": "."}
    )
    assert (done.stderr, len(done.stdout.split())) == ("", 10)


def test_a_seed_gives_the_same_text_with_a_divided_lm_head(plan_dir: tuple[Path, Plan], tmp_path: Path) -> None:
    directory, plan = compiled_plan(tmp_path, ("a", "b"))
    assert plan.head.rows == (25, 25)
    parameters = [(0.9, None, None), (0.9, 7, None), (0.9, None, 0.8), (1.5, 30, 0.9)]
    texts = []
    for where in (directory, plan_dir[0]):
        with Engine.open(where) as engine:
            texts.append(
                [
                    engine.generate(PROMPT, max_new_tokens=16, temperature=t, top_k=k, top_p=p, seed=2).tokens
                    for t, k, p in parameters
                ]
            )
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == len(parameters)


@pytest.mark.parametrize(
    ("prompt", "wanted", "message"),
    [
        ([1, 1.5], {}, r"prompt_ids\[1\]: found 1.5, expected a whole number"),
        ([1, None], {}, r"prompt_ids\[1\]: found None, expected a whole number"),
        (None, {}, "prompt: found NoneType, expected text or a sequence of token ids"),
        ("a\ud800", {}, "prompt: character 1 is none: the bytes are not UTF-8"),
        ([1], {"max_new_tokens": 1.5}, "max_new_tokens: found 1.5, expected a whole number"),
        ([1], {"top_k": "7"}, "top_k: found '7', expected a whole number"),
        ([1], {"top_k": 1 << 70}, r"top_k: found 1180591620717411303424, expected 0 \(no limit\) to 2"),
        ([1], {"top_k": -1}, "top_k: found -1, expected 0"),
        ([1], {"top_k": True}, "top_k: found True, expected a whole number"),
        ([1], {"top_k": 2.0}, "top_k: found 2.0, expected a whole number"),
        ([1], {"top_p": 2}, "top_p: found 2, expected more than 0 and at most 1"),
        ([1], {"top_p": 2, "temperature": 1}, "top_p: found 2, expected more than 0 and at most 1"),
        ([1], {"top_p": 0.0, "temperature": 1}, r"top_p: found 0, expected .*; 0 only with temperature 0"),
        ([1], {"top_p": -0.1}, "top_p: found -0.1, expected more than 0"),
        ([1], {"top_p": math.nan}, "top_p: found nan, expected more than 0"),
        ([1], {"top_p": "0.9"}, "top_p: found '0.9', expected a number"),
        ([1], {"temperature": "hot"}, "temperature: found 'hot', expected a number"),
        ([1], {"temperature": True}, "temperature: found True, expected a number"),
        ([1], {"temperature": -1}, r"temperature: found -1, expected 0 \(greedy\) or at least"),
        ([1], {"temperature": math.nan}, "temperature: found nan, expected 0"),
        ([1], {"temperature": math.inf}, "temperature: found inf, expected 0"),
        ([1], {"temperature": 10**400}, "temperature: found a number beyond the range of a float"),
        ([1], {"temperature": 1j}, "temperature: found 1j, expected a number"),
        ([1], {"temperature": torch.ones(2)}, "temperature: found a list, expected a number"),
        ([1], {"seed": -1}, "seed: found -1, expected 0 to"),
        ([1], {"seed": 1 << 63}, "seed: found 9223372036854775808, expected 0 to"),
        ([1], {"seed": 1.0}, "seed: found 1.0, expected a whole number"),
        ([1], {"seed": False}, "seed: found False, expected a whole number"),
        ([1], {"stop": 5}, "stop: found 5, expected a text or several"),
        ([1], {"stop": ["a", 5]}, r"stop\[1\]: found 5, expected a text"),
        ([1], {"stop": b"ab"}, r"stop\[0\]: found 97, expected a text"),
        ([1], {"stop": ""}, "stop: found an empty text"),
        ([1], {"stop": ["a", ""]}, "stop: found an empty text"),
        ([1], {"stop": "a" * 1_000_000}, r"stop\[0\]: found a text of 1000000 characters, expected at most 4096"),
        ([1], {"stop": repeat("a")}, "stop: found more than 64 texts, expected at most as many"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens: found 0, expected at least 1"),
        ([1], {"max_new_tokens": True}, "max_new_tokens: found True, expected a whole number"),
        ([1], {"max_new_tokens": 10**5000}, "max_new_tokens: found a number of 16610 bits, expected a whole number"),
        ([1, 2], {"max_length": 2}, "max_length: found 2, expected more than the 2 tokens of the prompt"),
        ([1, 2], {"max_length": 9, "max_new_tokens": 7}, "max_length and max_new_tokens: give one of them"),
        ([1, 2], {"max_length": CONTEXT + 1}, "the plan has a context of"),
        ([10**5000], {}, r"prompt_ids\[0\]: found a number of 16610 bits, expected a whole number"),
        ([1], {"ignore_eos": 10**5000}, "ignore_eos: found a number of 16610 bits, expected True or False"),
        ([1], {"draft": "no"}, "draft: found 'no', expected True or False"),
        ([1], {"ignore_eos": 1}, "ignore_eos: found 1, expected True or False"),
        ([1], {"reuse": None}, "reuse: found None, expected True or False"),
        ([], {}, "prompt: empty"),
        ("", {}, "prompt: empty"),
        ([[]], {}, "prompt: empty"),
        (torch.empty(1, 0, dtype=torch.int64), {}, "prompt: empty"),
        ([1, -1], {}, r"prompt_ids\[1\]: found -1, expected 0 to 49"),
        (np.array([50]), {}, r"prompt_ids\[0\]: found 50, expected 0 to 49"),
        (torch.tensor([[1, 1 << 62]]), {}, r"prompt_ids\[1\]: found 4611686018427387904, expected 0 to 49"),
        ([True], {}, r"prompt_ids\[0\]: found True, expected a whole number"),
        ([torch.tensor(True)], {}, r"prompt_ids\[0\]: found True, expected a whole number"),
        (torch.tensor([True]), {}, r"prompt_ids\[0\]: found True, expected a whole number"),
        (np.array([1.0]), {}, r"prompt_ids\[0\]: found 1.0, expected a whole number"),
        (torch.tensor([1.0]), {}, r"prompt_ids\[0\]: found 1.0, expected a whole number"),
        (torch.tensor([[1], [2]]), {}, "prompt_ids: found 2 rows, expected one: generate_batch takes several prompts"),
        (np.ones((1, 2, 1), dtype=int), {}, r"prompt_ids\[0\]: found a list, expected a whole number"),
        (torch.tensor(1), {}, "prompt: found Tensor, expected text or a sequence of token ids"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), {}, "prompt: found a Tensor whose values cannot be read: "),
        (torch.ones(3, dtype=torch.int64).to_sparse(), {}, "prompt: found a Tensor whose values cannot be read: "),
        ([torch.zeros((), device="meta")], {}, r"prompt_ids\[0\]: found a Tensor whose values cannot be read: "),
        ([1], {"seed": torch.zeros((), device="meta")}, "seed: found a Tensor whose values cannot be read: "),
        (5, {}, "prompt: found int, expected text or a sequence of token ids"),
        (b"ab", {}, "prompt: found bytes, expected text or a sequence of token ids"),
        ({"input_ids": [1]}, {}, "prompt: found dict, expected text or a sequence of token ids"),
        (["a"], {}, r"prompt_ids\[0\]: found 'a', expected a whole number"),
    ],
)
def test_invalid_arguments_are_refused_even_if_unused(prompt: Any, wanted: Any, message: str, engine: Engine) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        engine.generate(prompt, **wanted)
    assert "\n" not in str(refusal.value)
    with pytest.raises(RequestError, match=message):
        engine.generate_batch([[1, 2], prompt] if "rows" not in message else [prompt], **wanted)


@pytest.mark.parametrize("prompts", ["def f(", b"ab", {"input_ids": [[1]]}, {1, 2}, 5, None, torch.tensor(1)])
def test_one_prompt_is_not_taken_for_several(prompts: Any, engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"^prompts: found a \w+, expected a sequence of prompts$"):
        engine.generate_batch(prompts)


def test_an_unknown_argument_is_a_type_error(engine: Engine) -> None:
    call: Any
    for call in (
        engine.generate,
        engine.stream,
        engine.request,
        lambda prompt, **more: engine.generate_batch([], **more),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature', did you mean 'temperature'"):
            call("dbebf", temprature=1)
        with pytest.raises(
            TypeError, match="unexpected keyword argument 'xyz', expected one of max_new_tokens, max_le"
        ):
            call("dbebf", xyz=1)


def test_a_refused_request_leaves_several_ranks_usable(tmp_path: Path) -> None:
    """No rank sees a request that is refused: the next one is served, and as before."""
    directory, plan = compiled_plan(tmp_path, ("a", "b"))
    anything: Any
    refused: list[dict[str, Any]] = [
        {"temprature": 1},
        {"stop": 5},
        {"stop": "a"},
        {"temperature": "1"},
        {"top_p": 0, "temperature": 1},
    ]
    refused += [{"top_k": -1}, {"seed": -1}, {"max_length": 3}, {"max_new_tokens": CONTEXT}]
    with Engine.open(directory) as engine:
        expected = engine.generate(PROMPT, max_new_tokens=9).tokens
        for anything in refused:
            with pytest.raises((RequestError, TypeError)):
                engine.generate(PROMPT, **anything)
            assert engine.generate(PROMPT, max_new_tokens=9).tokens == expected
        for anything in ([], [True], [1.5], [-1], [50], torch.tensor([[1], [2]]), None, "text without a tokenizer"):
            with pytest.raises(RequestError):
                engine.generate(anything)
            with pytest.raises(RequestError):
                engine.generate_batch([PROMPT, anything])
            assert engine.generate(PROMPT, max_new_tokens=9).tokens == expected
        unchecked = dataclasses.replace(engine.request(PROMPT), prompt_ids=(plan.model.vocab_size,))
        with pytest.raises(RequestError, match=r"prompt_ids\[0\]: found 50"):
            engine.serve(unchecked)
        assert engine.generate(PROMPT, max_new_tokens=9).tokens == expected


@pytest.mark.parametrize(
    "prompt",
    [
        tuple(PROMPT),
        iter(PROMPT),
        [PROMPT],
        np.array(PROMPT, dtype=np.int32),
        np.array([PROMPT], dtype=np.uint8),
        list(np.array(PROMPT)),
        torch.tensor(PROMPT),
        torch.tensor([PROMPT], dtype=torch.int16),
        list(torch.tensor(PROMPT)),
        array("q", PROMPT),
    ],
)
def test_prompt_ids_may_be_of_any_library(prompt: Any, engine: Engine) -> None:
    result = engine.generate(prompt, max_new_tokens=3)
    assert json.loads(json.dumps(result.prompt_ids)) == PROMPT
    assert result.tokens == engine.generate(PROMPT, max_new_tokens=3).tokens


def test_arguments_as_callers_of_transformers_and_eagle_write_them(engine: Engine) -> None:
    greedy = engine.generate(PROMPT, max_new_tokens=7)
    eagle = engine.generate(torch.tensor([PROMPT]), temperature=0.0, top_p=0.0, top_k=0, max_length=len(PROMPT) + 7)
    assert (eagle.tokens, eagle.seed) == (greedy.tokens, None)
    nothing = engine.generate(PROMPT, max_new_tokens=7, temperature=None, top_p=None, top_k=None, stop=None, seed=None)
    assert nothing.tokens == greedy.tokens
    drawn = engine.generate(PROMPT, max_new_tokens=7, temperature=np.float32(0.5), top_p=1, top_k=np.int64(3), seed=2)
    again = engine.generate(PROMPT, max_length=12, temperature=torch.tensor(0.5), top_p=1.0, top_k=3, seed=2)
    assert again.tokens == drawn.tokens
    for stop in ("b", ["b"], ("b",), iter("b")):
        assert "b" not in engine.generate(PROMPT, max_new_tokens=20, stop=stop).text


def test_a_dropped_stream_frees_the_engine_and_an_open_one_keeps_it_busy(engine: Engine) -> None:
    expected = engine.generate(PROMPT, max_new_tokens=9).tokens
    for _ in engine.stream(PROMPT, max_new_tokens=40):
        break
    assert engine.generate(PROMPT, max_new_tokens=9).tokens == expected
    kept = engine.stream(PROMPT, max_new_tokens=40)
    for ask in (engine.generate, lambda prompt: engine.generate_batch([prompt])):
        with pytest.raises(RequestError, match="serving another request"):
            ask(PROMPT)
    next(kept)
    kept.close()
    with pytest.raises(RequestError, match="the stream was closed before its end: it has no result"):
        kept.finished()
    assert engine.generate(PROMPT, max_new_tokens=9).tokens == expected


def test_several_threads_are_refused_or_served_one_at_a_time(engine: Engine) -> None:
    expected = engine.generate(PROMPT, max_new_tokens=9).tokens

    def ask(number: int) -> tuple[int, ...] | str:
        try:
            results = engine.generate_batch([PROMPT]) if number % 2 else [engine.generate(PROMPT, max_new_tokens=9)]
            return results[0].tokens[:9]
        except RequestError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        results = set(pool.map(ask, range(16)))
    assert {result for result in results if not isinstance(result, str)} == {expected}
    assert all("serving another request" in result for result in results if isinstance(result, str))


def test_a_closed_engine_refuses_requests_and_releases_its_image(tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path)
    with Engine.open(directory) as engine, Engine.open(directory) as other:
        one, two = (opened.stream(PROMPT, max_new_tokens=9) for opened in (engine, other))
        assert [*map(str, one)] == [*map(str, two)], "two engines serve at the same time"
        left = engine.stream(PROMPT)
        next(other.stream(PROMPT))
    for ask in (left.finished, lambda: engine.generate(PROMPT)):
        with pytest.raises(RequestError, match=r"the engine (is|was) closed"):
            ask()
    engine.close()
    with (directory / "a.safetensors").open("r+b"):
        pass  # fails if the engine still held its lease
