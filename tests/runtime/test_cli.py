"""The commands of the runtime: exit codes, stdout and stderr."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

from plans import codec
from plans.acceptance import load_profile
from plans.schema import Plan
from runtime.cli import describe, main
from runtime.commands import prompts
from runtime.engine import Engine
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
    output = json.loads(done.stdout)
    assert output["prompt_ids"] == [1, 2, 3]
    assert len(output["tokens"]) == 12
    assert sum(output["accept_lengths"]) + len(output["accept_lengths"]) + 1 >= 12
    assert output["plan_digest"] == codec.digest(plan_dir[1])
    assert min(output[key] for key in ("load_s", "prefill_s", "decode_s", "tokens_per_s")) > 0
    assert [device["device"] for device in output["devices"]] == ["a", "b"]
    for device in output["devices"]:
        assert all(device["measured_bytes"][term] <= planned for term, planned in device["planned_bytes"].items())


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_core: None) -> Command:
    """Return a function that runs a command in this process; ``stdin`` is an empty stream by default."""

    def run(*arguments: str | Path, stdin: TextIO | None = None) -> Done:
        monkeypatch.setattr(sys, "argv", ["runtime", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO() if stdin is None else stdin)
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Done(end.value.code, output.out, output.err)

    return run


@pytest.fixture(scope="module")
def one_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a plan of one device, with a tokenizer and a chat template."""
    directory, _ = compiled_plan(tmp_path_factory.mktemp("one"))
    write_tokenizer(directory)
    template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}a"
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return directory


