"""Run the demo: plan, compile and decode on four CPU devices, with the drafter and without. See `tools/demo`."""

import argparse
import dataclasses
import os
import re
import selectors
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import yaml

from demo_model import DemoError, cache_directory, ensure_model
from demo_rates import Rates, measured
from plans import codec
from plans.schema import RoundedWeights
from runtime.commands.prompts import DEFAULT_PROMPT

ROOT = Path(__file__).parents[1]
HEAD = ROOT / "tools" / "smollm2_head"
PLAN = ROOT / "plans" / "smollm2-4cpu"
QUESTION = "Why is the sky blue? Explain it to a child."
FIGURES = re.compile(r"([0-9.]+) tokens/s, mean acceptance length ([0-9.]+),")
INVENTORY = PLAN / "inventory.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """Plan and prompt of a demo."""

    plan: Path
    build: tuple[str, ...]
    """Options of `planner build`."""
    prompt: str
    run: tuple[str, ...]
    """Options of `runtime run`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """Text of one run, and its figures."""

    text: bytes
    tokens_per_s: float
    acceptance_length: float


def embedded(prompt: str | None, new_tokens: int | None, weights: RoundedWeights | None = None) -> Demo:
    """Return the demo of the embedded model, which was trained on Python and continues a file."""
    plan = ROOT / "plans" / "demo" if weights is None else cache_directory(dict(os.environ)) / f"demo-{weights}"
    return Demo(
        plan=plan,
        build=("--gpus", "inventory.yaml", "--tree", "total_token=16,depth=4,top_k=3", *rounding(weights)),
        prompt=DEFAULT_PROMPT if prompt is None else prompt,
        run=("--ignore-eos", "--max-new-tokens", str(new_tokens or 200)),
    )


def chat(question: str | None, new_tokens: int | None, weights: RoundedWeights | None = None) -> Demo:
    """Return the demo of SmolLM2-135M-Instruct, whose model is fetched and converted if need be; raise DemoError."""
    step("The model: SmolLM2-135M-Instruct, converted once and kept in the cache")
    cache = cache_directory(dict(os.environ))
    model = ensure_model(cache, say, Bar().show)
    say(str(model))
    rates = measured(weights)
    reached = f"{rates.bytes_per_s / 1e9:.1f} GB/s, {rates.flops_per_s / 1e9:.0f} GFLOP/s"
    say(f"measured what products reach on a thread, by which the tree is chosen: {reached} as in an inventory")
    return Demo(
        plan=cache / ("smollm2-4cpu" if weights is None else f"smollm2-4cpu-{weights}"),
        build=(*build_options(model, own_inventory(cache, weights, rates)), *rounding(weights)),
        prompt=QUESTION if question is None else question,
        run=("--chat", "--max-new-tokens", str(new_tokens or 200)),
    )


def rounding(weights: RoundedWeights | None) -> tuple[str, ...]:
    """Return the options of `planner build` that round the weights of the model."""
    return () if weights is None else ("--weights", weights)


def own_inventory(cache: Path, weights: RoundedWeights | None, rates: Rates) -> Path:
    """Return the demo's inventory with the rates of this processor, written to the cache.

    The bandwidths stay as unlike as they are in INVENTORY; the fastest has that of ``rates``.
    """
    inventory = yaml.safe_load(INVENTORY.read_text())
    devices = [device for host in inventory["hosts"] for device in host["devices"]]
    shares = [float(device["bandwidth"].removesuffix(" GB/s")) for device in devices]
    for device, share in zip(devices, shares, strict=True):
        device["bandwidth"] = f"{rates.bytes_per_s * share / max(shares) / 1e9:.1f} GB/s"
        device["flops"] = f"{rates.flops_per_s / 1e9:.1f} GFLOP/s"
    file = cache / ("smollm2-4cpu.yaml" if weights is None else f"smollm2-4cpu-{weights}.yaml")
    file.write_text(yaml.safe_dump(inventory, sort_keys=False))
    return file


def build_options(model: Path, inventory: Path) -> tuple[str, ...]:
    """Return the options of `planner build` for SmolLM2-135M-Instruct, or for its bare config."""
    files = ("--gpus", str(inventory), "--model", str(model), "--draft", str(HEAD.relative_to(ROOT)))
    return (*files, "--dtype", "bfloat16", "--context", "2048")


