"""A small compiled plan, and a tokenizer with one letter per token."""

import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from planner.families import inputs_of, load_base, load_draft
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import Plan
from tests.plan_factory import group, make_device, make_plan, write_base, write_draft

CONTEXT = 48


def compiled_plan(
    directory: Path,
    devices: tuple[str, ...] = ("a",),
    *,
    context: int = CONTEXT,
    stall_timeout_s: int = 8,
    hosts: tuple[str, ...] | None = None,
    batch: int = 1,
) -> tuple[Path, Plan]:
    """Compile a plan of one stage with an EAGLE-3 head; ``hosts`` are those of the devices, by default one host."""
    write_base(directory / "base", num_layers=8)
    write_draft(directory / "head")
    base = load_base(directory / "base")
    draft = load_draft(directory / "head", base)
    plan = make_plan(
        base.model,
        [group(base.model, devices, 8)],
        draft=draft.draft,
        inputs=inputs_of(base, draft),
        context=context,
        stall_timeout_s=stall_timeout_s,
        batch=batch,
        devices=hosts and [make_device(name, host=host) for name, host in zip(devices, hosts, strict=True)],
    )
    target = directory / "plan"
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(target, directory / "base", directory / "head")
    return target, plan


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level tokenizer of 50 ids: 48 letters, then the two bytes of an é."""
    alphabet = [*string.ascii_letters[:48], "Ã", "©"]
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