def test_run_streams_text_on_stdout_and_figures_on_stderr(command: Command, one_dir: Path) -> None:
    done = command("run", one_dir, "--prompt", "abc", "--max-new-tokens", "8", "--no-draft")
    assert (done.code, done.out[-1]) == (0, "\n"), done.err
    assert "mean acceptance length 1.00" in done.err
    assert codec.digest(codec.load(one_dir))[:16] in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt-ids", "1,x"], 2, "--prompt-ids: found '1,x', expected numbers like 1,2,3"),
        *(
            (["--prompt-ids", text], 2, "--prompt-ids: found ")
            for text in ("\uff11", "1_0", "\u0663", "-1", "0x1", "1,,2", "1,", "nan", "9" * 5000, "1.0")
        ),
        *(
            (["--prompt-ids", "1", f"{option}={text}"], 2, f"Invalid value for '{option}': found ")
            for option in ("--max-new-tokens", "--top-k", "--seed", "--temperature", "--top-p")
            for text in ("", "nan", "inf", "1_0", "\u0663", "9" * 5000, "1e999", "0x1")
        ),
        (["--prompt-ids", ""], 2, "prompt: empty"),
        (["--prompt-ids", "1,77"], 2, "prompt_ids[1]: found 77, expected 0 to 49"),
        (["--prompt", "abc"], 2, "tokenizer.json: not there"),
        (["--prompt-ids", "1", "--stop", "x"], 2, "tokenizer.json: not there"),
        (["--prompt-ids", "1", "--temperature", "-1"], 2, "temperature: found -1, expected 0 (greedy) or at least"),
        (["--prompt-ids", "1", "--temperature", "1", "--top-p", "0"], 2, "top_p: found 0, expected more than 0"),
        (["--prompt-ids", "1", "--temperature", "1", "--top-k", "-1"], 2, "top_k: found -1, expected 0 (no limit) to"),
        (["--prompt-ids", "1", "--temperature", "1", "--seed", "-1"], 2, "seed: found -1, expected 0 to 2^63 - 1"),
        (["--prompt-ids", "1", "--chat"], 2, "tokenizer_config.json: chat_template: missing"),
        (["--prompt-ids", "1", "--system", "x"], 2, "--system: only with --chat"),
        (["--prompt-ids", "1", "--interactive"], 2, "--interactive: not with --prompt, --prompt-ids"),
        (["--prompt-ids", "1", "--max-new-tokens", str(CONTEXT)], 2, f"the plan has a context of {CONTEXT}"),
    ],
)
def test_run_refuses(
    arguments: list[str], code: int, message: str, plan_dir: tuple[Path, Plan], command: Command
) -> None:
    done = command("run", plan_dir[0], *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_run_without_images_names_them_and_the_command(
    plan_dir: tuple[Path, Plan], tmp_path: Path, command: Command
) -> None:
    (tmp_path / "plan.yaml").write_bytes((plan_dir[0] / "plan.yaml").read_bytes())
    done = command("run", tmp_path, "--prompt-ids", "1")
    assert done.code == 4
    assert "a.safetensors, b.safetensors" in done.err
    assert f"python -m planner compile {tmp_path}" in done.err


def test_torchrun_must_start_one_process_per_device(
    plan_dir: tuple[Path, Plan], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    done = command("run", plan_dir[0], "--prompt-ids", "1")
    assert done.code == 5
    assert "torchrun started 3 processes, the plan has 2 devices" in done.err


def test_verify_reads_every_image(plan_dir: tuple[Path, Plan], tmp_path: Path, command: Command) -> None:
    assert command("verify", plan_dir[0]).code == 0
    directory = tmp_path / "plan"
    shutil.copytree(plan_dir[0], directory)
    damage(directory / "b.safetensors")
    done = command("verify", directory)
    assert done.code == 4
    assert "b.safetensors: BLAKE3" in done.err
    done = command("verify", directory, "--only", "a", "--json")
    assert (done.code, [image["device"] for image in json.loads(done.out)["images"]]) == (0, ["a"])


def test_run_verifies_images_unless_no_verify_is_given(one_dir: Path, tmp_path: Path, command: Command) -> None:
    directory = tmp_path / "plan"
    shutil.copytree(one_dir, directory)
    damaged = damage(directory / "a.safetensors")
    run = ("run", directory, "--prompt-ids", "1", "--max-new-tokens", "4")
    assert command(*run).code == 4
    assert command(*run, "--no-verify").code == 0
    (directory / "a.safetensors").write_bytes(damaged[:-256])
    assert command(*run, "--no-verify").code == 4, "file sizes are checked anyway"


def damage(image: Path) -> bytearray:
    """Flip a bit of an image; return the damaged bytes."""
    data = bytearray(image.read_bytes())
    data[-1000] ^= 1
    image.write_bytes(data)
    return data


# ---- stdin and stdout ----


def test_a_prompt_from_stdin_in_the_chat_template(one_dir: Path, command: Command) -> None:
    common = ("run", one_dir, "--max-new-tokens", "5", "--json", "--temperature", "1", "--seed", "7")
    from_stdin = command(*common, "--prompt", "-", "--chat", "--system", "e", stdin=io.StringIO("bcd"))
    piped, rendered = json.loads(from_stdin.out), json.loads(command(*common, "--prompt", "seubcda").out)
    assert (piped["prompt_ids"], piped["tokens"], piped["seed"]) == (rendered["prompt_ids"], rendered["tokens"], 7)


def test_piped_text_is_the_prompt_and_a_silent_pipe_is_refused(
    one_dir: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("run", one_dir, "--max-new-tokens", "3", "--json")
    for late_s in (0.0, 0.5):
        reading, writing = os.pipe()
        threading.Timer(late_s, lambda end=writing: (os.write(end, b"bc"), os.close(end))).start()
        with os.fdopen(reading) as stdin:
            assert json.loads(command(*run, stdin=stdin).out)["prompt_ids"] == [1, 2]
    monkeypatch.setattr(prompts, "SILENCE_S", 1)
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        done = command(*run, stdin=stdin)
    os.close(writing)
    assert (done.code, json.loads(done.out)["error"]["exit_code"]) == (2, 2)
    assert "stdin is a pipe, and nothing came from it for 1 s: give --prompt TEXT" in done.err
    with Path(os.devnull).open() as stdin:
        assert "this continues the default prompt" in command(*run, stdin=stdin).err


@pytest.mark.parametrize("data", [b"", b"\xff\xfe"])
def test_empty_or_undecodable_piped_input_is_refused(
    data: bytes, one_dir: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "prompt").write_bytes(data)
    with (tmp_path / "prompt").open(encoding="utf-8") as stdin:
        done = command("run", one_dir, stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert ("prompt: character 0 is none: the bytes are not UTF-8" if data else "prompt: empty") in done.err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EIO, "Input/output error"), "error: stdout: cannot write: Input/output error"),
        (OSError(errno.EMFILE, "Too many open files"), "error: [Errno 24] Too many open files"),
        (PermissionError("/kernels cannot be written"), "error: /kernels cannot be written"),
    ],
)
def test_only_errors_that_writing_has_are_said_to_be_of_stdout(error: OSError, text: str) -> None:
    refusal = describe(error)
    assert refusal is not None
    assert (refusal.exit_code, refusal.text) == (1, text)