class Bar:
    """Progress of the conversion: one line on a terminal, elsewhere a line at each quarter."""

    def __init__(self) -> None:
        self.quarter = 0

    def show(self, done: int, total: int) -> None:
        """Show the share of bytes that are done."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done / total:4.0%}" + ("\n" if done == total else ""))
            sys.stderr.flush()
        elif done * 4 // total > self.quarter:
            self.quarter = done * 4 // total
            say(f"{done / total:.0%}")


def say(line: str) -> None:
    """Print a line of the protocol on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def step(title: str) -> None:
    """Print the heading of a step."""
    print(f"\n== {title}", flush=True)


def command(*arguments: str) -> list[str]:
    """Return a command line of this Python; show it as a person would type it."""
    print(f"$ python -m {shlex.join(arguments)}", flush=True)
    return [sys.executable, "-m", *arguments]


def run(*arguments: str) -> None:
    """Run a command and say how long it took; end with its exit code if it fails."""
    started = time.monotonic()
    done = subprocess.run(command(*arguments), cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"({time.monotonic() - started:.1f} s)", flush=True)


def decode(demo: Demo, *options: str) -> Decoded:
    """Decode the prompt, streaming text and figures through; return both."""
    arguments = ("runtime", "run", str(demo.plan), "--prompt", demo.prompt, *demo.run, *options)
    shown = ("runtime", "run", str(demo.plan), "--prompt", "...", *demo.run, *options)
    print(f"$ python -m {shlex.join(shown)}", flush=True)
    with subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        text, log = pass_through(process)
    figures = FIGURES.search(log.decode(errors="replace"))
    if process.returncode or figures is None:
        sys.exit(process.returncode or 1)
    return Decoded(text=text, tokens_per_s=float(figures[1]), acceptance_length=float(figures[2]))


def pass_through(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Copy both outputs of a process as they come; return them whole."""
    assert process.stdout is not None
    assert process.stderr is not None
    text, log = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, (text, sys.stdout))
        selector.register(process.stderr, selectors.EVENT_READ, (log, sys.stderr))
        while selector.get_map():
            for key, _ in selector.select():
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                kept, screen = key.data
                kept += piece
                screen.buffer.write(piece)
                screen.flush()
    return bytes(text), bytes(log)


def show(demo: Demo) -> int:
    """Run all steps; return the exit code: 1 if the two texts differ."""
    step("Build: solve the placement, compile an image for each device")
    run("planner", "build", *demo.build, "--out", str(demo.plan))
    step("The plan")
    run("planner", "show", str(demo.plan))
    step("The prompt")
    print(demo.prompt, flush=True)
    if codec.load(demo.plan).draft is None:
        step("Plain decoding: by the rates of this processor drafting would not pay")
        decode(demo)
        return 0
    step("EAGLE decoding, one process per device")
    draft = decode(demo)
    step("Plain decoding, without the EAGLE head")
    plain = decode(demo, "--no-draft")
    step("Comparison")
    print(f"{'':16}{'tokens/s':>12}{'mean acceptance length':>26}")
    for name, decoded in (("with EAGLE", draft), ("plain", plain)):
        print(f"{name:16}{decoded.tokens_per_s:12.1f}{decoded.acceptance_length:26.2f}")
    print(f"{'ratio':16}{draft.tokens_per_s / plain.tokens_per_s:12.2f}")
    same = draft.text == plain.text
    print("The two texts are the same." if same else "The two texts differ.")
    return 0 if same else 1


def main() -> None:
    """Run the demo of the command line."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--embedded", action="store_true", help="the embedded model of 4 M parameters: no download")
    parser.add_argument("--weights", choices=get_args(RoundedWeights), help="round the model's weights to this format")
    parser.add_argument("prompt", nargs="?", help="a question of your own; with --embedded, a text to continue")
    parser.add_argument("new_tokens", nargs="?", type=int, help="most new tokens (default: 200)")
    args = parser.parse_args()
    if args.new_tokens is not None and args.new_tokens < 1:
        parser.error(f"NEW_TOKENS: found {args.new_tokens}, expected at least 1")
    try:
        demo = (embedded if args.embedded else chat)(args.prompt, args.new_tokens, args.weights)
    except DemoError as error:
        parser.exit(2, f"error: {error}\n")
    sys.exit(show(demo))


if __name__ == "__main__":
    main()
