"""Fuzz of everything that a person or a file gives to a command. A program: python -m tests.contract.hostile_inputs

    python -m tests.contract.hostile_inputs KIND SEED COUNT DIRECTORY

Each case runs a command in this process on arguments, an inventory, the configs of a model and its EAGLE head, a device
map or a plan that were changed at random, and must end with a documented exit code: no other error, no hang, no memory
without limit. Prints a line of JSON per case that did not, and the counts of exit codes.
"""

import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import yaml

from planner.cli import main as planner_main
from planner.commands.declarations import COMMANDS
from plans.strict_yaml import dump_yaml
from runtime.cli import commands as runtime_commands
from runtime.cli import main as runtime_main

MOST_BYTES = 6 << 30
"""Address space of this process."""
CASE_S = 30
"""A case that takes more processor time hangs."""
CODES = {"planner": {0, 1, 2, 3}, "runtime": {0, 2, 4, 5}}

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}
MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 16,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 1,
}
HEAD = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "vocab_size": 96,
    "draft_vocab_size": 48,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}
INVENTORY = {
    "hosts": [
        {
            "name": "a",
            "links": {"class": "pcie", "pairs": [{"between": ["g0", "g1"], "class": "nvlink", "latency": "5 us"}]},
            "devices": [
                {"id": "g0", "type": "rtx-4090", "memory": "1 GiB", "reserve": "1 MiB", "ordinal": 0},
                {"id": "g1", "type": "own", "memory": "2 GiB", "bandwidth": "100 GB/s", "flops": "1 TFLOP/s"},
            ],
        },
        {"name": "b", "devices": [{"id": "c0", "type": "cpu", "memory": "1 GiB", "bandwidth": "10 GB/s"}]},
    ],
    "network": {"class": "ethernet", "bandwidth": "25 Gbit/s", "latency": "20 us"},
}

