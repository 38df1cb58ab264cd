"""The machine, loading, collectives, devices, and memory errors of kernels."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from gpu_measures.bench import GIGA, ROOT, Bench, say, say_rate, untried
from runtime.image.slots import CudaCopies
from runtime.image.transfer import Host, hash_file, upload

Ended = subprocess.CompletedProcess[str]
TOOLKITS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
"""Where CUDA's toolkit has compute-sanitizer."""
SANITIZER = ("--error-exitcode", "9", "--report-api-errors", "no", "--launch-timeout", "0")
"""Options: an exit code of its own; accesses alone, as libraries call for what a driver may not have; a program may
take long to begin (Compute Sanitizer, command line options)."""


SANITIZER_S, LIST_S = 38, 8
"""Time that compute-sanitizer and ``nvidia-smi -L`` have, within that of their parts."""


def ended(command: Sequence[str], seconds: float, environment: Mapping[str, str] = os.environ) -> Ended:
    """Run a command to its end; past ``seconds`` end it, with all that it has started, and raise TimeoutError."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no end within {seconds:g} s") from None
    finally:  # also where the part itself is ended
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def machine(bench: Bench) -> None:
    say("torch", "", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    if bench.gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        kind = bench.type
        say("name", "in the catalogue", f"{properties.name}: {kind.name if kind else 'no type'}", kind is not None)
        if kind is not None and kind.memory_bytes is not None:
            total = properties.total_memory
            say("memory", f"at least {kind.memory_bytes}", total, total >= kind.memory_bytes)
            capability = 10 * properties.major + properties.minor
            say("compute capability", kind.compute_capability, capability, capability == kind.compute_capability)
    source = torch.empty(1 << (31 if bench.gpu else 26), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    rate = 2 * source.numel() / bench.ms(lambda: target.copy_(source), 10) / 1e6
    say_rate(bench, "copy: GB/s", rate)


def load(bench: Bench) -> None:
    size = (4 << 30) if bench.gpu else (64 << 20)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "image"
        block = os.urandom(32 << 20)
        with file.open("wb") as out:
            for _ in range(size // len(block)):
                out.write(block)
        descriptor = os.open(file, os.O_RDONLY)
        for hashed in (False, True):
            begin = time.perf_counter()
            if bench.gpu:
                target = torch.empty(size, dtype=torch.uint8, device=bench.device)
                upload(descriptor, (0, size), file, CudaCopies(target), Host(), hashed=hashed)
                bench.sync()
                right = target[-len(block) :].cpu().numpy().tobytes() == block
            else:
                hash_file(descriptor, size, file)
                right = True
            rate = size / (time.perf_counter() - begin) / GIGA
            name = f"from the page cache, {'hashed' if hashed else 'not hashed'}: GB/s"
            say(name, "", f"{rate:.1f}", None if right else False)
        os.close(descriptor)


def _member(rank: int, file: str, backend: str, times: "multiprocessing.Queue[float]") -> None:
    """Begin an all-reduce that the other member joins two seconds later; report when the call has returned."""
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=dist.FileStore(file, 2), rank=rank, world_size=2)
    x = torch.ones(1 << 20, device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    dist.all_reduce(x)
    x.sum().item()
    time.sleep(2.0 * rank)
    begin = time.perf_counter()
    dist.all_reduce(x)
    if rank == 0:
        times.put(time.perf_counter() - begin)
    x.sum().item()
    if rank == 0:
        times.put(time.perf_counter() - begin)
    dist.destroy_process_group()


def nccl(bench: Bench) -> None:
    if bench.gpu and torch.cuda.device_count() < 2:
        untried("an all-reduce whose other member comes late", "one GPU")
        return
    backend = "nccl" if bench.gpu else "gloo"
    with tempfile.TemporaryDirectory() as directory:
        context = multiprocessing.get_context("spawn")
        times: multiprocessing.Queue[float] = context.Queue()
        members = [context.Process(target=_member, args=(r, f"{directory}/store", backend, times)) for r in range(2)]
        for member in members:
            member.start()
        returned, done = times.get(timeout=25), times.get(timeout=25)
        for member in members:
            member.join(10)
    expected, at_once = "at once" if bench.gpu else "2", returned < 1
    say(f"{backend}: the call returns after s", expected, f"{returned:.2f}", at_once == bench.gpu)
    say(f"{backend}: its result is there after s", "2", f"{done:.2f}", done > 1)


def devices(bench: Bench) -> None:
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    listed = ", ".join(f"{index}: {entry.name} {getattr(entry, 'uuid', '')}" for index, entry in enumerate(names))
    say("devices that torch sees", "", listed or "none")
    detect = [sys.executable, "-m", "planner", "inventory", "--detect", "-"]
    detected = subprocess.run(detect, cwd=ROOT, capture_output=True, text=True)
    first = next((line for line in detected.stderr.splitlines() if line), "")[:60]
    right = detected.returncode == 0 if bench.gpu else detected.returncode in (0, 5)
    say("inventory --detect", "an inventory" if bench.gpu else "no GPU", f"exit {detected.returncode}: {first}", right)
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    seen = subprocess.run(program, env=hidden, capture_output=True, text=True).stdout.strip()
    say("devices with CUDA_VISIBLE_DEVICES empty", 0, seen, seen == "0")
    if not bench.gpu:
        untried("MIG slices", "a CPU has none")
        return
    if shutil.which("nvidia-smi") is None:
        untried("MIG slices", "no nvidia-smi in PATH")
        return
    try:
        report = ended(["nvidia-smi", "-L"], LIST_S)
    except TimeoutError as error:
        untried("MIG slices", f"nvidia-smi -L: {error}")
        return
    slices = [line for line in report.stdout.splitlines() if "MIG" in line]
    if report.returncode:
        untried("MIG slices", f"nvidia-smi -L: exit {report.returncode}")
    elif slices:
        say("MIG slices", "one a process", f"{len(slices)}; torch sees {torch.cuda.device_count()}")
    else:
        untried("MIG slices", "this GPU is not divided")


def sanitizer(bench: Bench) -> None:
    """Run steps of the embedded model, and experts, under compute-sanitizer, which sees accesses outside of what is
    allocated: each tensor, as torch keeps no memory for later ones then.
    """
    what = "memory errors of the kernels of a step and of experts"
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *TOOLKITS]))
    if not bench.gpu or tool is None:
        untried(what, f"no compute-sanitizer in PATH, {', '.join(TOOLKITS)}" if bench.gpu else "a CPU has none")
        return
    program = [sys.executable, str(ROOT / "tools/gpu_parts.py"), "first_use", "experts", "--small"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = ended([tool, *SANITIZER, *program], SANITIZER_S, environment)
    except TimeoutError as error:
        untried(what, str(error))
        return
    last = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("=")), "")
    say(what, "no errors, exit 0", f"{last.strip('= ')[:60]}, exit {done.returncode}", done.returncode == 0)
