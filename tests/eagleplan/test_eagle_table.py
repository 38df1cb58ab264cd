"""The table of EAGLE's API in runtime/README.md: what stands in its second column is run, row by row, and checked."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import eagleplan
from planner.demo_model import BASE, DEFAULT_HEAD
from planner.errors import InputError
from runtime.engine import Engine, Stream
from runtime.request import GenerateOptions

README = (Path(__file__).parents[2] / "runtime" / "README.md").read_text()
ROWS = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (?:.*\|)$", README.partition("| SafeAILab/EAGLE |")[2], re.MULTILINE)
PROMPT = "def parse(text):\n"
NEW = 20
INVENTORY = "{hosts: [{name: box, devices: [{id: cpu0, type: cpu, memory: 2 GiB, bandwidth: 20 GB/s}]}]}"
Values = dict[str, Any]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Yield the names of the table: an open engine, a prompt as ids of shape [1, n], and files in the directory."""
    directory = tmp_path_factory.mktemp("table")
    (directory / "inventory.yaml").write_text(INVENTORY)
    (directory / "map.yaml").write_text("{'': cpu0}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("XDG_CACHE_HOME", str(directory))
        with eagleplan.open(BASE, draft=DEFAULT_HEAD, gpus="inventory.yaml") as engine:
            input_ids = torch.as_tensor(engine.tokenizer([PROMPT]).input_ids)
            names = {"base": BASE, "head": DEFAULT_HEAD, "torch": torch, "prompt": PROMPT, "eagleplan": _Detected()}
            yield names | {"engine": engine, "input_ids": input_ids, "output_ids": input_ids}


class _Detected:
    """The package, on a machine whose inventory is that of the test unless a row names one."""

    tree = staticmethod(eagleplan.tree)

    @staticmethod
    def open(*arguments: Any, **options: Any) -> Engine:
        return eagleplan.open(*arguments, **({"gpus": "inventory.yaml"} | options))


def greedy(values: Values) -> list[int]:
    """Return prompt and continuation as transformers has them."""
    if "greedy" not in values:
        model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        values["greedy"] = model.generate(values["input_ids"], max_new_tokens=NEW, do_sample=False)[0].tolist()
    row: list[int] = values["greedy"]
    return row


def opens(check: Callable[[Engine], bool]) -> Callable[[Any, Values], None]:
    def test(engine: Engine, values: Values) -> None:
        with engine:
            assert check(engine)
            assert list(engine.generate(values["input_ids"], max_new_tokens=NEW).ids) == greedy(values)

    return test


def opens_with(name: str, value: object) -> Callable[[Any, Values], None]:
    """Return the check of an engine whose plan has an option, and which says what transformers says."""
    return opens(lambda engine: getattr(engine.plan.options, name) == value)


def equals(expected: Callable[[Values], object]) -> Callable[[Any, Values], None]:
    def test(result: Any, values: Values) -> None:
        assert result == expected(values)

    return test


def bfloat16(engine: Engine, values: Values) -> None:
    with engine:
        assert engine.plan.options.dtype == "bfloat16"
        assert len(engine.generate(values["input_ids"], max_new_tokens=NEW).tokens) == NEW


def a_row(result: torch.Tensor, values: Values) -> None:
    assert result.tolist() == [greedy(values)]


def a_log(result: eagleplan.Generation, values: Values) -> None:
    """EAGLE's three results: the row, its new tokens, its steps; the last step may be cut off."""
    assert list(result.ids) == greedy(values)
    assert len(result.tokens) == NEW
    committed = [length + 1 for length in result.accept_lengths]
    assert 1 + sum(committed[:-1]) < NEW <= 1 + sum(committed)


def drawn(result: eagleplan.Generation, values: Values) -> None:
    options = GenerateOptions(temperature=0.5, top_p=0.9, top_k=40, max_new_tokens=NEW, seed=3)
    again = values["engine"].generate(values["input_ids"], draft=False, **options)
    assert (result.seed, result.tokens) == (3, again.tokens)
    assert result.accept_lengths


def streamed(stream: Stream, values: Values) -> None:
    pieces = list(stream)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert values["input_ids"][0].tolist() + tokens == greedy(values)
    assert stream.result is not None
    assert "".join(pieces) == stream.result.text
    assert len(pieces) > 1


def plain(result: eagleplan.Generation, values: Values) -> None:
    assert list(result.ids) == greedy(values)
    assert result.accept_lengths == ()


def measured(load_s: float, values: Values) -> None:
    assert load_s > 0


def a_short_row(result: eagleplan.Generation, values: Values) -> None:
    assert len(result.ids) == 16
    assert list(result.ids) == greedy(values)[:16]


def the_tokenizer(tokenizer: Any, values: Values) -> None:
    assert torch.equal(tokenizer(PROMPT, return_tensors="pt").input_ids, values["input_ids"])
    assert tokenizer.decode(values["input_ids"]) == PROMPT


REFUSED: dict[str, tuple[type[Exception], str]] = {
    "total_token=-1": (InputError, "total_token: found -1, expected a whole number from 2"),
    "threshold=1.0": (TypeError, "unexpected keyword argument 'threshold'"),
}
TREE = eagleplan.tree(total_token=30, depth=5, top_k=8)
CHECKS: dict[str, Callable[[Any, Values], None]] = {
    "EaModel.from_pretrained(base_model_path=base, ea_model_path=head)": opens(
        lambda engine: engine.plan.speculation is not None
    ),
    "use_eagle3=True": equals(lambda values: "eagle3"),
    "torch_dtype=torch.bfloat16": bfloat16,
    'device_map="auto"': opens_with("strategy", "latency"),
    'device_map="balanced"': opens_with("strategy", "balanced"),
    "device_map={...}": opens_with("strategy", "custom"),
    "max_memory={...}": opens(lambda engine: engine.plan.devices[0].memory_bytes == 2 << 30),
    "total_token=30, depth=5, top_k=8": opens_with("tree", TREE),
    "max_length=512": opens_with("context", 512),
    "low_cpu_mem_usage=True": measured,
    "model.eval()": equals(lambda values: values["engine"].started),
    "model.tokenizer": the_tokenizer,
    "model.get_tokenizer()": the_tokenizer,
    "model.tokenizer([prompt]).input_ids": equals(lambda values: values["input_ids"].tolist()),
    "model.eagenerate(input_ids, max_new_tokens=20)": a_row,
    "model.eagenerate(input_ids, max_new_tokens=20, log=True)": a_log,
    "model.eagenerate(input_ids, temperature=0.5, top_p=0.9, top_k=40, max_new_tokens=20)": drawn,
    "model.eagenerate(input_ids, max_length=16)": a_short_row,
    "model.eagenerate(input_ids, is_llama3=True)": equals(lambda values: (0,)),
    "model.ea_generate(input_ids, max_new_tokens=20)": streamed,
    "model.naivegenerate(input_ids, max_new_tokens=20)": plain,
    "model.naive_generate(input_ids, max_new_tokens=20)": streamed,
    "model.tokenizer.decode(output_ids[0])": equals(lambda values: PROMPT),
}


def test_every_row_has_a_check() -> None:
    assert sorted(row for row, _ in ROWS) == sorted([*CHECKS, *REFUSED])


@pytest.mark.parametrize(("there", "here"), ROWS, ids=[there for there, _ in ROWS])
def test_a_row_of_the_table(there: str, here: str, values: Values) -> None:
    if there in REFUSED:
        error, message = REFUSED[there]
        with pytest.raises(error, match=message):
            eval(here, dict(values))
    else:
        CHECKS[there](eval(here, dict(values)), values)
