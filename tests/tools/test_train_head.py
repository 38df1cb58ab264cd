"""Training of EAGLE-3 heads on the embedded base: answers, self-fed steps, improvement, resuming, refused input."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import planner
import train_head
from eagle_heads import Eagle3Head
from head_training.base import Base, load_base
from head_training.errors import TrainingError
from head_training.generation import Choice, answer_group, follow_group
from head_training.head import extended, head_config, new_head, read_head, write_head
from head_training.loss import cross_entropy, run_steps
from head_training.optimizers import orthogonalise
from head_training.progress import Usage
from head_training.prompts import Prompt, Text, in_groups, invent, is_held_out, read_prompts
from head_training.rows_attention import attend_rows
from head_training.store import Stored, read_chunk, write_chunk
from head_training.training import CHECKPOINT, Training, TrainingSettings, batches_of_like, make_batch
from measure_demo import Memory, generate_greedily
from tests.tools.tiny_gguf import tiny_tokenizer
from tools.smollm2_head import make_prompts

ROOT = Path(__file__).parents[2]
HEAD = ROOT / "tools" / "smollm2_head"
MODEL = ROOT / "planner" / "demo" / "base"
SOURCE = "\n\n".join(file.read_text() for file in sorted((ROOT / "plans").glob("*.py"))[:12])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: small matrices, and threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(MODEL, "float32")


@pytest.fixture(scope="module")
def prompts(base: Base) -> list[list[int]]:
    """Prompts of different lengths."""
    ids = Text(MODEL, chat=False).encode(SOURCE)
    return [ids[100 * i : 100 * i + 20 + 7 * (i % 5)] for i in range(12)]


@pytest.mark.parametrize("shared", [0, 30])
def test_answers_are_those_of_each_prompt_alone(base: Base, prompts: list[list[int]], shared: int) -> None:
    """Prompts of several lengths, also where all begin with the same tokens."""
    beginning = prompts[-1][:shared]
    prompts = [beginning + prompt for prompt in prompts] + [beginning + prompts[0][:1]]
    answers = answer_group(base, prompts, 24, Choice())
    reference = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = generate_greedily(reference, torch.tensor([prompt]), 24)[0].tolist()
        assert answer.tokens == alone
        assert answer.start == len(prompt)
        with torch.no_grad():
            out = reference.model(torch.tensor([alone]), output_hidden_states=True, use_cache=False)
        states = torch.cat([out.hidden_states[i] for i in (2, 4, 5)] + [out.last_hidden_state], dim=-1)[0, :-1]
        torch.testing.assert_close(answer.states, states, rtol=1e-3, atol=1e-3)
        (followed,) = follow_group(base, [(prompt, alone[len(prompt) :])], 512)
        assert followed.tokens == alone
        assert followed.choices is not None
        assert followed.choices[len(prompt) - 1 :] == alone[len(prompt) :]
        torch.testing.assert_close(followed.states, states, rtol=1e-3, atol=1e-3)


def test_self_fed_steps_are_what_a_drafter_computes(base: Base, prompts: list[list[int]]) -> None:
    """The loss of every step at a pair is that of a chain which is drafted from there, over a cache."""
    torch.manual_seed(0)
    answers = answer_group(base, prompts[:3], 16, Choice())
    rows = [Stored(tokens=a.tokens, start=a.start, choices=a.tokens[1:], states=as_stored(a.states)) for a in answers]
    head = new_head(base, head_config(base, 300, 512), torch.ones(base.config.vocab_size))
    batch = make_batch(base, rows)
    batch = dataclasses.replace(batch, features=batch.features.float())
    steps = 4
    pairs = [row.start + 2 for row in rows]
    results = run_steps(head, base, batch, torch.tensor(pairs)[:, None], steps, hard_share=1.0)
    expected = []
    assert float(results[0].loss.detach()) == pytest.approx(
        sum(first_step_loss(head, base, row) for row in rows), rel=1e-3
    )
    for row, pair in zip(rows, pairs, strict=True):
        memory = Memory()
        features = head.fc(row.load_states()[: pair + 1, : 3 * 192].float())
        tokens = row.tokens[1 : pair + 2]
        visible = torch.ones(pair + 1, pair + 1, dtype=torch.bool).tril()
        feature = features[None]
        losses = []
        for j in range(steps):
            positions = torch.arange(pair + 1) if j == 0 else torch.tensor([pair + j])
            embedding = base.embedding[torch.tensor([tokens])]
            feature = head(embedding, feature, positions, memory.attend(visible))[:, -1:]
            log_p = head.logits(feature[0, 0], base.model).log_softmax(-1)
            final = row.load_states()[pair + 1 + j, 3 * 192 :]
            first = (final @ base.lm_head[head.token_ids()].to(final.dtype).T).argmax()
            losses.append(-float(log_p[first].detach()))
            tokens = [row.tokens[pair + 2 + j]]
            visible = torch.ones(1, pair + 2 + j, dtype=torch.bool)
        expected.append(losses)
    for j in range(1, steps):
        ids = [row.choices[pair + 1 : pair + 2 + j] for row, pair in zip(rows, pairs, strict=True)]
        covered = [bool(head.t2d[choices[-1]]) for choices in ids]
        alive = [bool(head.t2d[choices[:-1]].all()) for choices in ids]
        total = sum(loss[j] for loss, c, a in zip(expected, covered, alive, strict=True) if c and a)
        assert results[j].rows == sum(alive)
        assert float(results[j].loss.detach()) == pytest.approx(total, rel=0.02, abs=1e-3)


@torch.no_grad()
def first_step_loss(head: Eagle3Head, base: Base, row: Stored) -> float:
    """Return the loss of all pairs from the one that predicts the answer's second token, the whole prompt before."""
    pairs = len(row.tokens) - 2
    states = row.load_states().float()
    visible = torch.ones(pairs, pairs, dtype=torch.bool).tril()
    embedding = base.embedding[torch.tensor([row.tokens[1 : pairs + 1]])]
    features = head.fc(states[None, :pairs, : 3 * 192])
    log_p = head.logits(head(embedding, features, torch.arange(pairs), Memory().attend(visible)), base.model)
    log_p = log_p[0].log_softmax(-1)
    first = (states[1:, 3 * 192 :] @ base.lm_head[head.token_ids()].T).argmax(-1)
    counted = [i for i in range(row.start - 1, pairs) if head.t2d[row.choices[i + 1]]]
    return -float(log_p[counted, first[counted]].sum())