DEVICES = ("g0", "g1", "c0")
WRITING = ("detect", "measure", "html_file", "out")
"""Parameters that make a command write to a file that they name, or measure the machine: they are left as they are."""

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 4096, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**18, 10**40, 10**400, -(2**63)),
    *(0.0, -0.5, 0.5, 1e-300, 1e300, 1e16, 5e-324),
)
TEXTS = (
    *("", " ", "x", "0", "-1", "1:30", "0x10", "1_0", "nan", "inf", "1e999", "yes", "null", "~", "\u0663", "\uff11"),
    *("9" * 5000, "x" * 3000, "a\x1b[31mb", "a\nb", "\u202e", "../x", "/dev/null", "%s%n", "{{ 1 }}"),
    *("0 B", "1 B", "1 B/s", "1 FLOP/s", "9223372036854775807 B", "99999999 TB", "1 ns", "9999999999 s", "1e3 GiB"),
    *("1023 TiB", "0.000001 GB/s", "9000000 TB/s", "cpu", "rtx-4090", "pcie", "gloo", "auto", "g0", "llama", "mixtral"),
    *("bfloat16", "float64", "static", "static=0,0.0", "depth=1", "max", "1k", "999999999999", "100%", "5%", "0.5"),
)
VALUES = (*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [1, 2], {"a": 1}, [None], ["x"] * 50)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every datum in nested mappings and sequences."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(data: Any, rng: random.Random, values: tuple[Any, ...] = VALUES) -> Any:
    """Return a copy with one to three data replaced, removed, added or doubled."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(list(places(data)) or [()])
        if not path:
            return rng.choice(values)
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        action = rng.random()
        if action < 0.75:
            parent[path[-1]] = _like(parent[path[-1]], rng) if action < 0.5 else rng.choice(values)
        elif action < 0.85:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.insert(0, copy.deepcopy(parent[path[-1]]))
        else:
            parent[rng.choice(TEXTS)] = rng.choice(values)
    return data


def _like(value: Any, rng: random.Random) -> Any:
    """Return another value of the same type: of a number often one near it."""
    if isinstance(value, str):
        _, space, unit = value.partition(" ")
        scaled = f"{rng.choice((0, 1, 7, 999, 10**6, 10**9, 10**12, 10**15, 10**18))} {unit}"
        return scaled if space and rng.random() < 0.8 else rng.choice((*DEVICES, *TEXTS))
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 10**300:
        return not value
    near = (value + 1, value - 1, value * 2, value // 2, value * 1000, -value, float(value), str(value))
    return rng.choice((*near, *NUMBERS))


def corrupted(text: str, rng: random.Random) -> bytes:
    """Return text with some bytes changed, cut off or repeated."""
    raw = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 3))):
        start = rng.randrange(len(raw))
        action = rng.randrange(4)
        if action == 0:
            raw[start] = rng.choice(b"\x00\xff\x80:-[]{}&*!|>'\"%@`#,? \n\t0123456789")
        elif action == 1:
            del raw[start : start + rng.randrange(40)]
        elif action == 2:
            raw[start:start] = raw[start : start + rng.randrange(200)]
        else:
            raw[start:start] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return bytes(raw)


class Hang(BaseException):
    """A case took too long."""


def run(program: str, arguments: list[str]) -> tuple[int | str, str]:
    """Return the exit code of a command, or the traceback of an error, and what it wrote to stderr."""
    out, err, saved = io.StringIO(), io.StringIO(), (sys.argv, sys.stdin)
    sys.argv, sys.stdin = [program, *arguments], io.StringIO()
    code: int | str
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            signal.setitimer(signal.ITIMER_PROF, CASE_S)
            try:
                planner_main(arguments, prog_name=program) if program == "planner" else runtime_main()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else str(end.code)
    except BaseException:
        code = traceback.format_exc()
    finally:
        sys.argv, sys.stdin = saved
    return code, err.getvalue()


def _late(number: int, frame: FrameType | None) -> NoReturn:
    raise Hang


class Cases:
    """Random command lines, and the files that they name, in a directory."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self._directory, self._rng = directory, rng
        self._write("model.json", json.dumps(LLAMA))
        self._write("head.json", json.dumps(HEAD))
        self._write("inventory.yaml", yaml.safe_dump(INVENTORY))
        code, err = run("planner", self.build())
        assert code == 0, (code, err)
        self._plan = yaml.safe_load((directory / "plan" / "plan.yaml").read_text())

    def build(self, **files: str) -> list[str]:
        """Return the command line that builds a plan; ``files``: names that differ."""
        names = {"gpus": "inventory.yaml", "model": "model.json", "draft": "head.json", "out": "plan"} | files
        options = [word for name, file in names.items() for word in (f"--{name}", str(self._directory / file))]
        return ["build", *options, "--plan-only", "--solver-limit", "1"]

    def _write(self, name: str, content: str | bytes) -> None:
        raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (self._directory / name).write_bytes(raw)

    def arguments(self) -> tuple[str, list[str]]:
        """Return a command line with hostile values for one to three of its options."""
        rng = self._rng
        plan = str(self._directory / "plan")
        bases = {
            "build": self.build(out="other"),
            "inventory": ["inventory", str(self._directory / "inventory.yaml")],
            "scan": ["scan", str(self._directory / "model.json")],
            **{name: [name, plan] for name in ("compile", "show", "check", "run", "verify", "bench")},
            "diff": ["diff", plan, plan],
        }
        name = rng.choice([*bases, *["build"] * 8, *["run"] * 3])
        program = "runtime" if name in runtime_commands.commands else "planner"
        command = runtime_commands.commands[name] if program == "runtime" else COMMANDS[name]
        line = list(bases[name])
        for _ in range(rng.choice((1, 1, 2, 3))):
            parameter = rng.choice([item for item in command.params if item.name not in WRITING])
            text = str(rng.choice((*TEXTS, *(number for number in NUMBERS if abs(number) < 10**300)))).replace("\0", "")
            if isinstance(parameter, click.Argument):
                line[rng.randrange(1, len(line))] = text
            elif isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
                line.append(parameter.opts[0])
            else:
                line.append(f"{max(parameter.opts, key=len)}={text}")
        if name == "build" and "--detect" not in line:
            line += ["--out", str(self._directory / "other")]
        return program, line

    def inventory(self) -> tuple[str, list[str]]:
        """Return a command on an inventory that was changed or corrupted."""
        data = yaml.safe_dump(changed(INVENTORY, self._rng), allow_unicode=True)
        self._write("hostile.yaml", data if self._rng.random() < 0.8 else corrupted(data, self._rng))
        if self._rng.random() < 0.5:
            return "planner", ["inventory", str(self._directory / "hostile.yaml")]
        return "planner", self.build(gpus="hostile.yaml", out="other")

    def config(self) -> tuple[str, list[str]]:
        """Return a command on the config of a model or of an EAGLE head that was changed or corrupted."""
        kind = self._rng.randrange(3)
        data = json.dumps(changed((LLAMA, MOE, HEAD)[kind], self._rng))
        self._write("hostile.json", data if self._rng.random() < 0.85 else corrupted(data, self._rng))
        if kind == 2:
            return "planner", self.build(draft="hostile.json", out="other")
        line = self.build(model="hostile.json", out="other")
        return "planner", [*line, "--no-draft"] if self._rng.random() < 0.5 else line

    def plan(self) -> tuple[str, list[str]]:
        """Return a command on a plan that was changed or corrupted."""
        hostile = self._directory / "hostile"
        shutil.copytree(self._directory / "plan", hostile, dirs_exist_ok=True)
        data = dump_yaml(changed(self._plan, self._rng))
        (hostile / "plan.yaml").write_bytes(data.encode() if self._rng.random() < 0.8 else corrupted(data, self._rng))
        plan, other = str(hostile), str(self._directory / "plan")
        return self._rng.choice(
            (
                ("planner", ["show", plan, "-vv"]),
                ("planner", ["show", plan, "--markdown"]),
                ("planner", ["diff", other, plan, "-vv"]),
                ("planner", ["check", plan]),
                ("planner", ["compile", plan, "--model", str(self._directory / "model.json")]),
                ("planner", [*self.build(out="other"), "--previous", plan]),
                ("runtime", ["verify", plan]),
                ("runtime", ["run", plan, "--prompt-ids", "1"]),
            )
        )

    def device_map(self) -> tuple[str, list[str]]:
        """Return a command on a device map that was changed or corrupted."""
        lines: dict[str, Any] = {"model.embed_tokens": "g0", "model.layers": "g1", "model.layers.3": "c0"}
        lines |= {"model.norm": "g0", "lm_head": "g0", "draft": "c0"}
        if self._rng.random() < 0.5:
            lines |= {self._rng.choice(list(lines)): self._rng.choice((*DEVICES, 1, "cuda:0"))}
        else:
            lines = changed(lines, self._rng)
        data = yaml.safe_dump(lines, allow_unicode=True)
        self._write("map.yaml", data if self._rng.random() < 0.8 else corrupted(data, self._rng))
        return "planner", [*self.build(out="other"), "--device-map", str(self._directory / "map.yaml")]