def test_an_output_that_cannot_be_written_ends_the_run(one_dir: Path) -> None:
    command = [sys.executable, "-m", "runtime", "run", str(one_dir), "--prompt-ids", "1", "-q", "--max-new-tokens", "9"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: stdout: cannot write: No space left on device\n")


def test_debug_prints_the_contents_of_devices(one_dir: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ("run", one_dir, "--prompt-ids", "1", "--max-new-tokens", "3")
    assert "memory" not in command(*run).err
    monkeypatch.setenv("DEBUG", "1")
    once = command(*run).err
    for words in (
        "a (cpu of box0): ",
        "layers 0-7 with ",
        "memory before: ",
        "memory loaded: ",
        "memory after: ",
        " allocated",
    ):
        assert words in once
    assert "layers.3.qkv.weight" not in once
    monkeypatch.setenv("DEBUG", "2")
    assert "layers.3.qkv.weight" in command(*run).err
    assert "layers.3.qkv.weight" in command("verify", one_dir).err


def test_each_of_several_outputs_has_a_label_on_stderr(tmp_path: Path, command: Command) -> None:
    directory, _ = compiled_plan(tmp_path)
    done = command("run", directory, "--prompt-ids", "1", "--prompt-ids", "2,3", "--max-new-tokens", "2")
    assert [line for line in done.err.splitlines() if line.startswith("---")] == [
        "--- prompt 1 of 2: '1'",
        "--- prompt 2 of 2: '2,3'",
    ]
    assert [len(line.split()) for line in done.out.splitlines()] == [2, 2]


def test_a_usage_error_with_json_is_an_object(command: Command) -> None:
    done = command("run", "--nosuch", "--json")
    assert (done.code, json.loads(done.out)["error"]["type"]) == (2, "UsageError")
    assert "No such option" in done.err


def test_help_has_exit_codes_and_examples(command: Command) -> None:
    whole = command("--help").out
    assert "..." not in whole.partition("Commands:")[2], "no summary is cut off"
    for code in ("0  done", "2  bad input", "4  an image", "5  the machine", "130  interrupted"):
        assert code in whole
    for name in ("run", "bench", "verify"):
        assert f"runtime {name} plans/" in command(name, "--help").out, "the name is that of the program"


def test_a_closed_pipe_ends_a_run_quietly(plan_dir: tuple[Path, Plan]) -> None:
    command = [sys.executable, "-m", "runtime", "run", str(plan_dir[0]), "--prompt-ids", "1", "-q"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_text_for_a_closed_stdout_is_an_error(one_dir: Path) -> None:
    command = [sys.executable, "-m", "runtime", "run", str(one_dir), "--prompt-ids", "1", "--max-new-tokens", "2", "-q"]
    done = subprocess.run(
        ["bash", "-c", '"$@" >&-', "-", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (
        1, "error: stdout: cannot write: it is closed: open it, or send it to a file\n"
    )  # fmt: skip


def test_a_conversation_continues_from_the_earlier_turns(one_dir: Path, command: Command) -> None:
    turns = io.StringIO("bc\n\ndef\n" + "g" * CONTEXT + "\n\ud800\nh\n")
    done = command("run", one_dir, "--interactive", "--max-new-tokens", "4", "-v", stdin=turns)
    assert done.code == 0, done.err
    first, second, third = done.out.splitlines()
    with Engine.open(one_dir) as engine:
        answer = engine.generate("bc", max_new_tokens=4)
        assert first == answer.text
        context = [*answer.prompt_ids, *answer.tokens, 3, 4, 5]
        again = engine.generate(context, max_new_tokens=4)
        assert second == again.text
        assert third == engine.generate([*context, *again.tokens, 7], max_new_tokens=4).text, (
            "refused turns are not part of the conversation"
        )
    assert done.err.count("tokens/s, mean acceptance length") == 3
    assert f"the plan has a context of {CONTEXT}" in done.err
    assert "prompt: character 0 is none" in done.err


def test_ctrl_c_during_imports_ends_with_sigint_and_without_traceback(one_dir: Path) -> None:
    command = [sys.executable, "-v", "-m", "runtime", "run", str(one_dir), "--interactive"]
    run = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    assert any("import 'torch._C'" in line for line in run.stderr), "python -v reports each import on stderr"
    run.send_signal(signal.SIGINT)
    _, output = run.communicate(timeout=60)
    assert (run.returncode, "Traceback" in output) == (130, False)
    assert output.endswith("interrupted\n")


def test_ctrl_c_ends_the_answer_and_a_second_one_the_conversation(tmp_path: Path) -> None:
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
    assert run.stdout.read(1), "the conversation continues"
    run.send_signal(signal.SIGINT)
    _, output = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert output.count("tokens/s, mean acceptance length") == 2
    assert "Traceback" not in output


@pytest.mark.parametrize("limit", ["-v 500000", "-n 14", "-n 16"])
def test_a_limit_of_the_system_is_refused_in_a_line(limit: str, plan_dir: tuple[Path, Plan]) -> None:
    """Too little address space for torch, or for numpy, whose BLAS ends the process; too few files, in a rank too."""
    words = [sys.executable, "-m", "runtime", "run", plan_dir[0], "--prompt-ids", "1,2", "--max-new-tokens", "3", "-q"]
    command = f"ulimit {limit}; exec {' '.join(map(str, words))}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1), done.stderr
    assert (done.returncode == 5 and done.stderr.startswith("error: ")) or "OpenBLAS error" in done.stderr


def test_bench_writes_an_acceptance_profile(one_dir: Path, tmp_path: Path, command: Command) -> None:
    file, questions = tmp_path / "profile.yaml", tmp_path / "questions.txt"
    questions.write_text("abc\n\nxyz\n")
    asked = ("--profile-out", file, "--prompts", questions, "--prompt", "b", "--max-new-tokens", "12")
    done = command("bench", one_dir, *asked)
    assert done.code == 0, done.err
    assert done.out.startswith("acceptance length ")
    profile = load_profile(file, inside=False)
    assert "behind 3 prompts, greedy, total_token=" in profile.source
    data = json.loads(command("bench", one_dir, *asked, "--json").out)
    assert data["contexts"][0]["steps"] == profile.contexts[0].steps


def test_bench_refuses_prompts_without_a_profile(one_dir: Path, command: Command) -> None:
    done = command("bench", one_dir, "--prompt", "abc")
    assert (done.code, "are for --profile-out" in done.err) == (2, True)