def as_stored(states: torch.Tensor) -> Any:
    return states.to(torch.bfloat16).contiguous().view(torch.int16).numpy()


def command(work: Path, out: Path, *more: object) -> list[str]:
    prompts = work.parent / "source.txt"
    prompts.write_text(SOURCE[:12_000])
    options = ("--no-chat", "--window", 40, "--max-new-tokens", 24, "--group", 64, "--held-out", 8, "--passes", 4)
    options += ("--batch", 8, "--unroll", 3, "--self-fed-rows", 8, "--draft-vocab", 1024, "--evaluate-every", 1000)
    fixed = ("--model", MODEL, "--prompts", prompts, "--work", work, "--out", out, "--dtype", "float32")
    return [str(argument) for argument in (*fixed, *options, *more)]


def run(*arguments: str) -> None:
    """Run the tool in this process."""
    train_head.train_head(train_head.parse_arguments(list(arguments)))


def figures(cells: list[str]) -> list[float]:
    """Return the numbers in cells of a table of Markdown."""
    return [float(number) for cell in cells for number in cell.split(",") if number.strip()]


def test_it_learns_and_a_killed_run_goes_on_to_the_same_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*command(tmp_path / "work", tmp_path / "whole"))
    card = (tmp_path / "whole" / "README.md").read_text()
    rows = [line.split("|") for line in card.splitlines() if line.startswith("| ") and "step" not in line]
    losses, rates = (list(zip(*(figures([row[column]]) for row in rows), strict=True)) for column in (3, 4))
    assert all(loss[-1] < loss[0] - 1 for loss in losses), card
    assert rates[0][-1] > rates[0][0] + 0.05, card
    placed = planner.plan(MODEL, inventory=ROOT / "inventory.yaml", draft=tmp_path / "whole", context=256)
    assert placed.plan.draft is not None
    assert placed.plan.draft.draft_vocab_size == 1024

    # killed in the middle of training, where the answers and a checkpoint are there
    (tmp_path / "work" / "training.pt").unlink()
    killer = (
        "import os, sys, train_head\n"
        "from head_training.training import Training\n"
        "import head_training.training as training\n"
        "training.CHECKPOINT_S = 0.0\n"
        "step = Training._one_step\n"
        "def killing(self):\n"
        "    loss = step(self)\n"
        "    if self.step == 12: os.kill(os.getpid(), 9)\n"
        "    return loss\n"
        "Training._one_step = killing\n"
        "train_head.train_head(train_head.parse_arguments(sys.argv[1:]))\n"
    )
    arguments = command(tmp_path / "work", tmp_path / "resumed")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    killed = subprocess.run(
        [sys.executable, "-c", killer, *arguments], env=environment, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "work" / "training.pt").exists()
    run(*arguments)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    with pytest.raises(TrainingError, match=r"training\.pt: seed: found 1, expected 2: .* give another --work"):
        run(*command(tmp_path / "work", tmp_path / "other", "--seed", 2))

    # from the finished head on, over the same answers: it keeps its vocabulary and begins as good as it was
    further = tmp_path / "further"
    further.mkdir()
    for chunk in [*(tmp_path / "work").glob("*.json"), *(tmp_path / "work").glob("*.states")]:
        (further / chunk.name).symlink_to(chunk)
    more = ("--from", tmp_path / "whole", "--rate", 0.3, "--passes", 1)
    arguments = [a for a in command(further, tmp_path / "longer", *more) if a not in ("--draft-vocab", "1024")]
    run(*arguments)
    longer = (tmp_path / "longer" / "README.md").read_text()
    assert "It goes on from a head" in longer
    first = next(line for line in longer.splitlines() if line.startswith("| 0 |")).split("|")
    last = card.splitlines()[-4].split("|")
    # the weights are in bfloat16 by now, which moves a share that is printed by a hundredth at most
    assert figures(first[3:]) == pytest.approx(figures(last[3:]), abs=0.011), (card, longer)
    kept, new = (
        load_file(tmp_path / "whole" / "model.safetensors"),
        load_file(tmp_path / "longer" / "model.safetensors"),
    )
    assert torch.equal(kept["d2t"], new["d2t"])
    assert not torch.equal(kept["lm_head.weight"], new["lm_head.weight"])
    with pytest.raises(TrainingError, match=r"training\.pt: from: found [0-9a-f]{16}, expected None"):
        run(*command(further, tmp_path / "other", "--rate", 0.3, "--passes", 1))


