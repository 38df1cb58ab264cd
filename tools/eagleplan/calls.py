"""The two calls: ``open`` returns an engine for a model, ``run`` answers one prompt."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, cast

import runtime
from eagleplan import kept
from eagleplan.kept import Report
from plans.schema import DType, KvAxis, KvDType, RoundedWeights, Strategy, Tree
from runtime.errors import ImageError, RequestError
from runtime.request import GenerateOptions, TokenIds

if TYPE_CHECKING:
    from runtime import Engine, Generation


class PlanOptions(TypedDict, total=False):
    """Options that decide the plan, with the meaning and the defaults of ``planner.plan``."""

    aux_layers: str | None
    """Layers of the model that an EAGLE-3 head reads, like ``inputs=2,18,33``, where its config does not tell."""
    context: int | Literal["max"] | None
    batch: int
    dtype: DType | None
    weights: RoundedWeights | None
    """Format to which the model's plain weights are rounded, as ``int4-g32``."""
    kv_dtype: KvDType | None
    kv_axis: KvAxis | None
    strategy: Strategy | Literal["auto"] | None
    """``latency`` (or ``auto``), or as accelerate names them: ``balanced``, ``balanced_low_0``, ``sequential``."""
    device_map: str | Path | None
    """File with a device map of Hugging Face, whose devices are those of the inventory."""
    tree: Tree | None
    objective: Literal["tokens", "step"] | None
    """``tokens`` chooses the draft tree, or none (the default with a draft); ``step``: EAGLE's, or ``tree``."""
    prefill_chunk: int | None
    stall_timeout_s: int | None
    gap: float
    simplify: float
    max_devices: int | None


def tree(*, total_token: int = 60, depth: int = 7, top_k: int = 10) -> Tree:
    """Return a dynamic draft tree, by EAGLE's names and defaults; ``total_token`` counts the root."""
    return Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None)


class RunOptions(PlanOptions, total=False):
    """Options of ``run``: those of the plan, and how the prompt is continued, as in ``Engine.generate``."""

    max_new_tokens: int | None
    max_length: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop: str | Iterable[str] | None
    ignore_eos: bool


def open(  # noqa: A001 (eagleplan.open is its name)
    model: str | Path | None = None,
    *,
    draft: str | Path | None = None,
    gpus: str | Path | None = None,
    cache_dir: str | Path | None = None,
    verify: bool = True,
    report: Report = kept.ignore,
    **options: Unpack[PlanOptions],
) -> "Engine":
    """Return an engine for a model on this machine; what was planned and compiled before is opened as it is.

    ``model``, ``draft``: checkpoint directories; without either, the demo model and its EAGLE head. ``gpus``: an
    inventory; None: this machine, detected (a CPU is measured once, and its figures kept). ``cache_dir``: where plans
    and images are kept, by default ``$XDG_CACHE_HOME/eagleplan``. ``verify``: compare the images with their digests.
    ``report`` is called with each phase.

    Raise the errors of ``planner.plan``, ``planner.compile`` and ``Engine.open``; TypeError for an unknown argument.
    """
    _check_names(options, PlanOptions.__annotations__)
    cache = kept.directory(cache_dir)
    inventory = kept.this_machine(cache, report) if gpus is None else Path(gpus)
    plan = kept.plan(cache, model=model, draft=draft, inventory=inventory, options=options, report=report)
    report("opening the plan")
    try:
        return runtime.Engine.open(plan, verify=verify)
    except ImageError as error:
        raise type(error)(f"{error}; kept by eagleplan: remove {plan.parent}, and it is compiled again") from error


def run(
    model: str | Path | None = None,
    *,
    prompt: str | TokenIds,
    draft: str | Path | None = None,
    gpus: str | Path | None = None,
    chat: bool = False,
    cache_dir: str | Path | None = None,
    verify: bool = True,
    report: Report = kept.ignore,
    **options: Unpack[RunOptions],
) -> "Generation":
    """Return the continuation of a prompt: ``open``, one ``Engine.generate``, and the end of the engine.

    ``chat``: the prompt is a message, in the chat template of the tokenizer. Other arguments and errors as of ``open``
    and ``Engine.generate``. Where several prompts follow, keep an engine open.
    """
    _check_names(options, RunOptions.__annotations__)
    if chat and not isinstance(prompt, str):
        raise RequestError("chat: the prompt is token ids, expected the text of a message")
    plan_names = PlanOptions.__annotations__
    planned = {name: value for name, value in options.items() if name in plan_names}
    continued = {name: value for name, value in options.items() if name not in plan_names}
    with open(
        model,
        draft=draft,
        gpus=gpus,
        cache_dir=cache_dir,
        verify=verify,
        report=report,
        **cast(PlanOptions, planned),
    ) as engine:
        if chat:
            message = {"role": "user", "content": cast(str, prompt)}
            prompt = engine.tokenizer.apply_chat_template([message], add_generation_prompt=True)
        return engine.generate(prompt, **cast(GenerateOptions, continued))


def _check_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for a keyword that is not known, as any call does, before anything is planned."""
    for name in options:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(known)}"
            raise TypeError(f"unexpected keyword argument {name!r}, {hint}")
