"""Parts of torch that a command leaves out are there when somebody uses them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """if True:
    import sys
    from plans.deferred import UNUSED, Deferred
    from runtime.commands.options import load_torch_module
    before = list(sys.meta_path)
    load_torch_module("runtime.engine")
    assert sys.meta_path == before
    assert "numba" not in sys.modules
    assert {name for name in UNUSED if isinstance(sys.modules[name], Deferred)} == UNUSED, "none of them was used"
    import torch
    import torch.export.graph_signature
    from torch.distributions import Normal
    assert Normal(0.0, 1.0).mean == 0
    assert torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False])).sum() == 1
    torch._meta_registrations.register_meta
    import torchgen
    assert torchgen.model.FunctionSchema.parse("neg(Tensor self) -> Tensor").name.name.base == "neg"
    assert torch.nn.Linear(2, 3, device="meta")(torch.empty(1, 2, device="meta")).shape == (1, 3)
    class Next(torch.nn.Module):
        def forward(self, x):
            return x + 1
    assert torch.export.export(Next(), (torch.ones(2),)).module()(torch.ones(2)).tolist() == [2, 2]
    assert not [name for name in UNUSED if isinstance(sys.modules[name], Deferred)]
"""


def test_modules_are_deferred_until_they_are_used() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True)
