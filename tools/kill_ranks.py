"""Kill ranks of a run at random moments, with several signals, and check how the run ends.

    python tools/kill_ranks.py PLAN [--times 50] [--seed 0]

The command must exit with 5, name the device and its phase, and leave no process behind: within 3 s if a rank died,
within 3 s + the plan's stall time-out if one was stopped. A signal after the end of the run must change nothing. PLAN
must have several devices and compiled images.
"""

import argparse
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from plans import codec

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGSTOP)
SLACK_S = 3.0
"""Seconds that a busy machine may take beyond the plan's time-out."""
MOST_S = 60.0
"""Seconds after which a run counts as hung."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of one run."""

    victim: int
    signal: signal.Signals
    after_s: float
    code: int
    ended_s: float
    """Seconds from the signal to the end of the command."""
    phase: str
    """Phase of the victim in the message of the command."""
    complaint: str
    """Reason why the end of the run is wrong; empty if it is right."""


def strike(directory: Path, choose: random.Random, slack_s: float = SLACK_S) -> Outcome:
    """Start a run, hit one of its ranks and wait for the end, which may take ``slack_s`` beyond the plan's time-out."""
    plan = codec.load(directory)
    names = [device.id for device in plan.devices]
    victim, sent = choose.randrange(len(names)), choose.choice(SIGNALS)
    room = plan.options.context - 3
    command = [sys.executable, "-m", "runtime", "run", str(directory), "--prompt-ids", "1,2,3", "--ignore-eos"]
    with tempfile.TemporaryFile("w+") as stderr:
        run = subprocess.Popen(
            [*command, "--max-new-tokens", str(room)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        ranks = _ranks(run, len(names))
        after_s = choose.uniform(0.0, 2.0)
        time.sleep(after_s)
        hit = _hit(ranks[victim], sent) if len(ranks) == len(names) else False
        started = time.monotonic()
        try:
            code = run.wait(MOST_S)
        except subprocess.TimeoutExpired:
            run.kill()  # its ranks end too, except a stopped one
            for left in ranks:
                _hit(left, signal.SIGKILL)
            code = run.wait()
        ended_s = time.monotonic() - started
        stderr.seek(0)
        text = stderr.read()
    _, alive = psutil.wait_procs(ranks, timeout=1.0)
    named = re.search(r"device (\S+) \(rank \d+\), while in '([^']+)', (was killed by SIG\w+|made no progress)", text)
    limit = slack_s + (plan.options.stall_timeout_s if sent == signal.SIGSTOP else 0)
    complaint = ""
    if alive:
        complaint = f"left {alive}"
    elif hit and code != 0:
        if code != 5 or named is None or named[1] != names[victim]:
            complaint = f"exit {code}: {text.strip()}"
        elif ended_s > limit:
            complaint = f"took {ended_s:.1f} s"
    elif code != 0:
        complaint = f"exit {code} without being hit: {text.strip()}"
    return Outcome(
        victim=victim, signal=sent, after_s=after_s, code=code, ended_s=ended_s, phase=named[2] if named else "",
        complaint=complaint,
    )  # fmt: skip


def _ranks(run: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    """Wait until all rank processes of a run exist; return them in order."""
    parent = psutil.Process(run.pid)
    while run.poll() is None:
        children = sorted(parent.children(), key=lambda child: (child.create_time(), child.pid))
        if len(children) == count:
            return children
        time.sleep(0.01)
    return []


def _hit(process: psutil.Process, sent: signal.Signals) -> bool:
    try:
        process.send_signal(sent)
    except psutil.NoSuchProcess:
        return False
    return True


def main() -> None:
    """Strike several runs and print the outcome of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    choose, outcomes = random.Random(arguments.seed), []
    for number in range(arguments.times):
        outcome = strike(arguments.plan, choose)
        outcomes.append(outcome)
        print(
            f"{number:3}  {outcome.signal.name:8} rank {outcome.victim} after {outcome.after_s:4.2f} s: exit "
            f"{outcome.code} in {outcome.ended_s:5.2f} s, while in {outcome.phase!r} {outcome.complaint}",
            flush=True,
        )
    for sent in SIGNALS:
        times = [outcome.ended_s for outcome in outcomes if outcome.signal == sent and outcome.code]
        if times:
            print(f"{sent.name:8} {len(times):3} runs ended, in at most {max(times):.2f} s")
    print("phases:", dict(Counter(outcome.phase for outcome in outcomes if outcome.phase)))
    wrong = [outcome for outcome in outcomes if outcome.complaint]
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} ended as they must")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
