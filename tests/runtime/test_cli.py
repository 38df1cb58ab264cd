"""The commands as a shell sees them: exit codes, what goes to stdout, what to stderr."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plans import codec
from plans.schema import Plan
from runtime.cli import main
from runtime.service import Engine
from tests.runtime.small import CONTEXT, compiled_plan, write_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    return compiled_plan(tmp_path_factory.mktemp("cli"), ("a", "b"))


def runtime(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_run_prints_one_object(plan_dir: tuple[Path, Plan]) -> None:
    done = runtime("run", plan_dir[0], "--prompt-ids", "1,2,3", "--max-new-tokens", "12", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["prompt_ids"] == [1, 2, 3]
    assert len(told["tokens"]) == 12
    assert sum(told["accept_lengths"]) + len(told["accept_lengths"]) + 1 >= 12
    assert told["plan_digest"] == codec.digest(plan_dir[1])
    assert min(told[key] for key in ("load_s", "prefill_s", "decode_s", "tokens_per_s")) > 0
    assert [device["device"] for device in told["devices"]] == ["a", "b"]
    for device in told["devices"]:
        assert all(device["measured_bytes"][term] <= planned for term, planned in device["planned_bytes"].items())


def test_run_streams_text_on_stdout_and_figures_on_stderr(plan_dir: tuple[Path, Plan], tmp_path: Path) -> None:
    directory = tmp_path / "plan"
    shutil.copytree(plan_dir[0], directory)
    write_tokenizer(directory)
    done = runtime("run", directory, "--prompt", "abc", "--max-new-tokens", "8", "--no-draft")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert "mean acceptance length 1.00" in done.stderr
    assert codec.digest(plan_dir[1])[:16] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt-ids", "1,x"], 2, "--prompt-ids: found '1,x', expected numbers like 1,2,3"),
        (["--prompt-ids", ""], 2, "prompt: empty"),
        (["--prompt-ids", "1,77"], 2, "prompt_ids[1]: found 77, expected 0 to 49"),
        (["--prompt", "abc"], 2, "tokenizer.json: not there"),
        (["--prompt-ids", "1", "--stop", "x"], 2, "tokenizer.json: not there"),
        (["--prompt-ids", "1", "--temperature", "-1"], 2, "temperature: found -1, expected 0 (greedy) or at least"),
        (["--prompt-ids", "1", "--temperature", "1", "--top-p", "0"], 2, "top_p: found 0, expected more than 0"),
        (["--prompt-ids", "1", "--temperature", "1", "--top-k", "-1"], 2, "top_k: found -1, expected 1 to 2^63 - 1"),
        (["--prompt-ids", "1", "--temperature", "1", "--seed", "-1"], 2, "seed: found -1, expected 0 to 2^63 - 1"),
        (["--prompt-ids", "1", "--chat"], 2, "tokenizer_config.json: chat_template: missing"),
        (["--prompt-ids", "1", "--system", "x"], 2, "--system: only with --chat"),
        (["--prompt-ids", "1", "--interactive"], 2, "--interactive: not with --prompt, --prompt-ids"),
        (["--prompt-ids", "1", "--max-new-tokens", str(CONTEXT)], 2, f"the plan has a context of {CONTEXT}"),
    ],
)
def test_run_refuses(
    arguments: list[str],
    code: int,
    message: str,
    plan_dir: tuple[Path, Plan],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["runtime", "run", str(plan_dir[0]), *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (code, "")
    assert message in told.err


def test_run_without_images_names_them_and_the_command(plan_dir: tuple[Path, Plan], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes((plan_dir[0] / "plan.yaml").read_bytes())
    done = runtime("run", tmp_path, "--prompt-ids", "1")
    assert done.returncode == 4
    assert "a.safetensors, b.safetensors" in done.stderr
    assert f"python -m planner compile {tmp_path}" in done.stderr


def test_torchrun_must_start_one_process_per_device(plan_dir: tuple[Path, Plan]) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = runtime("run", plan_dir[0], "--prompt-ids", "1", **place)
    assert done.returncode == 5
    assert "torchrun started 3 processes, the plan has 2 devices" in done.stderr


def test_verify_reads_every_image(plan_dir: tuple[Path, Plan], tmp_path: Path) -> None:
    assert runtime("verify", plan_dir[0]).returncode == 0
    directory = tmp_path / "plan"
    shutil.copytree(plan_dir[0], directory)
    image = directory / "b.safetensors"
    damaged = bytearray(image.read_bytes())
    damaged[-1000] ^= 1
    image.write_bytes(damaged)
    done = runtime("verify", directory)
    assert done.returncode == 4
    assert "b.safetensors: BLAKE3" in done.stderr
    done = runtime("verify", directory, "--only", "a", "--json")
    assert (done.returncode, [image["device"] for image in json.loads(done.stdout)["images"]]) == (0, ["a"])
    asked = ("run", directory, "--prompt-ids", "1", "--max-new-tokens", "4")
    assert runtime(*asked).returncode == 4
    assert runtime(*asked, "--no-verify").returncode == 0
    image.write_bytes(damaged[:-256])
    assert runtime(*asked, "--no-verify").returncode == 4, "sizes are compared anyway"


@pytest.fixture(scope="module")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One device, with a tokenizer and a chat template."""
    directory, _ = compiled_plan(tmp_path_factory.mktemp("chat"))
    write_tokenizer(directory)
    template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}a"
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return directory


def fed(text: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        cwd=ROOT, input=text, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_prompt_from_stdin_in_the_chat_template(chat_dir: Path) -> None:
    common = ("run", chat_dir, "--max-new-tokens", "5", "--json", "--temperature", "1", "--seed", "7")
    piped = json.loads(fed("bcd", *common, "--prompt", "-", "--chat", "--system", "e").stdout)
    told = json.loads(runtime(*common, "--prompt", "seubcda").stdout)
    assert (piped["prompt_ids"], piped["tokens"], piped["seed"]) == (told["prompt_ids"], told["tokens"], 7)


def test_a_conversation_goes_on_from_what_was_said(chat_dir: Path) -> None:
    done = fed("bc\n\ndef\n" + "g" * CONTEXT + "\nh\n", "run", chat_dir, "--interactive", "--max-new-tokens", "4", "-v")
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    with Engine.open(chat_dir) as engine:
        answer = engine.generate("bc", max_new_tokens=4)
        assert first == answer.text
        said = [*answer.prompt_ids, *answer.tokens, 3, 4, 5]
        again = engine.generate(said, max_new_tokens=4)
        assert second == again.text
        assert third == engine.generate([*said, *again.tokens, 7], max_new_tokens=4).text, (
            "what was refused was not said"
        )
    assert done.stderr.count("tokens/s, mean acceptance length") == 3
    assert f"the plan has a context of {CONTEXT}" in done.stderr


def test_ctrl_c_ends_the_answer_and_then_the_conversation(tmp_path: Path) -> None:
    directory, _ = compiled_plan(tmp_path, context=4000)
    write_tokenizer(directory)
    run = subprocess.Popen(
        [sys.executable, "-m", "runtime", "run", str(directory), "--interactive", "--ignore-eos",
         "--max-new-tokens", "3900"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write("abc\n")
    run.stdin.flush()
    assert run.stdout.read(1)
    run.send_signal(signal.SIGINT)
    run.stdin.write("de\n")
    run.stdin.flush()
    while run.stdout.read(1) != "\n":
        pass
    assert run.stdout.read(1), "the conversation goes on"
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 0, told
    assert told.count("tokens/s, mean acceptance length") == 2
    assert "Traceback" not in told