KINDS: dict[str, Callable[[Cases], tuple[str, list[str]]]] = {
    "arguments": Cases.arguments,
    "inventory": Cases.inventory,
    "config": Cases.config,
    "plan": Cases.plan,
    "device_map": Cases.device_map,
}


def main(kind: str, seed: str, count: str, directory: str) -> None:
    """Run the cases of a kind."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    place = Path(directory).resolve()
    (place / "here").mkdir(exist_ok=True)
    os.chdir(place / "here")  # names without a directory are of no file of ours
    signal.signal(signal.SIGPROF, _late)
    cases, codes = Cases(place, random.Random(int(seed))), Counter[str]()
    slowest = (0.0, 0)
    for number in range(int(count)):
        program, arguments = KINDS[kind](cases)
        shutil.rmtree(place / "other", ignore_errors=True)
        began = time.process_time()
        code, err = run(program, arguments)
        slowest = max(slowest, (round(time.process_time() - began, 1), number))
        codes[str(code) if isinstance(code, int) else "error"] += 1
        if code not in CODES[program] or "Traceback" in err or (code != 0 and not err and code != 1):
            written = {file.name: file.read_text(errors="replace") for file in place.glob("hostile.*")}
            case = {"case": number, "line": [program, *arguments], "code": code, "err": err[-2000:], "files": written}
            sys.stdout.write(f"{json.dumps(case)}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{json.dumps({'codes': codes, 'slowest': slowest})}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
