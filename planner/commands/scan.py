"""``scan``: what the headers of a checkpoint declare."""

from pathlib import Path

from planner.checkpoints.summary import fold
from planner.commands.console import put, say
from planner.families import scan
from plans import codec
from plans.format import format_bytes
from plans.terminal import out


def run(*, checkpoint: Path, as_json: bool, verbose: int) -> None:
    """Write the tensors of a checkpoint, summed by block."""
    summary = scan(checkpoint)
    if verbose:
        for tensor in summary.tensors:
            shape = " x ".join(map(str, tensor.shape))
            say(f"{tensor.name}: {tensor.dtype}, {shape or 'scalar'}, {format_bytes(tensor.nbytes)}")
    if as_json:
        put({"checkpoint": str(checkpoint), **codec.encode(summary)})
        return
    out(f"{summary.num_tensors} tensors, {format_bytes(summary.nbytes)}, {', '.join(summary.dtypes)}")
    for blocks in fold(summary):
        unit = " each" if blocks.num_blocks > 1 else ""
        tensors = f"{blocks.num_tensors:>5} tensors{unit:<5}"
        label = "lm_head" if blocks.label == "head" else blocks.label
        out(f"  {label:<13} {tensors} {format_bytes(blocks.nbytes):>10}{unit}".rstrip())
