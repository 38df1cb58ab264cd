"""``build --replicas``: from options to a fleet, its directory and the images of its templates."""

from pathlib import Path

from planner.api.fleets import Asked, FleetResult, divided
from planner.api.options import BuildOptions
from planner.commands.compile import compile_images, images_data
from planner.commands.console import put, say
from planner.commands.output import Output
from planner.fleet.directory import refuse_foreign
from planner.report import fleet as report
from planner.request import Request
from planner.solver.minimise import Settings
from plans import terminal
from plans.codec import PLAN_FILE


def run(options: BuildOptions, request: Request, asked: Asked, settings: Settings, output: Output) -> None:
    """Divide the inventory, write the fleet, and compile the images of each template unless only to plan."""
    out = output.directory
    refuse_foreign(out)
    result = divided(request, asked, settings)
    result.write(out)
    for line in (report.headline(result.fleet), *report.proof_lines(result.fleet), *report.unused_lines(result.fleet)):
        say(f"{out}: {line}")
    images = {} if output.plan_only or _is_bare(out, result) else _compile(options, result, output)
    for earlier in sorted(file.parent.name for file in out.glob(f"*/{PLAN_FILE}")):
        if earlier not in result.plans:
            say(f"{out}: {earlier} is a template of an earlier fleet, which this one does not have: take it away")
    if output.as_json:
        put({"fleet": str(out), **report.data(result.loaded), **({"images": images} if images else {})})
    else:
        terminal.out(str(out))


def _is_bare(out: Path, result: FleetResult) -> bool:
    """Say which configs had no tensors; return whether there are any."""
    inputs = (result.given.base, *([result.given.draft] if result.given.draft else []))
    bare = [str(own.checkpoint.config_file) for own in inputs if own.checkpoint.tensors is None]
    if bare:
        say(f"{out}: no images: there are no tensors beside {' and '.join(bare)}")
    return bool(bare)


def _compile(options: BuildOptions, result: FleetResult, output: Output) -> dict[str, object]:
    """Compile the images of each template; return what was compiled, by template."""
    images = dict[str, object]()
    for name, plan in result.plans.items():
        head = options.head if plan.draft else None
        compiled = compile_images(output.directory / name, options.base, head, None, verbose=output.verbose)
        images[name] = images_data(compiled)
    return images