@pytest.mark.parametrize(
    ("entries", "tensors", "message"),
    [
        ({"vocab_size": 2047}, {}, "config.json: vocab_size: found 2047, expected 2048, the base's"),
        ({"hidden_act": "gelu"}, {}, "config.json: hidden_act: found gelu, expected silu"),
        ({"draft_vocab_size": None}, {}, "config.json: draft_vocab_size: found None, expected a positive integer"),
        ({"rope_theta": None}, {}, "config.json: rope_theta: found None, expected a positive number"),
        ({"num_key_value_heads": 5}, {}, "config.json: num_attention_heads: found 8 over 5 KV heads"),
        ({"draft_vocab_size": 301}, {}, "--draft-vocab: found 300, expected 301 to 2048: "),
        ({}, {"fc.weight": None}, "model.safetensors: fc.weight: missing"),
        ({}, {"fc.bias": torch.zeros(192)}, "model.safetensors: fc.bias: not known"),
        ({}, {"norm.weight": torch.zeros(8)}, "model.safetensors: norm.weight: found shape [8], expected [192]"),
        ({}, {"d2t": torch.ones(300, dtype=torch.int64)}, "model.safetensors: d2t: found other tokens than t2d marks"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    tmp_path: Path, base: Base, entries: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    config = head_config(base, 300, 512)
    write_head(tmp_path, new_head(base, config, torch.ones(base.config.vocab_size)), config)
    assert read_head(tmp_path, base, 300).config == config
    (tmp_path / "config.json").write_text(json.dumps(config | entries))
    stored = load_file(tmp_path / "model.safetensors") | tensors
    save_file({name: t for name, t in stored.items() if t is not None}, tmp_path / "model.safetensors")
    with pytest.raises(TrainingError, match=re.escape(message)):
        read_head(tmp_path, base, 300)
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="cannot be read as a head"):
        read_head(tmp_path, base, 300)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"model\.safetensors: No such file"):
        read_head(tmp_path, base, 300)


def test_a_head_gets_further_tokens_and_drafts_the_others_as_before(base: Base) -> None:
    """Logits of tokens that it had are the same; a new token's are those of the base's own row of the lm_head."""
    torch.manual_seed(0)
    counts = torch.arange(base.config.vocab_size).float().flip(0)  # the smallest ids are the most frequent
    head = new_head(base, head_config(base, 300, 512), counts)
    torch.nn.init.normal_(head.lm_head.weight)
    more = counts.clone()
    more[[290, 700, 31]], more[[5, 9]] = 9e9, 0  # two of these three are there already, as are those that became rare
    config = head_config(base, 310, 512)
    larger = extended(head, base, config, more)
    ids = larger.token_ids().tolist()
    assert ids == sorted([*range(309), 700])
    assert larger.t2d.nonzero()[:, 0].tolist() == ids
    feature = torch.randn(4, base.config.hidden_size)
    before, after = head.logits(feature, base.model), larger.logits(feature, base.model)
    torch.testing.assert_close(after[:, :300], before)
    torch.testing.assert_close(after[:, 300:], head.norm(feature) @ base.lm_head[ids[300:]].T)
    assert extended(head, base, head_config(base, 300, 512), more) is head


def test_a_narrow_head_begins_as_the_strongest_units_of_the_base(base: Base) -> None:
    """The first MLP is the base's last one where only the hidden units of the largest weights are left."""
    counts = torch.ones(base.config.vocab_size)
    head = new_head(base, head_config(base, 300, 512, mlp_width=40), counts)
    mlp = base.model.model.layers[-1].mlp
    weight = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
    left = weight >= weight.topk(40).values[-1]
    x = torch.randn(3, base.config.hidden_size)
    units = torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x) * left
    torch.testing.assert_close(head.midlayer.mlp(x), mlp.down_proj(units))


