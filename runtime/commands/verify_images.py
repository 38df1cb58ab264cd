"""Work of the command `verify`: reads the images of a plan and prints whether they are those that were compiled."""

import json
from pathlib import Path

from plans import codec
from plans.check import load
from plans.terminal import err, out
from runtime.commands.options import to_stderr
from runtime.commands.placement import plan_lines, tensor_lines
from runtime.errors import RequestError
from runtime.image.verify import check_images


def verify(directory: Path, *, only: tuple[str, ...], as_json: bool, verbose: int) -> None:
    """Run the command; raises PlanError, RequestError or ImageError."""
    plan = load(directory)
    for name in only:
        if not any(name in (device.id, device.host) for device in plan.devices):
            known = ", ".join(device.id for device in plan.devices)
            raise RequestError(f"--only {name}: not a device of the plan, which has {known}")
    chosen = [device.id for device in plan.devices if not only or {device.id, device.host} & set(only)]
    if verbose:
        to_stderr(plan_lines(plan, chosen))
    record = check_images(plan, directory, verify=True, devices=chosen)
    if verbose > 1:
        to_stderr(tensor_lines(plan, directory, chosen))
    if as_json:
        images = [codec.encode(image) for image in record.images if image.device in chosen]
        out(json.dumps({"plan": str(directory), "plan_digest": record.plan_sha256, "images": images}))
    verified = "1 image is the one that was" if len(chosen) == 1 else f"{len(chosen)} images are those that were"
    err(f"{directory}: {verified} compiled")
