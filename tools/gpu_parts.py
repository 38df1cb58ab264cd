"""The parts of gpu_check, each in a process of its own: ``python tools/gpu_parts.py PART... [--device cuda|cpu]``.

A part prints a JSON object a line: what it tried, what was predicted, what was measured, and the verdict. Weights are
random and made on the device, so that a plan of 16 GB is ready in seconds; only `tokens` and `agreement` compile
images. On a CPU, the same code runs on the embedded model, as far as it needs no GPU.
"""

import argparse
import signal
import sys

import torch
from gpu_measures.bench import Bench
from gpu_measures.decoding import agreement, first_use, graph, launches, memory, steps, tokens
from gpu_measures.kernels import attention, experts, float8, products
from gpu_measures.system import devices, load, machine, nccl, sanitizer

PARTS = {part.__name__: part for part in (
    machine, attention, float8, experts, first_use, steps, launches, memory, graph, tokens, agreement, load, products,
    nccl, devices, sanitizer,
)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, nargs="+")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="the embedded model and small matrices on a GPU, too")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 5
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what a part has started ends with it
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    bench = Bench(torch.device("cuda:0" if options.device == "cuda" else "cpu"), small=options.small)
    for part in options.part:
        PARTS[part](bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