@pytest.mark.parametrize("shape", [(2, 24, 60), (3, 60, 24), (2, 32, 32)])
def test_matrices_are_orthogonalised_as_muon_does(shape: tuple[int, int, int]) -> None:
    """Long matrices, by their Gram matrices, and square ones: the quintic iteration on singular values, in float64."""
    torch.manual_seed(0)
    matrices = torch.randn(shape) @ torch.diag(torch.logspace(0, -4, shape[-1]))
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / matrices.double().norm(dim=(-2, -1))[:, None]
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalise(matrices).double(), u @ torch.diag_embed(s) @ v, rtol=1e-3, atol=1e-3)


def test_a_chunk_is_whole_or_not_there(tmp_path: Path, base: Base, prompts: list[list[int]]) -> None:
    answers = answer_group(base, prompts[:4], 6, Choice())
    write_chunk(tmp_path, "chunk", answers)
    rows = read_chunk(tmp_path, "chunk", base.width)
    assert [row.tokens for row in rows] == [answer.tokens for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        assert torch.equal(row.load_states(), answer.states.to(torch.bfloat16))
    assert {file.name for file in tmp_path.iterdir()} == {"chunk.json", "chunk.states"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a mapping with either prompt or messages"),
        ('{"prompt": "a", "messages": []}', "expected a mapping with either prompt or messages"),
        ('{"prompt": 1}', "prompt: found int, expected a text"),
        ('{"prompt": "a", "answer": 2}', "answer: found int, expected a text"),
        ('{"prompt": "a", "label": 2}', "label: not known, expected prompt, messages or answer"),
        ('{"messages": []}', "messages: expected a list of at least one message"),
        (
            '{"messages": [{"role": "robot", "content": ""}]}',
            r"messages[0]: expected role (one of system, user, assistant)",
        ),
        ('{"messages": [{"role": "user", "content": 1}]}', "messages[0].content: expected a text"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(TrainingError) as caught:
        read_prompts(tmp_path / "p.jsonl", chat_text(tmp_path), 64)
    assert str(caught.value).startswith(f"{tmp_path}/p.jsonl:2: ")
    assert message in str(caught.value)


def chat_text(directory: Path) -> Text:
    """A tokenizer with a chat template."""
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Text(directory, chat=True)


def test_prompts_are_rendered_and_given_answers_are_kept(tmp_path: Path) -> None:
    text = chat_text(tmp_path)
    question, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    lines = [
        {"prompt": "hi"},
        {"messages": [question]},
        {"messages": [question, answer]},
        {"prompt": "hi", "answer": "yes"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked, same, ended, with_answer = read_prompts(tmp_path / "p.jsonl", text, 64)
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text.tokenizer.decode(list(asked.tokens), skip_special_tokens=False) == expected
    assert asked == same
    assert ended == with_answer
    assert ended.tokens == asked.tokens
    assert text.tokenizer.decode(list(ended.answer or ()), skip_special_tokens=False) == "yes<|im_end|>\n"
    (tmp_path / "p.txt").write_text("hi\n\nhi\n")
    assert read_prompts(tmp_path / "p.txt", text, 64) == [asked, asked]


def test_without_a_template_a_chat_is_refused() -> None:
    with pytest.raises(TrainingError, match="no chat template: give --no-chat"):
        Text(MODEL, chat=True)


def test_a_base_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"config\.json: missing"):
        load_base(tmp_path, "float32")
    config = json.loads((MODEL / "config.json").read_text()) | {"num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    LlamaForCausalLM(LlamaForCausalLM.config_class(**config)).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="num_hidden_layers: found 6, expected at least 7"):
        load_base(tmp_path, "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [0, 5])
def test_one_query_per_row_attends_as_torch_does(dtype: torch.dtype, shared: int) -> None:
    """Rows of several first columns over shared columns and their own, of a cache that has more."""
    torch.manual_seed(0)
    rows, kv_heads, group, dim, columns = 4, 2, 3, 16, 9
    query = torch.randn(rows, kv_heads, group, dim).to(dtype)
    first = torch.tensor([0, 3, 8, 1])
    before = [torch.randn(kv_heads, shared, dim).to(dtype) for _ in range(2)]
    own = [torch.randn(rows, kv_heads, 12, dim).to(dtype) for _ in range(2)]
    out = attend_rows(query, (before[0], own[0]), (before[1], own[1]), first, columns, 0.3)
    k, v = (torch.cat((b.expand(rows, -1, -1, -1), o[:, :, :columns]), 2) for b, o in zip(before, own, strict=True))
    column = torch.arange(shared + columns)
    visible = ((column < shared) | (column - shared >= first[:, None]))[:, None, None]
    scaled = torch.nn.functional.scaled_dot_product_attention
    expected = scaled(query.float(), k.float(), v.float(), attn_mask=visible, scale=0.3)
    torch.testing.assert_close(out.float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_prompts_of_a_group_begin_alike_and_are_of_like_lengths() -> None:
    rng = random.Random(0)
    usual, other = tuple(range(16)), tuple(range(5, 21))
    lists = [(other if i % 10 == 0 else usual) + (7,) * rng.randrange(1, 40) for i in range(400)]
    groups = in_groups([Prompt(tokens=tokens) for tokens in lists], 50)
    assert sorted(p.tokens for group in groups for p in group) == sorted(lists)
    mixed = [group for group in groups if len({p.tokens[:16] for p in group}) == 2]
    assert len(mixed) <= 1
    assert all(len(group[-1].tokens) - len(group[0].tokens) < 20 for group in groups if group not in mixed[:1])


def test_batches_hold_every_sequence_of_a_pass_once_beside_like_ones() -> None:
    rng = random.Random(0)
    rows = [
        Stored(tokens=[0] * rng.randrange(20, 120), start=rng.randrange(5, 15), choices=[], states=np.zeros(0))
        for _ in range(1000)
    ]
    batches = batches_of_like(rows, 8, random.Random(1))
    assert batches == batches_of_like(rows, 8, random.Random(1))
    assert batches != batches_of_like(rows, 8, random.Random(2))
    assert all(len(batch) == 8 for batch in batches)
    used = [id(row) for batch in batches for row in batch]
    assert len(used) == len(set(used)) == len(rows)
    apart = sum(max(row.start for row in batch) - min(row.start for row in batch) for batch in batches) / len(batches)
    assert apart < 2


class Clock(Usage):
    """Processor time of 30 s between two looks."""

    now = 0.0

    def seconds(self) -> float:
        self.now += 30
        return self.now


def test_a_training_takes_its_minutes_over_all_runs(base: Base, prompts: list[list[int]], tmp_path: Path) -> None:
    """Rates fall with them, whatever the most steps are."""
    answers = answer_group(base, prompts[:3], 16, Choice())
    rows = [Stored(tokens=a.tokens, start=a.start, choices=a.tokens[1:], states=as_stored(a.states)) for a in answers]
    fixed = {"batch": 1, "unroll": 1, "self_fed_rows": 1, "hard_share": 0.5, "evaluate_every": 100, "rate": 1.0}
    settings = TrainingSettings(steps=10**6, minutes=4.0, seed=1, **fixed)

    def training() -> Training:
        return Training(base, head_config(base, 300, 512), settings, (rows[:2], rows[2:]), tmp_path)

    first, rates = training(), []
    step = first.schedule.step
    first.schedule.step = lambda number, done: (rates.append(done), step(number, done))[1]  # type: ignore[method-assign, func-returns-value]
    first.run(lambda _line: None, Clock(tmp_path))
    assert (first.step, first.done) == (8, 1.0)
    assert rates == [number / 8 for number in range(8)]
    resumed = training()
    resumed.run(lambda _line: None, Clock(tmp_path))
    assert (resumed.step, resumed.seconds) == (8, 240.0)
    file = tmp_path / CHECKPOINT
    earlier = torch.load(file, weights_only=True)
    del earlier["key"]["minutes"], earlier["seconds"]  # as before there was a limit of minutes
    torch.save(earlier, file)
    with pytest.raises(TrainingError, match=r"minutes: found nothing, expected 4\.0: .*remove it or give another"):
        training().run(lambda _line: None, Clock(tmp_path))


def test_a_loss_and_its_gradient_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    count, vocabulary, hidden, hard = 300, 40, 8, 0.3
    logits = torch.randn(count, vocabulary, requires_grad=True)
    final, rows = torch.randn(count, hidden), torch.randn(vocabulary, hidden)
    covered = torch.rand(count) < 0.7
    first = (final @ rows.T).argmax(-1)
    loss, right = cross_entropy(logits, final, rows, covered, first, hard)
    (2 * loss).backward()
    found = logits.grad
    logits.grad = None
    target = (1 - hard) * (final @ rows.T).softmax(-1) + hard * torch.nn.functional.one_hot(first, vocabulary)
    expected = -(target * logits.log_softmax(-1)).sum(-1)[covered].sum()
    (2 * expected).backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, logits.grad)
    assert torch.equal(right, (logits.argmax(-1) == first) & covered)


def test_prompts_to_train_on_are_not_those_of_the_measures() -> None:
    prompts = make_prompts.prompts(3000, [[{"role": "user", "content": "So why is the sky so blue?"}]])
    assert len(prompts) == 3000
    texts = {message["content"] for messages in prompts for message in messages}
    assert "How does a microwave oven work?" in texts
    assert not texts & set(json.loads((HEAD / "prompts.json").read_text()))
    assert not texts & set((HEAD / "profile_prompts.txt").read_text().splitlines())
    assert make_prompts.prompts(20) == prompts[:20]


def test_held_out_prompts_are_one_in_so_many() -> None:
    rng = random.Random(0)
    kept = sum(is_held_out([rng.randrange(1000) for _ in range(20)], 16) for _ in range(2000))
    assert 90 <= kept <= 160


def test_the_base_writes_questions(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = chat_text(tmp_path)
    monkeypatch.setattr("head_training.prompts.INVENTED_TOGETHER", 4)
    monkeypatch.setattr("head_training.prompts.INVENTED_TOKENS", 30)
    monkeypatch.setattr(type(base), "end_ids", property(lambda _self: frozenset(range(0, 2048, 7))))
    questions = list(invent(base, text, 3, seed=1))
    assert len(set(questions)) == 3
    assert questions == list(invent(base, text, 3, seed=1))
